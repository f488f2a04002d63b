"""One name per dynamic axis, everywhere in the graph."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from tfx.errors import ExportError, listing
from tfx.signature import BATCH

SYMBOL = re.compile(r"\b[su]\d+\b")
SQUARE = re.compile(r"\(\((\w+)\*\*2\)//\1\)")


def name_axes(model: ir.Model, dynamic: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Give the axes of a traced graph the names the caller chose, one per axis.

    Tracing names each axis of each input on its own and merges only those that an operator
    forces to be equal: the batch of ``input_ids`` may be ``s18`` and that of
    ``attention_mask`` ``s43``. Axes that share a name in ``dynamic`` get that one name here,
    in inputs, outputs and intermediate values.

    Args:
        model: A traced graph; changed in place.
        dynamic: Input name to an axis name per dimension, "" for a fixed one.

    Returns:
        Symbol of the trace to the name that replaced it.

    Raises:
        ExportError: If tracing fixed an axis that should be dynamic, or forced two axes of
            different names to be equal.
    """
    names: dict[str, str] = {}
    problems: list[str] = []
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        labels = dynamic[value.name]
        for axis, (label, dim) in enumerate(zip(labels, value.shape, strict=True)):
            if not label:
                continue
            size = _size(dim)
            if not isinstance(size, str):
                why = _why_fixed(size)
                problems.append(f"{value.name}: axis {axis} ({label}) is fixed at {size}{why}")
                continue
            known = names.setdefault(size, label)
            if known != label:
                problems.append(f"{value.name}: axis {axis} ({label}) must equal axis {known!r}")
    if problems:
        raise ExportError(
            listing("the model's code does not let these axes vary:", problems),
            hint="Name the axes of every input (those without names are fixed), or fix these too.",
        )
    for one in _values(model.graph):
        if one.shape is not None:
            one.shape = ir.Shape([_renamed(size, names) for size in one.shape])
    return names


def settle_axes(
    model: ir.Model, guessed: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Correct guessed axis names by what tracing found.

    Args:
        model: A traced graph, its symbols not yet renamed.
        guessed: Input name to an axis name per dimension.

    Returns:
        The names that ``name_axes`` can apply: "" where tracing fixed an axis, one name where
        it forced two axes to be equal; and a sentence for each axis that is fixed.
    """
    label_of: dict[str, str] = {}
    first_of: dict[str, tuple[str, str]] = {}
    settled: dict[str, tuple[str, ...]] = {}
    notes = []
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        labels = []
        for axis, (label, dim) in enumerate(zip(guessed[value.name], value.shape, strict=True)):
            size = _size(dim)
            if not isinstance(size, str):
                if label:
                    why = _why_fixed(size) or " by the model"
                    notes.append(f"axis {axis} of {value.name} is fixed at {size}{why}")
                labels.append("")
            else:
                label = label_of.setdefault(size, label) if label else ""
                labels.append(label)
                place = f"axis {axis} of {value.name}"
                first_size, first_place = first_of.setdefault(label, (size, place))
                if label not in ("", BATCH) and first_size != size:
                    notes.append(
                        f"{place} and {first_place} are one, {label!r}, for the examples have "
                        "one size there: give them two, or name them with --dynamic"
                    )
        settled[value.name] = tuple(labels)
    return settled, notes


def complete_shapes(model: ir.Model) -> None:
    """Infer the shapes tracing left out, by ONNX's own rules; those known stay as they are.

    Args:
        model: Changed in place.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs


def _size(dim: int | ir.SymbolicDim) -> int | str | None:
    """A size, or a symbol; tracing writes a size it found out to be fixed as text, "32"."""
    value = dim if isinstance(dim, int) else dim.value
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _why_fixed(size: int | None) -> str:
    """Tracing takes a size of 1 for a constant, whatever the model admits."""
    return ", the example's size: give an example of 2 or more" if size == 1 else ""


def _renamed(dim: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    size = _size(dim)
    if not isinstance(size, str):
        return size
    # An expression such as "s41 + 1" or "s18*s41" keeps its form; a view to -1 leaves quotients.
    named = SYMBOL.sub(lambda match: names.get(match.group(), match.group()), size)
    return SQUARE.sub(r"\1", named)
