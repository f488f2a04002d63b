"""One graph for every engine: what export writes runs on OpenVINO and builds with TensorRT-RTX.

ONNX Runtime, the third, is what every export is proved on.
"""

import numpy as np
import pytest
from support.graphs import attention_nodes

from tfx.chatter import quiet
from tfx.export.engines.engine import build_engine
from tfx.export.families import FAMILIES, build
from tfx.export.pipeline import export_bundles
from tfx.recipe import EngineRecipe, ExportRecipe, Target
from tfx.runtime.engines import MODULES
from tfx.runtime.proof import PROOF_FILE, check_cases, load_cases
from tfx.signature import ShapeRange

TOLERANCE = 1e-4

# Rotary positions (with and without groups of heads), learned ones, relative ones, none.
CLASSES = (
    "LlamaForCausalLM",
    "Qwen3ForCausalLM",
    "ModernBertForMaskedLM",
    "GPT2LMHeadModel",
    "BertForSequenceClassification",
    "T5ForConditionalGeneration",
)
ROTARY = {"LlamaForCausalLM": 4, "Qwen3ForCausalLM": 4, "ModernBertForMaskedLM": 4}


@pytest.fixture(scope="module", params=CLASSES)
def bundle(request, tmp_path_factory):
    """The bundle of a tiny model; of T5 the encoder's."""
    folder = tmp_path_factory.mktemp(request.param)
    family = next(one for one in FAMILIES if one.class_name == request.param)
    with quiet():
        build(family).save_pretrained(folder / "from")
    recipe = ExportRecipe(max_sequence=family.max_sequence)
    return export_bundles(str(folder / "from"), folder / request.param, recipe)[0]


def test_the_graph_has_the_operators_in_question(bundle):
    ir = pytest.importorskip("onnx_ir")
    model = ir.load(bundle.model)
    assert len(attention_nodes(model)) == 2
    rotary = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert len(rotary) == ROTARY.get(bundle.name.removesuffix("-encoder"), 0)


def test_openvino_gives_pytorchs_numbers(bundle):
    openvino = pytest.importorskip(
        "openvino", reason="needs OpenVINO: pip install 'tfx-toolkit[openvino]'"
    )
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(bundle.model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def run(feed):
        results = compiled(dict(feed))
        return {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}

    cases = load_cases(bundle.path / PROOF_FILE)
    _, verdict = check_cases(run, cases, TOLERANCE)
    assert len(cases) > 10
    assert verdict.passed, verdict


def test_tensorrt_rtx_builds_an_engine(bundle):
    pytest.importorskip(
        MODULES[Target.TENSORRT_RTX], reason="needs TensorRT-RTX: pip install 'tfx-toolkit[rtx]'"
    )
    sizes = {"batch": ShapeRange(1, 2, 4), "sequence": ShapeRange(1, 8, 32)}
    engine = build_engine(bundle, EngineRecipe(gpus=("sm89",), profiles=(sizes,)))
    assert len(engine.plan) > 100_000
