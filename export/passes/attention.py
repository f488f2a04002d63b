"""Attention and RotaryEmbedding nodes as every engine takes them."""

from __future__ import annotations

import onnx_ir as ir

from ..graph import Builder, known_size


def expand_masks(model: ir.Model) -> int:
    """Give each attention mask its full query axis.

    ONNX lets ``attn_mask`` broadcast to ``[batch, heads, queries, keys]`` (Attention-23), so a
    padding mask may be ``[batch, 1, 1, keys]``. ONNX Runtime up to 1.31 refuses a query axis of
    1 there; an Expand costs one small copy per mask, not per layer.

    Args:
        model: Changed in place.

    Returns:
        How many masks were expanded.
    """
    expanded: dict[tuple[ir.Value, object], ir.Value] = {}
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain or len(node.inputs) < 4:
            continue
        query, mask = node.inputs[0], node.inputs[3]
        if query is None or mask is None or query.shape is None or mask.shape is None:
            continue
        # [batch, heads, queries, head_dim] or [batch, queries, hidden]
        axis = 2 if len(query.shape) == 4 else 1
        if len(mask.shape) < 2 or mask.shape[-2] != 1 or query.shape[axis] == 1:
            continue
        key = (mask, known_size(query.shape[axis]) or query)
        if key not in expanded:
            expanded[key] = Builder(model.graph, node).expanded(mask, -2, query, axis)
        node.replace_input_with(3, expanded[key])
    return len(expanded)


def expand_rotary_caches(model: ir.Model) -> int:
    """Give the cosines and sines of each ``RotaryEmbedding`` the batch axis of what they turn.

    Without ``position_ids`` the caches are ``[batch, sequence, head_dim / 2]``
    (RotaryEmbedding-23). Tracing leaves a batch of 1, which ONNX Runtime refuses unless the
    batch is 1 too.

    Args:
        model: Changed in place.

    Returns:
        How many caches were expanded; layers share them.
    """
    expanded: dict[tuple[ir.Value, object], ir.Value] = {}
    for node in list(model.graph):
        if node.op_type != "RotaryEmbedding" or node.domain:
            continue
        turned = node.inputs[0]
        if turned is None or turned.shape is None or len([i for i in node.inputs if i]) != 3:
            continue
        for index in (1, 2):
            cache = node.inputs[index]
            if cache is None or cache.shape is None or len(cache.shape) != 3:
                continue
            if cache.shape[0] != 1 or turned.shape[0] == 1:
                continue
            key = (cache, known_size(turned.shape[0]) or turned)
            if key not in expanded:
                expanded[key] = Builder(model.graph, node).expanded(cache, -3, turned, 0)
            node.replace_input_with(index, expanded[key])
    return len(expanded)
