"""What is changed in a graph before OpenVINO compiles it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfx.extras import need
from tfx.signature import Signature

ATTENTION = "ScaledDotProductAttention"
QUERY, KEY, VALUE = range(3)


def repeat_heads(model: Any, signature: Signature) -> int:
    """Repeat keys and values that several query heads share, so that there are as many of each.

    ONNX's Attention lets a head of keys serve a group of query heads. OpenVINO 2026.4.1 reads it
    as its own attention, which does not: without this Llama, Mistral, Gemma and their like fail
    when they are compiled or, where the count of heads is open, when they run.

    Args:
        model: OpenVINO's ``Model`` as read, changed in place.
        signature: Says sizes that the inputs may have.

    Returns:
        How many attentions had their heads repeated.
    """
    attentions = attentions_of(model)
    if not attentions:
        return 0
    ops = need("openvino").opset13
    changed = 0
    for node, counts in zip(attentions, head_counts(model, signature), strict=True):
        for port in (KEY, VALUE):
            if counts[port] == counts[QUERY]:
                continue
            times = counts[QUERY] // counts[port]
            heads = ops.constant(np.repeat(np.arange(counts[port]), times))
            repeated = ops.gather(node.input_value(port), heads, ops.constant(np.int64(1)))
            node.input(port).replace_source_output(repeated.output(0))
        changed += counts[QUERY] != counts[KEY]
    if changed:
        model.validate_nodes_and_infer_types()
    return changed


def choose_masks(model: Any) -> int:
    """Write booleans times a constant as a choice between the constant and zero.

    It is how a mask becomes what is added to scores: 0 or -3.4e38. To the passes for low precision
    (OpenVINO 2026.4.1) a conversion and a product look like a dequantization, which they move to
    the other side of attention: MiniLM in int8 gave other embeddings than on ONNX Runtime.

    Args:
        model: OpenVINO's ``Model`` as read, changed in place.

    Returns:
        How many products were written so.
    """
    openvino = need("openvino")
    ops = openvino.opset13
    changed = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        for port in (0, 1):
            cast, factor = node.input_value(port).get_node(), node.input_value(1 - port)
            if (
                cast.get_type_name() == "Convert"
                and cast.input_value(0).get_element_type() == openvino.Type.boolean
                and factor.get_node().get_type_name() == "Constant"
            ):
                zero = ops.convert_like(ops.constant(np.float32(0)), factor)
                chosen = ops.select(cast.input_value(0), factor, zero)
                node.output(0).replace(chosen.output(0))
                changed += 1
                break
    if changed:
        model.validate_nodes_and_infer_types()
    return changed


def attentions_of(model: Any) -> list[Any]:
    """Nodes of attention in a model, in the order they run."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() == ATTENTION]


def head_counts(model: Any, signature: Signature) -> list[tuple[int, int, int]]:
    """Heads of query, key and value of each attention, in the order of ``attentions_of``.

    As read, most graphs leave them open, since they are reshaped to -1. So a copy gets the
    smallest sizes; its attentions, which refuse to have their shapes inferred where heads
    differ, give way to zeros of the shape that they would give.
    """
    openvino = need("openvino")
    ops = openvino.opset13
    copy = model.clone()
    results = []
    for node in attentions_of(copy):
        inputs = [node.input_value(port) for port in (QUERY, KEY, VALUE)]
        results += [ops.result(value) for value in inputs]
        first, axis = ops.constant(np.arange(3)), ops.constant(np.int64(0))
        last = ops.constant(np.array([3]))
        shape = ops.concat(
            [
                ops.gather(ops.shape_of(inputs[QUERY]), first, axis),
                ops.gather(ops.shape_of(inputs[VALUE]), last, axis),
            ],
            axis=0,
        )
        zero = ops.convert_like(ops.constant(np.float32(0)), inputs[QUERY])
        zeros = ops.broadcast(zero, shape)
        node.output(0).replace(zeros.output(0))
    copy = openvino.Model(results, copy.get_parameters(), "heads")
    copy.reshape({spec.name: _smallest(spec.shape, signature) for spec in signature.inputs})
    heads = [result.get_output_partial_shape(0)[1].get_length() for result in copy.get_results()]
    return list(zip(heads[QUERY::3], heads[KEY::3], heads[VALUE::3], strict=True))


def _smallest(shape: tuple[int | str, ...], signature: Signature) -> list[int]:
    return [
        dim if isinstance(dim, int) else signature.ranges[dim].min if dim in signature.ranges else 1
        for dim in shape
    ]
