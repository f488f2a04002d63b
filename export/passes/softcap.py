"""Attention spelled out for engines that do not take it as one node."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ..graph import Builder, known_size

# Attributes that the spelled-out form has no place for.
UNKNOWN = frozenset({"is_causal", "qk_matmul_output_mode", "softmax_precision"})


def spell_out_softcaps(model: ir.Model) -> int:
    """Replace each Attention that caps its scores by products, Tanh and Softmax.

    TensorRT refuses ``softcap`` (11.0: "Setting softcap is not supported in TensorRT
    Attention"). What is made follows Attention-23: scaled scores, cap, mask, Softmax.

    Args:
        model: Changed in place; its Attentions have inputs of 4 dimensions.

    Returns:
        How many were replaced. One that is causal, has a cache or gives its scores is left.
    """
    return sum(_spell_out(model.graph, node) for node in _attentions(model) if _cap(node))


def spell_out_shared_inputs(model: ir.Model) -> int:
    """Replace Attentions that read the query or the keys of an earlier one by products and Softmax.

    TensorRT-RTX 1.7 ends its process (signal 11) while it builds two of them, in every type; sparse
    BigBird has such: its first and its last block see all keys. Values may be shared.

    Args:
        model: Changed in place; its Attentions have inputs of 4 dimensions.

    Returns:
        How many were replaced. One that is causal, has a cache or gives its scores is left.
    """
    seen: set[ir.Value | None] = set()
    count = 0
    for node in _attentions(model):
        shared = {*node.inputs[:2]}
        if shared & seen:
            count += _spell_out(model.graph, node)
        seen |= shared
    return count


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Attention" and not node.domain]


def _cap(node: ir.Node) -> float:
    cap: float = node.attributes.get_float("softcap", 0.0)
    return cap


def _spell_out(graph: ir.Graph, node: ir.Node) -> bool:
    query, key, value, *rest = node.inputs
    used = [output for output in node.outputs if output.uses() or output.is_graph_output()]
    if query is None or key is None or value is None or used != [node.outputs[0]]:
        return False
    if any(one is not None for one in rest[1:]) or _is_unknown(node):
        return False
    shapes = (query.shape, key.shape, value.shape)
    if any(shape is None or len(shape) != 4 for shape in shapes) or query.dtype is None:
        return False
    assert query.shape is not None
    assert key.shape is not None
    heads, key_heads, size = (
        known_size(one) for one in (query.shape[1], key.shape[1], query.shape[3])
    )
    if not (isinstance(heads, int) and isinstance(key_heads, int) and isinstance(size, int)):
        return False
    build = Builder(graph, node)
    dtype = query.dtype
    if heads != key_heads:
        key, value = (_repeated(build, one, key_heads, heads // key_heads) for one in (key, value))
    scale = node.attributes.get_float("scale", 1 / math.sqrt(size))
    cap = _cap(node)
    turned = build("Transpose", [key], {"perm": [0, 1, 3, 2]})
    scaled = build("Mul", [query, build.constant(scale, dtype)])
    scores = build("MatMul", [scaled, turned])
    if cap:
        bounded = build("Tanh", [build("Mul", [scores, build.constant(1 / cap, dtype)])])
        scores = build("Mul", [bounded, build.constant(cap, dtype)])
    if rest and (mask := rest[0]) is not None:
        if mask.dtype == ir.DataType.BOOL:
            low = build.constant(_lowest(dtype), dtype)
            scores = build("Where", [mask, scores, low])
        else:
            scores = build("Add", [scores, mask])
    output = build("MatMul", [build("Softmax", [scores], {"axis": -1}), value])
    output.shape = node.outputs[0].shape
    for step in (scores, output):
        producer = step.producer()
        assert producer is not None
        producer.metadata_props.update(node.metadata_props)  # who reads an error looks for it
    build.replace(node.outputs[0], output)
    graph.remove(node, safe=True)
    return True


def _is_unknown(node: ir.Node) -> bool:
    return any(node.attributes.get_int(name, 0) for name in UNKNOWN)


def _repeated(build: Builder, value: ir.Value, heads: int, times: int) -> ir.Value:
    """``[batch, heads, keys, size]`` with each head ``times`` in a row."""
    apart = build("Unsqueeze", [value, build.constant([2])])
    tiled = build("Tile", [apart, build.constant([1, 1, times, 1, 1])])
    assert value.shape is not None
    size = known_size(value.shape[3])
    return build("Reshape", [tiled, build.constant([0, heads * times, -1, size])])


def _lowest(dtype: ir.DataType) -> float:
    if dtype == ir.DataType.BFLOAT16:
        return float(np.finfo(np.float32).min) / 2  # the lowest float32 rounds to infinity there
    return float(np.finfo(dtype.numpy()).min)
