"""Forms of a quantized graph for one engine: the same numbers, in operators it runs faster.

The portable graph is what a bundle is; a form for one engine stands beside it, in a file of
its own that reads the same weights. docs/decisions/0009 says why.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfx.export.graph import replace_value

from .forms import is_constant
from .linear import add_constant, array_of, drop_unused

MICROSOFT = "com.microsoft"

# int8 with zero point 0 as uint8: x86 multiplies unsigned by signed, and packs anything else.
SHIFT = 128

# How far from a whole number of steps a shift may be: the scale is rounded to float32.
WHOLE = 1e-3


def lower_for_ort_cpu(model: ir.Model) -> int:
    """Rewrite QDQ products and lookups to what ONNX Runtime's CPU kernels take.

    ``MatMul(DQ(Q(x)), DQ(W)) + b`` becomes ``MatMulIntegerToFloat(Q'(x), W, b)``: the integers
    are multiplied, and scale and bias applied as each result leaves the registers. ONNX Runtime
    does that by itself for unsigned activations only, and never with the bias. ``MatMul(x,
    DQ(W))`` becomes the same with the range of x taken at run time. ``Gather(DQ(T), i)``
    becomes ``Gather(T, i)`` scaled after, so that a table is not dequantized to read 128 rows.

    Args:
        model: Changed in place.

    Returns:
        Nodes rewritten; 0 says that this form is not needed.
    """
    model.graph.opset_imports.setdefault(MICROSOFT, 1)
    unsigned: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
    count = 0
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "MatMul":
            count += _lower_product(model.graph, node, unsigned)
        elif node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
            count += _lower_lookup(model.graph, node)
    _drop_dead(model.graph)
    return count


def _lower_product(
    graph: ir.Graph,
    node: ir.Node,
    unsigned: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]],
) -> int:
    data, weight = node.inputs
    assert data is not None
    assert weight is not None
    known = _constant_dequantized(weight, axis=1)
    if known is None or known[0].dtype != ir.DataType.INT8:
        return 0
    values, scale = known
    if data not in unsigned:
        unsigned[data] = _unsigned(graph, node, data)
    quantized, step, zero = unsigned[data]
    inputs: list[ir.Value | None] = [quantized, values, step, scale, zero, None]
    output, replaced = node.outputs[0], [node]
    if (addition := _bias_of(node, scale)) is not None:
        add, bias = addition
        inputs.append(bias)
        output = add.outputs[0]
        replaced = [add, node]
    fused = ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)
    fused.metadata_props.update(node.metadata_props)
    fused.outputs[0].type, fused.outputs[0].shape = output.type, output.shape
    graph.insert_before(node, fused)
    replace_value(output, fused.outputs[0])
    graph.remove(replaced, safe=True)
    return 1


def _lower_lookup(graph: ir.Graph, node: ir.Node) -> int:
    table, indices = node.inputs
    assert table is not None
    assert indices is not None
    known = _constant_dequantized(table, axis=0)
    if known is None or known[0].dtype != ir.DataType.INT8:
        return 0
    values, scale = known
    last = graph.initializers.get("last_axis") or add_constant(
        graph, "last_axis", np.array([-1], np.int64)
    )
    rows = ir.node("Gather", [values, indices], {"axis": 0})
    floats = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})
    steps = ir.node("Gather", [scale, indices], {"axis": 0})
    column = ir.node("Unsqueeze", [steps.outputs[0], last])
    scaled = ir.node("Mul", [floats.outputs[0], column.outputs[0]])
    for one in (rows, floats, steps, column, scaled):
        one.metadata_props.update(node.metadata_props)
    scaled.outputs[0].type, scaled.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, [rows, floats, steps, column, scaled])
    replace_value(node.outputs[0], scaled.outputs[0])
    graph.remove(node, safe=True)
    return 1


def _unsigned(
    graph: ir.Graph, before: ir.Node, data: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """An activation as uint8, its scale and its zero point."""
    dequantize = data.producer()
    quantize = None
    if dequantize is not None and dequantize.op_type == "DequantizeLinear":
        source = dequantize.inputs[0]
        quantize = source.producer() if source is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear":
        dynamic = ir.node("DynamicQuantizeLinear", [data], num_outputs=3)
        dynamic.metadata_props.update(before.metadata_props)
        graph.insert_before(before, dynamic)
        values, step, zero = dynamic.outputs
        return values, step, zero
    float_data, scale = quantize.inputs[0], quantize.inputs[1]
    assert float_data is not None
    assert scale is not None
    # What is subtracted is subtracted with the integers: the product still has 128 as its zero.
    float_data, zero = _without_offset(float_data, scale)
    node = ir.node("QuantizeLinear", [float_data, scale, _zero_point(graph, zero)])
    node.metadata_props.update(quantize.metadata_props)
    graph.insert_before(quantize, node)
    return node.outputs[0], scale, _zero_point(graph, SHIFT)


def _without_offset(value: ir.Value, scale: ir.Value) -> tuple[ir.Value, int]:
    """What a whole number of steps is subtracted from, and the zero point that does the same."""
    sub = value.producer()
    if sub is None or sub.op_type != "Sub" or sub.domain not in ("", "ai.onnx"):
        return value, SHIFT
    data, offset = sub.inputs
    if data is None or offset is None or not (is_constant(offset) and is_constant(scale)):
        return value, SHIFT
    numbers = array_of(offset), array_of(scale)
    if any(array.size != 1 for array in numbers):
        return value, SHIFT
    steps = numbers[0].item() / numbers[1].item()
    zero = SHIFT - round(steps)
    if abs(steps - round(steps)) > WHOLE or not 0 <= zero <= 2 * SHIFT - 1:
        return value, SHIFT
    return data, zero


def _zero_point(graph: ir.Graph, number: int) -> ir.Value:
    name = "zero_point_uint8" if number == SHIFT else f"zero_point_uint8_{number}"
    return graph.initializers.get(name) or add_constant(graph, name, np.array(number, np.uint8))


def _constant_dequantized(value: ir.Value, axis: int) -> tuple[ir.Value, ir.Value] | None:
    """Integers and scales along an axis of a weight that is dequantized in the graph; or None."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) > 2:
        return None
    values, scale = node.inputs[0], node.inputs[1]
    if values is None or scale is None or not is_constant(values) or not _is_known(scale):
        return None
    if scale.shape is None or len(scale.shape) != 1 or node.attributes.get_int("axis", 1) != axis:
        return None
    return values, scale


def _is_known(value: ir.Value) -> bool:
    """Whether a value is a constant, or one of 16 bits that is cast when the graph is loaded."""
    node = value.producer()
    if node is not None and node.op_type == "Cast" and not node.domain:
        value = node.inputs[0] or value
    return is_constant(value)


def _bias_of(node: ir.Node, scale: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    output = node.outputs[0]
    users = output.uses()
    if len(users) != 1 or output.is_graph_output() or users[0].node.op_type != "Add":
        return None
    bias = users[0].node.inputs[1 - users[0].idx]
    if bias is None or not _is_known(bias) or bias.shape != scale.shape:
        return None
    return users[0].node, bias


def _drop_dead(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for value in list(graph.initializers.values()):
        drop_unused(graph, value)
