"""SmoothQuant: which alpha is chosen, and that the graph's numbers stay."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx.checker import check_model
from support.graphs import fill_constants, graph_of, operators, run_ort

from tfx.quantize.linear import find_products
from tfx.quantize.smooth import (
    ALPHAS,
    WORTH,
    apply_smoothing,
    can_fold,
    choose_smoothing,
    smoothing_scale,
)

CHANNELS, OUTPUTS = 32, 48

magnitudes = arrays(np.float32, 5, elements=st.floats(0, 1e6, width=32))

NORMALIZED = {
    "LayerNormalization": "LayerNormalization <axis=-1> (x, gamma, beta)",
    "no bias": "LayerNormalization <axis=-1> (x, gamma)",
    "RMSNormalization": "RMSNormalization <axis=-1> (x, gamma)",
}


def two_products(rng, before="Relu(x)", *, outputs="", more=""):
    """An activation, and two weights it meets."""
    return fill_constants(
        graph_of(
            f"g (float[b, s, {CHANNELS}] x, float[{CHANNELS}, {OUTPUTS}] w, "
            f"float[{CHANNELS}, {OUTPUTS}] v, float[{CHANNELS}] gamma, float[{CHANNELS}] beta) "
            f"=> (float[b, s, {OUTPUTS}] y, float[b, s, {OUTPUTS}] z{outputs}) "
            f"{{ h = {before}\n y = MatMul(h, w)\n z = MatMul(h, v)\n {more} }}"
        ),
        rng,
    )


def smooth(model, scale):
    """Smooth what the products share; the products' node of data afterwards."""
    products = find_products(model)
    return apply_smoothing(model.graph, products[0].data, products, scale)


def rows_of(rng, *, outlier=1.0):
    rows = rng.normal(size=(256, CHANNELS)).astype(np.float32)
    rows[:, 5] *= outlier
    return rows, np.abs(rows).max(axis=0)


def weights_of(rng, count=2):
    return [rng.normal(size=(CHANNELS, OUTPUTS)).astype(np.float32) for _ in range(count)]


@given(magnitudes, magnitudes, st.floats(0, 1))
def test_a_scale_is_positive_and_follows_the_formula(amax, largest, alpha):
    scale = smoothing_scale(amax, largest, alpha)
    assert scale.dtype == np.float32
    assert ((scale >= np.float32(1e-3)) & (scale <= np.float32(1e3))).all()
    usable = (amax > 0) & (largest > 0)
    assert (scale[~usable] == 1).all()
    inside = usable & (scale > 1.1e-3) & (scale < 0.9e3)
    logs = alpha * np.log(amax[inside], dtype=float) - (1 - alpha) * np.log(
        largest[inside], dtype=float
    )
    np.testing.assert_allclose(
        np.log(scale[inside], dtype=float)
        - np.log(scale[inside], dtype=float).sum() / max(1, inside.sum()),
        logs - logs.sum() / max(1, inside.sum()),
        atol=1e-3,
    )


def test_a_channel_that_was_never_active_stays_as_it_is():
    amax = np.array([0, 1e-3, 2e-3, 1e-3], np.float32)
    scale = smoothing_scale(amax, np.array([5, 1, 1, 1], np.float32), 0.5)
    assert scale[0] == 1
    assert np.exp(np.log(scale[1:]).mean()) == pytest.approx(1, rel=1e-5)


def test_nothing_is_smoothed_where_channels_are_alike(rng):
    rows, amax = rows_of(rng)
    smoothing = choose_smoothing(rows, amax, weights_of(rng))
    assert smoothing.alpha == 0
    assert (smoothing.scale == 1).all()
    assert smoothing.error == smoothing.plain > 0


def test_an_outlier_channel_is_smoothed_and_the_error_falls(rng):
    rows, amax = rows_of(rng, outlier=100)
    smoothing = choose_smoothing(rows, amax, weights_of(rng))
    assert smoothing.alpha in ALPHAS
    assert smoothing.error < 0.3 * smoothing.plain
    assert smoothing.scale.argmax() == 5


def test_the_best_alpha_of_those_to_try(rng):
    rows, amax = rows_of(rng, outlier=100)
    weights = weights_of(rng)
    best = choose_smoothing(rows, amax, weights)
    alone = [choose_smoothing(rows, amax, weights, [alpha]) for alpha in ALPHAS]
    assert best.error == min(one.error for one in alone)
    assert {one.plain for one in alone} == {best.plain}


def test_a_small_gain_is_not_worth_a_multiplication(rng):
    rows, amax = rows_of(rng, outlier=1.2)
    weights = weights_of(rng)
    any_gain = choose_smoothing(rows, amax, weights, worth=1)
    assert any_gain.alpha
    assert WORTH * any_gain.plain < any_gain.error < any_gain.plain
    assert choose_smoothing(rows, amax, weights).alpha == 0


@pytest.mark.parametrize("rows", [np.zeros((4, CHANNELS)), np.ones((1, CHANNELS))])
def test_data_without_any_spread(rows, rng):
    rows = rows.astype(np.float32)
    smoothing = choose_smoothing(rows, np.abs(rows).max(axis=0), weights_of(rng))
    assert np.isfinite(smoothing.scale).all()
    assert np.isfinite(smoothing.error)


def test_products_stay_where_a_multiplication_is_put_in(rng):
    model = two_products(rng)
    x = rng.normal(size=(2, 3, CHANNELS)).astype(np.float32)
    before = run_ort(model, {"x": x})
    scale = np.exp(rng.normal(size=CHANNELS)).astype(np.float32)
    smoothed = smooth(model, scale)
    check_model(ir.to_proto(model), full_check=True)
    assert operators(model) == ["Relu", "Mul", "MatMul", "MatMul"]
    assert smoothed.name == "h_smoothed"
    assert smoothed.shape == ["b", "s", CHANNELS]
    assert {product.data for product in find_products(model)} == {smoothed}
    assert set(model.graph.initializers) == {
        "w_smoothed", "v_smoothed", "h_smoothing", "gamma", "beta"
    }  # fmt: skip
    for wanted, got in zip(before, run_ort(model, {"x": x}), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("form", NORMALIZED)
def test_a_normalization_takes_the_scale_at_no_cost(form, rng):
    model = two_products(rng, NORMALIZED[form])
    x = rng.normal(size=(2, 3, CHANNELS)).astype(np.float32)
    before = run_ort(model, {"x": x})
    nodes = operators(model)
    scale = np.exp(rng.normal(size=CHANNELS)).astype(np.float32)
    products = find_products(model)
    assert can_fold(products[0].data, products)
    assert smooth(model, scale).name == "h"
    check_model(ir.to_proto(model), full_check=True)
    assert operators(model) == nodes
    after = run_ort(model, {"x": x})
    for wanted, got in zip(before, after, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    # The activation itself is what X / s is, the other form's.
    model.graph.outputs.append(model.graph.node(0).outputs[0])
    plain = two_products(np.random.default_rng(20261121), NORMALIZED[form])
    plain.graph.outputs.append(plain.graph.node(0).outputs[0])
    wanted = run_ort(plain, {"x": x})[-1] / scale
    np.testing.assert_allclose(run_ort(model, {"x": x})[-1], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": f", float[b, s, {CHANNELS}] h"},
        {"outputs": f", float[b, s, {CHANNELS}] r", "more": "r = Relu(h)"},
        {"before": "Relu(x)"},
        {"before": "LayerNormalization <axis=-1> (x, x)"},
    ],
    ids=["an output of the graph", "a second user", "no normalization", "a scale that varies"],
)
def test_what_cannot_take_the_scale_is_left_alone(changes, rng):
    changes = {"before": NORMALIZED["LayerNormalization"]} | changes
    model = two_products(rng, changes.pop("before"), **changes)
    x = rng.normal(size=(1, 1, CHANNELS)).astype(np.float32)
    products = find_products(model)
    assert not can_fold(products[0].data, products)
    before = [array.copy() for array in run_ort(model, {"x": x})]
    scale = np.exp(rng.normal(size=CHANNELS)).astype(np.float32)
    assert smooth(model, scale).name == "h_smoothed"
    assert "Mul" in operators(model)
    for wanted, got in zip(before, run_ort(model, {"x": x}), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_products_of_which_one_is_kept(rng):
    """Smoothing some of an activation's products leaves the others its own numbers."""
    model = two_products(rng, NORMALIZED["LayerNormalization"])
    x = rng.normal(size=(2, 3, CHANNELS)).astype(np.float32)
    before = run_ort(model, {"x": x})
    first, _ = find_products(model)
    assert not can_fold(first.data, [first])
    apply_smoothing(model.graph, first.data, [first], np.full(CHANNELS, 3, np.float32))
    assert "v" in model.graph.initializers
    for wanted, got in zip(before, run_ort(model, {"x": x}), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_a_weight_that_others_read_stays_for_them(rng):
    model = fill_constants(
        graph_of(
            f"g (float[b, {CHANNELS}] x, float[{CHANNELS}, {OUTPUTS}] w) "
            f"=> (float[b, {OUTPUTS}] y, float[{CHANNELS}, {OUTPUTS}] t) "
            "{ h = Relu(x)\n y = MatMul(h, w)\n t = Neg(w) }"
        ),
        rng,
    )
    x = rng.normal(size=(3, CHANNELS)).astype(np.float32)
    before = run_ort(model, {"x": x})
    smooth(model, np.full(CHANNELS, 2, np.float32))
    assert {"w", "w_smoothed"} <= set(model.graph.initializers)
    for wanted, got in zip(before, run_ort(model, {"x": x}), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
