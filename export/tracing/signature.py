"""The signature of a traced graph: names, axes, their ranges, and the values inputs may hold."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from tfx.dtypes import DType
from tfx.errors import ExportError, SignatureError
from tfx.recipe import ExportRecipe
from tfx.runtime.generation.kv_cache import CAPACITY, KEPT
from tfx.signature import (
    BATCH,
    SEQUENCE,
    UNBOUNDED,
    Dim,
    ShapeRange,
    Signature,
    TensorSpec,
    ValueRange,
)

from .architectures import OWN_BATCHES

# Sizes engines are tuned for, where the model admits them; TensorRT's opt.
TUNED = {
    BATCH: 8,
    SEQUENCE: 128,
    f"encoder_{SEQUENCE}": 128,
    CAPACITY: 256,
    "samples": 160_000,  # ten seconds at 16 kHz
    "height": 800,
    "width": 1066,
}

# Axes that --max-seq bounds: tokens of a text, and those of a cache.
LENGTHS = (SEQUENCE, CAPACITY, KEPT)

# Operators that hand on the same integers.
TRANSPARENT = frozenset(
    {"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


def signature_of(
    model: ir.Model,
    recipe: ExportRecipe,
    limits: Mapping[str, int],
    smallest: Mapping[str, int],
    *,
    text: bool,
) -> Signature:
    """Read the signature of a graph whose axes are named.

    Args:
        model: The graph.
        recipe: Its ``max_batch`` and ``max_sequence`` bound those axes.
        limits: Axis name to the largest size the model admits.
        smallest: Axis name to the smallest size it takes, where that is not 1.
        text: Whether attention masks have their meaning in transformers: 1 keeps, 0 hides.

    Raises:
        ExportError: If an input has no type or shape, or the recipe asks for more than the
            model admits.
    """
    inputs = tuple(
        _spec(value, _values_of(value, mask=text and str(value.name).endswith("attention_mask")))
        for value in model.graph.inputs
    )
    outputs = tuple(_spec(value) for value in model.graph.outputs)
    axes = list(dict.fromkeys(d for spec in inputs for d in spec.shape if isinstance(d, str)))
    # A model whose code differs by length has the one that was asked for.
    fixed = any(recipe.max_sequence in spec.shape for spec in inputs)
    if recipe.max_sequence and not recipe.part and not fixed and SEQUENCE not in axes:
        raise ExportError(
            f"--max-seq bounds the axis {SEQUENCE!r}, the model has {', '.join(axes) or 'none'}",
            hint="Leave it out.",
        )
    ranges = {}
    for axis in axes:
        least = smallest.get(axis, 1)
        largest = _largest(axis, recipe, limits) or (UNBOUNDED if least > 1 else 0)
        if largest:
            tuned = max(least, min(TUNED.get(axis, least), largest))
            ranges[axis] = ShapeRange(least, tuned, largest)
    try:
        return Signature(inputs, outputs, ranges)
    except SignatureError as error:
        raise ExportError(f"the graph's inputs and outputs are {error}") from error


def _largest(axis: str, recipe: ExportRecipe, limits: Mapping[str, int]) -> int:
    limit = limits.get(axis, 0)
    is_batch = axis in (BATCH, *OWN_BATCHES)
    asked = recipe.max_batch if is_batch else recipe.max_sequence if axis in LENGTHS else 0
    if asked and limit and asked > limit:
        if is_batch:
            return limit
        raise ExportError(
            f"--max-seq is {asked}, the model has positions for {limit}",
            hint=f"Ask for {limit} or less.",
        )
    return asked or limit


def _spec(value: ir.Value, values: ValueRange | None = None) -> TensorSpec:
    if value.name is None or value.shape is None or value.dtype is None:
        raise ExportError(
            f"the graph does not say the type and shape of {value.name}",
            hint="Return tensors alone from forward().",
        )
    try:
        dtype = DType.from_onnx(int(value.dtype))
    except SignatureError as error:
        raise ExportError(f"{value.name}: {error}") from error
    return TensorSpec(value.name, dtype, tuple(_dims(value)), values)


def _dims(value: ir.Value) -> list[Dim]:
    assert value.shape is not None
    # A size that tracing could not express gets a name of its own.
    return [
        size if isinstance(size, int) else str(size.value or f"{value.name}_dim{axis}")
        for axis, size in enumerate(value.shape)
    ]


def _values_of(value: ir.Value, *, mask: bool) -> ValueRange | None:
    """Rows of the smallest table the input indexes; a token id beyond it reads other memory."""
    if mask:
        return ValueRange(0, 1)
    rows = _indexed_rows(value, set())
    return ValueRange(0, min(rows) - 1) if rows else None


def _indexed_rows(value: ir.Value, seen: set[ir.Value]) -> list[int]:
    if value in seen or value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return []
    seen.add(value)
    rows = []
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 1 and node.attributes.get_int("axis", 0) == 0:
            table = node.inputs[0]
            if table is not None and table.is_initializer() and table.shape is not None:
                rows.append(int(table.shape[0]))
        elif node.op_type in TRANSPARENT and index == 0:
            rows += _indexed_rows(node.outputs[0], seen)
    return rows
