"""Outlier channels: the few of an activation that reach far beyond the others stay in floats.

Sun et al. 2024, arXiv:2402.17762: one or two channels of a token reach many times what all
others do. A scale that holds them has few steps left for the rest. They are multiplied apart, as
in Dettmers et al. 2022, arXiv:2208.07339: ``X W = X' W' + X[:, few] W[few, :]``, ``W'`` being
``W`` with zeros in these rows. What is ours: channels are chosen once, from calibration data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .linear import FEWEST_CHANNELS, Product, add_constant, array_of, drop_unused
from .weights import quantize_symmetric

# Channels of one activation that may stay in floats: at most so many, and this share of all.
MOST = FEWEST_CHANNELS - 1
SHARE = 1 / 128

# How many times the next channel's range an outlier's is.
GAP = 1.5

# What the error of the products must fall to, as a share.
WORTH = 0.6

NONE = np.empty(0, np.int64)


def choose_outliers(
    rows: np.ndarray, amax: np.ndarray, weights: Sequence[np.ndarray]
) -> np.ndarray:
    """Find the channels that int8 products are better off without.

    The error is of each row beside its own products: the tokens that have outliers would
    outweigh all others, and the next normalization takes most of their error back.

    Args:
        rows: Sampled activations, ``float32[rows, channels]``.
        amax: Largest magnitude per channel over all calibration data, ``float32[channels]``.
        weights: What the activation is multiplied with, each ``[channels, outputs]``.

    Returns:
        Channels, ``int64[up to MOST]``, in ascending order; none where they gain little.
    """
    most = min(MOST, int(len(amax) * SHARE))
    order = np.argsort(-amax, kind="stable")
    reach = amax[order]
    counts = [n for n in range(1, most + 1) if reach[n - 1] > GAP * reach[n] and reach[n] > 0]
    if not counts:
        return NONE
    weight = np.concatenate(weights, axis=1)
    chosen = np.sort(order[: counts[-1]])
    plain, apart = _error(rows, amax, weight, NONE), _error(rows, amax, weight, chosen)
    return chosen if apart <= WORTH * plain else NONE


def without_channels(array: np.ndarray, channels: np.ndarray, axis: int) -> np.ndarray:
    """A copy with zeros in some channels; the array itself for none."""
    if not len(channels):
        return array
    copy = array.copy()
    np.moveaxis(copy, axis, 0)[channels] = 0
    return copy


def split_outliers(
    graph: ir.Graph, data: ir.Value, products: Sequence[Product], channels: np.ndarray
) -> None:
    """Multiply some channels of an activation in floats, and add what they give.

    Args:
        graph: Changed in place.
        data: The activation.
        products: All that multiply it and are to be split.
        channels: Of ``data``, ``int64[few]``.
    """
    index = add_constant(graph, f"{data.name}_outliers", channels)
    gather = ir.node("Gather", [data, index], {"axis": -1})
    few = gather.outputs[0]
    few.name, few.type = f"{data.name}_few", data.type
    if data.shape is not None:
        few.shape = ir.Shape([*data.shape[:-1], len(channels)])
    gather.metadata_props.update(products[0].node.metadata_props)
    graph.insert_before(products[0].node, gather)
    for product in products:
        _split(graph, product, few, channels)


def _split(graph: ir.Graph, product: Product, few: ir.Value, channels: np.ndarray) -> None:
    node, weight = product.node, product.weight
    # After the bias, which ONNX Runtime's kernel adds: see targets.
    bias = product.bias()
    last = bias[0] if bias is not None else node
    array = array_of(weight)
    rows = add_constant(graph, f"{weight.name}_few", array[channels])
    rest = add_constant(graph, f"{weight.name}_rest", without_channels(array, channels, 0))
    node.replace_input_with(1, rest)
    drop_unused(graph, weight)
    output = last.outputs[0]
    apart = ir.node("MatMul", [few, rows])
    total = ir.node("Add", [output, apart.outputs[0]])
    ir.convenience.replace_all_uses_with(output, total.outputs[0], replace_graph_outputs=True)
    total.replace_input_with(0, output)
    name = output.name
    for value in (apart.outputs[0], total.outputs[0]):
        value.type, value.shape = output.type, output.shape
    apart.outputs[0].name = f"{name}_few"
    total.outputs[0].name, output.name = name, f"{name}_rest"
    for one in (apart, total):
        one.metadata_props.update(node.metadata_props)
    graph.insert_after(last, [apart, total])


def _error(rows: np.ndarray, amax: np.ndarray, weight: np.ndarray, outliers: np.ndarray) -> float:
    """Mean over rows of the squared error of int8 products beside the exact ones."""
    kept = without_channels(weight, outliers, 0)
    step = max(float(without_channels(amax, outliers, 0).max()) / 127, float(np.finfo("f4").tiny))
    rounded = np.clip(np.rint(rows / step), -127, 127) * step
    q, steps = quantize_symmetric(kept, axis=1)
    exact = rows @ weight
    found = rounded @ (q * steps) + rows[:, outliers] @ weight[outliers]
    power = (exact * exact).sum(axis=1)
    error = ((found - exact) ** 2).sum(axis=1)
    return float((error[power > 0] / power[power > 0]).mean()) if power.any() else 0.0
