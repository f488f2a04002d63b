"""The least that must stay in float32 for the accuracy to stay within a budget.

First everything is lowered. Where that costs too much, the sensitivity of every group is
measured: how far the outputs move when it alone is lowered. Then a bisection over how many of
the most sensitive are kept, each try measured on the evaluation data. What was measured is
written down as it goes, and a search that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfx.bundle import Bundle
from tfx.codec import DecodeError, decode, encode
from tfx.errors import DataError, QuantizeError
from tfx.quantization import Accuracy
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.cpus import usable_cpus
from tfx.signature import Feed

from .accuracy import Judge
from .lowering import Lowering
from .pipeline import write_draft

FILE_NAME = "search.json"

# Feeds of the calibration data on which sensitivity is measured, and speed.
SENSITIVITY_FEEDS = 8
SPEED_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice of groups, measured.

    Attributes:
        kept: How many of the most sensitive groups stay in float32.
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
        sensitivity: Group to how far the outputs move when it alone is lowered, as a share of
            their root mean square; largest first.
        trials: In the order they were made.
        chosen: How many groups are kept in the end; -1 while it goes on.
    """

    key: str
    max_drop: float
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    chosen: int = -1

    @property
    def order(self) -> list[str]:
        """Groups, the most sensitive first."""
        return sorted(self.sensitivity, key=lambda group: -self.sensitivity[group])


def find_kept(
    lowering: Lowering,
    judge: Judge,
    max_drop: float,
    state: Path,
    *,
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
        on_step: Called with a few words as each step begins.
        on_trial: Called with each trial, and how many groups there are.

    Returns:
        The groups to keep, and the report.

    Raises:
        QuantizeError: If not even all groups kept meets the budget.
    """
    groups = [group for group in lowering.groups if group not in lowering.recipe.keep]
    report = _resumed(state, SearchReport(_key(lowering, judge, max_drop), max_drop))
    feeds = _some_feeds(lowering)
    with tempfile.TemporaryDirectory(prefix="tfx-search-") as folder:
        runner = _Runner(lowering, feeds, Path(folder))

        def holds(kept: int) -> bool:
            nonlocal report
            if kept and len(report.sensitivity) < len(groups):
                report = _ranked(report, groups, runner, state, on_step)
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
    groups: Sequence[str],
    runner: _Runner,
    state: Path,
    on_step: Callable[[str], None],
) -> SearchReport:
    """The report with the sensitivity of every group, each written down as it is known."""
    for number, group in enumerate(groups, 1):
        if group in report.sensitivity:
            continue
        on_step(f"sensitivity of {group} ({number} of {len(groups)})")
        moved = runner.distance([other for other in groups if other != group])
        report = dataclasses.replace(report, sensitivity={**report.sensitivity, group: moved})
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
    """Writes choices of groups aside and runs them."""

    def __init__(self, lowering: Lowering, feeds: Sequence[Feed], folder: Path) -> None:
        self._lowering, self._feeds, self._folder = lowering, feeds, folder
        self._options = RunOptions(threads=usable_cpus())
        self._expected = self._outputs(lowering.parent)

    def distance(self, keep: Collection[str]) -> float:
        """Root mean squared distance of the outputs from the parent's, over their own."""
        found = self._outputs(self._written(keep))
        moved = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, self._expected, strict=True))
        power = sum(float((b * b).sum()) for b in self._expected)
        # What is not a number is further away than anything.
        return float(np.sqrt(moved / power)) if np.isfinite(moved) and power else 1e9

    def trial(self, keep: Collection[str], judge: Judge) -> Trial:
        bundle = self._written(keep)
        size = sum(
            path.stat().st_size for path in bundle.path.iterdir() if path.name.startswith("model.")
        )
        return Trial(len(keep), judge.measure(bundle), size, self._speedup(bundle))

    def _written(self, keep: Collection[str]) -> Bundle:
        folder = self._folder / "candidate"
        for path in sorted(folder.glob("**/*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.mkdir(exist_ok=True)
        return write_draft(self._lowering, self._lowering.lower(keep), folder)

    def _outputs(self, bundle: Bundle) -> list[np.ndarray]:
        executable = get_backend("onnxruntime").load(bundle, self._options)
        try:
            found = [executable.run(feed) for feed in self._feeds]
        finally:
            executable.close()
        names = [spec.name for spec in bundle.manifest.signature.outputs if spec.dtype.is_floating]
        return [
            _meaningful(outputs[name], feed).astype(np.float64)
            for outputs, feed in zip(found, self._feeds, strict=True)
            for name in names
        ]

    def _speedup(self, bundle: Bundle) -> float:
        """How many times as fast as the parent, by turns on the longest feed."""
        feed = self._feeds[-1]
        backend = get_backend("onnxruntime")
        both = [backend.load(one, self._options) for one in (self._lowering.parent, bundle)]
        times: list[list[float]] = [[], []]
        try:
            for _ in range(SPEED_ROUNDS):
                for index, executable in enumerate(both):
                    started = time.perf_counter()
                    executable.run(feed)
                    times[index].append(time.perf_counter() - started)
        finally:
            for executable in both:
                executable.close()
        return float(np.median(times[0]) / np.median(times[1]))


def _meaningful(array: np.ndarray, feed: Feed) -> np.ndarray:
    mask = feed.get("attention_mask")
    if mask is None or array.ndim < 2 or array.shape[:2] != mask.shape:
        return array
    kept: np.ndarray = array[mask != 0]
    return kept


def _some_feeds(lowering: Lowering) -> list[Feed]:
    if lowering.data is None:
        raise DataError(
            "a budget needs data to find out which groups are sensitive",
            hint="Give a file of real inputs: --calibrate FILE.",
        )
    feeds = list(lowering.data)
    chosen = np.unique(np.linspace(0, len(feeds) - 1, SENSITIVITY_FEEDS).round().astype(int))
    return [feeds[index] for index in chosen]


def _key(lowering: Lowering, judge: Judge, max_drop: float) -> str:
    facts = {
        "parent": lowering.parent.digest,
        "recipe": encode(lowering.recipe),
        "calibration": lowering.data.facts.digest if lowering.data is not None else "",
        "evaluation": judge.dataset.digest,
        "metric": judge.metric,
        "max_drop": max_drop,
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
