"""Which floats an operator's definition lets its inputs and outputs be."""

from __future__ import annotations

import functools
from typing import Any

import onnx_ir as ir

from tfx.dtypes import DType
from tfx.extras import need


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def is_constant(value: ir.Value) -> bool:
    """Whether a value's numbers are known."""
    return value.const_value is not None and value.is_initializer()


def has_floats(node: ir.Node) -> bool:
    """Whether a node reads or gives float32."""
    return any(is_float(value) for value in (*node.inputs, *node.outputs))


def can_be_lower(node: ir.Node, index: int, dtype: DType, *, output: bool = False) -> bool:
    """Whether the operator's definition lets an input, or an output, have the type.

    Read from the schema of the opset the model imports.
    """
    forms = _forms(node.op_type, node.domain, opset_of(node), str(dtype))
    if forms is None:
        return False
    # The mean and deviation of a normalization have the type it computes in.
    if output and index > 0 and "stash_type" in node.attributes:
        return False
    lowers, variadic = forms[output]
    if index < len(lowers):
        return lowers[index]
    return variadic and lowers[-1]


def is_bound(node: ir.Node, index: int) -> bool:
    """Whether an output has the type of an input by the operator's definition."""
    schema = schema_of(node.op_type, node.domain, opset_of(node))
    if schema is None or not schema.outputs:
        return False
    formal = schema.outputs[min(index, len(schema.outputs) - 1)]
    return formal.type_str in {given.type_str for given in schema.inputs}


@functools.cache
def schema_of(op_type: str, domain: str, version: int) -> Any:
    """The definition of an operator; None if it is not one of the standard."""
    defs = need("onnx.defs")
    try:
        return defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return None


@functools.cache
def _forms(
    op_type: str, domain: str, version: int, dtype: str
) -> tuple[tuple[tuple[bool, ...], bool], ...] | None:
    """For inputs and for outputs: which may have the type, and whether the last repeats."""
    schema = schema_of(op_type, domain, version)
    if schema is None:
        return None
    return tuple(
        (
            tuple(f"tensor({dtype})" in formal.types for formal in formals),
            bool(formals) and "Variadic" in str(formals[-1].option),
        )
        for formals in (schema.inputs, schema.outputs)
    )


def opset_of(node: ir.Node) -> int:
    """Version of the operator set that a node is of."""
    assert node.graph is not None
    version: int = node.graph.opset_imports.get(node.domain, 1)
    return version
