"""Metrics: what each sample adds, and the number that all of them make."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from tfx.errors import DataError
from tfx.extras import need

from .spoken import character_rows, error_rate, word_rows
from .translated import translation_rows, translation_score

# Units of what is at most 1; a perplexity, an error rate or a score of 100 points may lose more.
UP_TO_ONE = ("share", "rho", "r", "cosine")

# Probabilities below this are taken for it: their logarithm would be -inf where they underflow.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


class Form(StrEnum):
    """What of a sample a metric looks at; the expected value has the same form."""

    CLASS = "a class"  # its number
    NUMBER = "a number"
    SPEECH = "what is said"  # text
    TRANSLATION = "a translation"  # text
    ANSWER = "an answer"  # text; expected: all accepted texts
    TAGS = "tags"  # BIO, one for each word
    CHOICES = "choices"  # array of what scored best, at one place or many
    VECTORS = "vectors"  # [..., features]
    SCORES = "probabilities"  # [..., classes]
    NEXT_TOKENS = "next tokens"  # logits [tokens, vocabulary]; expected: ids [tokens]


class Needs(StrEnum):
    """What a metric compares with."""

    LABELS = "labels"
    REFERENCE = "reference"  # what another bundle or backend gives for the same samples
    NOTHING = "nothing"  # the samples themselves


class Direction(StrEnum):
    """Which way is better."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number from many samples.

    It is made in two steps, so that samples can be drawn again for an interval: ``rows`` says
    what each sample adds, ``value`` makes the metric of any choice of them.

    Attributes:
        name: As typed after ``--metric``.
        form: What of a sample it looks at.
        needs: What it compares with.
        direction: Which way is better.
        best: The best value there is.
        unit: Of the value.
        rows: Predicted and expected, one each per sample, to ``float64[samples, numbers]``.
        value: ``float64[..., samples, numbers]`` to ``float64[...]``.
    """

    name: str
    form: Form
    needs: Needs
    direction: Direction
    best: float
    unit: str
    rows: Callable[[Sequence[Any], Sequence[Any]], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]


def find_metric(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        DataError: If there is none.
    """
    if name not in METRICS:
        raise DataError(f"no metric called {name!r}", hint=f"Use one of: {', '.join(METRICS)}.")
    return METRICS[name]


def check_drop(name: str, drop: float) -> None:
    """Refuse a budget in percent, of a metric that loses next to nothing of 1.

    Args:
        name: Of a metric.
        drop: The most it may lose, in its unit.

    Raises:
        DataError: If that is 1 or more of a share, a correlation or a cosine.
    """
    if drop >= 1 and find_metric(name).unit in UP_TO_ONE:
        raise DataError(
            f"max_drop is {drop:g} of {name}, which is at most 1: expected below 1",
            hint="Write 1 % as 0.01.",
        )


def correlation(pairs: np.ndarray) -> np.ndarray:
    """Pearson's correlation of two columns; 0 where one of them does not vary.

    Args:
        pairs: ``[..., samples, 2]``.
    """
    centred = pairs - pairs.mean(axis=-2, keepdims=True)
    # What is left of a constant is rounding, which would correlate with anything.
    noise = 1e-12 * np.abs(pairs).max(axis=-2, keepdims=True)
    centred = np.where(np.abs(centred).max(axis=-2, keepdims=True) <= noise, 0, centred)
    left, right = centred[..., 0], centred[..., 1]
    scale = np.sqrt((left**2).sum(axis=-1) * (right**2).sum(axis=-1))
    found: np.ndarray = (left * right).sum(axis=-1) / np.where(scale > 0, scale, 1)
    return found


def rank_correlation(pairs: np.ndarray) -> np.ndarray:
    """Spearman's correlation of two columns: Pearson's of their ranks, ties sharing the mean one.

    Args:
        pairs: ``[..., samples, 2]``.

    Raises:
        BackendError: If scipy is not installed.
    """
    columns = np.ascontiguousarray(np.swapaxes(pairs, -1, -2))  # sorted twice as fast
    ranks = need("scipy.stats").rankdata(columns, axis=-1)
    return correlation(np.swapaxes(ranks, -1, -2))


def binary_f1(pairs: np.ndarray) -> np.ndarray:
    """F1 of class 1: ``2 tp / (2 tp + fp + fn)``; 0 where the class does not occur.

    Args:
        pairs: Predicted and expected class; ``[..., samples, 2]``.
    """
    return _class_f1(pairs, 1)


def macro_f1(pairs: np.ndarray) -> np.ndarray:
    """Mean of the F1 of every class that is predicted or expected, as scikit-learn has it.

    Args:
        pairs: Predicted and expected class; ``[..., samples, 2]``.
    """
    classes = np.unique(pairs)
    each = np.stack([_class_f1(pairs, one) for one in classes])
    occurs = np.stack([(pairs == one).any(axis=(-1, -2)) for one in classes])
    found: np.ndarray = (each * occurs).sum(axis=0) / occurs.sum(axis=0)
    return found


def _class_f1(pairs: np.ndarray, one: float) -> np.ndarray:
    is_one = pairs == one
    hits = is_one.all(axis=-1).sum(axis=-1)
    total = is_one.sum(axis=(-1, -2))
    found: np.ndarray = 2 * hits / np.maximum(total, 1)
    return found


def normalized_answer(text: str) -> str:
    """An answer as SQuAD's official script compares it.

    Lower case, without punctuation, articles and repeated blanks.
    """
    text = "".join(one for one in text.lower() if one not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_f1(predicted: str, accepted: str) -> float:
    """F1 of the words two answers share, as SQuAD's official script has it."""
    left, right = normalized_answer(predicted).split(), normalized_answer(accepted).split()
    shared = sum((Counter(left) & Counter(right)).values())
    return 2 * shared / (len(left) + len(right)) if shared else 0.0


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """First word, one past the last word and type of each entity, as conlleval has them.

    An I- that continues nothing of its type begins an entity, as B- does.
    """
    return set(_entities(tags))


def _entities(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    begun, kind = 0, ""
    for index, tag in enumerate((*tags, "O")):
        prefix, _, named = tag.partition("-")
        if kind and (prefix != "I" or named != kind):
            yield begun, index, kind
            kind = ""
        if named and not kind:
            begun, kind = index, named


def divergence(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the expected from the predicted probabilities.

    ``sum(e * log(e / p))`` along the last axis, in nats.

    Args:
        predicted: ``[..., classes]``.
        expected: The same shape.
    """
    p = np.maximum(predicted.astype(np.float64), SMALLEST_PROBABILITY)
    e = np.maximum(expected.astype(np.float64), SMALLEST_PROBABILITY)
    return float(np.maximum((e * np.log(e / p)).sum(axis=-1), 0).mean())


def mean_cosine(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean cosine of vectors along the last axis; two of zeros count as equal."""
    left, right = predicted.astype(np.float64), expected.astype(np.float64)
    scale = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    cosines = (left * right).sum(axis=-1) / np.where(scale > 0, scale, 1)
    both_zero = ~left.any(axis=-1) & ~right.any(axis=-1)
    return float(np.clip(np.where(both_zero, 1.0, cosines), -1, 1).mean())


def surprise(logits: np.ndarray, ids: np.ndarray) -> tuple[float, int]:
    """Negative log-likelihood of a text's tokens after its first, and how many they are.

    Args:
        logits: ``[tokens, vocabulary]``: at each token, of the one that comes next.
        ids: ``int64[tokens]``.

    Returns:
        Nats and a count.
    """
    shown = logits[:-1].astype(np.float64)
    largest = shown.max(axis=-1, initial=-math.inf)
    total = largest + np.log(np.exp(shown - largest[:, None]).sum(axis=-1))
    chosen = np.take_along_axis(shown, ids[1:, None], axis=-1)[:, 0]
    return float((total - chosen).sum()), len(chosen)


def _column(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(-1, 1)


def _pair_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    return np.stack([np.asarray(predicted, np.float64), np.asarray(expected, np.float64)], axis=1)


def _right_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    return _column([left == right for left, right in zip(predicted, expected, strict=True)])


def _exact_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    return _column(
        [
            normalized_answer(one) in {normalized_answer(accepted) for accepted in all_accepted}
            for one, all_accepted in zip(predicted, expected, strict=True)
        ]
    )


def _answer_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    return _column(
        [
            max(answer_f1(one, accepted) for accepted in all_accepted)
            for one, all_accepted in zip(predicted, expected, strict=True)
        ]
    )


def _entity_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    rows = []
    for left, right in zip(map(entities, predicted), map(entities, expected), strict=True):
        rows.append((len(left & right), len(left), len(right)))
    return np.array(rows, np.float64)


def _agreement_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    return _column(
        [
            float(np.mean(np.asarray(left) == np.asarray(right)))
            for left, right in zip(predicted, expected, strict=True)
        ]
    )


def _cosine_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    return _column([mean_cosine(*pair) for pair in zip(predicted, expected, strict=True)])


def _divergence_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    return _column([divergence(*pair) for pair in zip(predicted, expected, strict=True)])


def _surprise_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    return np.array([surprise(*pair) for pair in zip(predicted, expected, strict=True)], np.float64)


def _mean(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows[..., 0].mean(axis=-1)
    return found


def _least(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows[..., 0].min(axis=-1)
    return found


def _entity_f1(rows: np.ndarray) -> np.ndarray:
    hits, predicted, expected = np.moveaxis(rows.sum(axis=-2), -1, 0)
    found: np.ndarray = 2 * hits / np.maximum(predicted + expected, 1)
    return found


def _perplexity(rows: np.ndarray) -> np.ndarray:
    nats, tokens = np.moveaxis(rows.sum(axis=-2), -1, 0)
    found: np.ndarray = np.exp(nats / np.maximum(tokens, 1))
    return found


HIGHER, LOWER = Direction.HIGHER, Direction.LOWER

# The one table of metrics.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", Form.CLASS, Needs.LABELS, HIGHER, 1, "share", _right_rows, _mean),
        Metric("f1", Form.CLASS, Needs.LABELS, HIGHER, 1, "share", _pair_rows, binary_f1),
        Metric("f1-macro", Form.CLASS, Needs.LABELS, HIGHER, 1, "share", _pair_rows, macro_f1),
        Metric(
            "spearman", Form.NUMBER, Needs.LABELS, HIGHER, 1, "rho", _pair_rows, rank_correlation
        ),
        Metric("pearson", Form.NUMBER, Needs.LABELS, HIGHER, 1, "r", _pair_rows, correlation),
        Metric("exact-match", Form.ANSWER, Needs.LABELS, HIGHER, 1, "share", _exact_rows, _mean),
        Metric("squad-f1", Form.ANSWER, Needs.LABELS, HIGHER, 1, "share", _answer_rows, _mean),
        Metric("entity-f1", Form.TAGS, Needs.LABELS, HIGHER, 1, "share", _entity_rows, _entity_f1),
        Metric("wer", Form.SPEECH, Needs.LABELS, LOWER, 0, "per word", word_rows, error_rate),
        Metric(
            "cer", Form.SPEECH, Needs.LABELS, LOWER, 0, "per character", character_rows, error_rate
        ),
        *(
            Metric(
                name,
                Form.TRANSLATION,
                Needs.LABELS,
                HIGHER,
                100,
                "points",
                translation_rows(score),
                translation_score(score),
            )
            for name, score in (("bleu", "BLEU"), ("chrf", "CHRF"))
        ),
        Metric(
            "perplexity",
            Form.NEXT_TOKENS,
            Needs.NOTHING,
            LOWER,
            1,
            "per token",
            _surprise_rows,
            _perplexity,
        ),
        Metric(
            "agreement", Form.CHOICES, Needs.REFERENCE, HIGHER, 1, "share", _agreement_rows, _mean
        ),
        Metric("cosine", Form.VECTORS, Needs.REFERENCE, HIGHER, 1, "cosine", _cosine_rows, _mean),
        Metric(
            "least-cosine", Form.VECTORS, Needs.REFERENCE, HIGHER, 1, "cosine", _cosine_rows, _least
        ),
        Metric("kl", Form.SCORES, Needs.REFERENCE, LOWER, 0, "nats", _divergence_rows, _mean),
    )
}
