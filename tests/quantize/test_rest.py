"""Products of fewer bits in floats of 16: the same integers, and what cannot be so short."""

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx.checker import check_model
from support.graphs import graph_of, operators, run_ort

from tfx.bundle import open_bundle
from tfx.cli import main
from tfx.dtypes import DType
from tfx.errors import RecipeError
from tfx.quantization import QuantizeRecipe
from tfx.quantize.calibration import calibration_texts
from tfx.quantize.floats import cpu_variant, lower_floats
from tfx.quantize.linear import find_products
from tfx.quantize.lowering import Lowering, prepare_lowering
from tfx.quantize.qdq import quantize_activations, quantize_weights
from tfx.quantize.targets import lower_for_ort_cpu
from tfx.quantize.weights import quantize_e4m3, quantize_symmetric
from tfx.runtime.compare import scaled_error
from tfx.runtime.proof import load_cases


@pytest.fixture(scope="module")
def pair(classifier, samples) -> tuple[Lowering, Lowering]:
    """The same calibrated graph, in float32 and in float16 around int8."""
    data = calibration_texts(classifier, samples, name="data.txt")
    plain = prepare_lowering(classifier, QuantizeRecipe(DType.INT8), data)
    recipe = QuantizeRecipe(DType.INT8, rest=DType.FLOAT16)
    return plain, prepare_lowering(classifier, recipe, data, plain.prepared)


def types_of(model, op_type, index=0):
    return {node.inputs[index].dtype for node in model.graph if node.op_type == op_type}


def test_products_and_attention_are_in_16_bits(pair):
    model = pair[1].lower().model
    check_model(ir.to_proto(model), full_check=True)
    half = ir.DataType.FLOAT16
    assert types_of(model, "Attention") == types_of(model, "MatMul") == {half}
    assert types_of(model, "QuantizeLinear") == {half}
    assert types_of(model, "DequantizeLinear", 1) == {half}
    assert types_of(model, "DequantizeLinear") == {ir.DataType.INT8}
    assert {value.dtype for value in model.graph.outputs} == {ir.DataType.FLOAT}


def test_its_form_for_onnx_runtime_has_the_same_kernels(pair, classifier):
    plain, halves = (lowering.lower().model for lowering in pair)
    forms = [plain.clone(), cpu_variant(halves)]
    counts = [lower_for_ort_cpu(form) for form in forms]
    assert counts[0] == counts[1] > 0
    one, other = (operators(form) for form in forms)
    for kernel in ("MatMulIntegerToFloat", "QuantizeLinear", "Attention"):
        assert one.count(kernel) == other.count(kernel) > 0
    assert "DequantizeLinear" not in other
    assert one.count("Add") == other.count("Add")  # the biases are in the products
    for case in load_cases(classifier.path / "proof.npz")[:2]:
        before, after = (run_ort(form, case.feed)[0] for form in forms)
        assert scaled_error(before, after) < 0.1


def test_what_is_kept_is_in_the_16_bits(pair):
    halves = pair[1]
    group = halves.groups[-1]
    lowered = halves.lower([group])
    (kept,) = [one for one in lowered.kept if one.reason == "kept for accuracy"]
    (node,) = [node for node in lowered.model.graph if node.name == kept.name]
    assert {value.dtype for value in node.inputs} == {ir.DataType.FLOAT16}


def test_an_activation_that_overflows_stays_in_float32(pair):
    halves = pair[1]
    product = find_products(halves.prepared.model)[0]
    name = str(product.data.name)
    found = Lowering(
        halves.parent,
        halves.recipe,
        halves.data,
        halves.prepared,
        {**halves.ranges, name: 7e4},
        {},
    ).lower()
    reasons = [one.reason for one in found.kept if name in one.reason]
    assert f"output {name} reaches 7.0e+04, float16 ends at 6.6e+04" in reasons
    (quantize,) = (
        node
        for node in found.model.graph
        if node.op_type == "QuantizeLinear" and node.inputs[0].name == name
    )
    assert quantize.inputs[0].dtype == ir.DataType.FLOAT


def test_a_scale_that_float16_has_no_digits_for(rng):
    """A weight of tiny numbers keeps its scale, and the nodes that read it, in float32."""
    weight = rng.normal(size=(64, 32)).astype(np.float32)
    weight[:, 3] *= 1e-6
    model = graph_of("g (float[b, 64] x, float[64, 32] w) => (float[b, 32] y) { y = MatMul(x, w) }")
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    products = find_products(model)
    quantize_weights(model.graph, products, rest=DType.FLOAT16)
    quantize_activations(model.graph, products, {"x": 4.0})
    kept = lower_floats(model, DType.FLOAT16, {})
    (reason,) = (one.reason for one in kept)
    assert reason.startswith("constant w_scale is ")
    assert "float16 rounds it to 0" in reason
    x = rng.normal(size=(5, 64)).astype(np.float32).clip(-4, 4)
    (found,) = run_ort(model, {"x": x})
    np.testing.assert_allclose(found, x @ weight, atol=0.3)
    assert np.abs(found[:, 3]).max() < 1e-3


scaled = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 0.05),
)


@given(scaled, st.sampled_from([DType.FLOAT16, DType.BFLOAT16]))
def test_integers_fit_the_scale_that_is_stored(weight, dtype):
    q, scale = quantize_symmetric(weight, axis=1, scale_dtype=dtype)
    np.testing.assert_array_equal(scale.astype(dtype.numpy).astype(np.float32), scale)
    # A scale that was rounded down clips the largest weight a little.
    assert np.all(np.abs(q * scale - weight) <= scale * 0.76)
    values, steps = quantize_e4m3(weight, axis=1, scale_dtype=dtype)
    np.testing.assert_array_equal(steps.astype(dtype.numpy).astype(np.float32), steps)
    assert np.isfinite(values.astype(np.float32)).all()


def test_a_scale_beyond_the_type_stays():
    weight = np.array([[1e-7, 1e8]], np.float32)
    _, scale = quantize_symmetric(weight, axis=1, scale_dtype=DType.FLOAT16)
    np.testing.assert_allclose(scale, [1e-7 / 127, 1e8 / 127], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((DType.FLOAT16, DType.FLOAT16), "rest is for int8, fp8 and int4, got float16"),
        ((DType.INT8, DType.INT8), "rest is int8, expected one of float32, float16, bfloat16"),
    ],
)
def test_a_recipe_that_cannot_be_followed(arguments, problem):
    with pytest.raises(RecipeError, match=problem):
        QuantizeRecipe(*arguments)


def test_the_command(classifier, files, tmp_path):
    target = tmp_path / "small"
    arguments = ["quantize", str(classifier.path), "-o", str(target), "--int8", "--rest", "fp16"]
    result = CliRunner().invoke(main, [*arguments, "--calibrate", str(files.text)])
    assert result.exit_code == 0, result.output
    assert "nodes, the rest float16, " in " ".join(result.stdout.split())
    assert open_bundle(target).manifest.quantization.recipe.rest is DType.FLOAT16
    # Ranges of an earlier bundle serve it too, whatever was around its integers.
    again = [*arguments, "--calibrate", str(target), "-o", str(tmp_path / "again")]
    assert CliRunner().invoke(main, again).exit_code == 0
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "again" / name).read_bytes() == (target / name).read_bytes()
