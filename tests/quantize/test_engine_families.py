"""Every family builds as an engine in fp16 and int8, on a machine without a GPU."""

import pytest

from tfx.export.families import FAMILIES
from tfx.quantize.engine_survey import survey
from tfx.recipe import EngineRecipe
from tfx.runtime.engines import MODULES

SM89 = EngineRecipe(gpus=("sm89",))

# `tests/export/test_families.py` builds each in float16, and in int8 with float16 around; here also
# with its cache, and int8 with float32 around, which takes minutes.


def label(family):
    return f"{family.name} {family.class_name}".replace(" ", "-").replace(",", "")


@pytest.mark.every
@pytest.mark.parametrize("family", FAMILIES, ids=label)
def test_it_builds(family, tmp_path):
    pytest.importorskip(
        MODULES[SM89.target], reason="needs TensorRT-RTX: pip install 'tfx-toolkit[rtx]'"
    )
    for one in survey([family], SM89, tmp_path, ("fp16", "int8")):
        assert not one.problem, f"{one.part} {one.precision}: {one.step}: {one.problem}"
