"""How good the answers of each row are, on a file of samples, in a process of each row's own."""

from __future__ import annotations

import base64
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.errors import DataError, TfxError
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.accuracy.evaluation import Evaluation, compare_evaluations
from tfx.runtime.accuracy.fitting import metric_for
from tfx.runtime.accuracy.metrics import Metric, Needs, find_metric
from tfx.runtime.accuracy.samples import Dataset

from .family import REFERENCE, is_reference, said, same_model
from .worker import Start
from .workload import Plan, Shape, Way

# Digits of a metric in a table; its interval has one less.
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Change:
    """A metric's difference from PyTorch's in float32, on the same samples.

    Attributes:
        against: The row it is compared with.
        value: This row's metric minus that one's.
        low: Lower end of the 95 % paired bootstrap interval of ``value``.
        high: Upper end.
    """

    against: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A metric of one row.

    Attributes:
        metric: Name in ``METRICS``.
        unit: Of the value.
        better: "higher" or "lower".
        value: The metric.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        samples: How many were evaluated.
        data: Name of the file.
        data_digest: sha256 over its samples.
        warnings: What a reader must know, one sentence each.
        packed: What each sample adds, so that another run can be compared in pairs: base64 of
            zlib of ``float64[samples, numbers]``, little-endian.
        change: Difference from the reference; None for it, and for a metric that is itself
            one from the reference.
    """

    metric: str
    unit: str
    better: str
    value: float
    low: float
    high: float
    samples: int
    data: str
    data_digest: str
    warnings: tuple[str, ...]
    packed: str
    change: Change | None

    def evaluation(self) -> Evaluation:
        """The evaluation this was made of, as far as comparing needs it.

        Raises:
            DataError: If ``packed`` is damaged.
        """
        try:
            numbers = np.frombuffer(zlib.decompress(base64.b64decode(self.packed)), "<f8")
            rows = numbers.reshape(self.samples, -1)
        except (ValueError, zlib.error) as error:
            raise DataError(f"what each sample adds cannot be read: {error}") from error
        return Evaluation(
            metric=self.metric,
            value=self.value,
            low=self.low,
            high=self.high,
            samples=self.samples,
            data=self.data,
            data_digest=self.data_digest,
            bundle="",
            bundle_digest="",
            backend="",
            reference="",
            truncated=0,
            duration_s=0.0,
            warnings=self.warnings,
            rows=rows,
        )


def accuracy_of(found: Evaluation, change: Change | None) -> Accuracy:
    """What a report keeps of an evaluation."""
    metric = find_metric(found.metric)
    packed = zlib.compress(np.ascontiguousarray(found.rows, "<f8").tobytes(), level=9)
    return Accuracy(
        metric=metric.name,
        unit=metric.unit,
        better=str(metric.direction),
        value=found.value,
        low=found.low,
        high=found.high,
        samples=found.samples,
        data=found.data,
        data_digest=found.data_digest,
        warnings=found.warnings,
        packed=base64.b64encode(packed).decode(),
        change=change,
    )


def drop_between(
    first: Accuracy, second: Accuracy, rng: np.random.Generator
) -> tuple[float, float, float]:
    """How much worse the second is, with its paired interval; negative where better.

    Raises:
        DataError: If they are of different metrics or samples.
    """
    difference = compare_evaluations(first.evaluation(), second.evaluation(), rng)
    return difference.drop


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of evaluating a row: its accuracy, or why there is none."""

    accuracy: Accuracy | None = None
    reason: str = ""


class Judge:
    """Evaluates rows on one file, each in its own process, PyTorch's first."""

    def __init__(self, plan: Plan, progress: Progress, start: Start) -> None:
        """Read the file.

        Args:
            plan: Names file, metric and number of samples.
            progress: Told of every step.
            start: Makes the worker of a row.

        Raises:
            DataError: If the file cannot be read, or has nothing that can be measured.
        """
        assert plan.data
        self._plan = plan
        self._progress = progress
        self._start = start
        self._dataset: Dataset = read_dataset(Path(plan.data), limit=plan.samples, seed=plan.seed)
        self._folder = tempfile.TemporaryDirectory(prefix="tfx-bench-")
        # By model: what PyTorch in float32 says of the samples, or why it says nothing.
        self._references: list[tuple[Bundle, Evaluation | Path | str]] = []

    def close(self) -> None:
        """Remove what was recorded."""
        self._folder.cleanup()

    def metric_of(self, bundle: Bundle) -> Metric:
        """The metric of a bundle's rows.

        Raises:
            DataError: If none fits the bundle and the file.
        """
        if self._plan.metric == "auto":
            return metric_for(bundle, self._dataset, reference=True)
        return find_metric(self._plan.metric)

    def judge(self, bundle: Bundle, way: Way, shape: Shape) -> Judged:
        """Evaluate one row.

        Returns:
            Its accuracy; a row that fails says why and takes no other along.
        """
        try:
            metric = self.metric_of(bundle)
            reference = self._reference_of(bundle, metric, shape)
            if metric.needs is Needs.REFERENCE and isinstance(reference, str):
                return Judged(reason=f"no reference: {reference}")
            if is_reference(way) and isinstance(reference, Evaluation):
                return Judged(accuracy_of(reference, None))
            recorded = reference if isinstance(reference, Path) else None
            found = self._evaluate(bundle, way, shape, metric, recorded)
        except TfxError as error:
            return Judged(reason=said(error))
        change = None
        if isinstance(reference, Evaluation):
            rng = np.random.default_rng(self._plan.seed)
            apart = compare_evaluations(reference, found, rng)
            change = Change(
                f"{reference.bundle} on {REFERENCE}", apart.value, apart.low, apart.high
            )
        return Judged(accuracy_of(found, change))

    def _reference_of(
        self, bundle: Bundle, metric: Metric, shape: Shape
    ) -> Evaluation | Path | str:
        for one, known in self._references:
            if same_model(one, bundle):
                return known
        found: Evaluation | Path | str
        try:
            if metric.needs is Needs.REFERENCE:
                found = Path(self._folder.name) / f"{len(self._references)}.npz"
                self._record(bundle, shape, metric, found)
            else:
                found = self._evaluate(bundle, REFERENCE, shape, metric, None)
        except TfxError as error:
            found = said(error)
        self._references.append((bundle, found))
        return found

    def _evaluate(
        self, bundle: Bundle, way: Way, shape: Shape, metric: Metric, reference: Path | None
    ) -> Evaluation:
        self._progress.step(f"evaluating {bundle.name} on {way}", len(self._dataset))
        worker = self._start(bundle.path, way, shape, self._plan)
        try:
            worker.load()
            return worker.evaluate(metric.name, reference, self._progress.advance)
        finally:
            worker.close()

    def _record(self, bundle: Bundle, shape: Shape, metric: Metric, path: Path) -> None:
        self._progress.step(f"what {bundle.name} on {REFERENCE} says", len(self._dataset))
        worker = self._start(bundle.path, REFERENCE, shape, self._plan)
        try:
            worker.load()
            worker.record(metric.name, path, self._progress.advance)
        finally:
            worker.close()


def shown_accuracy(accuracy: Accuracy) -> str:
    """A metric as a table shows it: with half the width of its interval."""
    half = (accuracy.high - accuracy.low) / 2
    return f"{accuracy.value:.{DIGITS}f} ±{half:.{DIGITS - 1}f}"


def shown_change(accuracy: Accuracy) -> str:
    """A difference as a table shows it; "" for the reference."""
    if (change := accuracy.change) is None:
        return ""
    half = (change.high - change.low) / 2
    return f"{change.value:+.{DIGITS}f} ±{half:.{DIGITS - 1}f}"
