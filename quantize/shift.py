"""One-sided activations are shifted, so that integers below zero are not left unused.

What leaves Gelu or Relu reaches far above zero and hardly below it. A symmetric scale, which is all
TensorRT takes, has half of its steps for values that never come. ``X W = (X - c) W + c 1 W``: the
difference is symmetric, and the last term is a bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from .forms import is_constant
from .linear import Product, add_constant, array_of, drop_unused, shared_data

# What the range must fall to, as a share, for a subtraction per element to be worth it.
WORTH = 0.8

# The ends of the integers.
LARGEST = 127

# What the name of a shifted activation ends with.
SHIFTED = "_shifted"


@dataclass(frozen=True, slots=True)
class Shift:
    """What is subtracted from an activation.

    Attributes:
        offset: A whole number of steps, and exact in 16-bit floats, which may be all that is left
            of it around the products.
        amax: Largest magnitude of the difference.
    """

    offset: float
    amax: float


def choose_shift(low: float, high: float, amax: float) -> Shift | None:
    """Find what makes a range symmetric; None where it nearly is.

    Args:
        low: Smallest value seen.
        high: Largest value seen.
        amax: Where magnitudes are clipped.
    """
    low, high = max(low, -amax), min(high, amax)
    reach = max(high, -low)
    if not reach > 0 or high - low > 2 * WORTH * reach:
        return None
    step = (high - low) / (2 * LARGEST)
    # One that is all on one side of zero and far from it would need more steps than there are.
    steps = float(np.rint((high + low) / 2 / step)) if step > 0 else np.inf
    if abs(steps) > LARGEST:
        steps = float(np.copysign(LARGEST, high + low))
        step = reach / (2 * LARGEST)
    with np.errstate(over="ignore"):
        offset = float(np.float16(steps * step))
    if not np.isfinite(offset) or abs(offset) < np.finfo(np.float16).tiny:
        return None
    return Shift(offset, offset / steps * LARGEST)


def shift_activations(
    graph: ir.Graph, products: Sequence[Product], shifts: Mapping[str, Shift]
) -> list[Product]:
    """Subtract from activations, and add to the bias of each product what that takes from it.

    Args:
        graph: Changed in place.
        products: Those that are quantized; their weights are integers already, whose sums give
            the exact bias.
        shifts: Name of an activation to what is subtracted.

    Returns:
        The products, each with the activation it reads now.
    """
    found = []
    for data, users in shared_data(products):
        shift = shifts.get(str(data.name))
        if shift is None:
            found += users
            continue
        offset = add_constant(graph, f"{data.name}_offset", np.array(shift.offset, np.float32))
        sub = ir.node("Sub", [data, offset])
        output = sub.outputs[0]
        output.name, output.shape, output.type = f"{data.name}{SHIFTED}", data.shape, data.type
        sub.metadata_props.update(users[0].node.metadata_props)
        graph.insert_before(users[0].node, sub)
        for product in users:
            product.node.replace_input_with(0, output)
            _add_to_bias(graph, product, shift.offset * _column_sums(product))
            found.append(replace(product, data=output))
    return found


def _column_sums(product: Product) -> np.ndarray:
    """Of the weight as it is multiplied, ``float64[outputs]``."""
    weight = product.node.inputs[1]
    assert weight is not None
    if is_constant(weight):
        return np.asarray(array_of(weight).sum(axis=0, dtype=np.float64))
    dequantize = weight.producer()
    assert dequantize is not None
    values, scale = dequantize.inputs[0], dequantize.inputs[1]
    assert values is not None
    assert scale is not None
    return np.asarray(array_of(values).sum(axis=0, dtype=np.float64) * array_of(scale))


def _add_to_bias(graph: ir.Graph, product: Product, more: np.ndarray) -> None:
    known = product.bias()
    if known is not None:
        add, bias = known
        index = list(add.inputs).index(bias)
        total = add_constant(graph, f"{bias.name}{SHIFTED}", _float32(array_of(bias) + more))
        add.replace_input_with(index, total)
        drop_unused(graph, bias)
        return
    node = product.node
    output = node.outputs[0]
    bias = add_constant(graph, f"{product.weight.name}_bias", _float32(more))
    add = ir.node("Add", [output, bias])
    ir.convenience.replace_all_uses_with(output, add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, output)
    name = output.name
    add.outputs[0].type, add.outputs[0].shape = output.type, output.shape
    add.outputs[0].name, output.name = name, f"{name}_product"
    add.metadata_props.update(node.metadata_props)
    graph.insert_after(node, add)


def _float32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)
