"""Targets of Reshape as constants, which every engine can see through."""

from __future__ import annotations

import onnx_ir as ir

from ..graph import Builder, known_size


def settle_reshapes(model: ir.Model) -> int:
    """Give each ``Reshape`` a constant target: numbers, 0 for "as in the input", one -1.

    Tracing computes targets from sizes of the model's inputs: Shape, Concat, Reshape for each
    layer. Where all but one of the sizes are numbers, or have the name of the input's axis at
    that place, the target is known. It is not only a matter of speed: behind a computed target
    OpenVINO (2026.4) does not see how many heads there are, does not repeat keys that a group of
    heads shares, and fails when it runs.

    Args:
        model: A graph with shapes; changed in place. What computed the targets is left unused.

    Returns:
        How many targets became constant.
    """
    settled = 0
    for node in list(model.graph):
        if node.op_type != "Reshape" or node.domain or len(node.inputs) < 2:
            continue
        given, target = node.inputs[:2]
        if given is None or target is None or target.const_value is not None:
            continue
        sizes = _target(given.shape, node.outputs[0].shape)
        if sizes is None:
            continue
        node.replace_input_with(1, Builder(model.graph, node).constant(sizes))
        node.attributes.pop("allowzero", None)
        settled += 1
    return settled


def _target(before: ir.Shape | None, after: ir.Shape | None) -> list[int] | None:
    """A target that leads from one shape to the other at any size; None where none does."""
    if before is None or after is None:
        return None
    sizes = []
    for axis, dim in enumerate(after):
        size = known_size(dim)
        if isinstance(size, int):
            sizes.append(size)
        elif size is not None and axis < len(before) and size == known_size(before[axis]):
            sizes.append(0)
        else:
            sizes.append(-1)
    # A target of 0 means the input's size: one that is 0 itself cannot be written beside it.
    if sizes.count(-1) > 1 or 0 in [known_size(dim) for dim in after]:
        return None
    return sizes
