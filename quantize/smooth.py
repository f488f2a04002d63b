"""SmoothQuant: move range from activations, where it is uneven, to weights, where it is not.

Xiao et al. 2022, arXiv:2211.10438: ``X W = (X / s) (s W)``, ``s = amax(X)**alpha /
amax(W)**(1 - alpha)`` per channel of X. What is ours: alpha is chosen for each activation by
the error of its own products on sampled rows, and none is taken where it gains little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .forms import is_constant
from .linear import Product, add_constant, array_of, drop_unused
from .observers import SHARES
from .weights import quantize_symmetric

ALPHAS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)

# What the error of a group's products must fall to, as a share, for smoothing to be worth a
# multiplication per element of the activation.
WORTH = 0.8

# What the name of a smoothed activation ends with.
SMOOTHED = "_smoothed"

# Operators whose last step multiplies by a constant per channel: it takes the scale at no cost.
SCALED_BY = {"LayerNormalization": (1, 2), "RMSNormalization": (1,)}


@dataclass(frozen=True, slots=True)
class Smoothing:
    """What is done to one activation.

    Attributes:
        alpha: 0 for nothing.
        scale: ``s``, ``float32[channels]``.
        error: Relative squared error of the products with it.
        plain: The same without.
    """

    alpha: float
    scale: np.ndarray
    error: float
    plain: float


def choose_smoothing(
    rows: np.ndarray,
    amax: np.ndarray,
    weights: Sequence[np.ndarray],
    alphas: Sequence[float] = ALPHAS,
    *,
    worth: float = WORTH,
) -> Smoothing:
    """Find the alpha with the least error of int8 products.

    Args:
        rows: Sampled activations, ``float32[rows, channels]``.
        amax: Largest magnitude per channel over all calibration data, ``float32[channels]``.
        weights: What the activation is multiplied with, each ``[channels, outputs]``.
        alphas: To try; (0.5,) fixes it.
        worth: Largest share of the plain error that is still worth it; 1 takes any gain.
    """
    channels = rows.shape[1]
    largest = np.maximum.reduce([np.abs(weight).max(axis=1) for weight in weights])
    exact = [rows @ weight for weight in weights]
    power = sum(float((one * one).sum()) for one in exact) or 1.0

    def error_with(scale: np.ndarray) -> float:
        rounded = _rounded(rows / scale)
        total = 0.0
        for weight, wanted in zip(weights, exact, strict=True):
            q, steps = quantize_symmetric(weight * scale[:, None], axis=1)
            difference = rounded @ (q * steps) - wanted
            total += float((difference * difference).sum())
        return total / power

    plain = error_with(np.ones(channels, np.float32))
    best = Smoothing(0.0, np.ones(channels, np.float32), plain, plain)
    for alpha in alphas:
        scale = smoothing_scale(amax, largest, alpha)
        error = error_with(scale)
        if error < best.error and error <= worth * plain:
            best = Smoothing(alpha, scale, error, plain)
    return best


def smoothing_scale(amax: np.ndarray, largest: np.ndarray, alpha: float) -> np.ndarray:
    """``amax(X)**alpha / amax(W)**(1 - alpha)`` per channel; 1 where either is zero.

    Args:
        amax: Largest magnitude of the activation, ``[channels]``.
        largest: Of the weights along their other axis, ``[channels]``.
        alpha: Share of the range that moves; equation 4 of the paper.
    """
    usable = (amax > 0) & (largest > 0)
    scale = np.ones(amax.shape)
    if usable.any():
        x, w = amax[usable].astype(np.float64), largest[usable].astype(np.float64)
        found = x**alpha / w ** (1 - alpha)
        # Only ratios matter: around 1, so that neither side leaves the range of its type.
        scale[usable] = np.clip(found / np.exp(np.mean(np.log(found))), 1e-3, 1e3)
    return scale.astype(np.float32)


def can_fold(data: ir.Value, products: Sequence[Product]) -> bool:
    """Whether the node before can divide its constants, so that smoothing costs nothing."""
    producer = data.producer()
    if producer is None or producer.op_type not in SCALED_BY or data.is_graph_output():
        return False
    if data is not producer.outputs[0]:  # the mean or the deviation
        return False
    nodes = {product.node for product in products}
    given = (_input(producer, index) for index in SCALED_BY[producer.op_type])
    return {use.node for use in data.uses()} <= nodes and all(
        value is None or is_constant(value) for value in given
    )


def apply_smoothing(
    graph: ir.Graph, data: ir.Value, products: Sequence[Product], scale: np.ndarray
) -> ir.Value:
    """Divide an activation by ``scale``, and multiply the weights it meets.

    Args:
        graph: Changed in place.
        data: The activation.
        products: All that multiply it and are smoothed.
        scale: ``float32[channels]``.

    Returns:
        The smoothed activation: ``data`` itself where the node before could be changed, else
        the output of a ``Mul``.
    """
    for product in products:
        _replace_constant(graph, product.node, 1, array_of(product.weight) * scale[:, None])
    producer = data.producer()
    if producer is not None and can_fold(data, products):
        for index in SCALED_BY[producer.op_type]:
            if (value := _input(producer, index)) is not None:
                _replace_constant(graph, producer, index, array_of(value) / scale)
        return data
    factor = add_constant(graph, f"{data.name}_smoothing", 1 / scale)
    mul = ir.node("Mul", [data, factor])
    mul.metadata_props.update(products[0].node.metadata_props)
    output = mul.outputs[0]
    output.name, output.shape, output.type = f"{data.name}{SMOOTHED}", data.shape, data.type
    graph.insert_before(products[0].node, mul)
    for product in products:
        product.node.replace_input_with(0, output)
    return output


def _rounded(values: np.ndarray) -> np.ndarray:
    """Values through int8 and back, clipped where the squared error is least."""
    amax = float(np.abs(values).max()) or 1.0
    best, least = values, np.inf
    for share in SHARES[::8]:
        step = np.float32(amax * share / 127)
        rounded = np.clip(np.rint(values / step), -127, 127) * step
        error = float(((rounded - values) ** 2).sum())
        if error < least:
            best, least = rounded, error
    return best


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _replace_constant(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray) -> None:
    """Give one node constants of its own, in place of those it may share."""
    old = node.inputs[index]
    assert old is not None
    node.replace_input_with(index, add_constant(graph, f"{old.name}_smoothed", array))
    drop_unused(graph, old)
