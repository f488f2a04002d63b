"""Small tools to read and extend an ``onnx_ir`` graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Builder:
    """Adds nodes in front of ``before``, with types, and shapes where they are plain.

    Attributes:
        before: The node that new ones go in front of.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph, self.before = graph, before

    def __call__(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        """Add one node; returns its first output."""
        node = ir.node(op_type, inputs, attributes or {})
        self.graph.insert_before(self.before, node)
        output = node.outputs[0]
        output.type = inputs[1].type if op_type == "Where" else inputs[0].type
        if op_type == "Shape":
            output.type = ir.TensorType(ir.DataType.INT64)
        elif op_type == "Transpose" and inputs[0].shape is not None:
            output.shape = ir.Shape([inputs[0].shape[i] for i in node.attributes.get_ints("perm")])
        elif op_type in ("Where", "Mul"):
            output.shape = inputs[0].shape
        return output

    def constant(self, value: object, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """An initializer; equal ones are the same."""
        array = np.array(value, dtype=dtype.numpy())
        text = "_".join(map(str, array.reshape(-1).tolist()))
        name = f"constant_{array.dtype}_{array.ndim}d_{text}"
        if name not in self.graph.initializers:
            constant = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            constant.shape, constant.type = ir.Shape(array.shape), ir.TensorType(dtype)
            self.graph.initializers[name] = constant
        return self.graph.initializers[name]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """``replace_value``, so that a rule needs the builder alone."""
        replace_value(old, new)

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of an axis as ``int64[1]``; of a named one, from the first input that has it.

        So all layers read one size, and what is computed from it is computed once.

        Args:
            value: Of known rank.
            axis: From the front.
        """
        assert value.shape is not None
        size = known_size(value.shape[axis])
        if isinstance(size, int):
            return self.constant([size])
        for given in self.graph.inputs if size is not None else ():
            sizes = [known_size(dim) for dim in given.shape or ()]
            if size in sizes:
                value, axis = given, sizes.index(size)
                break
        return self("Shape", [value], {"start": axis, "end": axis + 1})

    def expanded(self, value: ir.Value, axis: int, like: ir.Value, like_axis: int) -> ir.Value:
        """``value``, of size 1 along ``axis``, repeated to the size of an axis of ``like``.

        Args:
            value: Of known rank.
            axis: Counted from the end, negative.
            like: Gives the size.
            like_axis: Axis of ``like``, from the front.
        """
        assert value.shape is not None
        assert like.shape is not None
        size = self.size(like, like_axis)
        # Expand broadcasts both ways: sizes of 1 leave the other axes alone.
        ones = [self.constant([1] * (-axis - 1))] if axis < -1 else []
        target = self("Concat", [size, *ones], {"axis": 0}) if ones else size
        output = self("Expand", [value, target])
        dims = list(value.shape)
        dims[axis] = like.shape[like_axis]
        output.shape = ir.Shape(dims)
        return output


def name_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Name the outputs of a graph, each a value of its own.

    A module may return one tensor twice, or an input; an Identity keeps those apart.
    """
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if value.is_graph_input() or any(value is other for other in graph.outputs[:index]):
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
        graph.outputs[index].name = name


def scalar(value: ir.Value) -> float | None:
    """The number a constant holds, if it is one number; a shape such as [1, 1] counts."""
    constant = value.const_value
    if constant is None and (node := value.producer()) is not None and node.op_type == "Constant":
        constant = node.attributes["value"].as_tensor() if "value" in node.attributes else None
    if constant is None or constant.size != 1:
        return None
    return float(constant.numpy().reshape(()))


def is_computed(value: ir.Value) -> bool:
    """Whether a value depends on the model's inputs."""
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        one = stack.pop()
        if one in seen:
            continue
        seen.add(one)
        if one.is_graph_input():
            return True
        if (node := one.producer()) is not None:
            stack += [given for given in node.inputs if given is not None]
    return False


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` stand wherever ``old`` did, as an output of the graph under its name."""
    name = old.name
    is_output = old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if is_output:
        old.name = f"{name}_replaced"
        new.name = name


def producer_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes ``value``, if it is a standard operator of this type."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def known_size(size: int | ir.SymbolicDim) -> int | str | None:
    """A size, the name of an axis, or None for neither."""
    return size if isinstance(size, int) else size.value
