"""The least that must stay in float32 for the accuracy to stay within a budget.

First everything is lowered. Where that costs too much, the sensitivity of every group is
measured: what is lost on calibration data when it alone is lowered. Then a bisection over how
many are kept, in the order that loses least, each try measured on the evaluation data. What was
measured is written down as it goes, and a search that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfx.bundle import Bundle
from tfx.codec import DecodeError, decode, encode
from tfx.errors import QuantizeError
from tfx.quantization import Accuracy
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.cpus import usable_cpus

from .accuracy import Judge
from .lowering import Lowering
from .pipeline import write_draft
from .sensitivity import NO_NUMBERS, MetricRuler, OutputRuler, Ruler, order_of, some_feeds

FILE_NAME = "search.json"

# Runs of the longest calibration feed that speed is measured with.
SPEED_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice of groups, measured.

    Attributes:
        kept: How many groups stay in float32, the first of the report's order.
        accuracy: On the evaluation data.
        size_bytes: Of graph and weights.
        speedup: Time of the parent's run over that of this one, medians of interleaved rounds.
    """

    kept: int
    accuracy: Accuracy
    size_bytes: int
    speedup: float


@dataclass(frozen=True, slots=True)
class SearchReport:
    """A search, as far as it got.

    Attributes:
        key: sha256 of all that decides its outcome.
        max_drop: The budget.
        ruler: What sensitivity is of: a metric that compares with the parent, or the outputs.
        sensitivity: Group to what is lost when it alone is lowered: of the metric, or how far the
            outputs move as a share of their root mean square.
        changes: What each sample's numbers change by then, while sensitivity is measured.
        order: Groups in the order they are kept in; empty until all are measured.
        trials: In the order they were made.
        chosen: How many groups are kept in the end; -1 while it goes on.
    """

    key: str
    max_drop: float
    ruler: str = ""
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    chosen: int = -1


def find_kept(
    lowering: Lowering,
    judge: Judge,
    max_drop: float,
    state: Path,
    *,
    ranking: Judge | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    on_trial: Callable[[Trial, int], None] = lambda *_: None,
) -> tuple[tuple[str, ...], SearchReport]:
    """Search for the least groups to keep.

    Args:
        lowering: The calibrated bundle.
        judge: Measures on the evaluation data.
        max_drop: Largest loss of its metric allowed, in the metric's unit.
        state: A file: what was measured goes there at once, and is read when the same search
            is begun again.
        ranking: Measures on calibration data, by a metric that compares with the parent; None to
            rank groups by the outputs.
        on_step: Called with a few words as each step begins.
        on_trial: Called with each trial, and how many groups there are.

    Returns:
        The groups to keep, and the report.

    Raises:
        QuantizeError: If not even all groups kept meets the budget.
    """
    groups = [group for group in lowering.groups if group not in lowering.recipe.keep]
    measured_by = ranking.metric if ranking is not None else OutputRuler.name
    fresh = SearchReport(_key(lowering, judge, max_drop, measured_by), max_drop, measured_by)
    report = _resumed(state, fresh)
    with tempfile.TemporaryDirectory(prefix="tfx-search-") as folder:
        runner = _Runner(lowering, Path(folder))

        def holds(kept: int) -> bool:
            nonlocal report
            if kept and len(report.order) < len(groups):
                options = runner.options
                ruler = MetricRuler(ranking) if ranking else OutputRuler(lowering, options)
                report = _ranked(report, groups, ruler, runner, state, on_step)
            for trial in report.trials:
                if trial.kept == kept:
                    return trial.accuracy.drop <= max_drop
            on_step(f"trying with {kept} of {len(groups)} groups kept")
            trial = runner.trial(report.order[:kept], judge)
            report = dataclasses.replace(report, trials=(*report.trials, trial))
            _store(state, report)
            on_trial(trial, len(groups))
            return trial.accuracy.drop <= max_drop

        chosen = _least(holds, len(groups))
    report = dataclasses.replace(report, chosen=chosen)
    _store(state, report)
    return tuple(report.order[:chosen]), report


def _ranked(
    report: SearchReport,
    groups: Collection[str],
    ruler: Ruler,
    runner: _Runner,
    state: Path,
    on_step: Callable[[str], None],
) -> SearchReport:
    """The report with the sensitivity of every group, each written down as it is known."""
    origin = ruler.origin()
    for number, group in enumerate(groups, 1):
        if group in report.sensitivity:
            continue
        on_step(f"sensitivity of {group} ({number} of {len(groups)})")
        rows = ruler.rows(runner.write([other for other in groups if other != group]))
        lost = NO_NUMBERS if rows is None else ruler.loss(rows)
        change = () if rows is None else tuple(map(tuple, (rows - origin).tolist()))
        report = dataclasses.replace(
            report,
            sensitivity={**report.sensitivity, group: lost},
            changes={**report.changes, group: change},
        )
        _store(state, report)
    known = {group: np.array(report.changes[group]) for group in groups}
    changes = {group: change if change.size else None for group, change in known.items()}
    report = dataclasses.replace(report, order=tuple(order_of(ruler, changes)), changes={})
    _store(state, report)
    return report


def _least(holds: Callable[[int], bool], most: int) -> int:
    """The least number for which ``holds``, if it holds for all above one for which it does.

    Accuracy is not quite monotone: the number found holds, and the one tried below it did not.
    """
    if holds(0):
        return 0
    fails, step = 0, 1
    while not holds(min(step, most)):
        if step >= most:
            raise QuantizeError(
                "the budget does not hold even with every group kept",
                hint="Allow a larger --max-drop.",
            )
        fails, step = step, step * 2
    works = min(step, most)
    while works - fails > 1:
        middle = (works + fails) // 2
        if holds(middle):
            works = middle
        else:
            fails = middle
    return works


class _Runner:
    """Writes choices of groups aside and runs them.

    Attributes:
        options: How they are run.
    """

    def __init__(self, lowering: Lowering, folder: Path) -> None:
        self._lowering, self._folder = lowering, folder
        self._feed = some_feeds(lowering)[-1]
        self.options = RunOptions(threads=usable_cpus())

    def trial(self, keep: Collection[str], judge: Judge) -> Trial:
        bundle = self.write(keep)
        size = sum(
            path.stat().st_size for path in bundle.path.iterdir() if path.name.startswith("model.")
        )
        return Trial(len(keep), judge.measure(bundle), size, self._speedup(bundle))

    def write(self, keep: Collection[str]) -> Bundle:
        """The bundle with these groups kept; in place of the one before."""
        folder = self._folder / "candidate"
        for path in sorted(folder.glob("**/*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.mkdir(exist_ok=True)
        return write_draft(self._lowering, self._lowering.lower(keep), folder)

    def _speedup(self, bundle: Bundle) -> float:
        """How many times as fast as the parent, by turns on the longest feed."""
        backend = get_backend("onnxruntime")
        both = [backend.load(one, self.options) for one in (self._lowering.parent, bundle)]
        times: list[list[float]] = [[], []]
        try:
            for _ in range(SPEED_ROUNDS):
                for index, executable in enumerate(both):
                    started = time.perf_counter()
                    executable.run(self._feed)
                    times[index].append(time.perf_counter() - started)
        finally:
            for executable in both:
                executable.close()
        return float(np.median(times[0]) / np.median(times[1]))


def _key(lowering: Lowering, judge: Judge, max_drop: float, ruler: str) -> str:
    facts = {
        "parent": lowering.parent.digest,
        "recipe": encode(lowering.recipe),
        "calibration": lowering.data.facts.digest if lowering.data is not None else "",
        "evaluation": judge.dataset.digest,
        "metric": judge.metric,
        "max_drop": max_drop,
        "ruler": ruler,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _resumed(state: Path, fresh: SearchReport) -> SearchReport:
    """What is in the file, if it is of the same search."""
    try:
        found = decode(SearchReport, json.loads(state.read_text(encoding="utf-8")))
    except (OSError, ValueError, DecodeError):  # none, or cut short: the search begins anew
        return fresh
    return found if found.key == fresh.key else fresh


def _store(state: Path, report: SearchReport) -> None:
    aside = state.with_name(f"{state.name}.{os.getpid()}")
    aside.write_text(json.dumps(encode(report), indent=2) + "\n", encoding="utf-8")
    os.replace(aside, state)
