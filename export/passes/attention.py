"""Attention nodes as every engine takes them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


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
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Attention" or node.domain or len(node.inputs) < 4:
            continue
        query, mask = node.inputs[0], node.inputs[3]
        if query is None or mask is None or query.shape is None or mask.shape is None:
            continue
        # [batch, heads, queries, head_dim] or [batch, queries, hidden]
        axis = 2 if len(query.shape) == 4 else 1
        if len(mask.shape) < 2 or mask.shape[-2] != 1 or query.shape[axis] == 1:
            continue
        size = query.shape[axis]
        key = (mask, size if isinstance(size, int) else size.value or query)
        if key not in expanded:
            expanded[key] = _expanded(node, mask, query, axis)
        node.replace_input_with(3, expanded[key])
    return len(expanded)


def _expanded(node: ir.Node, mask: ir.Value, query: ir.Value, axis: int) -> ir.Value:
    assert mask.shape is not None
    assert query.shape is not None
    graph = node.graph
    assert graph is not None
    one = _constant(graph, f"{mask.name}_one", np.array([1], np.int64))
    queries = ir.node("Shape", [query], {"start": axis, "end": axis + 1})
    # Expand broadcasts both ways: [1, queries, 1] leaves the other axes of the mask alone.
    shape = ir.node("Concat", [queries.outputs[0], one], {"axis": 0})
    expand = ir.node("Expand", [mask, shape.outputs[0]])
    for new, name in ((queries, "queries"), (shape, "shape"), (expand, "expanded")):
        new.name = f"{mask.name}_{name}"
        new.outputs[0].name = f"{mask.name}_{name}"
    result = expand.outputs[0]
    result.type = mask.type
    result.shape = ir.Shape([*mask.shape[:-2], query.shape[axis], mask.shape[-1]])
    graph.insert_before(node, [queries, shape, expand])
    return result


def _constant(graph: ir.Graph | ir.Function, name: str, array: np.ndarray) -> ir.Value:
    assert isinstance(graph, ir.Graph)
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.INT64)
    graph.initializers[name] = value
    return value
