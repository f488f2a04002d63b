"""Place QuantizeLinear and DequantizeLinear where three engines make fast kernels of them.

Only what enters a product is quantized, never what leaves it: a kernel of 8-bit inputs and
float output needs no second scale, and bias, residual and normalization stay exact. Scales
are symmetric with zero point 0 (TensorRT takes no other), per tensor for activations, per
output channel for weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from tfx.dtypes import DType
from tfx.errors import QuantizeError

from .linear import Lookup, Product, add_constant, array_of, drop_unused, shared_data
from .observers import scale_of
from .weights import quantize_e4m3, quantize_symmetric

# The suffixes of what is put in place of a weight.
VALUES, SCALE = "_quantized", "_scale"


def quantize_activations(
    graph: ir.Graph,
    products: Sequence[Product],
    amax: Mapping[str, float],
    dtype: DType = DType.INT8,
) -> None:
    """Put a pair of Q and DQ in front of products, one per activation.

    Args:
        graph: Changed in place.
        products: Those to quantize.
        amax: Name of each activation to the magnitude that becomes the largest number.
        dtype: int8, or float8_e4m3fn.
    """
    for data, users in shared_data(products):
        step = scale_of(amax[str(data.name)], e4m3=dtype is DType.FLOAT8_E4M3)
        scale = add_constant(graph, f"{data.name}{SCALE}", np.array(step, np.float32))
        zero = _zero_point(graph, dtype)
        quantize = ir.node("QuantizeLinear", [data, scale, zero])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero])
        outputs = (quantize.outputs[0], dequantize.outputs[0])
        types = (ir.DataType(dtype.onnx), ir.DataType.FLOAT)
        for value, kind, suffix in zip(outputs, types, (VALUES, "_dequantized"), strict=True):
            value.name, value.shape = f"{data.name}{suffix}", data.shape
            value.type = ir.TensorType(kind)
        for node in (quantize, dequantize):
            node.metadata_props.update(users[0].node.metadata_props)
        graph.insert_before(users[0].node, [quantize, dequantize])
        for product in users:
            product.node.replace_input_with(0, dequantize.outputs[0])


def quantize_weights(
    graph: ir.Graph,
    products: Sequence[Product],
    dtype: DType = DType.INT8,
    rest: DType = DType.FLOAT32,
) -> None:
    """Put integers and a DQ in place of weights, with a scale per output channel.

    Args:
        graph: Changed in place.
        products: Those to quantize; a weight that several share is stored once.
        dtype: int8, or float8_e4m3fn.
        rest: Type that the scales will have: integers are rounded by what is left of them.

    Raises:
        QuantizeError: If a weight has a NaN or infinity; names it.
    """
    done: dict[ir.Value, ir.Value] = {}
    for product in products:
        if product.weight not in done:
            done[product.weight] = _dequantized(graph, product.node, product.weight, 1, dtype, rest)
        product.node.replace_input_with(1, done[product.weight])
        drop_unused(graph, product.weight)


def quantize_tables(
    graph: ir.Graph,
    lookups: Sequence[Lookup],
    dtype: DType = DType.INT8,
    rest: DType = DType.FLOAT32,
) -> None:
    """Put integers and a DQ in place of tables, with a scale per row.

    Args:
        graph: Changed in place.
        lookups: Those to quantize; a table that several read is stored once.
        dtype: int8, or float8_e4m3fn.
        rest: As of ``quantize_weights``.

    Raises:
        QuantizeError: If a table has a NaN or infinity; names it.
    """
    done: dict[ir.Value, ir.Value] = {}
    for lookup in lookups:
        if lookup.table not in done:
            done[lookup.table] = _dequantized(graph, lookup.node, lookup.table, 0, dtype, rest)
        lookup.node.replace_input_with(0, done[lookup.table])
        drop_unused(graph, lookup.table)


def _dequantized(
    graph: ir.Graph, before: ir.Node, weight: ir.Value, axis: int, dtype: DType, rest: DType
) -> ir.Value:
    round_to = quantize_e4m3 if dtype is DType.FLOAT8_E4M3 else quantize_symmetric
    try:
        values, steps = round_to(array_of(weight), axis=axis, scale_dtype=rest)
    except QuantizeError as error:
        raise QuantizeError(f"{weight.name}: {error}", hint=error.hint) from error
    node = ir.node(
        "DequantizeLinear",
        [
            add_constant(graph, f"{weight.name}{VALUES}", values),
            add_constant(graph, f"{weight.name}{SCALE}", steps),
        ],
        {"axis": axis},
    )
    node.metadata_props.update(before.metadata_props)
    output = node.outputs[0]
    output.name, output.shape = f"{weight.name}_dequantized", weight.shape
    output.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, node)
    return output


def _zero_point(graph: ir.Graph, dtype: DType) -> ir.Value:
    name = f"zero_point_{dtype}"
    if name in graph.initializers:
        return graph.initializers[name]
    return add_constant(graph, name, np.zeros((), dtype.numpy))
