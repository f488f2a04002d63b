"""Weights of 4 bits: how they are chosen, how they are stored, who runs them."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx.checker import check_model
from support.bundles import write_bundle
from support.graphs import graph_of, operators, run_ort, run_reference

from tfx.dtypes import DType
from tfx.errors import ExportError, QuantizeError
from tfx.export.engines.engine import build_engine
from tfx.extras import need
from tfx.quantization import QuantizeRecipe, RangeMethod, WeightMethod
from tfx.quantize import int4
from tfx.quantize.floats import cpu_variant, lower_floats
from tfx.quantize.int4 import carry_blocks, fit_blocks, lower_weights_int4, round_blocks
from tfx.recipe import EngineRecipe, Target
from tfx.runtime.engines import MODULES
from tfx.signature import ShapeRange, Signature, TensorSpec

RTN = QuantizeRecipe(DType.INT4)
HQQ = dataclasses.replace(RTN, weight_method=WeightMethod.HQQ)
GPTQ = dataclasses.replace(RTN, weight_method=WeightMethod.GPTQ)

# Zeros, denormals and outliers included.
weights = arrays(
    np.float32,
    st.tuples(st.sampled_from([16, 32, 64]), st.integers(1, 4)),
    elements=st.floats(-1e6, 1e6, width=32),
)


def product(weight, text="y = MatMul(x, w)"):
    """A graph that multiplies by a weight named w."""
    rows, columns = weight.shape
    model = graph_of(
        f"g (float[b, s, {rows}] x, float[{rows}, {columns}] w) => (float[b, s, {columns}] y) "
        f"{{ {text} }}"
    )
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    return model


def correlated(rng, rows, count=256):
    """Activations whose channels share a few causes, as those of a Transformer do."""
    causes = rng.normal(size=(count, max(rows // 8, 1)))
    mix = rng.normal(size=(causes.shape[1], rows))
    return (causes @ mix + 0.1 * rng.normal(size=(count, rows))).astype(np.float32)


def output_error(weight, blocks, x):
    return np.linalg.norm(x @ (weight - blocks.values()), axis=0)


@given(weights, st.sampled_from([16, 32]))
def test_rounding_is_off_by_at_most_half_a_step(weight, size):
    size = min(size, len(weight))
    blocks = round_blocks(weight, size)
    step = np.repeat(blocks.scale, size, axis=0)
    assert np.all(np.abs(blocks.values() - weight) <= step * 0.501)
    assert blocks.zero is None
    assert blocks.numbers.min() >= -7
    assert blocks.numbers.max() <= 7


@given(weights)
def test_a_search_for_the_least_squared_error_is_never_worse(weight):
    def loss(blocks):
        return ((blocks.values() - weight).astype(np.float64) ** 2).sum()

    assert loss(round_blocks(weight, 16, clip=True)) <= loss(round_blocks(weight, 16)) * (1 + 1e-5)


def test_that_search_gains(rng):
    weight = rng.normal(size=(256, 64)).astype(np.float32)
    plain, clipped = (
        np.square(round_blocks(weight, 64, clip=clip).values() - weight).mean()
        for clip in (False, True)
    )
    assert clipped < 0.9 * plain


@given(weights)
@settings(max_examples=50)
def test_fitted_blocks_hold_what_4_bits_do(weight):
    blocks = fit_blocks(weight, 16)
    assert np.isfinite(blocks.values()).all()
    assert (blocks.scale > 0).all()
    for numbers in (blocks.numbers, blocks.zero):
        assert numbers.min() >= 0
        assert numbers.max() <= 15
    # At worst as rounding with the range's own scale is, in the norm that is minimised.
    low, high = (
        np.minimum(weight.reshape(-1, 16, weight.shape[1]).min(1), 0),
        np.maximum(weight.reshape(-1, 16, weight.shape[1]).max(1), 0),
    )
    half = np.repeat((high - low) / 15, 16, axis=0) * 1.01
    bound = (half.astype(np.float64) ** 0.7).sum() + 1e-20
    assert (np.abs(blocks.values() - weight).astype(np.float64) ** 0.7).sum() <= bound


def test_a_zero_point_pays_where_weights_are_not_centred(rng):
    weight = (rng.normal(size=(128, 32)) + 2).astype(np.float32)
    fitted, plain = fit_blocks(weight, 32), round_blocks(weight, 32, clip=True)
    error, other = (np.abs(one.values() - weight).mean() for one in (fitted, plain))
    assert error < 0.8 * other
    assert fitted.zero.any()


def test_outliers_are_forgiven(rng):
    """The error of most weights falls where a few would spread the scale of their block."""
    weight = rng.normal(size=(128, 32)).astype(np.float32)
    weight[::32] *= 4
    folded = weight.reshape(-1, 32, 32)
    low, high = folded.min(1, keepdims=True), folded.max(1, keepdims=True)
    scale = (high - low) / 15
    zero = np.rint(-low / scale)
    plain = (np.clip(np.rint(folded / scale) + zero, 0, 15) - zero) * scale
    error, other = (
        np.median(np.abs(values - weight))
        for values in (fit_blocks(weight, 32).values(), plain.reshape(weight.shape))
    )
    assert error < 0.95 * other


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(16, 16), (64, 16), (64, 64), (192, 32), (256, 256)]),
    st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_carried_errors_never_make_the_output_worse(seed, shape, clip):
    rng = np.random.default_rng(seed)
    rows, size = shape
    weight = rng.normal(size=(rows, 8)).astype(np.float32)
    x = correlated(rng, rows)
    carried = carry_blocks(weight, size, x.T @ x, clip=clip)
    plain = round_blocks(weight, size, clip=clip)
    assert (output_error(weight, carried, x) <= output_error(weight, plain, x) * (1 + 1e-3)).all()


def test_carried_errors_gain_on_correlated_data(rng):
    weight = rng.normal(size=(256, 64)).astype(np.float32)
    x = correlated(rng, 256, count=1024)
    carried = carry_blocks(weight, 32, x.T @ x)
    plain = round_blocks(weight, 32)
    gain = output_error(weight, carried, x).sum() / output_error(weight, plain, x).sum()
    assert gain < 0.5


def test_the_order_of_the_rows_is_kept(rng):
    """Independent inputs leave nothing to carry: each weight is rounded where it is."""
    weight = rng.normal(size=(256, 8)).astype(np.float32)
    carried = carry_blocks(weight, 32, np.eye(256))
    np.testing.assert_array_equal(carried.numbers, round_blocks(weight, 32).numbers)


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (np.eye(8), r"the hessian is \[8, 8\], expected \[16, 16\]"),
        (-np.eye(16), "the hessian is not one of activations"),
        (np.full((16, 16), np.nan), "not one of activations: it has a NaN or infinity"),
    ],
)
def test_a_hessian_that_is_none(hessian, message):
    with pytest.raises(QuantizeError, match=message):
        carry_blocks(np.ones((16, 2), np.float32), 16, hessian)


def test_inputs_that_were_never_seen(rng):
    weight = rng.normal(size=(32, 4)).astype(np.float32)
    carried = carry_blocks(weight, 16, np.zeros((32, 32)))
    np.testing.assert_array_equal(carried.numbers, round_blocks(weight, 16).numbers)


def lowered(recipe, rng, shape=(256, 128)):
    """A product in 4 bits, feeds, and its outputs by NumPy on the 4-bit weight."""
    weight = rng.normal(size=shape).astype(np.float32)
    x = correlated(rng, shape[0], count=32).reshape(2, 16, shape[0])
    flat = x.reshape(-1, shape[0])
    model = product(weight)
    assert lower_weights_int4(model, recipe, ["w"], {"w": flat.T @ flat}) == 1
    check_model(ir.to_proto(model), full_check=True)
    return model, {"x": x}


@pytest.mark.parametrize("recipe", [RTN, HQQ, GPTQ], ids=lambda recipe: recipe.weight_method)
def test_a_product_reads_a_weight_of_4_bits(recipe, rng):
    model, feed = lowered(recipe, rng)
    assert operators(model) == ["DequantizeLinear", "MatMul"]
    node = model.graph.node(0)
    assert (node.attributes.get_int("axis"), node.attributes.get_int("block_size")) == (0, 32)
    kinds = {name: str(v.dtype) for name, v in model.graph.initializers.items()}
    if recipe is HQQ:
        assert kinds == {"w_int4": "UINT4", "w_scale": "FLOAT", "w_zero": "UINT4"}
    else:
        assert kinds == {"w_int4": "INT4", "w_scale": "FLOAT"}
    original = product(np.random.default_rng(20261121).normal(size=(256, 128)).astype(np.float32))
    before, after = run_reference(original, feed)[0], run_reference(model, feed)[0]
    assert np.linalg.norm(after - before) < 0.15 * np.linalg.norm(before)


def test_the_recipe_says_whether_scales_clip(rng):
    weight = rng.normal(size=(64, 8)).astype(np.float32)
    scales = {}
    for method in RangeMethod:
        model = product(weight)
        lower_weights_int4(model, dataclasses.replace(RTN, method=method), ["w"])
        scales[method] = model.graph.initializers["w_scale"].const_value.numpy()
    for method, scale in scales.items():
        expected = round_blocks(weight, 32, clip=method is not RangeMethod.MINMAX).scale
        np.testing.assert_array_equal(scale, expected)
    assert (scales[RangeMethod.MSE] < scales[RangeMethod.MINMAX]).any()


@pytest.mark.parametrize(("rows", "size"), [(96, 32), (48, 16), (80, 16), (256, 32)])
def test_blocks_divide_the_rows(rows, size):
    """OpenVINO takes no others."""
    model = product(np.ones((rows, 4), np.float32))
    lower_weights_int4(model, RTN, ["w"])
    assert model.graph.node(0).attributes.get_int("block_size") == size


def test_products_that_share_a_weight_share_its_4_bits(rng):
    model = product(
        rng.normal(size=(32, 32)).astype(np.float32), "a = MatMul(x, w) y = MatMul(a, w)"
    )
    assert lower_weights_int4(model, RTN, ["w"]) == 2
    assert operators(model) == ["DequantizeLinear", "MatMul", "MatMul"]


def test_a_weight_that_somebody_else_reads_stays_beside(rng):
    model = product(rng.normal(size=(32, 32)).astype(np.float32), "a = Add(x, w) y = MatMul(a, w)")
    model.graph.inputs[0].shape = ir.Shape(["b", 32, 32])
    assert lower_weights_int4(model, RTN, ["w"]) == 1
    assert {"w", "w_int4"} <= set(model.graph.initializers)
    assert model.graph.node(0).inputs[1].name == "w"


@pytest.mark.parametrize("recipe", [RTN, HQQ], ids=lambda recipe: recipe.weight_method)
def test_a_weight_takes_half_a_byte_on_disk(recipe, rng, tmp_path):
    import onnxruntime

    model, feed = lowered(recipe, rng, (512, 256))
    path = tmp_path / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data")
    count, blocks = 512 * 256, 512 // 32 * 256
    zeros = blocks // 2 if recipe is HQQ else 0
    assert (tmp_path / "model.onnx.data").stat().st_size == count // 2 + blocks * 4 + zeros
    assert path.stat().st_size < 2000
    ir.save(model, tmp_path / "whole.onnx")
    assert (tmp_path / "whole.onnx").stat().st_size < count // 2 + blocks * 4 + zeros + 2000
    for stored in (path, tmp_path / "whole.onnx"):
        session = onnxruntime.InferenceSession(stored, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(None, feed)[0], run_ort(model, feed)[0])


@pytest.mark.parametrize("rows", [256, 240])
@pytest.mark.parametrize("recipe", [RTN, HQQ, GPTQ], ids=lambda recipe: recipe.weight_method)
def test_onnx_runtime_fuses_them(recipe, rows, rng, tmp_path):
    import onnxruntime

    model, feed = lowered(recipe, rng, (rows, 128))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    # Activations of 8 bits by default, which is the runtime's choice: float32 to compare with.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert operators(ir.load(tmp_path / "optimized.onnx")) == ["MatMulNBits"]
    after, before = session.run(None, feed)[0], run_reference(model, feed)[0]
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())


@pytest.mark.parametrize("rows", [256, 240])
@pytest.mark.parametrize("recipe", [RTN, HQQ, GPTQ], ids=lambda recipe: recipe.weight_method)
def test_openvino_runs_them(recipe, rows, rng):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'tfx-toolkit[openvino]'")
    core = need("openvino").Core()
    model, feed = lowered(recipe, rng, (rows, 128))
    compiled = core.compile_model(
        core.read_model(ir.to_proto(model).SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    (after,), before = compiled(feed).values(), run_reference(model, feed)[0]
    # It may round activations to 8 bits.
    assert np.linalg.norm(after - before) < 0.02 * np.linalg.norm(before)


def engine_of(model, path, rows=256, columns=128):
    pytest.importorskip(
        MODULES[Target.TENSORRT_RTX], reason="needs TensorRT-RTX: pip install 'tfx-toolkit[rtx]'"
    )
    signature = Signature(
        (TensorSpec("x", DType.FLOAT32, ("b", "s", rows)),),
        (TensorSpec("y", DType.FLOAT32, ("b", "s", columns)),),
        {"b": ShapeRange(1, 2, 4), "s": ShapeRange(1, 16, 64)},
    )
    bundle = write_bundle(path / "int4", ir.to_proto(model), signature=signature)
    return build_engine(bundle, EngineRecipe(gpus=("sm89",)))


@pytest.mark.parametrize("rest", [None, DType.FLOAT16, DType.BFLOAT16], ids=str)
@pytest.mark.parametrize("recipe", [RTN, GPTQ], ids=lambda recipe: recipe.weight_method)
def test_tensorrt_builds_them(recipe, rest, rng, tmp_path):
    model, _ = lowered(recipe, rng)
    if rest is not None:
        lower_floats(model, rest, None)
    assert engine_of(model, tmp_path).plan


def test_tensorrt_takes_no_zero_points(rng, tmp_path):
    """Once it does, the docstring that says so can go."""
    model, _ = lowered(HQQ, rng)
    with pytest.raises(ExportError, match="w_int4"):
        engine_of(model, tmp_path)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_activations_can_be_lower_too(dtype, rng, tmp_path):
    import onnxruntime

    model, feed = lowered(RTN, rng)
    before = run_reference(model, feed)[0]
    assert lower_floats(model, dtype, None) == []
    check_model(ir.to_proto(model), full_check=True)
    assert model.graph.initializers["w_scale"].dtype == ir.DataType[dtype.name]
    variant = cpu_variant(model)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        ir.to_proto(variant).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert operators(ir.load(tmp_path / "optimized.onnx")) == ["MatMulNBits"]
    runs = [session.run(None, feed)[0], run_ort(variant, feed)[0]]
    if dtype is DType.FLOAT16:
        runs.append(run_ort(model, feed)[0])
    for after in runs:
        assert np.linalg.norm(after - before) < 0.02 * np.linalg.norm(before)


def test_every_problem_of_the_names_is_said(rng):
    model = graph_of(
        "g (float[b, 20] x, float[b, 32] z) => (float[b, 2] y) <float[20] v = {"
        + "1, " * 19
        + "1}, int64[1] i = {1}, float e = {1}> { a = Add(x, v) y = MatMul(a, w) }"
    )
    for name, shape, fill in (("odd", (20, 2), 1), ("bad", (32, 2), np.nan), ("free", (32, 2), 1)):
        value = ir.Value(name=name, const_value=ir.tensor(np.full(shape, fill, np.float32)))
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        model.graph.register_initializer(value)
        if name != "free":
            given = model.graph.inputs[name == "bad"]
            model.graph.append(ir.node("MatMul", [given, value]))
            model.graph[-1].metadata_props["scope"] = "g.dense"
    with pytest.raises(QuantizeError) as caught:
        lower_weights_int4(model, RTN, ["odd", "bad", "free", "v", "none"])
    assert str(caught.value).splitlines() == [
        "weights cannot be stored in 4 bits:",
        "  odd: has 20 rows, expected a multiple of 16, the smallest block",
        "  bad of g.dense: NaN or infinity",
        "  free: no MatMul has it as its second input",
        "  v: got FLOAT[20], expected float32[in, out]",
        "  none: not a weight of the graph",
    ]
    assert caught.value.hint == "Keep their groups in the parent's precision with --keep."
    assert "DequantizeLinear" not in operators(model)


def test_activations_that_are_not_known(rng):
    model = product(rng.normal(size=(32, 4)).astype(np.float32))
    with pytest.raises(QuantizeError, match="none are known of: w") as caught:
        lower_weights_int4(model, GPTQ, ["w"])
    assert "--calibrate" in caught.value.hint


def test_weights_of_the_same_activations_are_rounded_as_alone(rng, monkeypatch):
    """Their Hessian is one array, and is factored once."""
    x = correlated(rng, 64, count=256)
    hessian = (x.T @ x).astype(np.float32)
    three = {
        name: rng.normal(size=(64, width)).astype(np.float32)
        for name, width in (("q", 32), ("k", 16), ("v", 16))
    }
    factored = []
    monkeypatch.setattr(
        int4, "_inverse_factor", lambda *a, of=int4._inverse_factor: factored.append(1) or of(*a)
    )

    def stored(hessians):
        model = graph_of(
            "g (float[b, 64] x, float[64, 32] q, float[64, 16] k, float[64, 16] v) => "
            "(float[b, 32] a, float[b, 16] c, float[b, 16] d) "
            "{ a = MatMul(x, q) c = MatMul(x, k) d = MatMul(x, v) }"
        )
        for value in [model.graph.inputs.pop() for _ in three]:
            value.const_value = ir.tensor(three[value.name], name=value.name)
            model.graph.register_initializer(value)
        assert lower_weights_int4(model, GPTQ, list(three), hessians) == 3
        graph = model.graph.initializers
        return [
            graph[f"{name}_{part}"].const_value.numpy().astype(np.float32)
            for name in three
            for part in ("int4", "scale")
        ]

    alone = stored({name: hessian.copy() for name in three})
    assert len(factored) == 3
    together = stored(dict.fromkeys(three, hessian))
    assert len(factored) == 4
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("rows", [16, 128, 129, 400])
def test_the_inverse_of_a_triangle(rows, rng):
    upper = np.triu(rng.normal(size=(rows, rows)) * 0.1) + np.eye(rows) * 3
    found = int4._triangular_inverse(upper)
    np.testing.assert_allclose(found @ upper, np.eye(rows), atol=1e-9)
    assert (np.tril(found, -1) == 0).all()


def test_carried_errors_are_those_of_the_algorithm(rng):
    """Row by row, with the whole inverse, in float64: algorithm 1 as the paper has it."""
    weight = rng.normal(size=(192, 16)).astype(np.float32)
    x = correlated(rng, 192, count=512)
    hessian = (x.T @ x).astype(np.float64)
    damped = hessian + np.eye(192) * 0.01 * np.trace(hessian) / 192
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, numbers = weight.astype(np.float64), np.zeros((192, 16))
    for row in range(192):
        if row % 32 == 0:
            scale = np.abs(left[row : row + 32]).max(0) / 7
        numbers[row] = np.clip(np.rint(left[row] / scale), -8, 7)
        error = (left[row] - numbers[row] * scale) / upper[row, row]
        left[row + 1 :] -= np.outer(upper[row, row + 1 :], error)
    carried = carry_blocks(weight, 32, hessian)
    assert (carried.numbers == numbers).mean() > 0.999
