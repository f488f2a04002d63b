"""Every family builds as an engine in fp16 and int8, on a machine without a GPU."""

import pytest

from tfx.export.families import FAMILIES
from tfx.quantize.engine_survey import survey
from tfx.recipe import EngineRecipe
from tfx.runtime.engines import MODULES

SM89 = EngineRecipe(gpus=("sm89",))

# Plain attention; grouped, capped and with rotary positions; in windows, with a bias. The others
# take minutes, and are run by `pytest -m every`; docs/tensorrt.md has them all.
KINDS = {"BertModel", "Gemma2ForCausalLM", "SwinForImageClassification"}


def families():
    for family in FAMILIES:
        usual = family.class_name in KINDS
        name = f"{family.name} {family.class_name}".replace(" ", "-").replace(",", "")
        yield pytest.param(family, id=name, marks=[] if usual else [pytest.mark.every])


@pytest.mark.parametrize("family", list(families()))
def test_it_builds(family, tmp_path):
    pytest.importorskip(
        MODULES[SM89.target], reason="needs TensorRT-RTX: pip install 'tfx-toolkit[rtx]'"
    )
    for one in survey([family], SM89, tmp_path, ("fp16", "int8")):
        assert not one.problem, f"{one.part} {one.precision}: {one.step}: {one.problem}"
