"""Keys and values repeated for every head of a group, to Attention with fewer key heads."""

from __future__ import annotations

import onnx_ir as ir

from ..graph import known_size, producer_of


def share_key_heads(model: ir.Model) -> int:
    """Let ``Attention`` repeat keys and values itself (grouped-query attention).

    Attention-23 takes ``kv_num_heads`` that divide ``q_num_heads``, head ``i`` of the queries
    reading head ``i // group``. PyTorch's ``repeat_kv`` writes the same as Unsqueeze, Expand and
    Reshape: ``[batch, kv_heads, 1, keys, dim]`` to ``[batch, kv_heads * group, keys, dim]``,
    copies as large as the cache times the group. Applied where both keys and values are
    repeated alike.

    Args:
        model: A graph with shapes; changed in place.

    Returns:
        How many Attention nodes share heads now.
    """
    shared = 0
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain or len(node.inputs) < 3:
            continue
        keys, values = (_before_repeat(node.inputs[index]) for index in (1, 2))
        if keys is None or values is None or _heads(keys) != _heads(values):
            continue
        node.replace_input_with(1, keys)
        node.replace_input_with(2, values)
        shared += 1
    return shared


def _before_repeat(value: ir.Value | None) -> ir.Value | None:
    """What was repeated along the heads to give ``value``, or None if nothing was."""
    if (expand := producer_of(value, "Expand")) is not None:
        # [b, 1, n, d] -> [b, h, n, d]: multi-query attention
        once = expand.inputs[0]
        before, after = _sizes(once), _sizes(value)
        if before is None or after is None or len(before) != 4 or len(after) != 4:
            return None
        same = before[0] == after[0] and before[2:] == after[2:]
        return once if same and before[1] == 1 else None
    reshape = producer_of(value, "Reshape")
    expand = producer_of(reshape.inputs[0], "Expand") if reshape else None
    unsqueeze = producer_of(expand.inputs[0], "Unsqueeze") if expand else None
    if reshape is None or expand is None or unsqueeze is None:
        return None
    axes = unsqueeze.inputs[1].const_value if unsqueeze.inputs[1] is not None else None
    if axes is None or axes.numpy().reshape(-1).tolist() not in ([2], [-3]):
        return None
    once = unsqueeze.inputs[0]
    before, between, after = _sizes(once), _sizes(expand.outputs[0]), _sizes(value)
    if before is None or between is None or after is None:
        return None
    if (len(before), len(between), len(after)) != (4, 5, 4):
        return None
    # [b, h, n, d] -> [b, h, 1, n, d] -> [b, h, group, n, d] -> [b, h * group, n, d]
    heads, group = between[1], between[2]
    if not isinstance(heads, int) or not isinstance(group, int):
        return None
    if before[1] != heads or after[1] != heads * group or before[2:] != after[2:]:
        return None
    return once


def _sizes(value: ir.Value | None) -> list[int | str] | None:
    """The shape, if every size is a number or has a name."""
    if value is None or value.shape is None:
        return None
    sizes = [known_size(size) for size in value.shape]
    return None if None in sizes else [size for size in sizes if size is not None]


def _heads(value: ir.Value) -> int | ir.SymbolicDim:
    assert value.shape is not None
    return value.shape[1]
