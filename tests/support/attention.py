"""Spelled-out attention as small graphs, and what fusing makes of it."""

import numpy as np
import onnx_ir as ir
from onnx.checker import check_model

from tfx.export.passes.attention import expand_masks, raise_masks
from tfx.export.passes.cleanup import simplify
from tfx.export.rewrite.attention import fuse_attention

from .graphs import attention_nodes, graph_of, operators, run_ort

HEADS = "float[b, 2, n, 4] q, float[b, 2, 4, m] k, float[b, 2, m, 6] v"
MERGED = "float[g, n, 4] q, float[g, 4, m] k, float[g, m, 6] v"  # g = batch * heads

# Batch 3 with 2 heads; sizes all different, and two sets of them.
SIZES = ({"b": 3, "g": 6, "n": 5, "m": 7}, {"b": 1, "g": 2, "n": 1, "m": 4})

LOWEST = float(np.finfo(np.float32).min)


def spelled(
    scores: str = "t = Identity(s)",
    *,
    product: str = "s = MatMul(q, k)",
    weights: str = "p = Identity(w)",
    output: str = "y = MatMul(p, v)",
    inputs: str = HEADS,
    more: str = "",
    constants: str = "",
    gives: str = "float[b, 2, n, 6] y",
) -> str:
    """One attention as ONNX text: ``s`` are scores, ``t`` what the softmax takes.

    Args:
        scores: Nodes from ``s`` to ``t``.
        product: Nodes from ``q`` and ``k`` to ``s``.
        weights: Nodes from ``w``, the softmax, to ``p``.
        output: Nodes from ``p`` and ``v`` to ``y``.
        inputs: Declarations of q, k and v.
        more: Declarations of further inputs.
        constants: Initializers.
        gives: Declarations of the outputs.
    """
    given = ", ".join(part for part in (inputs, more) if part)
    fixed = f"<{constants}>" if constants else ""
    return (
        f"g ({given}) => ({gives}) {fixed} "
        f"{{ {product} {scores} w = Softmax<axis = -1>(t) {weights} {output} }}"
    )


def feed_of(model: ir.Model, rng: np.random.Generator, sizes: dict[str, int]) -> dict:
    """Random inputs; of a condition all of the first row is true and all of the last false."""
    feed = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes[dim.value] for dim in value.shape]
        if value.dtype is ir.DataType.BOOL:
            array = rng.random(shape) < 0.5
            if shape[0] > 1:
                array[0], array[-1] = True, False
        else:
            array = rng.normal(size=shape).astype(np.float32)
        feed[value.name] = array
    return feed


def fused(text: str) -> ir.Model:
    """The graph with its one attention fused, ready for ONNX Runtime."""
    model = graph_of(text)
    assert fuse_attention(model) == (1, {})
    return finished(model)


def finished(model: ir.Model) -> ir.Model:
    """What the pipeline does after fusing; the result is a valid model."""
    expand_masks(model)
    raise_masks(model)
    simplify(model)
    check_model(ir.to_proto(model), full_check=True)
    return model


def assert_fuses(text: str, rng: np.random.Generator, *, feeds=None, sizes=SIZES) -> ir.Node:
    """Fusing fires, leaves no softmax, and keeps outputs and their names; returns the node."""
    before, after = graph_of(text), fused(text)
    assert "Softmax" not in operators(after)
    names = [value.name for value in before.graph.outputs]
    assert [value.name for value in after.graph.outputs] == names
    for feed in feeds or [feed_of(before, rng, one) for one in sizes]:
        expected, found = run_ort(before, feed), run_ort(after, feed)
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)
    (node,) = attention_nodes(after)
    return node


def assert_stays(given: str | ir.Model, reason: str) -> None:
    """Nothing is fused or changed, and the softmax says why."""
    model = graph_of(given) if isinstance(given, str) else given
    before = operators(model)
    assert fuse_attention(model) == (0, {reason: 1})
    assert operators(model) == before
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    assert softmax.metadata_props["not_fused"] == reason
