"""One-sided activations: what is subtracted from them, and that the numbers stay."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from onnx.reference import ReferenceEvaluator
from onnx_ir import to_proto
from support.graphs import fill_constants, graph_of, operators, run_ort

from tfx.dtypes import DType
from tfx.quantization import CalibrationFacts, QuantizeRecipe, RangeMethod
from tfx.quantize.calibration import CalibrationData
from tfx.quantize.integers import lower, prepare
from tfx.quantize.linear import find_products
from tfx.quantize.qdq import quantize_weights
from tfx.quantize.shift import Shift, choose_shift, shift_activations
from tfx.quantize.targets import lower_for_ort_cpu
from tfx.runtime.compare import scaled_error

# Smoothing would even the channels out by itself.
PLAIN = QuantizeRecipe(DType.INT8, method=RangeMethod.MINMAX, smooth=0)
BODIES = {
    "no bias": "y = MatMul(h, w)\n z = MatMul(h, v)",
    "bias": "k = MatMul(h, w)\n y = Add(k, c)\n m = MatMul(h, v)\n z = Add(c, m)",
    "read twice": "k = MatMul(h, w)\n y = Add(k, c)\n z = Neg(k)\n q = MatMul(h, v)",
}


def graph(rng, body=BODIES["bias"], before="Relu"):
    return fill_constants(
        graph_of(
            "g (float[n, 64] x, float[64, 32] w, float[32] c, float[64, 32] v) "
            f"=> (float[n, 32] y, float[n, 32] z) {{ h = {before}(x)\n {body} }}"
        ),
        rng,
    )


def data_of(feed):
    return CalibrationData(CalibrationFacts("a.npz", "0" * 64, 64, 64 * 64), (lambda: dict(feed),))


@pytest.mark.parametrize(
    ("low", "high", "amax"),
    [(-0.17, 8, 8), (0, 5, 5), (0, 5, 3), (-7, 0.1, 7), (5, 6, 6), (-6, -5, 6), (2, 2, 2)],
)
def test_the_range_is_half_as_wide_and_holds_what_was_seen(low, high, amax):
    shift = choose_shift(low, high, amax)
    reach = min(max(high, -low), amax)
    assert shift.amax <= 0.53 * reach
    step = shift.amax / 127
    assert shift.offset / step == pytest.approx(round(shift.offset / step), abs=1e-6)
    assert float(np.float16(shift.offset)) == shift.offset
    for end in (max(low, -amax), min(high, amax)):
        assert abs(end - shift.offset) <= shift.amax + step


@pytest.mark.parametrize(
    ("low", "high", "amax"),
    [(-4, 4, 4), (-3, 4, 4), (-8, 1, 1), (0, 0, 0), (0, 1e-7, 1e-7), (0, 1e6, 1e6)],
    ids=["even", "nearly", "clipped", "zeros", "below float16", "above float16"],
)
def test_what_is_left_as_it_is(low, high, amax):
    assert choose_shift(low, high, amax) is None


@pytest.mark.parametrize("integers", [False, True], ids=["floats", "integers"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_numbers_stay(body, integers, rng):
    model = graph(rng, body)
    products = find_products(model)
    if integers:
        quantize_weights(model.graph, products)
    feed = {"x": rng.normal(size=(5, 64)).astype(np.float32)}
    # ONNX Runtime rounds what is multiplied by integers that are dequantized.
    before = ReferenceEvaluator(to_proto(model)).run(None, feed)
    shifted = shift_activations(model.graph, products, {"h": Shift(1.5, 2.0)})
    assert {product.data.name for product in shifted} == {"h_shifted"}
    check_model(to_proto(model), full_check=True)
    assert operators(model).count("Sub") == 1
    assert [output.name for output in model.graph.outputs] == ["y", "z"]
    after = ReferenceEvaluator(to_proto(model)).run(None, feed)
    for wanted, got in zip(before, after, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


def test_int8_of_what_leaves_relu_has_half_the_step(rng):
    original = graph(rng)
    feed = {"x": rng.normal(size=(64, 64)).astype(np.float32)}
    wanted = run_ort(original, feed)[0]
    prepared = prepare(original.clone(), PLAIN, data_of(feed))
    model = lower(prepared, PLAIN).model
    assert operators(model).count("Sub") == 1
    ((name, seen),) = prepared.statistics.items()
    two_sided = {name: dataclasses.replace(seen, low=-seen.high)}
    plain = lower(dataclasses.replace(prepared, statistics=two_sided), PLAIN).model
    assert "Sub" not in operators(plain)
    errors = [scaled_error(wanted, run_ort(one, feed)[0]) for one in (model, plain)]
    assert errors[0] < 0.9 * errors[1]  # that of the weights is in both
    steps = [
        one.graph.initializers[key].const_value.numpy()
        for one, key in ((model, "h_shifted_scale"), (plain, "h_scale"))
    ]
    assert steps[0] == pytest.approx(steps[1] / 2, rel=0.01)


def test_onnxruntime_subtracts_with_the_integers(rng):
    original = graph(rng)
    feed = {"x": rng.normal(size=(64, 64)).astype(np.float32)}
    model = lower(prepare(original, PLAIN, data_of(feed)), PLAIN).model
    before = run_ort(model, feed)
    assert lower_for_ort_cpu(model) == 2
    check_model(to_proto(model))
    found = operators(model)
    assert (found.count("Sub"), found.count("Add"), found.count("QuantizeLinear")) == (0, 0, 1)
    for wanted, got in zip(before, run_ort(model, feed), strict=True):
        assert scaled_error(wanted, got) < 1e-3


def test_what_is_no_whole_number_of_steps_stays_a_subtraction(rng):
    feed = {"x": rng.normal(size=(64, 64)).astype(np.float32)}
    model = lower(prepare(graph(rng), PLAIN, data_of(feed)), PLAIN).model
    offset = model.graph.initializers["h_offset"]
    offset.const_value = ir.tensor(offset.const_value.numpy() * np.float32(1.003), name="h_offset")
    before = run_ort(model, feed)
    assert lower_for_ort_cpu(model) == 2
    assert operators(model).count("Sub") == 1
    for wanted, got in zip(before, run_ort(model, feed), strict=True):
        assert scaled_error(wanted, got) < 1e-3


@pytest.mark.parametrize(
    "recipe",
    [
        QuantizeRecipe(DType.FLOAT8_E4M3, method=RangeMethod.MINMAX),
        QuantizeRecipe(DType.INT8, DType.BFLOAT16, method=RangeMethod.MINMAX, smooth=0),
    ],
    ids=["fp8", "bf16 around"],
)
def test_types_that_gain_nothing(recipe, rng):
    feed = {"x": rng.normal(size=(64, 64)).astype(np.float32)}
    prepared = prepare(graph(rng), recipe, data_of(feed))
    assert "Sub" not in operators(lower(prepared, recipe).model)


def test_what_reaches_both_ways_is_not_shifted(rng):
    feed = {"x": rng.normal(size=(64, 64)).astype(np.float32)}
    model = lower(prepare(graph(rng, before="Neg"), PLAIN, data_of(feed)), PLAIN).model
    assert "Sub" not in operators(model)
