"""Which metrics fit a bundle and a dataset, and which one is meant where none is named."""

from __future__ import annotations

from tfx.bundle import Bundle
from tfx.errors import DataError

from ..images import image_problem
from .heads import ARRAYS, Head, forms_of, gives_score, head_of
from .metrics import METRICS, Metric, find_metric
from .samples import Dataset, DatasetKind

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


def metric_of(name: str, bundle: Bundle, dataset: Dataset, *, reference: bool) -> Metric:
    """The metric called ``name``; "auto" as ``metric_for``.

    Raises:
        DataError: If there is none of that name, or none fits.
    """
    if name == "auto":
        return metric_for(bundle, dataset, reference=reference)
    return find_metric(name)


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
        if head is Head.LOGITS and gives_score(bundle):
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


def check_fits(metric: Metric, bundle: Bundle, dataset: Dataset) -> None:
    """Refuse a metric that looks at something else than the bundle's answers for a dataset.

    Raises:
        DataError: If it does; says which ones fit.
    """
    _check_readable(bundle, dataset)
    forms = forms_of(bundle, dataset)
    if metric.form not in forms:
        able = [one.name for one in METRICS.values() if one.form in forms]
        raise DataError(
            f"{metric.name} looks at {metric.form}: {bundle.name} gives "
            f"{head_of(bundle, dataset)}, and {dataset.name} holds {dataset.kind}",
            hint=f"Use one of: {', '.join(able)}." if able else "Give data of another kind.",
        )


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
