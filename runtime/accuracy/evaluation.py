"""One metric of a session on a dataset, with its interval; and the difference of two."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import BundleError, DataError, listing

from ..bootstrap import percentile_interval, resampled
from ..images import image_problem
from ..session import Session
from .metrics import METRICS, Direction, Form, Metric, Needs, find_metric
from .next_tokens import NextTokens
from .observations import ARRAYS, Head, NotFiniteError, Observations, Recorded, head_of
from .samples import Dataset, DatasetKind

if TYPE_CHECKING:
    from rich.console import Console

# With fewer samples a bootstrap interval is too narrow to be trusted.
LEAST_SAMPLES = 30

# What "auto" takes, by what the answers are: with labels, and with a reference.
WITH_LABELS: dict[Head, str] = {
    Head.CLASSES: "accuracy",
    Head.SCORE: "spearman",
    Head.TAGS: "entity-f1",
    Head.EMBEDDING: "spearman",
    Head.ANSWER: "squad-f1",
    Head.SPEECH: "wer",
    Head.TRANSLATION: "bleu",
    Head.LOGITS: "accuracy",
}
WITH_REFERENCE: dict[Head, str] = {
    Head.CLASSES: "agreement",
    Head.TAGS: "agreement",
    Head.ANSWER: "agreement",
    Head.EMBEDDING: "cosine",
    Head.LOGITS: "cosine",
    Head.OUTPUTS: "cosine",
}


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


def metric_for(bundle: Bundle, dataset: Dataset, *, reference: bool = False) -> Metric:
    """The metric that "auto" stands for.

    By what the bundle's answers are: with labels that fit them, the usual one of the task; for a
    language model perplexity; without labels, one that compares with the reference.

    Args:
        bundle: What is evaluated.
        dataset: What on.
        reference: Whether there is one to compare with.

    Raises:
        DataError: If none fits.
    """
    _check_readable(bundle, dataset)
    head = head_of(bundle, dataset)
    if dataset.labels is not None and _labels_fit(head, dataset):
        if head is Head.LOGITS and _is_score(bundle):
            return METRICS["spearman"]
        return METRICS[WITH_LABELS[head]]
    if bundle.manifest.task == "text-generation" and dataset.kind not in ARRAYS:
        return METRICS["perplexity"]
    if reference and head in WITH_REFERENCE:
        return METRICS[WITH_REFERENCE[head]]
    labels = "labels" if dataset.labels is not None else "no labels"
    raise DataError(
        f"nothing to measure: {bundle.name} gives {head}, and {dataset.name} holds {dataset.kind} "
        f"with {labels}",
        hint="Give data with labels of that kind, or a reference to compare with.",
    )


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
    chosen = (
        metric_for(bundle, dataset, reference=reference is not None)
        if metric == "auto"
        else find_metric(metric)
    )
    seen = Observations(session, dataset, max_rows=max_rows, wishes=wishes)
    _check_fits(chosen, seen, bundle, dataset, reference)
    labels = seen.expected(chosen.form) if chosen.needs is Needs.LABELS else []
    cut = session.report.truncated
    compared = _reference_values(chosen, reference, dataset, max_rows)
    reader = None
    if chosen.needs is Needs.NOTHING:
        reader = NextTokens(session, dataset, max_rows=max_rows)

    def added(rows: slice) -> np.ndarray:
        if reader is not None:
            return reader.rows(rows, chosen.rows)
        predicted = seen.predicted(chosen.form, rows)
        if chosen.needs is Needs.LABELS:
            return chosen.rows(predicted, labels[rows])
        expected = compared(rows)
        _check_shapes(predicted, expected, rows, bundle, dataset)
        return chosen.rows(predicted, expected)

    found = []
    for rows in seen.chunks():
        found.append(added(rows))
        on_progress(rows.stop - rows.start)
    contributions = np.concatenate(found)
    if not np.isfinite(contributions).all():
        row = int(np.flatnonzero(~np.isfinite(contributions).all(axis=1))[0]) + 1
        raise NotFiniteError(
            f"{chosen.name} of {bundle.name} is not finite for sample {row} of {dataset.name}",
            hint="Use a higher precision.",
        )
    if chosen.form is Form.NEXT_TOKENS and not contributions[:, 1].any():
        raise DataError(
            f"{dataset.name} has no text of two tokens, perplexity needs one",
            hint="Give longer texts.",
        )
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
        warnings=tuple(
            _warnings(chosen, contributions, truncated, reader.windowed if reader else 0)
        ),
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
    chosen = (
        metric_for(session.bundle, dataset, reference=True)
        if metric == "auto"
        else find_metric(metric)
    )
    if chosen.needs is not Needs.REFERENCE:
        raise DataError(
            f"{chosen.name} is not compared with a reference, but with {chosen.needs}",
            hint="Leave the reference out, or choose another metric.",
        )
    seen = Observations(session, dataset, max_rows=max_rows)
    _check_form(chosen, seen, session.bundle, dataset)
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


def show_evaluation(
    out: Console,
    found: Evaluation,
    reference: Evaluation | None = None,
    difference: Difference | None = None,
) -> None:
    """Print a metric with its interval, and beside it that of another bundle if there is one."""
    for one in (found, reference):
        if one is not None:
            out.print(
                f"{one.metric} {one.value:.4f} (95 % interval {one.low:.4f} to {one.high:.4f})  "
                f"{one.bundle} on {one.backend}",
                markup=False,
            )
    if difference is not None:
        out.print(
            f"difference {difference.value:+.4f} (95 % paired interval {difference.low:+.4f} to "
            f"{difference.high:+.4f})",
            markup=False,
        )
    count = "1 sample" if found.samples == 1 else f"{found.samples:,} samples"
    out.print(f"{count} of {found.data}, {found.duration_s:.1f} s", markup=False)
    for warning in found.warnings:
        out.print(f"note: {warning}", markup=False)


def _labels_fit(head: Head, dataset: Dataset) -> bool:
    match head:
        case Head.TAGS:
            return dataset.kind is DatasetKind.TOKENS
        case Head.SPEECH:
            return dataset.kind is DatasetKind.SOUNDS
        case Head.TRANSLATION:
            return dataset.kind is DatasetKind.TRANSLATIONS
        case Head.ANSWER:
            return dataset.kind is DatasetKind.QUESTIONS
        case Head.EMBEDDING:
            return dataset.kind is DatasetKind.PAIRS
        case Head.LOGITS:
            return dataset.kind in ARRAYS
        case Head.OUTPUTS:
            return False
    kinds = (DatasetKind.TEXTS, DatasetKind.PAIRS, DatasetKind.SOUNDS, *ARRAYS)
    return dataset.kind in kinds


def _is_score(bundle: Bundle) -> bool:
    return any(
        spec.name == "logits" and spec.shape[-1:] == (1,)
        for spec in bundle.manifest.signature.outputs
    )


def _check_fits(
    metric: Metric,
    seen: Observations,
    bundle: Bundle,
    dataset: Dataset,
    reference: Session | Recorded | None,
) -> None:
    _check_form(metric, seen, bundle, dataset)
    if metric.needs is Needs.REFERENCE and reference is None:
        raise DataError(
            f"{metric.name} compares with a reference, and there is none",
            hint="Give the bundle to compare with, or choose a metric for labels.",
        )


def _check_readable(bundle: Bundle, dataset: Dataset) -> None:
    if dataset.kind is DatasetKind.IMAGES and (problem := image_problem(bundle)):
        raise DataError(
            f"{dataset.name} holds images, and {problem}",
            hint="Give an npz of arrays named as the model's inputs, and labels.",
        )
    said = bundle.manifest.processing
    if dataset.kind is DatasetKind.SOUNDS and said.audio is None and said.dictation is None:
        raise DataError(
            f"{dataset.name} holds sounds, and {bundle.name} does not say how it hears them",
            hint="Give data of another kind.",
        )


def _check_form(metric: Metric, seen: Observations, bundle: Bundle, dataset: Dataset) -> None:
    _check_readable(bundle, dataset)
    if metric.form not in seen.forms:
        able = [one.name for one in METRICS.values() if one.form in seen.forms]
        raise DataError(
            f"{metric.name} looks at {metric.form}: {bundle.name} gives {seen.head}, and "
            f"{dataset.name} holds {dataset.kind}",
            hint=f"Use one of: {', '.join(able)}." if able else "Give data of another kind.",
        )


def _reference_values(
    metric: Metric,
    reference: Session | Recorded | None,
    dataset: Dataset,
    max_rows: int | None,
) -> Callable[[slice], Sequence[Any]]:
    """How to get what the reference says of some samples."""
    if metric.needs is not Needs.REFERENCE or reference is None:
        return lambda rows: ()
    if isinstance(reference, Recorded):
        if (reference.data, reference.form) != (dataset.digest, metric.form):
            raise DataError(
                f"what {reference.name} was recorded to say is of other samples, or of "
                f"{reference.form} where {metric.name} looks at {metric.form}",
                hint="Measure the reference again on these samples.",
            )
        values = reference.values
        return lambda rows: values[rows]
    asked = Observations(reference, dataset, max_rows=max_rows)
    _check_form(metric, asked, reference.bundle, dataset)
    return lambda rows: asked.predicted(metric.form, rows)


def _reference_digest(reference: Session | Recorded | None) -> str:
    if isinstance(reference, Recorded):
        return reference.bundle
    return reference.bundle.digest if reference is not None else ""


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
