"""One metric of a session on a dataset, with its interval; and the difference of two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import BundleError, DataError, listing

from ..bootstrap import percentile_interval, resampled
from ..session import Session
from .fitting import check_fits, metric_of
from .labels import labels_of
from .metrics import Direction, Form, Metric, Needs, find_metric
from .next_tokens import NextTokens
from .observations import NotFiniteError, Observations, Recorded
from .samples import Dataset

# With fewer samples a bootstrap interval is too narrow to be trusted.
LEAST_SAMPLES = 30


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A metric of one bundle on one backend, measured on a dataset.

    Attributes:
        metric: Name in ``METRICS``.
        value: The metric.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        samples: How many were evaluated.
        data: Name of the dataset.
        data_digest: Its digest.
        bundle: Name of the bundle.
        bundle_digest: Its digest.
        backend: What ran it, e.g. "onnxruntime 1.31.1 CPUExecutionProvider float32".
        reference: Digest of the bundle it was compared with; "" for none.
        truncated: Texts longer than the model takes, which were cut.
        duration_s: Seconds for all samples, tokenization and any reference included.
        warnings: What a reader must know, one sentence each.
        rows: What each sample adds, ``float64[samples, numbers]``: see ``Metric``.
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int
    data: str
    data_digest: str
    bundle: str
    bundle_digest: str
    backend: str
    reference: str
    truncated: int
    duration_s: float
    warnings: tuple[str, ...]
    rows: np.ndarray = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but ``rows``, as plain JSON values."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "rows"}
        return found | {"unit": find_metric(self.metric).unit, "warnings": list(self.warnings)}


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a metric of two evaluations is apart, on the same samples.

    Attributes:
        metric: Its name.
        value: The second's minus the first's.
        low: Lower end of the 95 % paired bootstrap interval of ``value``.
        high: Upper end.
        samples: How many both were evaluated on.
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int

    @property
    def drop(self) -> tuple[float, float, float]:
        """How much worse the second is, with the ends of its interval; negative where better."""
        if find_metric(self.metric).direction is Direction.LOWER:
            return self.value, self.low, self.high
        return -self.value, -self.high, -self.low


def evaluate(
    session: Session,
    dataset: Dataset,
    metric: str = "auto",
    *,
    reference: Session | Recorded | None = None,
    max_rows: int | None = None,
    wishes: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Measure a metric of a session on a dataset.

    Args:
        session: What answers.
        dataset: Samples, and labels where the metric needs them.
        metric: Name in ``METRICS``; "auto" as ``metric_for``.
        reference: What to compare with: another session, or what it was recorded to say.
        max_rows: Most samples in one run of the model.
        wishes: More of what ``Session.translate`` is to be asked for, such as a task.
        seed: Of the bootstrap.
        on_progress: Told how many more samples are done.

    Returns:
        The metric with a 95 % percentile bootstrap interval over the samples.

    Raises:
        BundleError: If the bundle's weights are random.
        DataError: If the metric does not fit the bundle or the data, or labels do not fit the
            bundle's classes.
        NotFiniteError: If the model gives NaN or infinity.
        BackendError: If it fails.
    """
    started = time.perf_counter()
    bundle = session.bundle
    if bundle.manifest.source.random_weights:
        raise BundleError(
            f"{bundle.name} has random weights: its accuracy says nothing",
            hint="Export it from a trained checkpoint, without --random-weights.",
        )
    chosen = metric_of(metric, bundle, dataset, reference=reference is not None)
    check_fits(chosen, bundle, dataset)
    seen = Observations(session, dataset, max_rows=max_rows, wishes=wishes)
    cut, windowed = session.report.truncated, 0
    if chosen.needs is Needs.NOTHING:
        reader = NextTokens(session, dataset, max_rows=max_rows)
        found = [reader.rows(rows, chosen.rows) for rows in _told(seen.chunks(), on_progress)]
        windowed = reader.windowed
    else:
        right = _expected(chosen, bundle, dataset, reference, max_rows)
        found = [
            _compared(chosen, seen, right(rows), rows, bundle, dataset)
            for rows in _told(seen.chunks(), on_progress)
        ]
    contributions = np.concatenate(found)
    _check_contributions(chosen, contributions, bundle, dataset)
    (resamples,) = resampled(chosen.value, contributions, rng=np.random.default_rng(seed))
    low, high = percentile_interval(resamples)
    truncated = session.report.truncated - cut
    return Evaluation(
        metric=chosen.name,
        value=float(chosen.value(contributions)),
        low=low,
        high=high,
        samples=len(dataset),
        data=dataset.name,
        data_digest=dataset.digest,
        bundle=bundle.name,
        bundle_digest=bundle.digest,
        backend=str(session.report.facts),
        reference=_reference_digest(reference) if chosen.needs is Needs.REFERENCE else "",
        truncated=truncated,
        duration_s=time.perf_counter() - started,
        warnings=tuple(_warnings(chosen, contributions, truncated, windowed)),
        rows=contributions,
    )


def record(
    session: Session,
    dataset: Dataset,
    metric: str = "auto",
    *,
    max_rows: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Recorded:
    """What a session says of a dataset, kept to compare several others with.

    All of it is held in memory: of a language model's logits that is a lot.

    Args:
        session: The reference.
        dataset: Samples.
        metric: That needs a reference; "auto" as ``metric_for``.
        max_rows: Most samples in one run of the model.
        on_progress: Told how many more samples are done.

    Raises:
        DataError: If the metric needs no reference, or does not fit.
    """
    chosen = metric_of(metric, session.bundle, dataset, reference=True)
    if chosen.needs is not Needs.REFERENCE:
        raise DataError(
            f"{chosen.name} is not compared with a reference, but with {chosen.needs}",
            hint="Leave the reference out, or choose another metric.",
        )
    check_fits(chosen, session.bundle, dataset)
    seen = Observations(session, dataset, max_rows=max_rows)
    return seen.record(chosen.form, on_progress)


def compare_evaluations(
    first: Evaluation, second: Evaluation, rng: np.random.Generator
) -> Difference:
    """The difference of two evaluations on the same samples.

    Paired percentile bootstrap: the same samples are drawn for both, so what is hard for both
    cancels.

    Args:
        first: E.g. of the parent.
        second: E.g. of the bundle made from it.
        rng: Draws the samples.

    Raises:
        DataError: If they are of different metrics, samples or references.
    """
    problems = [
        f"{what} {left!r} and {right!r}"
        for what, left, right in (
            ("metrics", first.metric, second.metric),
            (
                "data",
                f"{first.data} {first.data_digest[:12]}",
                f"{second.data} {second.data_digest[:12]}",
            ),
            ("references", first.reference[:12], second.reference[:12]),
        )
        if left != right
    ]
    if problems:
        raise DataError(listing("evaluations cannot be compared:", problems))
    value = find_metric(first.metric).value
    left, right = resampled(value, first.rows, second.rows, rng=rng)
    low, high = percentile_interval(right - left)
    return Difference(first.metric, second.value - first.value, low, high, first.samples)


def _told(chunks: Iterable[slice], on_progress: Callable[[int], None]) -> Iterator[slice]:
    """The chunks; each is counted once the next one is asked for."""
    for rows in chunks:
        yield rows
        on_progress(rows.stop - rows.start)


def _expected(
    metric: Metric,
    bundle: Bundle,
    dataset: Dataset,
    reference: Session | Recorded | None,
    max_rows: int | None,
) -> Callable[[slice], Sequence[Any]]:
    """How to get what some samples are compared with: their labels, or what the reference says."""
    if metric.needs is Needs.LABELS:
        labels = labels_of(dataset, metric.form, bundle)
        return lambda rows: labels[rows]
    if reference is None:
        raise DataError(
            f"{metric.name} compares with a reference, and there is none",
            hint="Give the bundle to compare with, or choose a metric for labels.",
        )
    if isinstance(reference, Recorded):
        if (reference.data, reference.form) != (dataset.digest, metric.form):
            raise DataError(
                f"what {reference.name} was recorded to say is of other samples, or of "
                f"{reference.form} where {metric.name} looks at {metric.form}",
                hint="Measure the reference again on these samples.",
            )
        values = reference.values
        return lambda rows: values[rows]
    check_fits(metric, reference.bundle, dataset)
    asked = Observations(reference, dataset, max_rows=max_rows)
    return lambda rows: asked.predicted(metric.form, rows)


def _reference_digest(reference: Session | Recorded | None) -> str:
    if isinstance(reference, Recorded):
        return reference.bundle
    return reference.bundle.digest if reference is not None else ""


def _compared(
    metric: Metric,
    seen: Observations,
    expected: Sequence[Any],
    rows: slice,
    bundle: Bundle,
    dataset: Dataset,
) -> np.ndarray:
    """What some samples add to a metric, ``float64[samples, numbers]``."""
    predicted = seen.predicted(metric.form, rows)
    if metric.needs is Needs.REFERENCE:
        _check_shapes(predicted, expected, rows, bundle, dataset)
    return metric.rows(predicted, expected)


def _check_shapes(
    predicted: Sequence[Any], expected: Sequence[Any], rows: slice, bundle: Bundle, dataset: Dataset
) -> None:
    for row, (left, right) in enumerate(zip(predicted, expected, strict=True), rows.start + 1):
        if np.shape(left) != np.shape(right):
            raise DataError(
                f"{bundle.name} gives {list(np.shape(left))} where the reference gives "
                f"{list(np.shape(right))}, for sample {row} of {dataset.name}",
                hint="Compare bundles of one model.",
            )


def _check_contributions(
    metric: Metric, rows: np.ndarray, bundle: Bundle, dataset: Dataset
) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise NotFiniteError(
            f"{metric.name} of {bundle.name} is not finite for sample {finite.argmin() + 1} of "
            f"{dataset.name}",
            hint="Use a higher precision.",
        )
    if metric.form is Form.NEXT_TOKENS and not rows[:, 1].any():
        raise DataError(
            f"{dataset.name} has no text of two tokens, perplexity needs one",
            hint="Give longer texts.",
        )


def _warnings(metric: Metric, rows: np.ndarray, truncated: int, windowed: int) -> list[str]:
    found = []
    if len(rows) < LEAST_SAMPLES:
        count = "one sample" if len(rows) == 1 else f"{len(rows)} samples"
        found.append(f"{count} only: too few for an interval to be trusted")
    elif metric.form is not Form.NUMBER and not np.ptp(rows, axis=0).any():
        found.append("every sample counts the same: the interval has no width, and no meaning")
    if metric.form is Form.NUMBER:
        for column, what in ((0, "predictions"), (1, "labels")):
            if len(rows) > 1 and not np.ptp(rows[:, column]):
                found.append(f"all {what} are equal: nothing correlates with them")
    if truncated:
        found.append(f"texts longer than the model takes, and cut: {truncated:,}")
    if windowed:
        found.append(f"texts longer than the model takes, and read in windows: {windowed:,}")
    return found
