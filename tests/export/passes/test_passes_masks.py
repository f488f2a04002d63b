import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from support.graphs import graph_of, operators, run_ort, run_reference

from tfx.export.passes.attention import raise_masks

LOWEST = float(np.finfo(np.float32).min)
SHAPES = "float[batch, 2, 5, 4] q, float[batch, 2, 5, 4] k, float[batch, 2, 5, 4] v"


def masked(body: str, inputs: str = "bool[batch, 1, 5, 5] keep", weights: str = ""):
    """``y = Attention(q, k, v, mask)`` with a mask that ``body`` makes."""
    numbers = f"float zero = {{0}}, float low = {{{LOWEST}}}, float some = {{-100}}{weights}"
    typed = ", float[batch, 1, 5, 5] mask" if "mask =" in body else ""
    return graph_of(
        f"g ({SHAPES}, {inputs}) => (float[batch, 2, 5, 4] y) <{numbers}{typed}> "
        f"{{ {body} y = Attention(q, k, v, mask) }}"
    )


def feed_of(rng, **given):
    feed = {name: rng.normal(size=(3, 2, 5, 4)).astype(np.float32) for name in "qkv"}
    keep = rng.random((3, 1, 5, 5)) < 0.5
    keep[0, 0, 2] = False  # a row that masks every key
    return feed | (given or {"keep": keep})


def assert_same(model, before, feed):
    check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run_reference(model, feed)[0], before, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(run_ort(model, feed)[0], before, rtol=1e-5, atol=1e-5)


def test_what_it_is_for_still_stands(rng):
    """ONNX Runtime answers such rows with zeros; once it does not, the pass can go."""
    model, feed = masked("mask = Where(keep, zero, low)"), feed_of(rng)
    (uniform,) = run_reference(model, feed)
    np.testing.assert_allclose(uniform[0, :, 2], feed["v"][0].mean(1), rtol=1e-5, atol=1e-6)
    assert not run_ort(model, feed)[0][0, :, 2].any()


@pytest.mark.parametrize("branches", ["keep, zero, low", "hide, low, zero"])
def test_the_number_itself_is_replaced(branches, rng):
    model = masked(f"hide = Not(keep) mask = Where({branches})")
    feed = feed_of(rng)
    (before,) = run_reference(model, feed)

    assert raise_masks(model) == 1

    assert operators(model) == ["Not", "Where", "Attention"]
    assert_same(model, before, feed)


@pytest.mark.parametrize(
    "body",
    [
        "f = Cast<to = 1>(keep) one = Sub(f, unit) mask = Mul(one, high)",
        "a = Where(keep, zero, low) mask = Add(a, bias)",
        # Twice the lowest is minus infinity: those keys leave the average, the others share it.
        "c = Where(causal, zero, low) a = Where(keep, zero, low) mask = Add(a, c)",
    ],
    ids=["multiplied", "with a bias", "added twice"],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in add")
def test_a_computed_mask_is_changed_where_it_is_the_lowest(body, rng):
    weights = (
        f", float unit = {{1}}, float high = {{{-LOWEST}}}, float[5] bias = {{0.5, 1, 0, 2, -1}}, "
        "bool[5, 5] causal = {1,0,0,0,0,1,1,0,0,0,1,1,1,0,0,1,1,1,1,0,1,1,1,1,1}"
    )
    model, feed = masked(body, weights=weights), feed_of(rng)
    (before,) = run_reference(model, feed)

    assert raise_masks(model) == 1

    assert operators(model)[-3:] == ["Equal", "Where", "Attention"]
    assert_same(model, before, feed)


def test_a_mask_from_outside_may_hold_it(rng):
    model = masked("", inputs="float[batch, 1, 5, 5] mask")
    mask = np.where(rng.random((3, 1, 5, 5)) < 0.5, np.float32(0), np.float32(LOWEST))
    mask[0, 0, 2] = LOWEST
    feed = feed_of(rng, mask=mask)
    (before,) = run_reference(model, feed)

    assert raise_masks(model) == 1

    assert_same(model, before, feed)


def test_layers_share_the_change():
    model = graph_of(
        f"g ({SHAPES}, float[batch, 1, 5, 5] mask) => (float[batch, 2, 5, 4] y) "
        "{ x = Attention(q, k, v, mask) y = Attention(x, k, v, mask) }"
    )
    assert raise_masks(model) == 1
    assert operators(model) == ["Equal", "Where", "Attention", "Attention"]


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("", "bool[batch, 1, 5, 5] mask"),
        ("mask = Where(keep, zero, some)", "bool[batch, 1, 5, 5] keep"),
        ("mask = Add(bias, bias)", "bool[batch, 1, 5, 5] keep"),
    ],
    ids=["boolean", "another number", "weights"],
)
def test_other_masks_are_left_alone(body, inputs):
    model = masked(body, inputs, ", float[5] bias = {0.5, 1, 0, 2, -1}")
    before = operators(model)
    assert raise_masks(model) == 0
    assert operators(model) == before
