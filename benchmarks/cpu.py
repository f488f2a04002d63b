"""``python -m tfx.bench.cpu``: how much faster than PyTorch a model runs on this CPU.

The project's standing comparison of one text model at two shapes, one request and a full batch:
PyTorch in float32 as a user has it, and every backend and precision of the bundles given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tfx.bundle import Bundle, open_bundle
from tfx.codec import encode
from tfx.console import FOLDER, console, emit_json, json_option, progress, told_errors
from tfx.errors import BundleError
from tfx.runtime.stats import Comparison

from .measuring.family import REFERENCE, same_model
from .measuring.flops import flops_of
from .measuring.machine import this_machine
from .measuring.report import BenchReport, Row
from .measuring.runner import measure
from .measuring.workload import Plan, Way, shapes_of
from .pages.stored import save_option, save_result
from .peaks import Peaks, stored_peaks

# Of every bundle; what runs a bundle's source runs once for all.
WAYS = (
    REFERENCE,
    Way("torch", "bf16"),
    Way("onnxruntime"),
    Way("openvino"),
    Way("openvino", "bf16"),
)
BATCHES, LENGTH = (1, 16), 128

# What the best row is to reach, and how near to float32 it must be for that.
TARGET = 5.0
LEAST_COSINE = 0.995


@dataclass(frozen=True, slots=True)
class CpuRow:
    """What a row of the report comes to on this machine.

    Attributes:
        shape: Of its table.
        name: Bundle and way.
        precision: Type it really multiplies in; "" if it did not run.
        median_ms: Of a call; None if it did not run.
        gflops: 10^9 operations a second, padding counted as it is multiplied too.
        peak_share: ``gflops`` of the machine's peak in its precision; None where there is none.
        min_cosine: The least of all outputs with PyTorch's; None without.
        comparison: Its speed against PyTorch's in float32; None for that one.
        reason: Why it did not run, or how it is wrong; "".
    """

    shape: str
    name: str
    precision: str = ""
    median_ms: float | None = None
    gflops: float | None = None
    peak_share: float | None = None
    min_cosine: float | None = None
    comparison: Comparison | None = None
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whether its outputs are near enough to float32's."""
        return self.min_cosine is not None and self.min_cosine >= LEAST_COSINE


def rows_of(report: BenchReport, flops: Mapping[str, float], peaks: Peaks) -> tuple[CpuRow, ...]:
    """Rows of a report with what they reach of the machine.

    Args:
        report: Of bundles of one model.
        flops: Operations of a call, by the shape's title.
        peaks: Of the machine.
    """
    return tuple(_row(row, flops[row.title], peaks) for row in report.rows)


def _row(row: Row, flops: float, peaks: Peaks) -> CpuRow:
    cosines = [one.min_cosine for one in row.agreement or () if one.min_cosine is not None]
    least = min(cosines, default=None)
    if row.measurement is None:
        return CpuRow(row.title, row.name, min_cosine=least, reason=row.reason)
    precision, median_ms = row.measurement.facts.precision, row.measurement.latency.median_ms
    comparison = row.comparison
    if comparison is not None and not comparison.against.endswith(f" on {REFERENCE}"):
        comparison = None  # without PyTorch a report compares with its fastest row
    return CpuRow(
        shape=row.title,
        name=row.name,
        precision=str(precision),
        median_ms=median_ms,
        gflops=flops / median_ms / 1e6,
        peak_share=peaks.share_of_named(flops, median_ms / 1e3, str(precision)),
        min_cosine=least,
        comparison=comparison,
    )


def verdicts_of(rows: Sequence[CpuRow]) -> list[str]:
    """For each shape the fastest row that is near enough to float32, and whether it is enough."""
    said = []
    for shape in dict.fromkeys(row.shape for row in rows):
        right = [row for row in rows if row.shape == shape and row.right and row.comparison]
        best = max(right, key=_speedup, default=None)
        if best is None:
            said.append(f"{shape}: no row of cosine {LEAST_COSINE} or more beside PyTorch's")
            continue
        assert best.comparison is not None
        low, high = best.comparison.low, best.comparison.high
        reached = "yes" if low >= TARGET else "no" if high < TARGET else "cannot say"
        said.append(
            f"{shape}: {best.name} in {best.precision}, {best.comparison.speedup:.2f}x PyTorch in "
            f"float32 ({low:.2f} to {high:.2f}), cosine {best.min_cosine:.4f}; "
            f"{TARGET:g}x or more: {reached}"
        )
    return said


def _speedup(row: CpuRow) -> float:
    return row.comparison.speedup if row.comparison else 0.0


def flops_by_shape(bundles: Sequence[Bundle], plan: Plan) -> dict[str, float]:
    """Operations of a call at each shape of a plan, by its title; counted in the first's graph.

    Raises:
        BundleError: If its graph cannot be counted.
    """
    shapes, _ = shapes_of([bundle.manifest.signature for bundle in bundles], plan)
    return {str(shape): float(flops_of(bundles[0], shape.sizes).total) for shape in shapes}


@click.command
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=FOLDER)
@click.option("--batch", "batches", multiple=True, type=int, help="Batch sizes; default: 1, 16.")
@click.option("--length", default=LENGTH, show_default=True)
@click.option("--rounds", default=40, show_default=True, help="Most rounds of a shape.")
@click.option("--seconds", default=30.0, show_default=True, help="For each shape.")
@click.option("--threads", type=click.IntRange(1), help="Default: all this process may use.")
@click.option(
    "--peaks", "peaks_file", type=click.Path(path_type=Path), help="Read or written, if of here."
)
@save_option
@json_option
def cpu(
    bundles: tuple[Path, ...],
    batches: tuple[int, ...],
    length: int,
    rounds: int,
    seconds: float,
    threads: int | None,
    peaks_file: Path | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Compare BUNDLE on every backend and precision with PyTorch, first of one in float32."""
    with told_errors():
        opened = [open_bundle(path) for path in dict.fromkeys(bundles)]
        for bundle in opened[1:]:
            if not same_model(opened[0], bundle):
                raise BundleError(
                    f"{opened[0].name} and {bundle.name} are not of one model",
                    hint="Name bundles made from one another.",
                )
        plan = Plan(
            batches=tuple(dict.fromkeys(batches)) or BATCHES,
            lengths=(length,),
            rounds=rounds,
            seconds=seconds,
            threads=threads,
        )
        flops = flops_by_shape(opened, plan)  # what cannot be counted is said before minutes pass
        with progress() as shown:
            shown.step("peaks of this machine")
            peaks = stored_peaks(peaks_file)
            report = measure(opened, plan, WAYS, this_machine(), progress=shown)
        rows = rows_of(report, flops, peaks)
        document = {
            "peaks": encode(peaks),
            "rows": encode(rows),
            "verdicts": verdicts_of(rows),
            "report": report.to_dict(),
        }
        if save is not None:
            save_result(save, "cpu", report.created, document, report.machine)
    if as_json:
        emit_json(document)
        return
    show_rows(rows)
    for line in (*report.notes, str(report.machine)):
        console().print(line, markup=False)


def show_rows(rows: Sequence[CpuRow]) -> None:
    """Print a table for each shape, what did not run, and the verdicts."""
    from rich.table import Table

    out = console()
    for shape in dict.fromkeys(row.shape for row in rows):
        table = Table(box=None, padding=(0, 2, 0, 0), title=shape, title_justify="left")
        for name in ("", "runs in", "p50 ms", "GFLOP/s", "of peak", "cosine", "ratio", "95 %"):
            table.add_column(name, justify="left" if name in ("", "runs in") else "right")
        here = [row for row in rows if row.shape == shape]
        for row in sorted(here, key=lambda row: row.median_ms or 0):
            if row.median_ms is not None:
                table.add_row(*_cells(row))
        out.print(table)
        for row in here:
            if row.median_ms is None:
                out.print(f"{row.name} not timed: {row.reason}", markup=False)
    for line in verdicts_of(rows):
        out.print(line, markup=False)


def _cells(row: CpuRow) -> list[str]:
    compared: Any = row.comparison
    return [
        row.name,
        row.precision,
        f"{row.median_ms:.2f}",
        f"{row.gflops:.0f}",
        "-" if row.peak_share is None else f"{row.peak_share:.0%}",
        "-" if row.min_cosine is None else f"{row.min_cosine:.4f}",
        "-" if compared is None else f"{compared.speedup:.2f}x",
        "-" if compared is None else f"{compared.low:.2f} to {compared.high:.2f}",
    ]


if __name__ == "__main__":
    cpu()
