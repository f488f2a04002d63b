"""Attention before OpenVINO compiles it: finite masks, one product for query, key and value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfx.extras import need
from tfx.signature import Signature

from .openvino_graph import KEY, QUERY, VALUE, attentions_of, head_counts

MASK, SCALE = 3, 4

# What is added to the scores of tokens that are hidden: nothing is left of them in softmax. The
# lowest float32 becomes minus infinity in bfloat16, and a row of it alone no numbers at all.
LOWEST = np.float32(-1e30)

# Places of the axes [batch, sequence, heads, head_dim] in [batch, heads, sequence, head_dim].
HEADS_FIRST = (0, 2, 1, 3)


def drop_number_checks(model: Any) -> int:
    """Leave out the choice of zeros where attention gives no number, if its mask is finite.

    OpenVINO 2026.4.1 reads ONNX's Attention with such a choice behind it, for rows that are hidden
    whole. Where the mask is chosen from finite constants, which become no lower than ``LOWEST``,
    there are none.

    Args:
        model: OpenVINO's ``Model`` as read, its masks written as choices; changed in place.

    Returns:
        How many choices were left out.
    """
    ops = need("openvino").opset13
    changed = 0
    for attention in attentions_of(model):
        if attention.get_input_size() <= MASK:
            continue
        values = _mask_values(attention.input_value(MASK).get_node())
        if not values or not all(np.isfinite(value).all() for _, value in values):
            continue
        choices = [
            choice
            for reader in _readers(attention)
            if reader.get_type_name() == "IsNaN"
            for choice in _readers(reader)
            if choice.get_type_name() == "Select"
            and choice.input_value(2).get_node().get_friendly_name()
            == attention.get_friendly_name()
        ]
        if not choices:
            continue
        for place, value in values:
            if (value < LOWEST).any():
                place.replace_source_output(ops.constant(np.maximum(value, LOWEST)).output(0))
        for choice in choices:
            choice.output(0).replace(attention.output(0))
            changed += 1
    if changed:
        model.validate_nodes_and_infer_types()
    return changed


def _mask_values(node: Any) -> list[tuple[Any, np.ndarray]]:
    """Constants that a mask is chosen from, and the ports that take them; empty if not all are."""
    if node.get_type_name() != "Select":
        return []
    found = []
    for port in (1, 2):
        value = _constant(node.input_value(port))
        some = (
            _mask_values(node.input_value(port).get_node())
            if value is None
            else [(node.input(port), value)]
        )
        if not some:
            return []
        found += some
    return found


@dataclass(frozen=True, slots=True)
class _Projection:
    """A product with weights whose result is cut into heads.

    Attributes:
        source: What is multiplied, ``[batch, sequence, hidden]``.
        weights: ``float32[hidden, heads * head_dim]``, or integers of 8 bits.
        steps: What each column of integers is multiplied with, ``float32[heads * head_dim]``;
            None for floats.
        bias: ``float32[heads * head_dim]``.
        reshape: The node that cuts it.
    """

    source: Any
    weights: np.ndarray
    steps: np.ndarray | None
    bias: np.ndarray
    reshape: Any


def join_projections(model: Any, signature: Signature) -> int:
    """Make queries, keys and values of one text in one product, and order their heads in one go.

    The scale of the scores goes into the weights of the queries. There are 30 nodes fewer in
    MiniLM, each of which costs time whenever the shape is another one. Weights that are no
    constants of float32 or, with a scale for each column, of int8 stay as they are.

    Args:
        model: OpenVINO's ``Model`` as read, changed in place.
        signature: Says sizes that the inputs may have.

    Returns:
        How many attentions get them so.
    """
    found = [(node, _projections(node)) for node in attentions_of(model)]
    if not any(parts for _, parts in found):
        return 0
    counts = head_counts(model, signature)
    changed = 0
    for (attention, parts), heads in zip(found, counts, strict=True):
        scale = _scale(attention)
        size = attention.get_output_partial_shape(0)[3]
        if scale is None or not parts or not size.is_static:
            continue
        width = parts[QUERY].weights.shape[1]
        if set(heads) != {width // size.get_length()} or width % size.get_length():
            continue
        _join(attention, parts, heads[QUERY], scale)
        changed += 1
    if changed:
        model.validate_nodes_and_infer_types()
    return changed


def _join(attention: Any, parts: Sequence[_Projection], heads: int, scale: np.float32) -> None:
    ops = need("openvino").opset13
    width = parts[QUERY].weights.shape[1]
    factors = np.repeat(np.array([scale, 1, 1], np.float32), width)  # of each column
    weights = np.concatenate([part.weights for part in parts], 1)
    if parts[QUERY].steps is None:
        factor = ops.constant(weights * factors)
    else:
        steps = np.concatenate([part.steps for part in parts]) * factors
        factor = ops.multiply(ops.convert(ops.constant(weights), "f32"), ops.constant(steps[None]))
    product = ops.matmul(parts[QUERY].source, factor, False, False)
    biases = np.concatenate([part.bias for part in parts]) * factors
    product = ops.add(product, ops.constant(biases))
    # The batch and the sequence as the queries had them.
    reshape = parts[QUERY].reshape
    first = ops.gather(
        reshape.input_value(1), ops.constant(np.array([0, 1])), ops.constant(np.int64(0))
    )
    rest = ops.constant(np.array([len(parts), heads, width // heads]))
    shape = ops.concat([ops.convert(first, "i64"), rest], axis=0)
    cut = ops.reshape(product, shape, reshape.get_attributes()["special_zero"])
    # [batch, sequence, 3, heads, head_dim] to [3, batch, heads, sequence, head_dim]
    ordered = ops.transpose(cut, ops.constant(np.array([2, 0, 3, 1, 4])))
    each = ops.split(ordered, ops.constant(np.int64(0)), len(parts))
    for port in (QUERY, KEY, VALUE):
        part = ops.squeeze(each.output(port), ops.constant(np.int64(0)))
        # Others may need the queries without the scale; who asks for their type does not.
        for reader in attention.input_value(port).get_target_inputs():
            if reader.get_node().get_type_name() == "ConvertLike":
                reader.replace_source_output(part.output(0))
        attention.input(port).replace_source_output(part.output(0))
    one = ops.constant(np.float32(1))
    if attention.get_input_size() > SCALE:
        attention.input(SCALE).replace_source_output(one.output(0))
        return
    inputs = [attention.input_value(port) for port in range(attention.get_input_size())]
    if len(inputs) <= MASK:
        inputs.append(ops.constant(np.float32(0)).output(0))
    scaled = ops.scaled_dot_product_attention(
        *inputs, one, causal=attention.get_attributes()["causal"]
    )
    attention.output(0).replace(scaled.output(0))


def _projections(attention: Any) -> list[_Projection]:
    """Those of the queries, keys and values; empty unless all three are of one source."""
    found = []
    for port in (QUERY, KEY, VALUE):
        part = _projection(attention.input_value(port).get_node())
        if part is None:
            return []
        found.append(part)
    first = found[QUERY]
    same = (
        part.source.get_node().get_friendly_name() == first.source.get_node().get_friendly_name()
        and part.source.get_index() == first.source.get_index()
        and (part.weights.shape, part.weights.dtype) == (first.weights.shape, first.weights.dtype)
        for part in found
    )
    return found if all(same) else []


def _projection(transpose: Any) -> _Projection | None:
    """What a transposition to heads first orders; None if it is no product with constants."""
    if transpose.get_type_name() != "Transpose":
        return None
    order = _constant(transpose.input_value(1))
    reshape = transpose.input_value(0).get_node()
    if order is None or tuple(order) != HEADS_FIRST or reshape.get_type_name() != "Reshape":
        return None
    node, bias = reshape.input_value(0).get_node(), None
    if node.get_type_name() == "Add":
        for port in (0, 1):
            bias = _constant(node.input_value(port))
            if bias is not None:
                node = node.input_value(1 - port).get_node()
                break
    if node.get_type_name() != "MatMul" or node.get_output_partial_shape(0).rank.get_length() != 3:
        return None
    about = node.get_attributes()
    weights, steps = _weights(node.input_value(1))
    if weights is None or weights.ndim != 2 or about["transpose_a"]:
        return None
    if about["transpose_b"]:
        weights, steps = weights.T, None if steps is None else steps.T
    width = weights.shape[1]
    if steps is not None and steps.shape != (1, width):
        return None
    bias = np.zeros(width, np.float32) if bias is None else bias.reshape(-1)
    if bias.dtype != np.float32 or bias.shape != (width,):
        return None
    steps = None if steps is None else steps.reshape(-1)
    return _Projection(node.input_value(0), weights, steps, bias, reshape)


def _weights(value: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What a product multiplies with: floats, or integers of 8 bits and their scales.

    Returns:
        The constant, None if it is none; and what it is multiplied with first, of two axes.
    """
    weights = _constant(value)
    if weights is not None:
        return (weights if weights.dtype == np.float32 else None), None
    product = value.get_node()
    if product.get_type_name() != "Multiply":
        return None, None
    cast, factor = product.input_value(0).get_node(), product.input_value(1)
    shaped = factor.get_node()
    steps = _constant(shaped.input_value(0) if shaped.get_type_name() == "Reshape" else factor)
    shape = factor.get_partial_shape()
    if cast.get_type_name() != "Convert" or steps is None or shape.is_dynamic or len(shape) != 2:
        return None, None
    weights = _constant(cast.input_value(0))
    if weights is None or weights.dtype != np.int8 or steps.dtype != np.float32:
        return None, None
    return weights, steps.reshape(shape.to_shape())


def _scale(attention: Any) -> np.float32 | None:
    """What the scores are multiplied with; None if it is no constant."""
    if attention.get_input_size() > SCALE:
        scale = _constant(attention.input_value(SCALE))
        return None if scale is None or scale.size != 1 else np.float32(scale.reshape(-1)[0])
    size = attention.get_input_partial_shape(QUERY)[3]
    return np.float32(1 / np.sqrt(size.get_length())) if size.is_static else None


def _constant(value: Any) -> np.ndarray | None:
    """The array of a constant, seen through ``ConvertLike``; None if it is none."""
    node = value.get_node()
    if node.get_type_name() == "ConvertLike":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    array: np.ndarray = node.get_data()
    return array


def _readers(node: Any) -> list[Any]:
    return [port.get_node() for port in node.output(0).get_target_inputs()]
