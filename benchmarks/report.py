"""What a benchmark found: rows with their conditions, as JSON and as tables.

The JSON document (``tfx bench --json``), with units in the names and no NaN in it::

    schema    1
    machine   cpu, flags, cores, affinity, usable_cpus, governor, load_average, memory_mb, os,
              python, versions
    plan      batches, lengths, rounds, seconds, limit_s, threads, trust, seed: what was asked for
    notes     sentences a reader must know, e.g. of sizes that were clipped
    rows      one per bundle, backend and shape:
      bundle, digest, random_weights, backend, precision (asked for; "" is the bundle's own)
      sizes         axis to size, e.g. {"batch": 8, "sequence": 128}
      status        "measured", "wrong" (outputs beyond the tolerance) or "not run"
      reason        why not run, or how wrong; "" if measured
      measurement   null if not run
        facts             what really ran: backend, version, engine, device, precision, threads
        load_s, first_call_ms, peak_memory_mb (null where not known): see worker.py
        warm_up           calls, duration_s, median_ms, settled
        rounds            blocks of calls the samples come from
        latency           samples, median_ms, p95_ms, p99_ms (null: too few samples), min_ms, max_ms
        throughput_per_s  samples of a batch per second: batch / median latency
      agreement     null without a reference, or per output: name, max_abs, max_rel, min_cosine,
                    scaled_error (null: not finite, or another shape) and the tolerance it is
                    judged by: see TOLERANCES in tfx.runtime.compare
      no_reference  why there is no agreement; ""
      comparison    null for the baseline and for wrong rows, or against, speedup (baseline median
                    / median), low, high (95 % bootstrap interval) and verdict
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.codec import encode
from tfx.runtime.backend import RunFacts
from tfx.runtime.clock import WarmUp
from tfx.runtime.proof import compare_case
from tfx.runtime.stats import LEAST_ROUNDS, LEAST_SAMPLES, Comparison, Latency
from tfx.signature import Feed, Signature

from .machine import Machine
from .workload import Plan, Shape, Way

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1

# More runnable threads per CPU than this before a benchmark began, and they share it with others.
BUSY = 0.5

UNITS = (
    "p50 is the median; times in ms but the load's; per s is samples of a batch",
    "MB is the peak of the row's process beyond Python and numpy; error is the largest scaled one "
    "against PyTorch, padding left out",
)


class Status(StrEnum):
    """What came of a row."""

    MEASURED = "measured"
    WRONG = "wrong"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of a row; the module's docstring says what each number means."""

    facts: RunFacts
    load_s: float
    first_call_ms: float
    peak_memory_mb: float | None
    warm_up: WarmUp
    rounds: int
    latency: Latency
    throughput_per_s: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an output is from PyTorch's, as JSON can hold it: None where not finite.

    Attributes:
        name: Output name.
        max_abs: As in ``OutputError``.
        max_rel: As in ``OutputError``.
        min_cosine: As in ``OutputError``.
        scaled_error: What decides (``tfx.runtime.compare``).
        tolerance: Largest ``scaled_error`` of an output that is not wrong.
    """

    name: str
    max_abs: float | None
    max_rel: float | None
    min_cosine: float | None
    scaled_error: float | None
    tolerance: float

    @property
    def wrong(self) -> str:
        """How the output is wrong, or ""."""
        if self.scaled_error is None:
            return f"{self.name} has another shape than PyTorch's, or is not finite"
        if self.scaled_error <= self.tolerance:
            return ""
        return (
            f"{self.name} has scaled error {self.scaled_error:.1e} against PyTorch's, expected at "
            f"most {self.tolerance:.0e}"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One bundle on one backend at one shape."""

    bundle: str
    digest: str
    random_weights: bool
    backend: str
    precision: str
    sizes: Mapping[str, int]
    status: Status
    reason: str
    measurement: Measurement | None
    agreement: tuple[Agreement, ...] | None
    no_reference: str
    comparison: Comparison | None

    @property
    def way(self) -> Way:
        """How it runs the bundle."""
        return Way(self.backend, self.precision)

    @property
    def name(self) -> str:
        """How other rows and messages call it."""
        return f"{self.bundle} on {self.way}"


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Rows, and the conditions they were measured under."""

    machine: Machine
    plan: Plan
    notes: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document the module's docstring describes."""
        # Not encode(plan): it leaves defaults out, and a reader need not know them.
        plan = {
            name: encode(getattr(self.plan, name)) for name in type(self.plan).__dataclass_fields__
        }
        return {
            "schema": SCHEMA_VERSION,
            "machine": encode(self.machine),
            "plan": plan,
            "notes": list(self.notes),
            "rows": [encode(row) for row in self.rows],
        }


def agreement_of(
    signature: Signature,
    feed: Feed,
    reference: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    tolerance: float,
) -> tuple[Agreement, ...]:
    """Compare the outputs of one feed, padding left out, in the reference's order.

    Args:
        signature: Says which outputs have something per token.
        feed: What both were given.
        reference: PyTorch's outputs.
        actual: The row's.
        tolerance: Largest scaled error of an output that is not wrong.
    """
    found = []
    for name, array in reference.items():
        (error,), scaled = compare_case(signature, feed, {name: array}, actual)
        if math.isfinite(scaled):
            relative = error.max_rel if math.isfinite(error.max_rel) else None
            one = Agreement(name, error.max_abs, relative, error.min_cosine, scaled, tolerance)
        else:  # compare_outputs calls the cosine -1 then, which was not measured either
            one = Agreement(name, None, None, None, None, tolerance)
        found.append(one)
    return tuple(found)


def show_report(out: Console, report: BenchReport) -> None:
    """Print one table per shape, then what did not run, verdicts and conditions."""
    for title, rows in _by_shape(report.rows).items():
        _show_shape(out, title, rows)
    failed: dict[str, list[str]] = {}
    for row in report.rows:
        if row.status is Status.NOT_RUN:
            failed.setdefault(f"{row.name} not run: {row.reason}", []).append(_title(row))
    shapes = len(_by_shape(report.rows))
    for line, titles in failed.items():
        out.print(line if len(titles) == shapes else f"{'; '.join(titles)}: {line}", markup=False)
    for note in _notes(report):
        out.print(f"note: {note}", markup=False)
    out.print(f"{report.machine}", markup=False)
    versions = ", ".join(f"{name} {number}" for name, number in report.machine.versions.items())
    out.print(f"{versions}", markup=False)


def _show_shape(out: Console, title: str, rows: list[Row]) -> None:
    from rich.table import Table

    several = len({row.bundle for row in rows}) > 1
    # A title of one bundle's table names it, so that the table has room for numbers.
    out.print(f"[bold]{title if several else f'{rows[0].bundle}: {title}'}[/]")
    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for name in ("bundle", "backend") if several else ("backend",):
        table.add_column(name, overflow="fold")
    measured = [row for row in rows if row.measurement is not None]
    # Few runs are long enough for it, and its column would take the room of the others.
    p99 = any(row.measurement.latency.p99_ms is not None for row in measured)  # type: ignore[union-attr]
    middle = ("p99",) if p99 else ()
    for name in ("calls", "p50", "p95", *middle, "per s", "load", "MB", "error", "speed, 95 %"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in sorted(measured, key=lambda r: r.measurement.latency.median_ms):  # type: ignore[union-attr]
        names = (row.bundle, str(row.way)) if several else (str(row.way),)
        table.add_row(*names, *_cells(row, p99))
    if measured:
        out.print(table)
    out.print()


def _cells(row: Row, p99: bool) -> tuple[str, ...]:
    found = row.measurement
    assert found is not None  # rows not run have no line
    latency, comparison = found.latency, row.comparison
    memory = "-" if found.peak_memory_mb is None else f"{found.peak_memory_mb:.0f}"
    numbers = (
        str(latency.samples),
        _ms(latency.median_ms),
        _ms(latency.p95_ms),
        *((_ms(latency.p99_ms),) if p99 else ()),
        _significant(found.throughput_per_s),
        f"{found.load_s:.1f}s",
        memory,
        _error(row),
    )
    if row.status is Status.WRONG:
        return (*numbers, "", "WRONG")
    if comparison is None:
        return (*numbers, "1.00x", "baseline")
    speed = f"{comparison.speedup:.2f}x {comparison.low:.2f}-{comparison.high:.2f}"
    return (*numbers, speed, str(comparison.verdict))


def _notes(report: BenchReport) -> list[str]:
    notes = dict.fromkeys(report.notes)
    machine = report.machine
    if machine.load_average > BUSY * machine.usable_cpus:
        notes[
            f"the machine was busy: load average {machine.load_average} on {machine.usable_cpus} "
            "CPUs when this began; measure again when it is quiet"
        ] = None
    for row in report.rows:
        where = f"{row.name}, {_title(row)}"
        if row.status is Status.WRONG:
            notes[f"{where} is WRONG: {row.reason}; its speed means nothing"] = None
        if row.no_reference:
            notes[f"{row.name} has no reference: {row.no_reference}"] = None
        if row.random_weights:
            notes[f"{row.bundle} has random weights"] = None
        if (found := row.measurement) is None:
            continue
        if not found.warm_up.settled:
            notes[f"{where} did not settle in {found.warm_up.duration_s:.0f} s of warm-up"] = None
        for note in found.facts.notes:
            notes[f"{row.name}: {note}"] = None
    measured = [row.measurement for row in report.rows if row.measurement is not None]
    if any(found.latency.p99_ms is None for found in measured):
        notes[
            f"p95 needs {LEAST_SAMPLES[95]} calls and p99 {LEAST_SAMPLES[99]}; more --rounds, and "
            "--seconds to make them in, give them"
        ] = None
    if any(found.rounds < LEAST_ROUNDS for found in measured):
        notes[f"no verdict from fewer than {LEAST_ROUNDS} rounds"] = None
    if baselines := {row.comparison.against for row in report.rows if row.comparison is not None}:
        notes[
            f"speed is against {' and '.join(sorted(baselines))}, with its 95 % bootstrap interval"
        ] = None
    if measured:
        notes |= dict.fromkeys(UNITS)
        counts = [found.latency.samples for found in measured]
        rounds = [found.rounds for found in measured]
        threads = sorted({found.facts.threads for found in measured})
        notes[
            f"{_span(counts)} calls a row in {_span(rounds)} interleaved rounds, "
            f"threads {', '.join(map(str, threads))}, seed {report.plan.seed}"
        ] = None
    return list(notes)


def _by_shape(rows: Iterable[Row]) -> dict[str, list[Row]]:
    shapes: dict[str, list[Row]] = {}
    for row in rows:
        shapes.setdefault(_title(row), []).append(row)
    return shapes


def _title(row: Row) -> str:
    return str(Shape(row.sizes))


def _error(row: Row) -> str:
    if row.agreement is None:
        return "-"
    errors = [one.scaled_error for one in row.agreement]
    return "-" if None in errors else f"{max(e for e in errors if e is not None):.0e}"


def _ms(value: float | None) -> str:
    return "-" if value is None else _significant(value)


def _significant(value: float) -> str:
    """Three digits that count, and never an exponent."""
    if value <= 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}..{high}"
