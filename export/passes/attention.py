"""Attention and RotaryEmbedding nodes as every engine takes them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph import Builder, known_size, scalar

# Operators that move or combine what a mask is made of.
CARRIERS = frozenset(
    (
        *("Add", "Cast", "Concat", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Neg"),
        *("Reshape", "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where"),
    )
)


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


def raise_masks(model: ir.Model) -> int:
    """Replace the lowest number of each added mask by half of it.

    A row that adds the lowest finite number to all its scores makes them equal: a uniform
    average, in PyTorch and by the operator's definition. ONNX Runtime up to 1.31 takes that
    number for minus infinity and answers such a row with zeros. Padding on the left, or longer
    than a sliding window, makes such rows; a model that averages over them shows it.

    Args:
        model: Changed in place, after masks are expanded.

    Returns:
        How many masks were changed; layers share them.
    """
    raised: dict[ir.Value, ir.Value | None] = {}
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain or len(node.inputs) < 4:
            continue
        mask = node.inputs[3]
        if mask is None or mask.dtype is None or not mask.dtype.is_floating_point():
            continue
        if mask not in raised:
            lowest = float(np.finfo(mask.dtype.numpy()).min)
            raised[mask] = _raised(model.graph, node, mask, lowest)
        node.replace_input_with(3, raised[mask] or mask)
    return sum(value is not None for value in raised.values())


def _raised(graph: ir.Graph, user: ir.Node, mask: ir.Value, lowest: float) -> ir.Value | None:
    """The mask with half the lowest number for the lowest; None where it cannot be there."""
    if not _may_hold(mask, lowest):
        return None
    build = Builder(graph, user)
    assert mask.dtype is not None
    half = build.constant(lowest / 2, mask.dtype)
    root = mask
    while (node := root.producer()) is not None and node.op_type in ("Expand", "Unsqueeze"):
        assert node.inputs[0] is not None
        root = node.inputs[0]
    # What most models write: zeros, or the lowest number.
    if node is not None and node.op_type == "Where":
        numbers = [scalar(value) for value in node.inputs[1:] if value is not None]
        if sorted(number == lowest for number in numbers) == [False, True] and 0 in numbers:
            node.replace_input_with(1 + numbers.index(lowest), half)
            return mask
    is_lowest = build("Equal", [mask, build.constant(lowest, mask.dtype)])
    is_lowest.type, is_lowest.shape = ir.TensorType(ir.DataType.BOOL), mask.shape
    return build("Where", [is_lowest, half, mask])


def _may_hold(value: ir.Value, lowest: float) -> bool:
    """Whether what a value is made of has the lowest number, of either sign, or is not known."""
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        one = stack.pop()
        if one in seen or one.dtype is None or not one.dtype.is_floating_point():
            continue
        seen.add(one)
        constant = one.const_value
        if constant is not None and constant.size and np.abs(constant.numpy()).max() == -lowest:
            return True
        node = one.producer()
        if one.is_graph_input() or (constant is None and node is None):
            return True
        if node is None:
            continue
        if node.op_type == "Constant" and abs(scalar(one) or 0.0) == -lowest:
            return True
        if node.op_type in CARRIERS and not node.domain:
            stack += [given for given in node.inputs if given is not None]
    return False


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
