"""Einsum of two operands to MatMul or Mul, which every engine has fast kernels for."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder


@dataclass(frozen=True, slots=True)
class Product:
    """An einsum as ``transpose(transpose(left) @ transpose(right))``; axes as in ``Transpose``."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    output: tuple[int, ...]


def lower_einsums(model: ir.Model) -> int:
    """Replace each einsum that is one product, of matrices or of elements; returns how many.

    A product of elements sums nothing: of masks, say, which may be of integers, and TensorRT takes
    no einsum of those.

    Args:
        model: Changed in place.
    """
    lowered = 0
    for node in list(model.graph):
        if node.op_type != "Einsum" or node.domain or len(node.inputs) != 2:
            continue
        equation = node.attributes.get_string("equation", "")
        product = as_product(equation)
        left, right = node.inputs
        if left is None or right is None:
            continue
        if product is None:
            lowered += _multiply(model.graph, node, left, right, equation)
            continue
        build = Builder(model.graph, node)
        result = build(
            "MatMul", [_permuted(build, left, product.left), _permuted(build, right, product.right)]
        )
        old = node.outputs[0]
        if old.shape is not None:
            # product.output says where each axis of the product goes: undo it for its shape.
            result.shape = ir.Shape(
                [old.shape[product.output.index(axis)] for axis in range(len(product.output))]
            )
        result = _permuted(build, result, product.output)
        result.shape, result.type = old.shape, old.type
        build.replace(old, result)
        lowered += 1
    return lowered


def as_product(equation: str) -> Product | None:
    """Read an einsum equation as one matrix product, or None where it is not one.

    "bhqd,bhkd->bhqk" is; so is "bsd,df->bsf", where the right side has no batch. Diagonals
    ("ii"), sums over one operand alone, outer products and ellipses are not.
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    left, comma, right = inputs.partition(",")
    if not arrow or not comma or "." in equation or "," in right:
        return None
    if any(len(set(labels)) != len(labels) for labels in (left, right, output)):
        return None
    # A label of one side alone that is not in the output would be summed over.
    if not set(left) ^ set(right) <= set(output) or not set(output) <= set(left) | set(right):
        return None
    summed = [label for label in left if label in right and label not in output]
    batch = [label for label in output if label in left and label in right]
    rows = [label for label in output if label in left and label not in right]
    columns = [label for label in output if label in right and label not in left]
    if len(summed) != 1 or len(columns) != 1 or len(rows) < 1 or (batch and len(rows) != 1):
        return None
    left_order = [*batch, *rows, *summed]
    right_order = [*batch, *summed, *columns]
    result = [*batch, *rows, *columns]
    return Product(
        tuple(left.index(label) for label in left_order),
        tuple(right.index(label) for label in right_order),
        tuple(result.index(label) for label in output),
    )


def _multiply(
    graph: ir.Graph, node: ir.Node, left: ir.Value, right: ir.Value, equation: str
) -> bool:
    """Replace an einsum that sums nothing; whether it is one."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    sides = inputs.split(",")
    if not arrow or len(sides) != 2 or "." in equation:
        return False
    if any(len(set(labels)) != len(labels) for labels in (*sides, output)):
        return False
    if set(output) != set("".join(sides)):
        return False
    build, factors = Builder(graph, node), []
    for value, labels in zip((left, right), sides, strict=True):
        factor = _permuted(build, value, tuple(labels.index(x) for x in output if x in labels))
        missing = [place for place, label in enumerate(output) if label not in labels]
        if missing:
            factor = build("Unsqueeze", [factor, build.constant(missing)])
        factors.append(factor)
    old = node.outputs[0]
    result = build("Mul", factors)
    result.shape, result.type = old.shape, old.type
    build.replace(old, result)
    return True


def _permuted(build: Builder, value: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    if axes == tuple(range(len(axes))):
        return value
    return build("Transpose", [value], {"perm": list(axes)})
