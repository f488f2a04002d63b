"""``python -m tfx.bench.planted``: whether ``--fail-on`` finds a slowdown, and only a slowdown.

Some runs are the baseline. Then runs of the same bundle alternate with runs in which one row's
calls really take longer, each measured and judged as by ``tfx bench --baseline ... --fail-on
slower:10%``: in several processes, and in more while it is unsure. All of the slowed ones must
fail, and none of the others: on the machine it runs on, with its drift.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import (
    FOLDER,
    Progress,
    chosen_bundle,
    console,
    emit_json,
    json_option,
    progress,
    told_errors,
)
from tfx.errors import BackendError, RecipeError
from tfx.runtime.backend import BACKENDS

from .measuring.baseline import (
    PROBE,
    Limits,
    Outcome,
    RowChange,
    compare_runs,
    same_runs,
    unsure_rows,
)
from .measuring.family import REFERENCE
from .measuring.machine import Machine, this_machine
from .measuring.report import BenchReport
from .measuring.runner import More, measure
from .measuring.slowed import SlowedWorker
from .measuring.worker import ProcessWorker, Start, Worker
from .measuring.workload import GATE_PROCESSES, GATE_TIMES, Plan, Shape, Way
from .pages.figures import ms_text
from .pages.stored import now, save_option, save_result

TRIES = 10
BASELINES = 4
# What is planted, and what ``--fail-on`` allows.
SHARE, LIMIT = 0.15, 0.10
# Of a run's first processes: the command took 18 minutes with MiniLM on two CPUs.
SECONDS = 9.0
LENGTH = 128

MORE = click.FloatRange(0, min_open=True)

# Measures once, in more processes while it is asked to; tests give another.
Measuring = Callable[[Start, More | None], BenchReport]


@dataclass(frozen=True, slots=True)
class Try:
    """A run against the baseline.

    Attributes:
        planted: Share of each call's time that was added; 0 for none.
        now_ms: Median of the row.
        ratio: Of its time to the baseline's, both relative to PyTorch's.
        low: Lower end of the 95 % interval of ``ratio``.
        high: Upper end.
        outcome: What ``--fail-on`` makes of it.
        processes: That the row had in this run.
        reason: Why there is no ratio; "".
    """

    planted: float
    now_ms: float | None
    ratio: float | None
    low: float | None
    high: float | None
    outcome: Outcome
    processes: int = 1
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whether a slowdown is found where one is, and none where none is."""
        return (self.outcome is Outcome.FAILED) == bool(self.planted)


def try_of(planted: float, change: RowChange) -> Try:
    """What came of a run, by how its row changed."""
    time = change.time
    if time is None or change.anchor == PROBE:
        reason = change.reason or f"{REFERENCE} was not measured beside it"
        return Try(planted, change.now_ms, None, None, None, Outcome.UNSURE, reason=reason)
    _, processes = change.processes
    return Try(planted, change.now_ms, time.value, time.low, time.high, change.outcome, processes)


def plant(
    measured: Measuring,
    way: Way,
    *,
    baselines: int = BASELINES,
    tries: int = TRIES,
    share: float = SHARE,
    limit: float = LIMIT,
    most: int = GATE_PROCESSES * GATE_TIMES,
    shown: Progress | None = None,
) -> list[Try]:
    """Measure the baselines, then unchanged and slowed runs by turns.

    Args:
        measured: Measures once, with the workers it is given.
        way: Of the row that is slowed.
        baselines: Runs that later ones are compared with, as one.
        tries: Of either kind.
        share: Of each call's time that is added.
        limit: As ``Limits.slower``.
        most: Processes of a row in a run.
        shown: Told of each run.

    Raises:
        BackendError: If the row, or PyTorch's, cannot be measured.
    """
    shown = shown or Progress()

    def slow_start(bundle: Path, asked: Way, shape: Shape, plan: Plan) -> Worker:
        if asked == way:
            return SlowedWorker(bundle, asked, shape, plan, share=share)
        return ProcessWorker(bundle, asked, shape, plan)

    runs = []
    for number in range(1, baselines + 1):
        shown.say(f"baseline {number} of {baselines}")
        runs.append(measured(ProcessWorker, None))
        for row in runs[-1].rows:
            if row.measurement is None:
                raise BackendError(
                    f"{row.name} cannot be measured: {row.reason}",
                    hint="See what is missing with: tfx doctor",
                )
    baseline, limits = same_runs(runs), Limits(slower=limit)

    def more(report: BenchReport) -> list[str]:
        return unsure_rows(baseline, report, limits, most)

    found = []
    for number in range(1, tries + 1):
        for planted in (0.0, share):
            what = f"{planted:.0%} slower" if planted else "unchanged"
            shown.say(f"try {number} of {tries}, {what}")
            report = measured(slow_start if planted else ProcessWorker, more)
            changes = compare_runs(baseline, report, limits, seed=number)
            (change,) = (one for one in changes if one.name.endswith(f" on {way}"))
            found.append(try_of(planted, change))
    return found


def _measured_once(
    bundle: Bundle,
    plan: Plan,
    ways: Sequence[Way],
    machine: Machine,
    start: Start,
    more: More | None,
) -> BenchReport:
    return measure([bundle], plan, ways, machine, progress=_Silent(), start=start, more=more)


class _Silent(Progress):
    """Of so many runs each step would be a line."""

    def step(self, description: str, total: int | None = None) -> None:
        """Say nothing."""


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option(
    "--backend", type=click.Choice(list(BACKENDS)), default="onnxruntime", show_default=True,
    help="Whose row is slowed, beside PyTorch's.",
)  # fmt: skip
@click.option("--baselines", default=BASELINES, show_default=True, type=click.IntRange(1))
@click.option("--tries", default=TRIES, show_default=True, type=click.IntRange(1))
@click.option("--share", default=SHARE, show_default=True, type=MORE, help="Added to each call.")
@click.option("--limit", default=LIMIT, show_default=True, type=MORE, help="As of --fail-on.")
@click.option("--batch", default=1, show_default=True)
@click.option("--length", default=LENGTH, show_default=True)
@click.option("--rounds", default=40, show_default=True, help="Most rounds of a run.")
@click.option("--seconds", default=SECONDS, show_default=True, help="Of a run's first processes.")
@click.option(
    "--processes", default=GATE_PROCESSES, show_default=True, type=click.IntRange(2),
    help="Of each row in a run, at first.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Default: all this process may use.")
@save_option
@json_option
def planted(
    bundle: Path | None,
    backend: str,
    baselines: int,
    tries: int,
    share: float,
    limit: float,
    batch: int,
    length: int,
    rounds: int,
    seconds: float,
    processes: int,
    threads: int | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Plant a slowdown in runs of BUNDLE and see which of them --fail-on finds."""
    created, machine = now(), this_machine()
    with told_errors():
        way = Way(backend)
        if way == REFERENCE:
            raise RecipeError(
                f"{REFERENCE} is what others are compared with",
                hint="Choose another --backend.",
            )
        opened = chosen_bundle(bundle)
        plan = Plan(
            batches=(batch,),
            lengths=(length,),
            rounds=rounds,
            seconds=seconds,
            threads=threads,
            processes=processes,
        )
        once = functools.partial(_measured_once, opened, plan, (REFERENCE, way), machine)
        with progress() as shown:
            found = plant(
                once,
                way,
                baselines=baselines,
                tries=tries,
                share=share,
                limit=limit,
                most=GATE_TIMES * processes,
                shown=shown,
            )
        document = {
            "bundle": opened.name,
            "backend": backend,
            "share": share,
            "limit": limit,
            "tries": [encode(one) | {"right": one.right} for one in found],
        }
        if save is not None:
            save_result(save, "planted", created, document, machine)
    if as_json:
        emit_json(document)
    else:
        show_tries(found)
        console().print(str(machine), markup=False)
    if wrong := sum(not one.right for one in found):
        raise click.ClickException(f"{wrong} of {len(found)} runs are judged wrongly")


HEADS = ("planted", "p50 ms", "processes", "ratio", "95 %", "--fail-on", "right")


def cells_of(one: Try) -> tuple[str, ...]:
    """What stands under ``HEADS``."""
    return (
        f"{one.planted:.0%}" if one.planted else "-",
        ms_text(one.now_ms),
        str(one.processes),
        "-" if one.ratio is None else f"{one.ratio:.3f}x",
        "-" if one.low is None else f"{one.low:.3f}..{one.high:.3f}",
        str(one.outcome),
        "yes" if one.right else "WRONG",
    )


def verdicts_of(found: Sequence[Try]) -> Iterator[str]:
    """Why runs have no ratio, and how many of either kind were flagged."""
    yield from (one.reason for one in found if one.reason)
    for kind in dict.fromkeys(one.planted for one in found):
        same = [one for one in found if one.planted == kind]
        flagged = sum(one.outcome is Outcome.FAILED for one in same)
        what = f"{kind:.0%} slower" if kind else "unchanged"
        yield f"{what}: {flagged} of {len(same)} flagged"


def show_tries(found: Sequence[Try]) -> None:
    """Print a line a run, and how many of either kind were flagged."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in HEADS:
        table.add_column(name, justify="left" if name == "--fail-on" else "right")
    for one in found:
        table.add_row(*cells_of(one))
    out = console()
    out.print(table)
    for verdict in verdicts_of(found):
        out.print(verdict, markup=False)


if __name__ == "__main__":
    planted()
