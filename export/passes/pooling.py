"""Pooling nodes as every engine takes them."""

from __future__ import annotations

import onnx_ir as ir


def keep_padding(model: ir.Model) -> int:
    """Say of each MaxPool that pools padded values that it has no padding of its own.

    Where a ``Pad`` with zeros comes first, ONNX Runtime up to 1.31 moves it into the pool
    (its Pad_Fusion), whose padding is minus infinity: negative values at the border are no
    longer raised to 0. It leaves ``auto_pad="VALID"`` alone, which is the same pool.

    Args:
        model: Changed in place.

    Returns:
        How many pools were changed.
    """
    changed = 0
    for node in model.graph.all_nodes():
        if node.op_type != "MaxPool" or node.domain or node.inputs[0] is None:
            continue
        before = node.inputs[0].producer()
        if before is None or before.op_type != "Pad":
            continue
        attributes = node.attributes
        plain = attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        # VALID has no last, partial window; a pool that has one keeps what it says.
        if not plain or any(attributes.get_ints("pads", [])) or attributes.get_int("ceil_mode", 0):
            continue
        attributes.pop("pads", None)
        attributes["auto_pad"] = ir.AttrString("auto_pad", "VALID")
        changed += 1
    return changed
