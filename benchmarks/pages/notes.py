"""What a reader of a benchmark must know, one sentence each: for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tfx.runtime.stats import LEAST_ROUNDS, LEAST_SAMPLES
from tfx.signature import BATCH

from ..measuring.profiled import reasons_of
from ..measuring.reached import limits_said
from ..measuring.report import BenchReport, Measurement, Row
from .figures import significant

# More runnable threads per CPU than this before a benchmark began, and they share it with others.
BUSY = 0.5

UNITS = (
    "p50 is the median; times in ms but the load's; per s is samples of a batch",
    "MB is the peak of the row's process beyond Python and numpy; error is the largest scaled one "
    "against PyTorch, padding left out",
)

# Of texts that are generated, in place of the first of ``UNITS``.
WRITING_UNITS = (
    "first is to the first token; p50, p95, p99 and speed are of the time from one token to the "
    "next; times in ms but the load's; per s is new tokens of all rows, prompts read included; "
    "same is the share of tokens before the first that is not PyTorch's"
)

# Of what arrives, a server that keeps up answers at least this share while it is measured: the
# last answer of a block comes a little after the last arrival.
KEEPS_UP = 0.9


def notes_of(report: BenchReport) -> list[str]:
    """What a reader must know, one sentence each."""
    measured = [row.measurement for row in report.rows if row.measurement is not None]
    said = [*report.notes, *_of_run(report)]
    for row in report.rows:
        said += _of_row(row)
        if row.measurement is not None:
            said += _of_measurement(row, row.measurement, report.plan.load.qps)
    said += reasons_of(report)
    said += _of_comparisons(report, measured)
    if measured:
        said += _of_figures(report, measured)
    return list(dict.fromkeys(said))


def _of_run(report: BenchReport) -> Iterator[str]:
    """What disturbed it."""
    machine = report.machine
    if report.unfinished:
        yield f"interrupted, so without: {'; '.join(report.unfinished)}"
    if machine.load_average > BUSY * machine.usable_cpus:
        yield (
            f"the machine was busy: load average {machine.load_average} on {machine.usable_cpus} "
            "CPUs when this began; measure again when it is quiet"
        )


def _of_row(row: Row) -> Iterator[str]:
    """What a row is, and its accuracy."""
    if row.no_reference:
        yield f"{row.name} has no reference: {row.no_reference}"
    if row.random_weights:
        yield f"{row.bundle} has random weights"
    if row.no_accuracy:
        yield f"{row.name} has no accuracy: {row.no_accuracy}"
    if (about := row.accuracy) is not None:
        yield (
            f"{about.metric} on {about.samples:,} samples of {about.data}, ± half of its 95 % "
            "interval"
        )
        if about.change:
            yield "change is the difference from PyTorch in float32, in pairs"
        yield from (f"{about.metric}: {warning}" for warning in about.warnings)


def _of_measurement(row: Row, found: Measurement, qps: float) -> Iterator[str]:
    """What was unusual while a row ran."""
    where = f"{row.name}, {row.title}"
    if not found.warm_up.settled:
        yield f"{where} did not settle in {found.warm_up.duration_s:.0f} s of warm-up"
    wanted = qps * row.sizes.get(BATCH, 1)
    if row.load and found.throughput_per_s < KEEPS_UP * wanted:
        yield (
            f"{where} does not keep up: {significant(found.throughput_per_s)} samples per s of "
            f"{significant(wanted)} that arrive, so its latency only grows with time"
        )
    yield from (f"{row.name}: {note}" for note in found.facts.notes)


def _of_comparisons(report: BenchReport, measured: Sequence[Measurement]) -> Iterator[str]:
    """What there is too little of, and what rows are compared with."""
    if any(found.latency.p99_ms is None for found in measured):
        yield (
            f"p95 needs {LEAST_SAMPLES[95]} calls and p99 {LEAST_SAMPLES[99]}; more --rounds, and "
            "--seconds to make them in, give them"
        )
    if any(found.rounds < LEAST_ROUNDS for found in measured):
        yield f"no verdict from fewer than {LEAST_ROUNDS} rounds"
    if baselines := {row.comparison.against for row in report.rows if row.comparison}:
        against = " and ".join(sorted(baselines))
        yield f"speed is against {against}, with its 95 % bootstrap interval"


def _of_figures(report: BenchReport, measured: Sequence[Measurement]) -> Iterator[str]:
    """What the columns mean, and what they were counted from."""
    load = report.plan.load
    if any(found.joules_per_call is not None for found in measured):
        one = "token of all rows" if load.writes else "call"
        yield f"J is the energy of all CPU packages per {one}, other processes included"
    else:
        yield "no energy: the machine does not tell it (RAPL)"
    yield from limits_said(report)
    if not load.mixed:  # the titles of others say it
        what = "prompts are token ids" if load.writes else "queries are arrays"
        yield f"{what}, made before: preprocessing is not in the times"
    yield WRITING_UNITS if load.writes else UNITS[0]
    yield UNITS[1]
    if load_note := _of_loads(measured):
        yield load_note
    processes = [len(found.processes) for found in measured]
    fresh = f" of {_span(processes)} processes" if max(processes) > 1 else ""
    threads = sorted({found.facts.threads for found in measured})
    yield (
        f"{_span([found.latency.samples for found in measured])} "
        f"{'tokens' if load.writes else 'calls'} a row in "
        f"{_span([found.rounds for found in measured])} interleaved rounds{fresh}, "
        f"threads {', '.join(map(str, threads))}, seed {report.plan.seed}"
    )


def _of_loads(measured: Sequence[Measurement]) -> str:
    """What ``load`` is the time of; "" where each row loaded once."""
    if all(len(found.loads_s) < 2 for found in measured):
        return ""
    return (
        "load is the median of those after the first, which found in the caches what that one left "
        "there; in the JSON document each is listed"
    )


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}..{high}"
