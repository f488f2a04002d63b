"""Heads split and merged around an Attention, to an Attention that does both itself."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, known_size, producer_of
from .masks import same_sizes

# [batch, length, heads, size] to [batch, heads, length, size], and back.
SWAP = (0, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class _Flat:
    """An Attention that can do without reshapes.

    Attributes:
        inputs: Queries, keys and values, ``[batch, length, heads * size]``.
        heads: Number of them, of queries and of keys.
        output: What stands for its output now, ``[batch, length, heads * size]``.
        guard: The ``Where`` between the Attention and ``output``, or None.
    """

    inputs: tuple[ir.Value, ...]
    heads: tuple[int, int]
    output: ir.Value
    guard: ir.Node | None


def flatten_heads(model: ir.Model) -> int:
    """Let ``Attention`` split queries, keys and values into heads, and merge what it gives.

    Attention-23 takes three axes, ``[batch, length, heads * size]``, with the numbers of heads
    as attributes: Reshape and Transpose go, on each of the four sides. Applied where all four
    have them and nothing (no rotary positions) lies between but the ``Where`` that PyTorch
    writes for rows that mask every key.

    Args:
        model: A graph with shapes; changed in place. What is no longer read stays, unused.

    Returns:
        How many Attention nodes were changed.
    """
    flattened = 0
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain:
            continue
        flat = _flat(node)
        if flat is not None:
            _replace(model.graph, node, flat)
            flattened += 1
    return flattened


def _flat(node: ir.Node) -> _Flat | None:
    if len(node.inputs) not in (3, 4) or len(list(node.outputs)) != 1:
        return None  # with a cache
    split = [_before_split(value) for value in node.inputs[:3]]
    queries, keys, values = split
    if queries is None or keys is None or values is None or keys[1] != values[1]:
        return None
    merged = _after_merge(node.outputs[0])
    if merged is None:
        return None
    output, guard = merged
    inputs = (queries[0], keys[0], values[0])
    return _Flat(inputs, (queries[1], keys[1]), output, guard)


def _before_split(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """What was split into heads to give ``value``, and their number."""
    swap = producer_of(value, "Transpose")
    if swap is None or tuple(swap.attributes.get_ints("perm", [])) != SWAP:
        return None
    split = swap.inputs[0]
    reshape = producer_of(split, "Reshape")
    whole = reshape.inputs[0] if reshape is not None else None
    if whole is None or split is None or whole.shape is None or split.shape is None:
        return None
    heads = _heads(whole.shape, split.shape)
    return (whole, heads) if heads else None


def _after_merge(value: ir.Value) -> tuple[ir.Value, ir.Node | None] | None:
    """What the heads of ``value`` are merged into, and the Where on the way."""
    user, guard = _only_user(value), None
    if user is not None and user.op_type == "Where" and user.inputs[2] is value:
        if not _is_guard(user):
            return None
        guard = user
        user = _only_user(user.outputs[0])
    if user is None or user.op_type != "Transpose":
        return None
    if tuple(user.attributes.get_ints("perm", [])) != SWAP:
        return None
    swapped = user.outputs[0]
    reshape = _only_user(swapped)
    if reshape is None or reshape.op_type != "Reshape" or reshape.inputs[0] is not swapped:
        return None
    merged = reshape.outputs[0]
    if merged.shape is None or swapped.shape is None or not _heads(merged.shape, swapped.shape):
        return None
    return merged, guard


def _is_guard(where: ir.Node) -> bool:
    """Whether a Where asks the same of every head, and fills with one number."""
    condition, fill = where.inputs[:2]
    if condition is None or condition.shape is None or fill is None or fill.shape is None:
        return False
    sizes = [known_size(size) for size in condition.shape]
    return len(sizes) == 4 and sizes[1] == sizes[3] == 1 and len(fill.shape) == 0


def _heads(whole: ir.Shape, split: ir.Shape) -> int:
    """Heads of a reshape from ``[batch, length, heads * size]`` or back; 0 if it is another."""
    if len(whole) != 3 or len(split) != 4 or not same_sizes(whole[:2], split[:2]):
        return 0
    heads, size = (known_size(dim) for dim in split[2:])
    if not isinstance(heads, int) or not isinstance(size, int):
        return 0
    return heads if known_size(whole[2]) == heads * size else 0


def _replace(graph: ir.Graph, node: ir.Node, flat: _Flat) -> None:
    build = Builder(graph, node)
    attributes = {
        name: attribute
        for name, attribute in node.attributes.items()
        if name not in ("q_num_heads", "kv_num_heads")
    }
    numbers = dict(zip(("q_num_heads", "kv_num_heads"), flat.heads, strict=True))
    output = build("Attention", [*flat.inputs, *node.inputs[3:]], attributes | numbers)
    output.producer().metadata_props.update(node.metadata_props)
    output.shape = flat.output.shape
    if flat.guard is not None:
        condition, fill = flat.guard.inputs[:2]
        assert condition is not None
        assert condition.shape is not None
        build.before = flat.guard
        rows = build("Squeeze", [condition, build.constant([1])])
        rows.shape = ir.Shape([condition.shape[0], condition.shape[2], condition.shape[3]])
        output = build("Where", [rows, fill, output])
        output.shape = flat.output.shape
    build.replace(flat.output, output)


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
