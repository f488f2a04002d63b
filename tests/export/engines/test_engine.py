"""Engines from graphs, with TensorRT-RTX, which builds them where there is no GPU."""

import dataclasses

import onnx
import onnx_ir as ir
import pytest
import transformers
from support import checkpoints
from support.bundles import TEXT_SIGNATURE, text_graph, write_bundle
from support.generators import write_generator
from support.graphs import graph_of

from tfx.dtypes import DType
from tfx.errors import BackendError, ExportError, RecipeError
from tfx.export.engines.engine import build_engine, resolve_profiles
from tfx.export.engines.messages import build_error
from tfx.export.passes.cleanup import SCOPE
from tfx.export.pipeline import export_bundle, export_bundles
from tfx.recipe import EngineRecipe, Target
from tfx.runtime.engines import MODULES, errors_of, first_error, library_log, load_library
from tfx.signature import ShapeRange, Signature, TensorSpec

SM89 = EngineRecipe(gpus=("sm89",))


@pytest.fixture(scope="module", autouse=True)
def _library():
    pytest.importorskip(
        MODULES[Target.TENSORRT_RTX], reason="needs TensorRT-RTX: pip install 'tfx-toolkit[rtx]'"
    )


@pytest.fixture(scope="module")
def decoder(folders):
    """The bundle of a tiny GPT-2 with its language model's head."""
    config = transformers.GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=2,
        eos_token_id=3,
    )
    folder = checkpoints.write_checkpoint(
        folders.checkpoints / "decoder", transformers.GPT2LMHeadModel, config, std=0.3
    )
    return export_bundle(str(folder), folders.bundles / "decoder")


def bundle_of(path, text, signature, *, scope=""):
    """A bundle of a graph written as text."""
    graph = graph_of(text)
    for node in graph.graph.all_nodes():
        if scope:
            node.metadata_props[SCOPE] = scope
    return write_bundle(path, ir.to_proto(graph), signature=signature)


def attention_bundle(path, dtype, head_size):
    """One masked self-attention of 2 heads."""
    shape = ("batch", 2, "sequence", head_size)
    onnx_name = {DType.FLOAT32: "float"}.get(dtype, str(dtype))
    tensor = f"{onnx_name}[batch, 2, sequence, {head_size}]"
    return bundle_of(
        path,
        f"g ({tensor} x, bool[batch, 1, 1, sequence] mask) => ({tensor} y) {{\n"
        "  shape = Shape(x)\n  one = Constant<value_ints = [1]>()\n"
        "  two = Constant<value_ints = [2]>()\n  three = Constant<value_ints = [3]>()\n"
        "  zero = Constant<value_ints = [0]>()\n"
        "  batch = Slice(shape, zero, one)\n  sequence = Slice(shape, two, three)\n"
        "  square = Concat<axis = 0>(batch, one, sequence, sequence)\n"
        "  whole = Expand(mask, square)\n"
        "  query = Neg(x)\n  key = Abs(x)\n"
        "  y = Attention(query, key, x, whole)\n}",
        Signature(
            inputs=(
                TensorSpec("x", dtype, shape),
                TensorSpec("mask", DType.BOOL, ("batch", 1, 1, "sequence")),
            ),
            outputs=(TensorSpec("y", dtype, shape),),
            ranges={"batch": ShapeRange(1, 2, 4), "sequence": ShapeRange(1, 16, 64)},
        ),
    )


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_an_exported_model_builds_without_a_gpu(kind, request):
    bundle = request.getfixturevalue(kind)
    engine = build_engine(bundle, SM89)
    assert len(engine.plan) > 100_000
    assert engine.build.version == load_library(Target.TENSORRT_RTX).__version__
    assert engine.build.attention == bundle.manifest.facts["attention"] == 2
    assert engine.build.fused_kernels == 0  # float32 has no fused one
    assert engine.build.profiles == (bundle.manifest.signature.ranges,)


@pytest.mark.parametrize(
    ("dtype", "head_size", "fused"),
    [
        (DType.FLOAT16, 32, True),
        (DType.BFLOAT16, 32, True),
        (DType.FLOAT16, 8, False),
        (DType.FLOAT32, 32, False),
    ],
    ids=str,
)
def test_attention_is_one_kernel_where_there_is_one(tmp_path, dtype, head_size, fused):
    engine = build_engine(attention_bundle(tmp_path / "a", dtype, head_size), SM89)
    assert engine.build.attention == 1
    assert (engine.build.fused_kernels > 0) == fused


def test_one_engine_for_several_gpus_and_profiles(tmp_path):
    bundle = write_bundle(tmp_path / "a")
    single = {"batch": ShapeRange(1, 1, 1)}
    recipe = EngineRecipe(gpus=("sm80", "sm120"), profiles=(single, {}))
    engine = build_engine(bundle, recipe)
    sequence = TEXT_SIGNATURE.ranges["sequence"]
    assert engine.build.profiles == (single | {"sequence": sequence}, TEXT_SIGNATURE.ranges)


def test_progress_is_told_and_what_it_raises_stops_the_build(tmp_path):
    bundle = write_bundle(tmp_path / "a")
    seen = []
    build_engine(bundle, SM89, on_progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[0] > 0
    assert seen[-1] == pytest.approx(1, abs=0.2)

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, SM89, on_progress=stop)


def test_an_operator_it_does_not_know_is_named_with_its_layer(tmp_path):
    signature = Signature(
        inputs=(TensorSpec("x", DType.FLOAT32, ("b", 4, 4)),),
        outputs=(TensorSpec("y", DType.FLOAT32, ("b",)),),
        ranges={"b": ShapeRange(1, 2, 4)},
    )
    text = "g (float[b, 4, 4] x) => (float[b] y) { y = Det(x) }"
    with pytest.raises(ExportError) as caught:
        build_engine(bundle_of(tmp_path / "a", text, signature, scope="encoder.layer.0"), SM89)
    assert str(caught.value) == (
        "tensorrt-rtx does not take the graph of a: "
        "encoder.layer.0: Det: the operator is not supported"
    )
    assert caught.value.hint == "Replace the PyTorch operators they come from."
    with pytest.raises(ExportError, match="a: node 0: Det: the operator"):
        build_engine(bundle_of(tmp_path / "2" / "a", text, signature), SM89)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "g (float[b, 4] x) => (float[b, 4] y) <float s = {0.1}, int8 z = {3}>"
            "{ q = QuantizeLinear(x, s, z)\n y = DequantizeLinear(q, s, z) }",
            "QuantizeLinear: .*on-zero zero point is not supported",
            "Quantize symmetrically",
        ),
        (
            "g (float[b, 4] x) => (float[b, 4] y) { h = Cast<to = 10>(x)\n y = Add(x, h) }",
            "Add: ElementWiseOperation SUM must have same input types. "
            "But they are of types Float and Half$",
            "in one precision",
        ),
    ],
    ids=["zero point", "types"],
)
def test_what_the_parser_says_becomes_advice(tmp_path, text, message, hint):
    spec = TensorSpec("x", DType.FLOAT32, ("b", 4))
    signature = Signature(
        (spec,), (dataclasses.replace(spec, name="y"),), {"b": ShapeRange(1, 2, 4)}
    )
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}')
    bundle = write_bundle(tmp_path / "a", model, signature=signature)
    with pytest.raises(ExportError, match=message) as caught:
        build_engine(bundle, SM89)
    assert hint in caught.value.hint


def test_the_gpu_of_a_machine_without_one(tmp_path):
    import shutil

    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendError, match="CUDA driver version is insufficient") as caught:
        build_engine(write_bundle(tmp_path / "a"), EngineRecipe())
    assert "--gpu sm89" in caught.value.hint


def test_a_gpu_it_does_not_build_for(tmp_path):
    with pytest.raises(BackendError, match=r"builds for .*sm89.*, not for sm90"):
        build_engine(write_bundle(tmp_path / "a"), EngineRecipe(gpus=("sm90",)))


def test_too_little_scratch_memory(encoder):
    with pytest.raises(BackendError, match="within workspace limit") as caught:
        build_engine(encoder, dataclasses.replace(SM89, workspace_bytes=1024))
    assert caught.value.hint == "Allow more scratch memory with --workspace."
    said = "[checks.cpp::f::132] Error Code 2: OutOfMemory (Requested size was 9 bytes.)"
    error = build_error(encoder, SM89.target, [said])
    assert str(error) == (
        "tensorrt-rtx cannot build encoder: there is too little scratch memory: it asks for 9 bytes"
    )
    assert error.hint == caught.value.hint


def test_an_engine_is_read_as_far_as_there_is_no_gpu(tmp_path):
    """The library looks at an engine's header and size before it asks for a GPU."""
    import shutil

    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU here")
    plan = build_engine(write_bundle(tmp_path / "a"), SM89).plan
    trt = load_library(Target.TENSORRT_RTX)
    runtime = trt.Runtime(library_log(trt))
    for data, said in (
        (plan, "cudaError 35: CUDA driver version is insufficient for CUDA runtime version"),
        (plan[:-1], "Serialization assertion plan.header.size == blobSize failed"),
        (plan[::-1], "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed"),
    ):
        with errors_of(trt) as errors:
            assert runtime.deserialize_cuda_engine(data) is None
        assert first_error(errors).startswith(said)


def test_profiles_keep_to_the_signature():
    sequence = ShapeRange(1, 16, 64)
    asked = ({"sequence": sequence}, {"heads": ShapeRange(1, 1, 1)})
    with pytest.raises(RecipeError) as caught:
        resolve_profiles(TEXT_SIGNATURE, asked)
    assert str(caught.value).splitlines() == [
        "the shapes do not fit the signature:",
        "  profile 0: axis 'sequence' is 1..64, outside the signature's 1..32",
        "  profile 1: no input has an axis 'heads'",
    ]
    assert "--shapes" in caught.value.hint


def test_a_graph_with_a_cache_has_a_profile_for_steps_too():
    cache = TensorSpec("past_key_0", DType.FLOAT32, ("batch", 2, "capacity", 4))
    ids = TensorSpec("input_ids", DType.INT64, ("batch", "sequence"))
    kept = TensorSpec("logits_to_keep", DType.INT64, ("kept",))
    ranges = {
        "batch": ShapeRange(1, 8, 128),
        "sequence": ShapeRange(1, 16, 64),
        "capacity": ShapeRange(1, 32, 64),
        "kept": ShapeRange(1, 1, 64),
    }
    present = dataclasses.replace(cache, name="present_key_0")
    signature = Signature((ids, kept, cache), (present,), ranges)
    prompts, steps = resolve_profiles(signature, ())
    assert prompts == ranges
    one = ShapeRange(1, 1, 1)
    assert steps == ranges | {"sequence": one, "kept": one}
    # What is asked for stays what it is.
    assert len(resolve_profiles(signature, ({"batch": one},))) == 1


def test_a_model_that_writes_text_builds_with_both_profiles(tmp_path):
    source = write_generator(tmp_path / "source", "llama")
    (bundle,) = export_bundles(str(source), tmp_path / "bundle", cache=True)
    build = build_engine(bundle, SM89).build
    assert [sizes["sequence"].max for sizes in build.profiles] == [64, 1]
    assert build.attention == 2


def test_an_axis_without_a_largest_size_needs_one():
    free = dataclasses.replace(TEXT_SIGNATURE, ranges={"batch": ShapeRange(1, 1, 2)})
    with pytest.raises(RecipeError, match="axis 'sequence' has no largest size"):
        resolve_profiles(free, ())
    sizes = ShapeRange(1, 2, 3)
    assert resolve_profiles(free, ({"sequence": sizes},))[0]["sequence"] == sizes


def test_text_graphs_have_no_attention(tmp_path):
    engine = build_engine(write_bundle(tmp_path / "a", text_graph()), SM89)
    assert (engine.build.attention, engine.build.fused_kernels) == (0, 0)
