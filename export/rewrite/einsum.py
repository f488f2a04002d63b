"""Einsum of two operands to MatMul, which every engine has a fast kernel for."""

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
    """Replace each einsum that is one matrix product, batched or not; returns how many.

    Args:
        model: Changed in place.
    """
    lowered = 0
    for node in list(model.graph):
        if node.op_type != "Einsum" or node.domain or len(node.inputs) != 2:
            continue
        product = as_product(node.attributes.get_string("equation", ""))
        left, right = node.inputs
        if product is None or left is None or right is None:
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


def _permuted(build: Builder, value: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    if axes == tuple(range(len(axes))):
        return value
    return build("Transpose", [value], {"perm": list(axes)})
