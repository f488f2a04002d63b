import numpy as np
import pytest
from support.attention import LOWEST, assert_fuses, feed_of, spelled
from support.graphs import graph_of


def scale_of(node):
    return node.attributes.get_float("scale")


# where the scale is


@pytest.mark.parametrize(
    ("parts", "scale"),
    [
        ({}, 1.0),
        ({"scores": "t = Mul(s, c)"}, 0.25),
        ({"scores": "t = Mul(c, s)"}, 0.25),
        ({"scores": "t = Div(s, c)"}, 4.0),
        ({"product": "a = Mul(q, c) s = MatMul(a, k)"}, 0.25),
        ({"product": "a = Mul(c, k) s = MatMul(q, a)"}, 0.25),
        ({"product": "a = Div(q, c) s = MatMul(a, k)"}, 4.0),
        ({"product": "a = Mul(q, c) d = Mul(k, c) s = MatMul(a, d)"}, 0.0625),
        ({"product": "a = Mul(q, c) s = MatMul(a, k)", "scores": "t = Div(s, c)"}, 1.0),
        ({"scores": "a = Mul(s, c) d = Identity(a) t = Mul(d, c)"}, 0.0625),
        ({"product": "a = Neg(q) s = MatMul(a, k)", "scores": "t = Mul(s, c)"}, 0.25),
        ({"product": "a = Mul(q, e) d = Mul(k, e) s = MatMul(a, d)"}, 9.0),
    ],
    ids=[
        "none",
        "after",
        "after, swapped",
        "after, by Div",
        "on q",
        "on k",
        "on q, by Div",
        "on both",
        "undone",
        "twice",
        "of something computed",
        "negative twice",
    ],
)
def test_scale(parts, scale, rng):
    node = assert_fuses(spelled(constants="float c = {0.25}, float e = {-3}", **parts), rng)
    assert scale_of(node) == pytest.approx(scale)


@pytest.mark.parametrize("shape", ["1", "1, 1", "1, 1, 1", "1, 1, 1, 1"])
def test_scale_of_any_rank_the_scores_have(shape, rng):
    text = spelled("t = Mul(s, c)", constants=f"float[{shape}] c = {{0.5}}")
    assert scale_of(assert_fuses(text, rng)) == 0.5


# masks


@pytest.mark.parametrize("fill", ["-1e4", "-1e9", str(LOWEST), "-inf"])
@pytest.mark.parametrize("where", ["Where(keep, s, c)", "Where(drop, c, s)"])
@pytest.mark.parametrize(
    "shape",
    ["b, 1, 1, m", "b, 1, n, m", "b, 2, n, m", "1, 1, n, m", "2, n, m", "n, m", "m", "b, 1, n, 1"],
)
def test_mask_by_where(shape, where, fill, rng):
    name = "keep" if "keep" in where else "drop"
    text = spelled(f"t = {where}", more=f"bool[{shape}] {name}", constants=f"float c = {{{fill}}}")
    model = graph_of(text)
    feeds = [
        feed_of(model, rng, sizes) for sizes in ({"b": 3, "n": 5, "m": 7}, {"b": 1, "n": 1, "m": 4})
    ]
    if fill == "-inf":  # without a guard, a row that masks every key is NaN: nothing to keep
        for feed in feeds:
            feed[name][..., 0] = name == "keep"
    assert_fuses(text, rng, feeds=feeds)


@pytest.mark.parametrize("shape", ["b, 1, 1, m", "b, 2, n, m", "n, m", "m", "", "1", "b, 2, n, 1"])
@pytest.mark.parametrize("add", ["Add(s, mask)", "Add(mask, s)", "Sub(s, mask)"])
def test_mask_added(add, shape, rng):
    declared = f"float[{shape}] mask" if shape else "float mask"
    assert_fuses(spelled(f"t = {add}", more=declared), rng)


@pytest.mark.parametrize("factor", [-1e4, -1e9, LOWEST / 2])
def test_mask_of_ones_and_zeros(factor, rng):
    nodes = "u = Unsqueeze(ones, axes) a = Sub(one, u) d = Mul(a, c) t = Add(s, d)"
    text = spelled(
        nodes,
        more="float[b, m] ones",
        constants=f"float one = {{1}}, float c = {{{factor}}}, int64[2] axes = {{1, 2}}",
    )
    feed = feed_of(graph_of(text), rng, {"b": 3, "n": 5, "m": 7})
    feed["ones"] = np.ones((3, 7), np.float32)
    feed["ones"][1, 4:] = 0
    feed["ones"][2] = 0
    assert_fuses(text, rng, feeds=[feed])


TERMS = {
    "keep": ("{to} = Where(keep, {of}, big)", "bool[b, 1, 1, m] keep"),
    "drop": ("{to} = Where(drop, big, {of})", "bool[n, m] drop"),
    "bias": ("{to} = Add({of}, bias)", "float[1, 2, n, m] bias"),
    "minus": ("{to} = Sub({of}, less)", "float[b, 1, n, m] less"),
    "scale": ("{to} = Mul({of}, c)", ""),
    "row": ("{to} = Add(row, {of})", "float[b, 1, 1, m] row"),
}


@pytest.mark.parametrize(
    "order",
    [
        ("scale", "bias", "keep"),
        ("bias", "scale", "keep"),
        ("keep", "bias", "scale"),
        ("keep", "drop", "scale"),
        ("drop", "bias", "keep"),
        ("minus", "scale", "bias", "scale", "drop"),
        ("keep", "row"),
        ("row", "bias", "minus"),
        ("keep", "drop", "keep"),
    ],
    ids="-".join,
)
def test_terms_in_any_order(order, rng):
    nodes = []
    names = ["s", *(f"x{index}" for index in range(len(order) - 1)), "t"]
    for index, term in enumerate(order):
        nodes.append(TERMS[term][0].format(of=names[index], to=names[index + 1]))
    more = ", ".join(dict.fromkeys(TERMS[term][1] for term in order if TERMS[term][1]))
    constants = f"float c = {{0.5}}, float big = {{{LOWEST}}}"
    assert_fuses(spelled(" ".join(nodes), more=more, constants=constants), rng)


def test_masks_that_share_a_row_between_them(rng):
    """A row masked partly by one Where and partly by another weighs all keys the same."""
    text = spelled(
        "x = Where(one, s, big) t = Where(two, x, big)",
        more="bool[b, 1, n, m] one, bool[b, 1, n, m] two",
        constants=f"float big = {{{LOWEST}}}",
    )
    feed = feed_of(graph_of(text), rng, {"b": 3, "n": 5, "m": 7})
    feed["one"][1] = rng.random((1, 5, 7)) < 0.5
    feed["two"][1] = ~feed["one"][1]
    assert_fuses(text, rng, feeds=[feed])


def test_two_padding_masks(rng):
    """Their sum has a query axis of 1 too, which ONNX Runtime wants expanded."""
    text = spelled(
        "x = Add(s, one) t = Add(x, two)", more="float[b, 1, 1, m] one, float[b, 1, 1, m] two"
    )
    assert_fuses(text, rng)


def test_soft_cap(rng):
    text = spelled(
        "a = Mul(s, c) d = Div(a, cap) e = Tanh(d) f = Mul(e, cap) t = Where(keep, f, big)",
        more="bool[b, 1, 1, m] keep",
        constants=f"float c = {{0.5}}, float cap = {{3}}, float big = {{{LOWEST}}}",
    )
    node = assert_fuses(text, rng)
    assert node.attributes.get_float("softcap") == 3
    assert scale_of(node) == 0.5


def test_nan_guard(rng):
    """What PyTorch writes for rows that mask every key: their output is zero."""
    text = spelled(
        "t = Where(keep, s, big)",
        weights="nan = IsNaN(w) p = Where(nan, zero, w)",
        more="bool[b, 1, n, m] keep",
        constants="float big = {-inf}, float zero = {0}",
    )
    assert_fuses(text, rng)


@pytest.mark.parametrize(
    "weights",
    [
        "p = Identity(w)",
        "p = Dropout(w)",
        "a = Dropout(w) p = Identity(a)",
        "p = Cast<to = 1>(w)",
        "nan = IsNaN(w) a = Where(nan, zero, w) p = Dropout(a)",
    ],
)
def test_what_may_stand_after_the_softmax(weights, rng):
    assert_fuses(spelled(weights=weights, constants="float zero = {0}"), rng)


def test_operations_that_do_nothing_to_the_scores(rng):
    assert_fuses(spelled("a = Cast<to = 1>(s) d = Identity(a) t = Cast<to = 1>(d)"), rng)


# layouts


def test_one_head(rng):
    text = spelled(
        "t = Add(s, mask)",
        inputs="float[b, n, 4] q, float[b, 4, m] k, float[b, m, 6] v",
        more="float[b, 1, m] mask",
        gives="float[b, n, 6] y",
    )
    assert_fuses(text, rng)


@pytest.mark.parametrize("shape", ["b, n, m", "b, 1, m", "1, n, m", "n, m", "m", "1, 1, m"])
def test_one_head_masked(shape, rng):
    text = spelled(
        "t = Where(keep, s, c)",
        inputs="float[b, n, 4] q, float[b, 4, m] k, float[b, m, 6] v",
        more=f"bool[{shape}] keep",
        constants="float c = {-1e9}",
        gives="float[b, n, 6] y",
    )
    assert_fuses(text, rng)


def test_values_computed_after_the_softmax(rng):
    """New nodes go where their inputs are known."""
    text = spelled(
        inputs="float[b, n, 4] q, float[b, 4, m] k, float[b, m, 6] v",
        weights="p = Identity(w) late = Relu(v)",
        output="y = MatMul(p, late)",
        gives="float[b, n, 6] y",
    )
    assert_fuses(text, rng)
