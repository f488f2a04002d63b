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
from tfx.runtime.stats import LEAST_ROUNDS

from ..pages.figures import ms_text
from .accuracy import drop_between
from .family import is_reference
from .machine import Machine
from .processes import Side, joined, ratio_of, side_of
from .report import BenchReport, Measurement, Row, Status

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
        processes: That the row had in the earlier run, and in the later one.
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
    processes: tuple[int, int] = (0, 0)

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
    earlier: Sequence[BenchReport], later: BenchReport, limits: Limits, *, seed: int = 0
) -> list[RowChange]:
    """Compare each row that both have.

    Args:
        earlier: The baseline: runs of one plan, as ``same_runs`` gives them.
        later: The run that is judged.
        limits: What a row may lose.
        seed: Of the bootstrap.

    Raises:
        DataError: If they were measured on different machines, or no row is in both.
    """
    check_machine(earlier, later.machine)
    known = {(row.name, row.title): row for row in later.rows}
    rng = np.random.default_rng(seed)
    found = [
        _change(earlier, later, row, known[row.name, row.title], limits, rng)
        for row in earlier[0].rows
        if row.status is Status.MEASURED and (row.name, row.title) in known
    ]
    if not found:
        raise DataError(
            "no row of the baseline was measured again",
            hint="Give the same bundles, backends and sizes.",
        )
    return found


def check_machine(earlier: Sequence[BenchReport], here: Machine) -> None:
    """See that the baseline is of this machine.

    Raises:
        DataError: If it is not.
    """
    there = earlier[0].machine
    if (there.cpu, there.usable_cpus) != (here.cpu, here.usable_cpus):
        raise DataError(
            f"the baseline was measured on {there.usable_cpus} CPUs of {there.cpu!r}, this on "
            f"{here.usable_cpus} of {here.cpu!r}",
            hint="Measure a baseline on this machine.",
        )


def unsure_rows(
    earlier: Sequence[BenchReport], later: BenchReport, limits: Limits, most: int
) -> list[str]:
    """Rows of which more processes may tell whether they are slower than is allowed.

    Args:
        earlier: The baseline.
        later: Rows of one shape so far.
        limits: What a row may lose.
        most: Processes that a row takes.
    """
    titles = {(row.name, row.title) for row in earlier[0].rows if row.measurement is not None}
    if limits.slower is None or not any((row.name, row.title) in titles for row in later.rows):
        return []
    limit = 1 + limits.slower
    return [
        one.name
        for one in compare_runs(earlier, later, limits)
        if one.time is not None
        and one.time.low <= limit < one.time.high
        and one.processes[1] < most
        and not _only_the_probe(one, limit)
    ]


def _only_the_probe(change: RowChange, limit: float) -> bool:
    """Whether nothing but the probe says that a row is slower: another kind of work."""
    if change.anchor != PROBE or change.before_ms is None or change.now_ms is None:
        return False
    return change.now_ms / change.before_ms <= limit


def same_runs(reports: Sequence[BenchReport]) -> Sequence[BenchReport]:
    """Runs that may be one baseline together: each row has the processes of all.

    Args:
        reports: At least one.

    Raises:
        DataError: If they are not of one machine, with the same rows measured.
    """
    first, *others = reports
    for other in others:
        if _conditions(first) != _conditions(other):
            raise DataError(
                "the baselines are not runs of one plan on one machine with the same rows",
                hint="Measure them again with the same command.",
            )
    return reports


def _conditions(report: BenchReport) -> tuple[object, ...]:
    rows = [(row.name, row.title, row.digest, row.status) for row in report.rows]
    return report.machine.cpu, report.machine.usable_cpus, rows


def versions_that_differ(earlier: Sequence[BenchReport], later: BenchReport) -> list[str]:
    """Libraries of another version in the later run, one phrase each."""
    before, now = earlier[0].machine.versions, later.machine.versions
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
    for name in ("then", "now", "processes", "time, 95 %", "drop, 95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for one in changes:
        table.add_row(
            one.name,
            one.title,
            ms_text(one.before_ms),
            ms_text(one.now_ms),
            "{} | {}".format(*one.processes) if one.time else "-",
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
    if any(one.time is not None and min(one.processes) == 1 for one in changes):
        out.print(
            "note: some rows were one process: another may be some percent faster or slower, which "
            "its interval does not know; give --processes 9 for a baseline, 3 for what is compared"
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
    earlier: Sequence[BenchReport],
    later: BenchReport,
    before: Row,
    now: Row,
    limits: Limits,
    rng: np.random.Generator,
) -> RowChange:
    name, title = before.name, before.title
    before_ms = float(np.median([_found(one, name, title).latency.median_ms for one in earlier]))
    if now.measurement is None:
        reason = f"measured then, {now.status} now: {now.reason}"
        return RowChange(name, title, before_ms, None, "", None, None, reason, lost=True)
    reasons = []
    anchor = _anchor(earlier, later, before)
    then, ours = _sides(earlier, later, name, title, anchor)
    time = None
    if min(ours.rounds, then.rounds) < LEAST_ROUNDS:
        reasons.append(f"fewer than {LEAST_ROUNDS} rounds: its time is not compared")
    else:
        time = _judged(
            *ratio_of(ours, then, rng),
            limit=None if limits.slower is None else 1 + limits.slower,
            unchanged=1.0,
        )
    drop = None
    if before.accuracy is not None and now.accuracy is not None:
        try:
            drop = _judged(*drop_between(before.accuracy, now.accuracy, rng), limits.accuracy)
        except DataError as error:
            reasons.append(" ".join(str(error).split()))
    change = RowChange(
        name,
        title,
        before_ms,
        now.measurement.latency.median_ms,
        anchor,
        time,
        drop,
        "; ".join(reasons),
        processes=(len(then.processes), len(ours.processes)),
    )
    if (
        time is not None
        and limits.slower is not None
        and _only_the_probe(change, 1 + limits.slower)
    ):
        outcome = min(time.outcome, Outcome.UNSURE, key=SEVERITY.index)
        return replace(change, time=replace(time, outcome=outcome))
    return change


def _found(report: BenchReport, name: str, title: str) -> Measurement:
    row = next(row for row in report.by_shape()[title] if row.name == name)
    assert row.measurement is not None  # compare_runs, same_runs and _anchor see to it
    return row.measurement


def _anchor(earlier: Sequence[BenchReport], later: BenchReport, row: Row) -> str:
    """Name of what a row's time is taken relative to."""
    against = row.comparison.against if row.comparison else ""
    for report in (*earlier, later):
        if not any(
            one.name == against and is_reference(one.way) and one.measurement is not None
            for one in report.by_shape()[row.title]
        ):
            return PROBE
    return against


def _sides(
    earlier: Sequence[BenchReport], later: BenchReport, name: str, title: str, anchor: str
) -> tuple[Side, Side]:
    """Each process' times of a row and its anchor, of the baseline and of the later run."""
    names = [name] if anchor == PROBE else [name, anchor]
    found = [[_found(report, one, title) for one in names] for report in (*earlier, later)]
    # Versions before there were minima kept medians only.
    minima = all(one.round_min_ms for both in found for one in both)
    sides = []
    for report, both in zip((*earlier, later), found, strict=True):
        times = [one.round_min_ms if minima else one.round_ms for one in both]
        row, other = (*times, report.probes.get(title, ()))[:2]
        sides.append(side_of(row, other, both[0].processes))
    return joined(sides[:-1]), sides[-1]


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
