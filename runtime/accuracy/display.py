"""An evaluation as lines for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .evaluation import Difference, Evaluation

if TYPE_CHECKING:
    from rich.console import Console


def show_evaluation(
    out: Console,
    found: Evaluation,
    reference: Evaluation | None = None,
    difference: Difference | None = None,
) -> None:
    """Print a metric with its interval, and beside it that of another bundle if there is one."""
    for one in (found, reference):
        if one is not None:
            out.print(
                f"{one.metric} {one.value:.4f} (95 % interval {one.low:.4f} to {one.high:.4f})  "
                f"{one.bundle} on {one.backend}",
                markup=False,
            )
    if difference is not None:
        out.print(
            f"difference {difference.value:+.4f} (95 % paired interval {difference.low:+.4f} to "
            f"{difference.high:+.4f})",
            markup=False,
        )
    count = "1 sample" if found.samples == 1 else f"{found.samples:,} samples"
    out.print(f"{count} of {found.data}, {found.duration_s:.1f} s", markup=False)
    for warning in found.warnings:
        out.print(f"note: {warning}", markup=False)
