"""An nn.Module and example inputs to an ``onnx_ir.Model``, with nothing printed on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.chatter import quiet
from tfx.errors import ExportError
from tfx.extras import need
from tfx.runtime.pytorch.names import named_outputs, other_outputs

from ..graph import name_outputs
from .patches import patched

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

# Where PyTorch's report of a guard names the model's own code.
RAISED_BY = re.compile(r'call raised this error:\n\s*File "(.+)", line (\d+), in .*\n\s*(.+)')
RANGE_CONSTRAINTS = "pkg.torch.export.ExportedProgram.range_constraints"


@dataclass(frozen=True, slots=True)
class Traced:
    """What tracing gave.

    Attributes:
        model: The graph. Its weights are those of the module, not copies.
        upper_bounds: Symbol to the largest size the traced code allows, where it has one;
            a position table of 512 rows bounds the sequence.
        lower_bounds: Symbol to the smallest, where it is above 2; a convolution of width 5
            bounds it. (2 is where PyTorch starts to trace; sizes of 1 are tried afterwards.)
        notes: What the module returns and no graph can give.
    """

    model: ir.Model
    upper_bounds: Mapping[str, int]
    lower_bounds: Mapping[str, int]
    notes: tuple[str, ...]


def trace(
    module: torch.nn.Module,
    examples: Mapping[str, torch.Tensor],
    dynamic: Mapping[str, tuple[str, ...]],
    *,
    opset: int,
) -> Traced:
    """Trace ``module`` into an ONNX graph with symbolic sizes.

    Transformers' own dynamo exporter does the work, for hand-written modules too: its
    patches (attention on rows that mask every key, split, where) are about PyTorch's
    operators and not about its models.

    Args:
        module: In eval mode.
        examples: Input name to example tensor; sizes of axes that may differ should differ.
        dynamic: Input name to an axis name per dimension, "" for a fixed one.
        opset: ONNX operator set of the graph.

    Raises:
        ExportError: If the module's code cannot be traced.
    """
    need("onnxscript")
    torch, exporters = need("torch"), need("transformers.exporters.exporter_onnx")
    auto = torch.export.Dim.AUTO
    shapes = {
        name: {axis: auto for axis, label in enumerate(dynamic[name]) if label} for name in examples
    }
    config = exporters.OnnxConfig(dynamic=True, opset_version=opset, dynamic_shapes=shapes)
    try:
        with quiet(), torch.no_grad():
            outputs = module(**examples)
    except Exception as error:  # anything the module's own code raises
        raise ExportError(f"the model fails on its example inputs: {_first_line(error)}") from error
    names = list(named_outputs(outputs))
    if not names:
        raise ExportError(
            "the model returns no tensor, so there is nothing to export",
            hint="Return a tensor, or a tuple or mapping of them, from forward().",
        )
    try:
        with quiet(), patched():
            model, _ = exporters.OnnxExporter().export_program(module, dict(examples), config)
    # torch.export raises what the traced code raises, and a dozen kinds of its own.
    except Exception as error:
        raise ExportError(
            f"PyTorch cannot trace the model: {_trace_problem(error)}",
            hint=_trace_hint(error),
        ) from error
    if (written := model.opset_imports.get("", 0)) != opset:
        raise ExportError(
            f"PyTorch wrote opset {written}, expected {opset}", hint="Use --opset 23."
        )
    if len(names) != len(model.graph.outputs):
        raise ExportError(
            f"the graph has {len(model.graph.outputs)} outputs, the model returned "
            f"{len(names)}: {', '.join(names)}",
            hint="Return each tensor once from forward().",
        )
    name_outputs(model.graph, names)
    constraints = model.graph.metadata_props.get(RANGE_CONSTRAINTS, "")
    return Traced(
        model,
        _bounds(constraints, upper=True),
        _bounds(constraints, upper=False),
        tuple(
            f"{name} is no tensor ({kind}) and left out: a graph gives tensors only"
            for name, kind in other_outputs(outputs).items()
        ),
    )


def _bounds(constraints: str, *, upper: bool) -> dict[str, int]:
    """``"{s18: VR[2, int_oo], s41: VR[5, 64]}"`` to ``{"s41": 64}``, or below ``{"s41": 5}``."""
    found = re.findall(r"(\w+): VR\[(-?\w+), (\w+)\]", constraints)
    if upper:
        return {symbol: int(high) for symbol, _, high in found if high.isdecimal()}
    return {symbol: int(low) for symbol, low, _ in found if low.isdecimal() and int(low) > 2}


def _trace_problem(error: BaseException) -> str:
    kind, text = type(error).__name__, _first_line(error)
    if kind == "GuardOnDataDependentSymNode":
        where = RAISED_BY.search(str(error))
        if where is not None:
            file, line, code = where.groups()
            text = f"{Path(file).name}, line {line}: {code}"
        return f"its forward() branches on values of a tensor ({text})"
    return f"{kind}: {text}"


def _trace_hint(error: BaseException) -> str:
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return "Compute both sides and choose with torch.where; -vv shows PyTorch's own report."
    return "Run with -vv for PyTorch's own report."


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
