import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import graph_of

from tfx.runtime.fusion import (
    IN_SUBGRAPH,
    UNRECORDED,
    WRITTEN_OUT,
    AttentionPattern,
    attention_patterns,
)

WEIGHTS = "float[8, 8] wq, float[8, 8] wk"
HEADS = (
    "a = MatMul(x, wq) c = MatMul({keys}, wk) "
    "qr = Reshape(a, split) kr = Reshape(c, split) "
    "q = Transpose<perm = [0, 2, 1, 3]>(qr) k = Transpose<perm = [0, 2, 1, 3]>(kr) "
)


def attention(
    call="Attention(q, k, k)",
    *,
    keys="x",
    before="",
    more="",
    constants="",
):
    """One Attention of projected heads, 2 of size 4; ``before`` makes its mask."""
    given = ", ".join(part for part in (f"float[b, n, 8] x, {WEIGHTS}", more) if part)
    fixed = ", ".join(part for part in ("int64[4] split = {0, 0, 2, 4}", constants) if part)
    model = graph_of(
        f"g ({given}) => (float[b, 2, n, 4] y) <{fixed}> "
        f"{{ {HEADS.format(keys=keys)} {before} y = {call} }}"
    )
    return as_weights(model, "wq", "wk", "table")


def as_weights(model, *names):
    """Inputs of a text graph as initializers: its syntax has no way to make large ones."""
    for value in [one for one in model.graph.inputs if one.name in names]:
        array = np.ones(list(value.shape), value.dtype.numpy())
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.initializers[value.name] = value
    return model


def traits(model):
    (pattern,) = attention_patterns(model)
    assert pattern.fused
    assert not pattern.reason
    return pattern.traits


# what the graph tells of a fused one


def test_self_and_cross():
    assert traits(attention()) == ("self",)
    assert traits(attention(keys="z", more="float[b, m, 8] z")) == ("cross",)


def test_self_behind_rotary_positions():
    """Cosines come from positions, which are no source of queries."""
    turn = (
        "f = Cast<to = 1>(p) r = MatMul(f, table) cc = Cos(r) s = Sin(r) "
        "qq = RotaryEmbedding(q, cc, s) kk = RotaryEmbedding(k, cc, s)"
    )
    model = attention(
        "Attention(qq, kk, k)", before=turn, more="int64[b, n, 1] p, float[1, 2] table"
    )
    assert "self" in traits(model)


def test_neither_self_nor_cross_where_it_is_not_clear():
    mixed = "mixed = Add(q, k)"
    call = "Attention(q, mixed, k)"
    assert traits(attention(call, keys="z", before=mixed, more="float[b, n, 8] z")) == ()


def test_inputs_themselves():
    heads = "float[b, 2, n, 4] q, float[b, 2, n, 4] k"
    assert traits(graph_of(f"g ({heads}) => (y) {{ y = Attention(q, k, k) }}")) == ("cross",)
    assert traits(graph_of(f"g ({heads}) => (y) {{ y = Attention(q, q, k) }}")) == ("self",)


def test_causal_by_attribute():
    assert traits(attention("Attention<is_causal = 1>(q, k, k)")) == ("self", "causal")


COLUMN = "col = Unsqueeze(pos, last)"
POSITIONS = (
    "shape = Shape<start = 1, end = 2>(x) size = Squeeze(shape) "
    f"pos = Range(zero, size, one) {COLUMN} "
)
NUMBERS = "int64 zero = {0}, int64 one = {1}, int64[1] last = {-1}"


@pytest.mark.parametrize("compare", ["LessOrEqual(pos, col)", "GreaterOrEqual(col, pos)"])
def test_causal_by_positions(compare):
    model = attention(
        "Attention(q, k, k, mask)", before=f"{POSITIONS} mask = {compare}", constants=NUMBERS
    )
    assert traits(model) == ("self", "causal")


def test_mask_of_a_window_is_not_causal():
    window = f"{POSITIONS} d = Sub(pos, col) far = Abs(d) mask = LessOrEqual(far, one)"
    model = attention("Attention(q, k, k, mask)", before=window, constants=NUMBERS)
    assert traits(model) == ("self", "masked")


@pytest.mark.parametrize(
    ("triangle", "expected"),
    [
        (np.tri(4, dtype=np.bool_), "causal"),
        (~np.tri(4, dtype=np.bool_), "causal"),
        (np.ones((4, 4), np.bool_), "masked"),
        (np.eye(4, dtype=np.bool_), "masked"),
        (np.tri(4, 5, dtype=np.bool_), "masked"),
    ],
    ids=["lower", "upper", "all", "diagonal", "not square"],
)
def test_causal_by_a_constant(triangle, expected):
    rows, columns = triangle.shape
    model = attention("Attention(q, k, k, mask)", more=f"bool[{rows}, {columns}] mask")
    (mask,) = (value for value in model.graph.inputs if value.name == "mask")
    as_weights(model, "mask")
    mask.const_value = ir.tensor(triangle, name="mask")
    assert traits(model) == ("self", expected)


@pytest.mark.parametrize("mask", ["bool[b, 1, n, n] mask", "float[b, 1, n, n] mask"])
def test_masked_by_an_input(mask):
    assert traits(attention("Attention(q, k, k, mask)", more=mask)) == ("self", "masked")


def test_biased_by_a_table():
    before = "rows = Gather(table, where) bias = Transpose<perm = [2, 0, 1]>(rows)"
    model = attention(
        "Attention(q, k, k, bias)", before=before, more="float[9, 2] table, int64[n, n] where"
    )
    assert traits(model) == ("self", "biased")


def test_causal_masked_and_biased():
    before = (
        f"{POSITIONS} seen = LessOrEqual(pos, col) both = And(seen, keep) "
        "mask = Where(both, table, low)"
    )
    model = attention(
        "Attention(q, k, k, mask)",
        before=before,
        more="bool[b, 1, 1, n] keep, float[2, 1, 1] table",
        constants=f"{NUMBERS}, float low = {{-1e9}}",
    )
    assert traits(model) == ("self", "causal", "masked", "biased")


def test_groups_and_a_soft_cap():
    heads = "float[b, 4, n, 8] q, float[b, 2, n, 8] k"
    call = "Attention<softcap = 30.0>(q, k, k)"
    expected = ("cross", "2 key heads for 4", "soft cap 30")
    assert traits(graph_of(f"g ({heads}) => (y) {{ y = {call} }}")) == expected


def test_groups_of_three_axes():
    flat = "float[b, n, 32] q, float[b, n, 16] k"
    call = "Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, k)"
    model = graph_of(f"g ({flat}) => (y) {{ y = {call} }}")
    assert traits(model) == ("cross", "2 key heads for 4")


# what is not fused


def test_softmax_without_a_reason():
    model = graph_of("g (float[b, 4] x) => (y) { y = Softmax(x) }")
    model.graph[0].name = "gate"
    assert attention_patterns(model) == (AttentionPattern("gate", "", False, (), UNRECORDED),)


def test_softmax_with_its_reason_and_scope():
    model = graph_of("g (float[b, 4] x) => (y) { y = Softmax(x) }")
    model.graph[0].metadata_props.update(not_fused="two masks", scope="layer.0")
    (pattern,) = attention_patterns(model)
    assert str(pattern).startswith("not fused  layer.0 (")
    assert str(pattern).endswith("): two masks")


def test_softmax_in_a_subgraph():
    model = graph_of(
        "g (bool c, float[b, 4] x) => (float[b, 4] y) { y = If(c) <"
        "then_branch = t () => (float[b, 4] u) { u = Softmax(x) }, "
        "else_branch = e () => (float[b, 4] v) { v = Identity(x) }> }"
    )
    (pattern,) = attention_patterns(model)
    assert pattern.reason == IN_SUBGRAPH


def test_softmax_written_out():
    nodes = "e = Exp(x) s = ReduceSum<keepdims = 1>(e, last) y = Div(e, s)"
    text = f"g (float[b, 4] x) => (y) <int64[1] last = {{-1}}> {{ {nodes} }}"
    (pattern,) = attention_patterns(graph_of(text))
    assert (pattern.fused, pattern.reason) == (False, WRITTEN_OUT)
    other = text.replace("Div(e, s)", "Div(s, e)")
    assert attention_patterns(graph_of(other)) == ()
    assert attention_patterns(graph_of(text.replace("ReduceSum", "ReduceMax"))) == ()


def test_operators_of_others_are_not_attention():
    model = graph_of("g (float[b, 4] x) => (y) { y = Softmax(x) }")
    model.graph[0].domain = "else"
    assert attention_patterns(model) == ()


def test_a_fused_one_as_text():
    pattern = AttentionPattern("a", "layer.0", True, ("self", "causal"), "")
    assert str(pattern) == "fused      layer.0 (a): self, causal"
    assert str(AttentionPattern("a", "", True, (), "")) == "fused      the model (a): no mask"
