"""A tuning as a table: every candidate, its times, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .candidates import ELIGIBLE, Outcome, Trial
from .choices import Tuning

if TYPE_CHECKING:
    from rich.console import Console


def show_tuning(out: Console, tuning: Tuning) -> None:
    """Print candidates with their medians, why each lost or was not run, and the choice."""
    from rich.table import Table

    timed = [trial for trial in tuning.trials if trial.medians_ms]
    several = len({trial.candidate.bundle for trial in tuning.trials}) > 1
    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    if several:
        table.add_column("bundle", overflow="fold")
    table.add_column("backend", overflow="fold")
    table.add_column("computes in", overflow="fold")
    table.add_column("threads", justify="right")
    for label in tuning.shapes:
        weight = tuning.weights.get(label, 1)
        times = f", counts {weight} times" if weight > 1 else ""
        table.add_column(f"{label}, ms{times}", justify="right")
    table.add_column("cosine", justify="right")
    table.add_column("", overflow="fold")
    for trial in timed:
        chosen = trial.outcome is Outcome.CHOSEN
        table.add_row(
            *([trial.candidate.bundle] if several else []),
            trial.candidate.backend,
            trial.computes_in,
            str(trial.candidate.threads),
            *(_time(trial, label) for label in tuning.shapes),
            "" if trial.cosine is None else f"{trial.cosine:.4f}",
            _words(trial),
            style="bold" if chosen else None,
        )
    out.print(table)
    reasons: dict[str, dict[str, None]] = {}
    for trial in tuning.trials:
        if not trial.medians_ms:
            way = str(trial.candidate).partition(",")[0]
            reasons.setdefault(_words(trial), {})[way] = None
    for reason, ways in reasons.items():
        out.print(f"{', '.join(ways)}: {reason}", markup=False)
    for note in tuning.notes:
        out.print(f"note: {note}", markup=False)
    here = tuning.conditions
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items())
    out.print(
        f"{here.cpu or 'unknown CPU'}, {here.usable_cpus} CPUs usable; {versions}", markup=False
    )
    count = sum(trial.outcome in ELIGIBLE for trial in tuning.trials)
    out.print(
        f"chosen for {', '.join(tuning.shapes)}: {tuning.chosen.candidate}, of {count} that are "
        f"right; {tuning.rounds} rounds, {tuning.duration_s:g} s",
        markup=False,
    )


def _time(trial: Trial, label: str) -> str:
    value = trial.medians_ms.get(label)
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _words(trial: Trial) -> str:
    if trial.outcome in (Outcome.LOST, Outcome.DROPPED):
        return trial.reason
    return f"{trial.outcome}: {trial.reason}" if trial.reason else str(trial.outcome)
