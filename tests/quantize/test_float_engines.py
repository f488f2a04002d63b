"""Exported models in float16 and bfloat16, on every engine that takes them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers
from onnx.checker import check_model
from support.bundles import write_bundle
from support.checkpoints import SIZES, write_checkpoint
from support.graphs import run_ort, run_reference

from tfx.dtypes import DType
from tfx.export.engines.engine import build_engine
from tfx.export.pipeline import export_bundle
from tfx.extras import need
from tfx.quantize.floats import cpu_variant, lower_floats
from tfx.recipe import EngineRecipe, Target
from tfx.runtime.compare import scaled_error
from tfx.runtime.engines import MODULES
from tfx.runtime.proof import PROOF_FILE, load_cases
from tfx.signature import ShapeRange

LOW = [DType.FLOAT16, DType.BFLOAT16]

# Two layers of random weights, whose outputs nearly cancel: up to 2e-2 in float16 (T5, whose
# scores are not scaled down, so that a softmax of few keys shows every bit), 2**3 times that in
# bfloat16; 2 to 7 times less in the others.
ERRORS = {DType.FLOAT16: 4e-2, DType.BFLOAT16: 0.3}

# Heads of 32: TensorRT fuses attention from 16 on.
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
WIDE = SIZES | {"hidden_size": 64, "num_attention_heads": 2}
FAMILIES = {
    "bert": (transformers.BertModel, transformers.BertConfig(**WIDE)),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            vocab_size=64, n_embd=64, n_layer=2, n_head=2, n_positions=64, **SPECIAL
        ),
    ),
    "t5": (
        transformers.T5EncoderModel,
        transformers.T5Config(
            vocab_size=64, d_model=64, d_kv=32, d_ff=96, num_layers=2, num_heads=2
        ),
    ),
    "vit": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            image_size=16,
            patch_size=4,
        ),
    ),
    "llama": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**WIDE, **SPECIAL, num_key_value_heads=2),
    ),
    "modernbert": (
        transformers.ModernBertModel,
        transformers.ModernBertConfig(
            **WIDE,
            **SPECIAL,
            global_attn_every_n_layers=2,
            local_attention=8,
            cls_token_id=2,
            sep_token_id=3,
        ),
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("floats")


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, root):
    """The bundle of a tiny model."""
    model_class, config = FAMILIES[request.param]
    folder = write_checkpoint(
        root / "from" / request.param,
        model_class,
        config,
        std=0.2,
        tokenizer=request.param != "vit",
    )
    return export_bundle(str(folder), root / request.param)


def lowered(bundle, dtype, ranges=None):
    model = ir.load(bundle.model)
    kept = lower_floats(model, dtype, ranges)
    check_model(ir.to_proto(model), full_check=True)
    return model, kept


def feeds_of(bundle):
    return [case.feed for case in load_cases(bundle.path / PROOF_FILE)]


def worst(run, bundle, feeds):
    """Largest scaled error of a way to run the graph."""
    parent = ir.load(bundle.model)
    return max(
        scaled_error(before, after)
        for feed in feeds
        for before, after in zip(run_ort(parent, feed), run(feed), strict=True)
    )


@pytest.mark.parametrize("dtype", LOW)
def test_onnx_runtime_runs_the_variant(exported, dtype):
    variant = cpu_variant(lowered(exported, dtype)[0])
    check_model(ir.to_proto(variant), full_check=True)
    feeds = feeds_of(exported)
    assert worst(lambda feed: run_ort(variant, feed), exported, feeds) < ERRORS[dtype]


def test_onnx_runtime_runs_float16_itself(exported):
    model, _ = lowered(exported, DType.FLOAT16)
    feeds = feeds_of(exported)
    assert worst(lambda feed: run_ort(model, feed), exported, feeds) < ERRORS[DType.FLOAT16]


def test_onnx_runtime_has_no_bfloat16_on_cpus(exported):
    """Once it has, the variant may go."""
    model, _ = lowered(exported, DType.BFLOAT16)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        run_ort(model, feeds_of(exported)[0])


# T5 takes the logarithm of distance 0, makes it an integer, and never uses it.
logarithm_of_zero = pytest.mark.filterwarnings(
    "ignore:divide by zero encountered in log", "ignore:invalid value encountered in cast"
)


@logarithm_of_zero
@pytest.mark.parametrize("dtype", LOW)
def test_the_definition_of_the_operators_gives_the_numbers(exported, dtype):
    model, _ = lowered(exported, dtype)
    feeds = feeds_of(exported)[:2]
    assert worst(lambda feed: run_reference(model, feed), exported, feeds) < ERRORS[dtype]


@pytest.mark.parametrize("dtype", LOW)
def test_openvino_runs_it(exported, dtype):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'tfx-toolkit[openvino]'")
    openvino = need("openvino")
    model, _ = lowered(exported, dtype)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(ir.to_proto(model).SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    feeds = feeds_of(exported)
    run = lambda feed: list(compiled(dict(feed)).values())  # noqa: E731
    assert worst(run, exported, feeds) < ERRORS[dtype]


@pytest.mark.parametrize("dtype", LOW)
def test_tensorrt_builds_it_with_fused_attention(exported, dtype, tmp_path):
    pytest.importorskip(
        MODULES[Target.TENSORRT_RTX], reason="needs TensorRT-RTX: pip install 'tfx-toolkit[rtx]'"
    )
    model, _ = lowered(exported, dtype)
    signature = exported.manifest.signature
    bundle = write_bundle(tmp_path / "low", ir.to_proto(model), signature=signature)
    sizes = {axis: ShapeRange(1, 4, 32) for axis in ("batch", "sequence")}
    axes = {axis for spec in signature.inputs for axis in spec.shape}
    profile = {axis: size for axis, size in sizes.items() if axis in axes}
    engine = build_engine(bundle, EngineRecipe(gpus=("sm89",), profiles=(profile,)))
    assert engine.build.attention == 2
    assert engine.build.fused_kernels > 0


@pytest.fixture(scope="module")
def overflowing(root):
    """A T5 whose residual stream leaves float16, as that of the large ones does."""
    torch.manual_seed(0)
    model_class, config = FAMILIES["t5"]
    model = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.2) if weight.ndim > 1 else weight.fill_(1.0)
            if name.endswith("wo.weight"):
                weight.mul_(6e4)
    folder = root / "from" / "overflowing"
    write_checkpoint(folder, model_class, config)
    model.save_pretrained(folder)
    return export_bundle(str(folder), root / "overflowing")


def reaches(bundle, feeds):
    """Largest magnitude of every float in the graph."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(bundle.model))
    given = {tensor.name for tensor in graph.graph.initializer}
    given |= {value.name for value in graph.graph.output}
    for value in graph.graph.value_info:
        is_float = value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        if is_float and value.name not in given:
            graph.graph.output.append(value)
    names = [value.name for value in graph.graph.output]
    model = ir.from_proto(graph)
    found = dict.fromkeys(names, 0.0)
    for feed in feeds:
        for name, array in zip(names, run_ort(model, feed), strict=True):
            found[name] = max(found[name], float(np.abs(array).max()))
    return found


@logarithm_of_zero
def test_a_t5_that_overflows_float16(overflowing):
    feeds = feeds_of(overflowing)
    ranges = reaches(overflowing, feeds)
    beyond = [name for name, reach in ranges.items() if 65504 < reach < 1e30]
    assert beyond
    model, kept = lowered(overflowing, DType.FLOAT16, ranges)
    said = " ".join(node.reason for node in kept)
    for name in beyond:
        assert f"output {name} reaches {ranges[name]:.1e}, float16 ends at 6.6e+04" in said

    def error(graph):
        return worst(lambda feed: run_reference(graph, feed), overflowing, feeds[:2])

    with np.errstate(over="ignore", invalid="ignore"):
        unaware, _ = lowered(overflowing, DType.FLOAT16)
        assert error(unaware) > 0.5
    assert error(model) < ERRORS[DType.FLOAT16]
    assert worst(lambda feed: run_ort(model, feed), overflowing, feeds) < ERRORS[DType.FLOAT16]
    # What does not overflow is lower all the same.
    products = [node for node in model.graph if node.op_type == "MatMul"]
    low = [node for node in products if node.outputs[0].dtype == ir.DataType.FLOAT16]
    assert len(low) >= len(products) - 2
