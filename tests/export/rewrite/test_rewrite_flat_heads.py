import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import attention_nodes, graph_of, operators, run_ort

from tfx.export.passes.cleanup import simplify
from tfx.export.rewrite.flat_heads import flatten_heads

SPLIT = "{to}r = Reshape({of}, {sizes}) {to} = Transpose<perm = [0, 2, 1, 3]>({to}r) "
MERGE_OF = "swapped = Transpose<perm = [0, 2, 1, 3]>({of}) y = Reshape(swapped, whole)"
MERGE = MERGE_OF.format(of="a")
CONSTANTS = (
    "int64[4] four = {0, 0, 4, 8}, int64[4] two = {0, 0, 2, 8}, int64[3] whole = {0, 0, 32}, "
    "float zero = {0}"
)


def attention(
    *,
    call="a = Attention<scale = 0.3>(q, k, v)",
    more="",
    keys="float[b, m, 32]",
    key_split="four",
    merge=MERGE,
    constants="",
    gives="float[b, n, 32] y",
):
    """Heads of size 8, 4 of queries, split from three axes and merged again."""
    given = f"float[b, n, 32] x, {keys} c, {keys} d" + (f", {more}" if more else "")
    fixed = CONSTANTS + (f", {constants}" if constants else "")
    return graph_of(
        f"g ({given}) => ({gives}) <{fixed}> {{"
        + SPLIT.format(of="x", to="q", sizes="four")
        + SPLIT.format(of="c", to="k", sizes=key_split)
        + SPLIT.format(of="d", to="v", sizes=key_split)
        + f"{call} {merge} }}"
    )


def feed_of(model, rng, b, n, m):
    sizes = {"b": b, "n": n, "m": m}
    feed = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes[dim.value] for dim in value.shape]
        if value.dtype is ir.DataType.BOOL:
            feed[value.name] = rng.random(shape) < 0.5
        else:
            feed[value.name] = rng.normal(size=shape).astype(np.float32)
    return feed


def assert_flattens(model, rng):
    """It fires, keeps outputs and their shapes, and leaves no reshape; gives the node."""
    feeds = [feed_of(model, rng, *sizes) for sizes in ((3, 5, 7), (1, 1, 4))]
    expected = [run_ort(model, feed)[0] for feed in feeds]
    assert flatten_heads(model) == 1
    simplify(model)
    assert not {"Reshape", "Transpose"} & {*operators(model)}
    for feed, one in zip(feeds, expected, strict=True):
        np.testing.assert_allclose(run_ort(model, feed)[0], one, rtol=1e-5, atol=1e-6)
    (node,) = attention_nodes(model)
    return node


def assert_stays(model):
    before = operators(model)
    assert flatten_heads(model) == 0
    assert operators(model) == before


def test_heads_become_attributes(rng):
    model = attention()
    (before,) = attention_nodes(model)
    before.metadata_props["scope"] = "layer.0"
    node = assert_flattens(model, rng)
    assert node.attributes.get_int("q_num_heads") == 4
    assert node.attributes.get_int("kv_num_heads") == 4
    assert node.attributes.get_float("scale") == pytest.approx(0.3)
    assert node.metadata_props["scope"] == "layer.0"


def test_groups_share_heads(rng):
    node = assert_flattens(attention(keys="float[b, m, 16]", key_split="two"), rng)
    assert node.attributes.get_int("kv_num_heads") == 2


@pytest.mark.parametrize("mask", ["bool[b, 1, n, m]", "float[b, 4, n, m]", "float[n, m]"])
def test_masks_stay(mask, rng):
    call = "a = Attention<scale = 0.3, softcap = 20.0>(q, k, v, mask)"
    node = assert_flattens(attention(call=call, more=f"{mask} mask"), rng)
    assert node.attributes.get_float("softcap") == 20.0
    assert len(node.inputs) == 4


def test_causal_stays(rng):
    call = "a = Attention<is_causal = 1>(q, k, v)"
    node = assert_flattens(attention(call=call), rng)
    assert node.attributes.get_int("is_causal") == 1


GUARDED = "a = Attention(q, k, v) g = Where(rows, zero, a)"


def test_a_guard_of_rows_goes_along(rng):
    model = attention(call=GUARDED, more="bool[b, 1, n, 1] rows", merge=MERGE_OF.format(of="g"))
    assert_flattens(model, rng)
    assert sorted(operators(model)) == ["Attention", "Squeeze", "Where"]


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ("bool[b, 4, n, 1] rows", "Where(rows, zero, a)"),
        ("bool[b, 1, n, 8] rows", "Where(rows, zero, a)"),
        ("bool[n, 1] rows", "Where(rows, zero, a)"),
        ("bool[b, 1, n, 1] rows", "Where(rows, a, zero)"),
        ("bool[b, 1, n, 1] rows, float[8] fill", "Where(rows, fill, a)"),
    ],
    ids=["by head", "by element", "of two axes", "the other way", "of a row"],
)
def test_another_guard_keeps_the_heads(rows, where):
    call = f"a = Attention(q, k, v) g = {where}"
    assert_stays(attention(call=call, more=rows, merge=MERGE_OF.format(of="g")))


def test_something_between_keeps_the_heads():
    assert_stays(attention(call="n = Neg(q) a = Attention(n, k, v)"))
    assert_stays(attention(call="n = Neg(v) a = Attention(q, k, n)"))
    assert_stays(attention(call="n = Attention(q, k, v) a = Neg(n)"))


def test_heads_that_are_read_elsewhere_stay_split(rng):
    model = attention(
        merge=MERGE_OF.format(of="a") + " z = Neg(a)",
        gives="float[b, n, 32] y, float[b, 4, n, 8] z",
    )
    assert_stays(model)


def test_heads_as_an_output_stay_split():
    assert_stays(attention(gives="float[b, n, 32] y, float[b, 4, n, 8] a"))


@pytest.mark.parametrize(
    "merge",
    [
        "y = Reshape(a, whole)",
        "swapped = Transpose<perm = [0, 2, 3, 1]>(a) y = Reshape(swapped, whole)",
        "swapped = Transpose<perm = [0, 2, 1, 3]>(a) y = Reshape(swapped, rows)",
    ],
    ids=["no swap", "another swap", "rows of all batches"],
)
def test_another_merge_stays(merge):
    model = attention(merge=merge, constants="int64[2] rows = {-1, 32}", gives="y")
    assert_stays(model)


def test_another_split_stays():
    model = attention()
    for node in model.graph:
        if node.op_type == "Transpose" and node.outputs[0].name == "k":
            node.attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 3, 1])
    assert_stays(model)


def test_unknown_shapes_stay():
    model = attention()
    model.graph.inputs[0].shape = None
    assert_stays(model)


def test_what_has_three_axes_already_stays():
    heads = "float[b, n, 32] x, float[b, m, 32] c"
    call = "Attention<q_num_heads = 4, kv_num_heads = 4>(x, c, c)"
    assert_stays(graph_of(f"g ({heads}) => (y) {{ y = {call} }}"))
