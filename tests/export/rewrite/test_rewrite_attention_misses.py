"""Softmaxes that are not attention ONNX has an operator for stay, and say why."""

import onnx_ir as ir
import pytest
from support.attention import assert_stays, spelled
from support.graphs import graph_of, operators

from tfx.export.rewrite.attention import fuse_attention

NUMBERS = "float c = {-1e9}, float half = {0.5}, float zero = {0}"
FLAT = "float[b, n, 4] q, float[b, 4, m] k, float[b, m, 6] v"


def softmax(axis):
    """One layer with its softmax over ``axis``."""
    return spelled().replace("axis = -1", f"axis = {axis}")


# what the softmax takes


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_softmax_over_another_axis(axis):
    assert_stays(softmax(axis), "the softmax is not over the last axis")


def test_softmax_over_the_last_axis_counted_from_the_front():
    assert fuse_attention(graph_of(softmax(3))) == (1, {})


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ("t = Relu(s)", "a Relu between the product and the softmax"),
        ("t = Exp(s)", "a Exp between the product and the softmax"),
        (
            "t = Transpose<perm = [0, 1, 3, 2]>(s)",
            "a Transpose between the product and the softmax",
        ),
        ("t = Mul(s, mask)", "a Mul between the product and the softmax"),
        ("t = Div(half, s)", "a Div between the product and the softmax"),
        ("t = Mul(s, c)", "the scale is -1000000000.0, Attention takes positive ones"),
        ("t = Mul(s, zero)", "a Mul between the product and the softmax"),
        ("t = Sub(mask, s)", "a Sub between the product and the softmax"),
        ("a = Cast<to = 10>(s) t = Cast<to = 1>(a)", "a Cast between the product and the softmax"),
        ("a = Neg(s) t = Where(keep, a, c)", "a Where that is not a mask of the scores"),
        ("t = Where(keep, s, zero)", "a Where that fills with 0.0, not with a mask"),
        ("t = Where(keep, half, s)", "a Where that fills with 0.5, not with a mask"),
        ("t = Where(keep, s, mask)", "a Where that is not a mask of the scores"),
        (
            "a = Add(s, mask) d = Tanh(a) t = Mul(d, half)",
            "a mask or bias inside the soft cap",
        ),
        (
            "a = Where(keep, s, c) d = Tanh(a) t = Mul(d, half)",
            "a mask or bias inside the soft cap",
        ),
        ("a = Tanh(s) d = Tanh(a) t = Mul(d, half)", "a Tanh between the product and the softmax"),
    ],
)
def test_what_stands_before_the_softmax(scores, reason):
    more = "float[b, 2, n, m] mask, bool[b, 1, n, m] keep"
    assert_stays(spelled(scores, more=more, constants=NUMBERS), reason)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t", "the shape of the scores is not known"),
        ("mask", "a mask or bias of unknown shape"),
        ("q", "unknown-rank query or keys, expected 3-D or 4-D"),
        ("v", "unknown-rank keys or values"),
    ],
)
def test_shapes_that_are_not_known(name, reason):
    model = graph_of(spelled("t = Add(s, mask)", more="float[n, m] mask"))
    values = [*model.graph.inputs, *(node.outputs[0] for node in model.graph)]
    (value,) = (value for value in values if value.name == name)
    value.shape = None
    assert_stays(model, reason)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_sizes_that_are_not_known_may_differ(name):
    """Two batches without a name are not the same batch."""
    model = graph_of(spelled())
    for value in model.graph.inputs:
        value.shape = ir.Shape([None, *value.shape[1:]])
    before = [value.shape for value in model.graph.inputs]
    fused, (reason,) = fuse_attention(model)
    assert fused == 0
    assert reason == f"queries {before[0]} and keys or values {before[1]} broadcast"


# scores and weights that someone else wants


@pytest.mark.parametrize(
    ("parts", "gives", "reason"),
    [
        ({"weights": "p = Identity(w)"}, "w", "the attention weights are an output of the model"),
        ({}, "p", "the attention weights are an output of the model"),
        ({"scores": "t = Identity(s)"}, "s", "the scores are used elsewhere too"),
        ({"scores": "t = Mul(s, half)"}, "t", "the scores are used elsewhere too"),
    ],
)
def test_outputs_of_the_model(parts, gives, reason):
    text = spelled(
        **parts,
        constants=NUMBERS,
        gives=f"float[b, 2, n, 6] y, float[b, 2, n, m] {gives}",
    )
    assert_stays(text, reason)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"weights": "p = Identity(w) z = Relu(w)"}, "the attention weights have 2 uses"),
        ({"output": "y = MatMul(p, v) z = Relu(p)"}, "the attention weights have 2 uses"),
        ({"scores": "t = Identity(s) z = Relu(s)"}, "the scores are used elsewhere too"),
        ({"scores": "t = Mul(s, half) z = Relu(t)"}, "the scores are used elsewhere too"),
        ({"scores": "t = Add(s, s)"}, "the scores are used elsewhere too"),
    ],
)
def test_other_uses(parts, reason):
    gives = "float[b, 2, n, 6] y, float[b, 2, n, m] z"
    more = {} if "z =" in str(parts) else {"weights": "p = Identity(w) z = Exp(half)"}
    assert_stays(spelled(**parts, **more, constants=NUMBERS, gives=gives), reason)


# what happens to the weights


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"weights": "p = Log(w)"}, "a Log between the softmax and the values"),
        ({"weights": "p = Mul(w, half)"}, "a Mul between the softmax and the values"),
        (
            {"weights": "p = Transpose<perm = [0, 1, 2, 3]>(w)"},
            "a Transpose between the softmax and the values",
        ),
        (
            {
                "weights": "p = Identity(w) r = Transpose<perm = [0, 1, 3, 2]>(v)",
                "output": "u = Transpose<perm = [0, 1, 3, 2]>(p) y = MatMul(r, u)",
                "gives": "float[b, 2, 6, n] y",
            },
            "a Transpose between the softmax and the values",
        ),
        (
            {
                "inputs": "float[b, 2, n, 4] q, float[b, 2, 4, m] k, float[b, 2, 6, n] v",
                "output": "y = MatMul(v, p)",
                "gives": "float[b, 2, 6, m] y",
            },
            "a MatMul between the softmax and the values",
        ),
        (
            {"weights": "nan = IsNaN(w) p = Where(nan, half, w)"},
            "the attention weights have 2 uses",
        ),
        (
            {"weights": "nan = IsNaN(w) p = Where(nan, w, zero)"},
            "the attention weights have 2 uses",
        ),
    ],
)
def test_what_stands_after_the_softmax(parts, reason):
    assert_stays(spelled(**parts, constants=NUMBERS), reason)


def test_a_classifier_is_no_attention():
    text = (
        "g (float[b, 8] x) => (float[b, 3] y) <float[8, 3] weight = {"
        + ", ".join(["0"] * 24)
        + "}> { s = MatMul(x, weight) y = Softmax<axis = -1>(s) }"
    )
    assert_stays(text, "2-D query or keys, expected 3-D or 4-D")


def test_a_softmax_of_an_input():
    text = "g (float[b, 3] x) => (float[b, 3] y) { y = Softmax(x) }"
    assert_stays(text, "no product of queries and keys above the softmax")


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ("t = Add(mask, mask)", "an Add of two values that are not scores"),
        ("t = Identity(mask)", "no product of queries and keys above the softmax"),
    ],
)
def test_no_scores_at_all(scores, reason):
    text = spelled(scores, product="", inputs="float[b, 2, m, 6] v", more="float[b, 2, n, m] mask")
    assert_stays(text, reason)


def test_a_softmax_of_another_domain_is_not_looked_at():
    model = graph_of(spelled())
    for node in model.graph:
        if node.op_type == "Softmax":
            node.domain = "com.example"
    assert fuse_attention(model) == (0, {})


def test_a_product_of_another_domain():
    model = graph_of(spelled())
    next(iter(model.graph)).domain = "com.example"
    assert_stays(model, "no product of queries and keys above the softmax")


# batches, heads and ranks


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (
            {"inputs": "float[b, 2, n, 4] q, float[1, 2, 4, m] k, float[b, 2, m, 6] v"},
            "queries [b,2,n,4] and keys or values [1,2,4,m] broadcast",
        ),
        (
            {"inputs": "float[b, 2, n, 4] q, float[b, 1, 4, m] k, float[b, 1, m, 6] v"},
            "queries [b,2,n,4] and keys or values [b,1,4,m] broadcast",
        ),
        (
            {"inputs": "float[b, 2, n, 4] q, float[b, 2, 4, m] k, float[b, 1, m, 6] v"},
            "queries [b,2,n,4] and keys or values [b,1,m,6] broadcast",
        ),
        (
            {"inputs": "float[b, 2, n, 4] q, float[2, 4, m] k, float[b, 2, m, 6] v"},
            "query and keys differ in rank",
        ),
        (
            {"inputs": "float[b, 2, n, 4] q, float[b, 2, 4, m] k, float[2, m, 6] v"},
            "3-D keys or values",
        ),
        (
            {
                "inputs": "float[b, 2, 2, n, 4] q, float[b, 2, 2, 4, m] k, float[b, 2, 2, m, 6] v",
                "gives": "float[b, 2, 2, n, 6] y",
            },
            "5-D query or keys, expected 3-D or 4-D",
        ),
        (
            {
                "inputs": "float[n, 4] q, float[4, m] k, float[m, 6] v",
                "gives": "float[n, 6] y",
            },
            "2-D query or keys, expected 3-D or 4-D",
        ),
    ],
)
def test_ranks_and_sizes(parts, reason):
    assert_stays(spelled(**parts), reason)


@pytest.mark.parametrize(
    ("scores", "more", "inputs"),
    [
        ("t = Add(s, mask)", "float[b, 2, n, m] mask", "1, 2, n"),
        ("t = Add(mask, s)", "float[b, 2, n, m] mask", "b, 1, n"),
        ("t = Where(mask, s, c)", "bool[b, 2, n, m] mask", "b, 2, 1"),
    ],
    ids=["batch", "heads", "queries"],
)
def test_a_mask_that_repeats_the_scores(scores, more, inputs):
    leading = inputs.rpartition(",")[0]
    text = spelled(
        scores,
        inputs=f"float[{inputs}, 4] q, float[{leading}, 4, m] k, float[{leading}, m, 6] v",
        more=more,
        constants=NUMBERS,
    )
    assert_stays(text, "a mask or bias that repeats the scores")


def test_a_mask_that_adds_a_rank():
    text = spelled(
        "t = Add(s, mask)", inputs=FLAT, more="float[b, 2, n, m] mask", constants=NUMBERS
    ).replace("[b, n, 4]", "[2, n, 4]")
    assert_stays(
        text.replace("[b, 4, m]", "[2, 4, m]").replace("[b, m, 6]", "[2, m, 6]"),
        "a mask or bias that repeats the scores",
    )


def test_a_scale_that_adds_a_rank():
    text = spelled(
        "t = Mul(s, c)",
        constants="float[1, 1, 1, 1, 1] c = {0.5}",
        output="five = MatMul(p, v) y = Identity(five)",
        gives="float[1, b, 2, n, 6] y",
    )
    assert_stays(text, "a Mul between the product and the softmax")


def test_queries_scaled_by_more_than_a_number_stay_as_they_are():
    """The factor is part of the queries then; Attention does the rest."""
    model = graph_of(
        spelled(
            product="a = Mul(q, per_channel) s = MatMul(a, k)",
            constants="float[4] per_channel = {1, 2, 3, 4}",
        )
    )
    assert fuse_attention(model) == (1, {})
    assert "Mul" in operators(model)


@pytest.mark.parametrize(
    ("to", "v", "y", "reason"),
    [
        (
            [3, 2, 7, 5],
            "3, 2, 5, 6",
            "3, 2, 7, 6",
            "a Reshape between the product and the softmax",
        ),
        ([30, 7], "7, 6", "30, 6", "a Reshape between the product and the softmax"),
        ([3, 2, 5, 7], "3, 2, 7, 6", "3, 2, 5, 6", "weights and queries differ in rank"),
    ],
    ids=["other sizes", "flat", "not merged again"],
)
def test_reshapes_of_the_scores(to, v, y, reason):
    text = spelled(
        "t = Reshape(s, to)",
        inputs=f"float[6, 5, 4] q, float[6, 4, 7] k, float[{v}] v",
        constants=f"int64[{len(to)}] to = {{{', '.join(map(str, to))}}}",
        gives=f"float[{y}] y",
    )
    assert_stays(text, reason)


def test_a_second_split_of_heads():
    text = spelled(
        "a = Reshape(s, four) d = Add(a, bias) e = Reshape(d, three) f = Add(e, bias) "
        "t = Reshape(f, four)",
        inputs="float[6, 5, 4] q, float[6, 4, 7] k, float[3, 2, 7, 6] v",
        more="float[5, 7] bias",
        constants="int64[4] four = {3, 2, 5, 7}, int64[3] three = {6, 5, 7}",
        gives="float[3, 2, 5, 6] y",
    )
    assert_stays(text, "a Reshape between the product and the softmax")
