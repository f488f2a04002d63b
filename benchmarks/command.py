"""One run of ``tfx bench``: what is asked for is measured, written, shown, and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import chosen_bundle, console, emit_json, progress
from tfx.errors import BackendError, ParityError
from tfx.workspace import family_of

from .measuring.baseline import (
    Limits,
    Outcome,
    RegressionError,
    RowChange,
    check_machine,
    compare_runs,
    limits_of,
    same_runs,
    show_changes,
    unsure_rows,
    versions_that_differ,
)
from .measuring.machine import this_machine
from .measuring.profiled import show_spent, with_profiles
from .measuring.reached import with_reached
from .measuring.report import BenchReport, Status
from .measuring.resume import continued
from .measuring.runner import More, measure
from .measuring.workload import GATE_PROCESSES, GATE_TIMES, Plan, Way
from .options import Asked, Files, plan_of, ways_of
from .pages.output import read_report, sole_writer, write_csv, write_html, write_json
from .pages.stored import save_result
from .pages.table import show_report
from .peaks import machine_peaks


@dataclass(frozen=True, slots=True)
class Gate:
    """Earlier runs that this one is compared with.

    Attributes:
        before: Of one plan, at least one.
        limits: What a row may lose.
        asked: The limits as ``--fail-on`` has them; "" where nothing fails.
    """

    before: Sequence[BenchReport]
    limits: Limits
    asked: str = ""

    def more(self, processes: int) -> More:
        """What names the rows that need another process, of runs that begin with ``processes``."""
        most = GATE_TIMES * processes
        return lambda found: unsure_rows(self.before, found, self.limits, most)

    def check(self, changes: Sequence[RowChange]) -> None:
        """See that no row is beyond the limits.

        Raises:
            RegressionError: If one is, where that is asked about.
        """
        worse = [one for one in changes if one.outcome is Outcome.FAILED]
        if self.asked and worse:
            names = "; ".join(f"{one.name}, {one.title}" for one in worse)
            raise RegressionError(
                f"worse than the baseline by more than {self.asked}: {names}",
                hint="Measure again on a quiet machine; if it stays, something became worse.",
            )


def gate_of(baselines: Sequence[Path], fail_on: str | None) -> Gate | None:
    """The gate of ``--baseline`` and ``--fail-on``; None without.

    Raises:
        click.UsageError: If there are limits and nothing to compare with.
        DataError: If a file is no result of a benchmark.
        RecipeError: If the limits cannot be read.
    """
    if fail_on is not None and not baselines:
        raise click.UsageError("--fail-on needs --baseline, the run to compare with")
    if not baselines:
        return None
    limits = Limits() if fail_on is None else limits_of(fail_on)
    return Gate(same_runs([read_report(path) for path in baselines]), limits, fail_on or "")


def run_bench(
    paths: Sequence[Path],
    asked: Asked,
    files: Files,
    gate: Gate | None,
    *,
    profile: bool,
    peaks: bool,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure bundles, and leave the report where it is asked for.

    Args:
        paths: Bundles; without any the newest and its family.
        asked: What is measured.
        files: What is written.
        gate: What the run is compared with; None for nothing.
        profile: Whether rows also say where their time goes.
        peaks: Whether rows also say what they reach of the machine's peaks.
        save: Folder of results by machine and date.
        as_json: Whether stdout is the JSON document.

    Raises:
        BackendError: If it was interrupted, or nothing could be measured.
        ParityError: If outputs are wrong.
        RegressionError: If a row is beyond the gate's limits.
    """
    found = [chosen_bundle(path) for path in dict.fromkeys(paths)]
    bundles = found or family_of(chosen_bundle(None))
    judges_speed = gate is not None and gate.limits.slower is not None
    plan = plan_of(asked, bundles, processes=GATE_PROCESSES if judges_speed else 1)
    ways = ways_of(asked, bundles, plan)
    with sole_writer(files.written):
        report, interrupted = _measured(
            bundles, plan, ways, files, gate, profile=profile, peaks=peaks
        )
        changes = [] if gate is None else _changes(gate, report)
        # Before the files: a disk that is full must not take it along.
        _show(report, gate, changes, as_json=as_json)
        if files.csv_file is not None:
            write_csv(files.csv_file, report)
        if files.html_file is not None:
            write_html(files.html_file, report)
        if save is not None and not interrupted:
            kept = replace(report, plan=_without_folders(report.plan))
            save_result(save, "bench", report.created, kept.to_dict(), report.machine)
        _check(report, files, interrupted=interrupted)
        if gate is not None:
            gate.check(changes)


def _without_folders(plan: Plan) -> Plan:
    """What is kept is read by others: where a file lay here tells them nothing."""
    load = replace(plan.load, lengths=Path(plan.load.lengths).name)
    return replace(plan, data=Path(plan.data).name, load=load)


def _measured(
    bundles: Sequence[Bundle],
    plan: Plan,
    ways: Sequence[Way],
    files: Files,
    gate: Gate | None,
    *,
    profile: bool,
    peaks: bool,
) -> tuple[BenchReport, bool]:
    """The report, and whether an interruption ended it early."""
    machine = this_machine()
    if gate is not None:
        check_machine(gate.before, machine)
    earlier = None if files.resume is None else continued(files.resume, plan, machine)
    kept: list[BenchReport] = []

    def keep(found: BenchReport) -> None:
        kept[:] = [found]
        if files.target is not None:
            write_json(files.target, found)

    with progress() as shown:
        try:
            report = measure(
                bundles,
                plan,
                ways,
                machine,
                progress=shown,
                earlier=earlier,
                keep=keep,
                more=None if gate is None else gate.more(plan.processes),
            )
            if peaks:  # last: their libraries would be in the way of what is measured
                shown.step("peaks of this machine")
                known = None if earlier is None else earlier.peaks
                report = with_reached(report, bundles, known or machine_peaks())
                keep(report)
            if profile:
                report = with_profiles(report, bundles, progress=shown, keep=keep)
        except KeyboardInterrupt:
            if not kept or not kept[0].rows:
                raise
            return kept[0], True
    return report, False


def _changes(gate: Gate, report: BenchReport) -> list[RowChange]:
    return compare_runs(gate.before, report, gate.limits, seed=report.plan.seed)


def _show(
    report: BenchReport, gate: Gate | None, changes: Sequence[RowChange], *, as_json: bool
) -> None:
    if as_json:
        found = {"baseline": [encode(one) | {"outcome": one.outcome} for one in changes]}
        emit_json(report.to_dict() | (found if gate else {}))
        return
    show_report(console(), report)
    show_spent(console(), report)
    if gate is not None:
        show_changes(console(), changes, gate.limits)
        for line in versions_that_differ(gate.before, report):
            click.echo(f"note: {line}")


def _check(report: BenchReport, files: Files, *, interrupted: bool) -> None:
    """See that the run came to its end, with rows that are right.

    Raises:
        BackendError: If it was interrupted, or no row ran.
        ParityError: If outputs are wrong.
    """
    if interrupted:
        target = files.target
        where = f"--resume {target}" if target else "--output FILE, then --resume FILE"
        left = "; ".join(report.unfinished) or "what --peaks and --profile add"
        raise BackendError(f"interrupted, without: {left}", hint=f"Go on with {where}.")
    if all(row.status is Status.NOT_RUN for row in report.rows):
        raise BackendError("nothing could be measured", hint="See what is missing with: tfx doctor")
    if wrong := sorted({row.name for row in report.rows if row.status is Status.WRONG}):
        raise ParityError(f"outputs are wrong: {', '.join(wrong)}", hint="Run tfx check on it.")
