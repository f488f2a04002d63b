"""How near a translation is to the expected one: BLEU and chrF, as sacrebleu counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfx.extras import need


def translation_rows(score: str) -> Callable[[Sequence[Any], Sequence[Any]], np.ndarray]:
    """What each text adds to a score: counts of n-grams, found and shared.

    The counts are sacrebleu's own, of the steps between its public ones: there is no other way
    to draw texts again without counting them again. Tests compare the sums with its scores.

    Args:
        score: Class of ``sacrebleu``: "BLEU" or "CHRF", with its defaults.
    """

    def rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
        counter = getattr(need("sacrebleu"), score)()
        found = counter._extract_corpus_statistics(list(predicted), [list(expected)])
        return np.array(found, np.float64)

    return rows


def translation_score(score: str) -> Callable[[np.ndarray], np.ndarray]:
    """The score of all texts together, 0 to 100.

    Args:
        score: As of ``translation_rows``.
    """

    def value(rows: np.ndarray) -> np.ndarray:
        counter = getattr(need("sacrebleu"), score)()
        sums = rows.sum(axis=-2)
        flat = sums.reshape(-1, sums.shape[-1]).astype(np.int64).tolist()
        scores = [counter._compute_score_from_stats(one).score for one in flat]
        return np.array(scores, np.float64).reshape(sums.shape[:-1])

    return value
