"""Two runs compared: which rows became slower, or less accurate, by more than is allowed.

Between two runs the machine itself changes: another neighbour, another clock frequency. So a row's
time is not compared with its own of the earlier run, but its ratio to an anchor measured in the
same rounds: the row of PyTorch in float32 where both runs have it, else the fixed product of
matrices that every round begins with (``Probe``). What slows all alike cancels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from tfx.errors import DataError, RecipeError, TfxError
from tfx.runtime.bootstrap import draw, percentile_interval
from tfx.runtime.stats import LEAST_ROUNDS

from ..pages.table import ms_text
from .accuracy import drop_between
from .family import is_reference
from .report import BenchReport, Row, Status

if TYPE_CHECKING:
    from rich.console import Console

LIMIT = re.compile(r"(slower|accuracy):([0-9]+\.?[0-9]*|\.[0-9]+)(%?)")
PROBE = "the fixed product of matrices"


class RegressionError(TfxError):
    """Rows are worse than the baseline's by more than is allowed."""


class Outcome(StrEnum):
    """What two runs allow to say of a row."""

    FAILED = "failed"
    FINE = "fine"
    UNSURE = "cannot say"


# From the least to the most severe.
SEVERITY = (Outcome.FINE, Outcome.UNSURE, Outcome.FAILED)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a row may lose; None for what is not asked about.

    Attributes:
        slower: Largest share of time more, e.g. 0.1.
        accuracy: Largest drop of the metric, in its unit, e.g. 0.005.
    """

    slower: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """A figure of a row in the later run against the earlier one, with its 95 % interval.

    Attributes:
        value: Of time the ratio, 1.15 is 15 % slower; of accuracy the drop.
        low: Lower end.
        high: Upper end.
        outcome: By the limit; fine where there is none.
    """

    value: float
    low: float
    high: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row in two runs.

    Attributes:
        name: Of the row.
        title: Its shape.
        before_ms: Median latency of the earlier run; None if not measured.
        now_ms: Of the later one.
        anchor: What its time is taken relative to.
        time: Its ratio; None where it cannot be had.
        drop: Of accuracy; None where not measured in both.
        reason: Why the row failed as a whole, or a figure is missing; "".
        lost: Whether it was measured before and is not any more.
    """

    name: str
    title: str
    before_ms: float | None
    now_ms: float | None
    anchor: str
    time: Shift | None
    drop: Shift | None
    reason: str = ""
    lost: bool = False

    @property
    def outcome(self) -> Outcome:
        """The worst of its figures."""
        found = {one.outcome for one in (self.time, self.drop) if one is not None}
        if self.lost or Outcome.FAILED in found:
            return Outcome.FAILED
        return Outcome.UNSURE if Outcome.UNSURE in found or self.time is None else Outcome.FINE


def limits_of(text: str) -> Limits:
    """Read ``--fail-on``: ``slower:10%,accuracy:0.5``, percent of time and points of the metric.

    A point is a hundredth of the metric's unit: 0.5 of an accuracy is half a percent of samples.

    Raises:
        RecipeError: If it is something else.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        match = LIMIT.fullmatch(part.strip())
        if match is None or match[1] in found or (match[1] == "slower") != bool(match[3]):
            raise RecipeError(
                f"got {text!r}, expected slower:PERCENT%, accuracy:POINTS or both",
                hint="Write for example: --fail-on slower:10%,accuracy:0.5",
            )
        found[match[1]] = float(match[2]) / 100
    return Limits(**found)


def compare_runs(
    earlier: BenchReport, later: BenchReport, limits: Limits, *, seed: int = 0
) -> list[RowChange]:
    """Compare each row that both runs have.

    Args:
        earlier: The baseline.
        later: The run that is judged.
        limits: What a row may lose.
        seed: Of the bootstrap.

    Raises:
        DataError: If they were measured on different machines, or no row is in both.
    """
    there, here = earlier.machine, later.machine
    if (there.cpu, there.usable_cpus) != (here.cpu, here.usable_cpus):
        raise DataError(
            f"the baseline was measured on {there.usable_cpus} CPUs of {there.cpu!r}, this on "
            f"{here.usable_cpus} of {here.cpu!r}",
            hint="Measure a baseline on this machine.",
        )
    known = {(row.name, row.title): row for row in later.rows}
    rng = np.random.default_rng(seed)
    found = [
        _change(earlier, later, row, known[row.name, row.title], limits, rng)
        for row in earlier.rows
        if row.status is Status.MEASURED and (row.name, row.title) in known
    ]
    if not found:
        raise DataError(
            "no row of the baseline was measured again",
            hint="Give the same bundles, backends and sizes.",
        )
    return found


def merged_runs(reports: Sequence[BenchReport]) -> BenchReport:
    """Several runs of one plan as one: each row has the rounds of all.

    How fast a model is also depends on where its weights and threads happened to lie when it was
    loaded, which no number of rounds of one run tells: as a baseline, three are surer than one.

    Args:
        reports: At least one; of one machine, with the same rows measured.

    Raises:
        DataError: If they are not.
    """
    first, *others = reports
    for other in others:
        if _conditions(first) != _conditions(other):
            raise DataError(
                "the baselines are not runs of one plan on one machine with the same rows",
                hint="Measure them again with the same command.",
            )
    if not others:
        return first
    rows = [_merged_row(same) for same in zip(*(one.rows for one in reports), strict=True)]
    probes = {
        title: tuple(ms for report in reports for ms in report.probes.get(title, ()))
        for title in first.probes
    }
    return replace(first, rows=tuple(rows), probes=probes)


def _conditions(report: BenchReport) -> tuple[object, ...]:
    rows = [(row.name, row.title, row.digest, row.status) for row in report.rows]
    return report.machine.cpu, report.machine.usable_cpus, rows


def _merged_row(rows: Sequence[Row]) -> Row:
    found = [row.measurement for row in rows if row.measurement is not None]
    if not found:
        return rows[0]
    median_ms = float(np.median([one.latency.median_ms for one in found]))
    whole = replace(
        found[0],
        rounds=sum(one.rounds for one in found),
        latency=replace(found[0].latency, median_ms=median_ms),
        round_ms=tuple(ms for one in found for ms in one.round_ms),
    )
    return replace(rows[0], measurement=whole)


def versions_that_differ(earlier: BenchReport, later: BenchReport) -> list[str]:
    """Libraries of another version in the later run, one phrase each."""
    before, now = earlier.machine.versions, later.machine.versions
    return [
        f"{name} {before.get(name, 'absent')} then, {now.get(name, 'absent')} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def show_changes(out: Console, changes: Sequence[RowChange], limits: Limits) -> None:
    """Print a line a row: its times, their ratio beyond the anchor's, and its drop."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False, title="against the baseline")
    table.title_justify = "left"
    for name in ("row", "sizes"):
        table.add_column(name, overflow="fold")
    for name in ("then", "now", "time, 95 %", "drop, 95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for one in changes:
        table.add_row(
            one.name,
            one.title,
            ms_text(one.before_ms),
            ms_text(one.now_ms),
            "-" if one.time is None else f"{one.time.value:.3f}x {_span(one.time, 3)}",
            "-" if one.drop is None else f"{one.drop.value:+.4f} {_span(one.drop, 4)}",
            str(one.outcome),
        )
    out.print(table)
    for one in changes:
        if one.reason:
            out.print(f"{one.name}, {one.title}: {one.reason}", markup=False)
    anchors = " and ".join(sorted({one.anchor for one in changes if one.anchor}))
    out.print(
        f"note: times are relative to {anchors} in the same rounds, as machines drift", markup=False
    )
    if limits.slower is not None:
        out.print(f"note: surely slower, and by more than {limits.slower:.1%}, fails", markup=False)
    if limits.accuracy is not None:
        points = 100 * limits.accuracy
        out.print(f"note: a sure drop, of more than {points:g} points, fails", markup=False)
    out.print(
        "note: else, where an interval reaches over a limit, nobody can say; it fails nothing"
    )


def _span(one: Shift, digits: int) -> str:
    return f"{one.low:.{digits}f}..{one.high:.{digits}f}"


def _change(
    earlier: BenchReport,
    later: BenchReport,
    before: Row,
    now: Row,
    limits: Limits,
    rng: np.random.Generator,
) -> RowChange:
    assert before.measurement is not None
    before_ms = before.measurement.latency.median_ms
    if now.measurement is None:
        reason = f"measured then, {now.status} now: {now.reason}"
        return RowChange(
            before.name, before.title, before_ms, None, "", None, None, reason, lost=True
        )
    reasons = []
    anchor, theirs, ours = _anchors(earlier, later, before)
    time = None
    shared = (
        min(len(before.measurement.round_ms), len(theirs)),
        min(len(now.measurement.round_ms), len(ours)),
    )
    if min(shared) < LEAST_ROUNDS:
        reasons.append(f"fewer than {LEAST_ROUNDS} rounds: its time is not compared")
    else:
        time = _time_shift(
            _ratio_draws(before.measurement.round_ms, theirs, rng),
            _ratio_draws(now.measurement.round_ms, ours, rng),
            limits.slower,
        )
        plain = now.measurement.latency.median_ms / before_ms
        if anchor == PROBE and limits.slower is not None and plain <= 1 + limits.slower:
            # Another kind of work than a model's: what it alone says must not fail a row.
            time = replace(time, outcome=min(time.outcome, Outcome.UNSURE, key=SEVERITY.index))
    drop = None
    if before.accuracy is not None and now.accuracy is not None:
        try:
            drop = _judged(*drop_between(before.accuracy, now.accuracy, rng), limits.accuracy)
        except DataError as error:
            reasons.append(" ".join(str(error).split()))
    return RowChange(
        before.name,
        before.title,
        before_ms,
        now.measurement.latency.median_ms,
        anchor,
        time,
        drop,
        "; ".join(reasons),
    )


def _anchors(
    earlier: BenchReport, later: BenchReport, row: Row
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """What a row is compared with: its name, and its medians of rounds in both runs."""
    against = row.comparison.against if row.comparison else ""
    for old in earlier.by_shape()[row.title]:
        if old.name != against or not is_reference(old.way) or old.measurement is None:
            continue
        for new in later.by_shape()[row.title]:
            if new.name == old.name and new.measurement is not None:
                return old.name, old.measurement.round_ms, new.measurement.round_ms
    return PROBE, earlier.probes.get(row.title, ()), later.probes.get(row.title, ())


def _ratio_draws(
    rounds: Sequence[float], anchor: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Median, over rounds, of the row's time over the anchor's: of all, then of each resample.

    By round, not of two medians: what the machine does in a round cancels within it.
    """
    count = min(len(rounds), len(anchor))
    ratios = np.asarray(rounds[:count]) / np.asarray(anchor[:count])
    drawn = np.concatenate([np.arange(len(ratios))[None], draw(len(ratios), rng)])
    found: np.ndarray = np.median(ratios[drawn], axis=1)
    return found


def _time_shift(before: np.ndarray, now: np.ndarray, limit: float | None) -> Shift:
    ratios = now / before
    low, high = percentile_interval(ratios[1:])
    return _judged(float(ratios[0]), low, high, None if limit is None else 1 + limit, 1.0)


def _judged(
    value: float, low: float, high: float, limit: float | None, unchanged: float = 0.0
) -> Shift:
    """A figure by its limit: failed if it is beyond it, and surely worse than unchanged.

    Asking that the whole interval lies beyond the limit would let 15 % pass a limit of 10 % on
    every machine but a quiet one.
    """
    if limit is None or high <= limit:
        return Shift(value, low, high, Outcome.FINE)
    failed = value > limit and low > unchanged
    return Shift(value, low, high, Outcome.FAILED if failed else Outcome.UNSURE)
