"""Heads in an axis of their own, in that of the batch, and moved between the two."""

import numpy as np
import onnx_ir as ir
import pytest
from support.attention import HEADS, LOWEST, assert_fuses, feed_of, finished, spelled
from support.graphs import attention_nodes, graph_of, operators, run_ort

from tfx.export.rewrite.attention import fuse_attention
from tfx.export.rewrite.einsum import lower_einsums

# [batch * heads] with 2 heads, in products of 3-D tensors (torch.bmm).
FLAT = "float[g, 5, 4] q, float[g, 4, 7] k, float[g, 7, 6] v"
SHAPES = (
    "int64[4] four = {-1, 2, 5, 7}, int64[3] three = {-1, 5, 7}, "
    f"float big = {{{LOWEST}}}, float c = {{0.5}}"
)


@pytest.mark.parametrize(
    ("scores", "more"),
    [
        ("t = Identity(s)", ""),
        ("t = Add(s, mask)", "float[g, 5, 7] mask"),
        ("t = Add(s, mask)", "float[g, 1, 7] mask"),
        ("t = Where(mask, s, big)", "bool[1, 5, 7] mask"),
        ("t = Where(mask, s, big)", "bool[g, 1, 7] mask"),
        ("t = Where(mask, s, big)", "bool[5, 7] mask"),
    ],
)
def test_products_of_batch_times_heads(scores, more, rng):
    text = spelled(scores, inputs=FLAT, more=more, constants=SHAPES, gives="float[g, 5, 6] y")
    assert_fuses(text, rng)


@pytest.mark.parametrize(
    ("between", "more"),
    [
        ("f = Identity(e)", ""),
        ("f = Add(e, mask)", "float[b, 1, 1, 7] mask"),
        ("f = Add(e, mask)", "float[b, 2, 5, 7] mask"),
        ("f = Add(mask, e)", "float[2, 5, 7] mask"),  # [heads, queries, keys]
        ("f = Where(mask, e, big)", "bool[b, 1, 5, 7] mask"),
        ("f = Where(mask, big, e)", "bool[5, 7] mask"),
        ("h = Mul(e, c) f = Where(mask, h, big)", "bool[b, 1, 1, 7] mask"),
    ],
)
@pytest.mark.parametrize("lifted", ["", "g, 5, 7", "1, 5, 7", "5, 7", "g, 1, 7", "7"])
@pytest.mark.parametrize("early", [True, False], ids=["back before softmax", "back after"])
def test_heads_split_for_a_mask(between, more, lifted, early, rng):
    """The scores are [batch, heads] while they are masked (BART, SpeechT5, DeBERTa)."""
    first = "d = Add(s, bias)" if lifted else "d = Identity(s)"
    text = spelled(
        f"{first} e = Reshape(d, four) {between} "
        + ("t = Reshape(f, three)" if early else "t = Identity(f)"),
        weights="p = Identity(w)" if early else "p = Reshape(w, three)",
        inputs=FLAT,
        more=", ".join(filter(None, [more, f"float[{lifted}] bias" if lifted else ""])),
        constants=SHAPES,
        gives="float[g, 5, 6] y",
    )
    assert_fuses(text, rng, sizes=({"b": 3, "g": 6}, {"b": 1, "g": 2}))


def test_a_condition_before_heads_are_split(rng):
    text = spelled(
        "d = Where(early, s, big) e = Reshape(d, four) t = Where(late, e, big)",
        weights="p = Reshape(w, three)",
        inputs=FLAT,
        more="bool[g, 5, 7] early, bool[b, 1, 1, 7] late",
        constants=SHAPES,
        gives="float[g, 5, 6] y",
    )
    assert_fuses(text, rng)


def test_weights_reshaped_for_an_output_that_nobody_asked_for(rng):
    """SpeechT5 splits and merges the weights, to return them where asked to."""
    text = spelled(
        weights="d = Reshape(w, four) p = Reshape(d, three)",
        inputs=FLAT,
        constants=SHAPES,
        gives="float[g, 5, 6] y",
    )
    assert_fuses(text, rng)


def test_merged_heads_are_undone(rng):
    """Queries, keys and values that were [batch, heads] are taken from there."""
    text = (
        "g (float[b, 2, 5, 4] q, float[b, 2, 7, 4] k, float[b, 2, 7, 6] v, float[b, 1, 1, 7] mask)"
        " => (float[g, 5, 6] y) "
        "<int64[3] qs = {-1, 5, 4}, int64[3] ks = {-1, 7, 4}, int64[3] vs = {-1, 7, 6}, "
        f"{SHAPES}> {{"
        " q3 = Reshape(q, qs) k3 = Reshape(k, ks) v3 = Reshape(v, vs)"
        " kt = Transpose<perm = [0, 2, 1]>(k3) s = MatMul(q3, kt)"
        " s4 = Reshape(s, four) m4 = Add(s4, mask) t = Reshape(m4, three)"
        " w = Softmax<axis = -1>(t) y = MatMul(w, v3) }"
    )
    # The leading size is not inferred: tracing names it, here the test does.
    before, after = named(graph_of(text)), named(graph_of(text))
    assert fuse_attention(after) == (1, {})
    finished(after)
    (node,) = attention_nodes(after)
    producers = [value.producer() for value in node.inputs[:3]]
    assert "Unsqueeze" not in [one.op_type for one in producers if one]
    feed = feed_of(before, rng, {"b": 3})
    np.testing.assert_allclose(run_ort(after, feed)[0], run_ort(before, feed)[0], atol=1e-5)


def named(model):
    """``-1`` of a Reshape to three axes is ``2*b``."""
    for node in model.graph:
        shape = node.outputs[0].shape
        if shape is not None and len(shape) == 3:
            node.outputs[0].shape = ir.Shape(["2*b", *shape[1:]])
    return model


# einsum


@pytest.mark.parametrize(
    ("scores", "output", "q", "k", "y"),
    [
        ("bhqd,bhkd->bhqk", "bhqk,bhkd->bhqd", "b, 2, n", "b, 2, m", "b, 2, n"),
        ("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "b, n, 2", "b, m, 2", "b, n, 2"),
        ("bqd,bkd->bqk", "bqk,bkd->bqd", "b, n", "b, m", "b, n"),
        ("ibnd,jbnd->bnij", "bnij,jbnd->ibnd", "n, b, 2", "m, b, 2", "n, b, 2"),
    ],
    ids=["heads first", "heads last", "one head", "sequence first"],
)
def test_einsum(scores, output, q, k, y, rng):
    text = (
        f"g (float[{q}, 4] q, float[{k}, 4] k, float[{k}, 6] v, float[n, m] mask) "
        f"=> (float[{y}, 6] y) "
        f'<float c = {{0.5}}> {{ s = Einsum<equation = "{scores}">(q, k) u = Mul(s, c) '
        f"t = Add(u, mask) w = Softmax<axis = -1>(t) "
        f'y = Einsum<equation = "{output}">(w, v) }}'
    )
    before, after = graph_of(text), graph_of(text)
    assert lower_einsums(after) == 2
    assert fuse_attention(after) == (1, {})
    finished(after)
    assert not {"Softmax", "Einsum", "MatMul"} & {*operators(after)}
    feed = feed_of(before, rng, {"b": 3, "n": 5, "m": 7})
    np.testing.assert_allclose(run_ort(after, feed)[0], run_ort(before, feed)[0], atol=1e-5)


# many layers


def layers(count, body, more, constants=""):
    """``count`` layers, each over the last one's result."""
    nodes, last = [], "x"
    for index in range(count):
        nodes.append(
            f"k{index} = Transpose<perm = [0, 1, 3, 2]>({last}) s{index} = MatMul({last}, k{index})"
            f" {body.format(i=index)} w{index} = Softmax<axis = -1>(t{index})"
            f" x{index} = MatMul(w{index}, {last})"
        )
        last = f"x{index}"
    fixed = f"<{constants}>" if constants else ""
    return (
        f"g (float[b, 2, n, 4] x, {more}) => (float[b, 2, n, 4] y) {fixed} "
        f"{{ {' '.join(nodes)} y = Identity({last}) }}"
    )


@pytest.mark.parametrize(
    ("body", "more", "shared"),
    [
        ("t{i} = Where(keep, s{i}, big)", "bool[b, 1, 1, n] keep", {"Where": 1, "Expand": 1}),
        ("t{i} = Where(keep, s{i}, big)", "bool[b, 1, n, n] keep", {"Where": 1}),
        (
            "a{i} = Add(s{i}, bias) t{i} = Where(keep, a{i}, big)",
            "float[1, 2, n, n] bias, bool[b, 1, 1, n] keep",
            {"Where": 2, "Equal": 1, "Add": 0},  # the bias may hold the lowest number too
        ),
        (
            "a{i} = Add(s{i}, one) d{i} = Sub(a{i}, two) t{i} = Mul(d{i}, c)",
            "float[n, n] one, float[b, 1, 1, n] two",
            {"Mul": 2, "Add": 1},
        ),
        ("t{i} = Add(s{i}, row)", "float[n] row", {"Unsqueeze": 1, "Expand": 1}),
    ],
    ids=["condition", "full condition", "bias and condition", "scaled sum", "row"],
)
def test_layers_share_their_masks(body, more, shared, rng):
    text = layers(3, body, more, f"float big = {{{LOWEST}}}, float c = {{0.5}}")
    before, after = graph_of(text), graph_of(text)
    assert fuse_attention(after) == (3, {})
    finished(after)
    found = operators(after)
    assert found.count("Attention") == 3
    assert {name: found.count(name) for name in shared} == shared
    masks = {node.inputs[3] for node in attention_nodes(after)}
    assert len(masks) == 1
    feed = feed_of(before, rng, {"b": 3, "n": 5})
    np.testing.assert_allclose(run_ort(after, feed)[0], run_ort(before, feed)[0], atol=1e-5)


def test_two_branches_that_share_a_mask_and_end_in_another_order(rng):
    """The mask is made before whatever needs it first."""
    text = (
        "g (float[b, 2, n, 4] x, bool[b, 1, 1, n] keep) => (float[b, 2, n, 4] y) "
        "<float big = {-1e9}> {"
        " k = Transpose<perm = [0, 1, 3, 2]>(x) s0 = MatMul(x, k) t0 = Where(keep, s0, big)"
        " w0 = Softmax<axis = -1>(t0) s1 = MatMul(x, k) t1 = Where(keep, s1, big)"
        " w1 = Softmax<axis = -1>(t1) y1 = MatMul(w1, x) y0 = MatMul(w0, x) y = Add(y0, y1) }"
    )
    before, after = graph_of(text), graph_of(text)
    assert fuse_attention(after) == (2, {})
    finished(after)
    feed = feed_of(before, rng, {"b": 3, "n": 5})
    np.testing.assert_allclose(run_ort(after, feed)[0], run_ort(before, feed)[0], atol=1e-5)


def test_one_layer_fused_and_one_not(rng):
    text = (
        "g (float[b, 2, n, 4] x) => (float[b, 2, n, 4] y, float[b, 2, n, n] w1) {"
        " k = Transpose<perm = [0, 1, 3, 2]>(x) s0 = MatMul(x, k) w0 = Softmax<axis = -1>(s0)"
        " y0 = MatMul(w0, x) s1 = MatMul(y0, k) w1 = Softmax<axis = -1>(s1) y = MatMul(w1, x) }"
    )
    before, after = graph_of(text), graph_of(text)
    assert fuse_attention(after) == (1, {"the attention weights are an output of the model": 1})
    finished(after)
    feed = feed_of(before, rng, {"b": 3, "n": 5})
    for one, other in zip(run_ort(after, feed), run_ort(before, feed), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_attention_is_a_node_of_the_same_module():
    model = graph_of(spelled(inputs=HEADS))
    for node in model.graph:
        node.metadata_props["scope"] = "layer.0.attention" if node.op_type == "Softmax" else "other"
    fuse_attention(model)
    (node,) = attention_nodes(model)
    assert node.metadata_props["scope"] == "layer.0.attention"


def test_output_of_the_model_inside_the_graph_too(rng):
    """The product is an output and goes on as well."""
    text = spelled(
        output="y = MatMul(p, v) z = Relu(y)", gives="float[b, 2, n, 6] y, float[b, 2, n, 6] z"
    )
    assert_fuses(text, rng)
