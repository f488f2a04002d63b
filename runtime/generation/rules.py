"""What a model's configuration keeps the next token to, as transformers' processors do."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from tfx.processing import Target

from .sampling import log_probabilities


def keep_to(
    scores: np.ndarray,
    texts: Sequence[Sequence[int]],
    target: Target,
    end_ids: Collection[int],
    longest: int,
) -> np.ndarray:
    """Make impossible what a target must not go on with.

    Args:
        scores: Logits or their logarithm's probabilities, ``[rows, vocabulary]``.
        texts: Tokens of each row so far, its start included; all of one length.
        target: What the model asks for.
        end_ids: Tokens that end a text.
        longest: Most tokens of a target, start and end included.

    Returns:
        The scores, minus infinity where a token cannot be chosen.
    """
    count = len(texts[0])
    found = scores.copy()
    if target.ngram:
        for row, ids in enumerate(texts):
            found[row, _repeats(ids, target.ngram)] = -np.inf
    hidden = [*target.suppressed]
    if count < target.shortest:
        hidden += end_ids
    if count == 1 and target.first >= 0:
        found = _only(found, target.first)
    if count == longest - 1 and target.last >= 0:
        found = _only(found, target.last)
    if count == (1 if target.first < 0 else 2):
        hidden += target.suppressed_first
    found[:, hidden] = -np.inf
    return found


def finished(scores: np.ndarray, target: Target) -> np.ndarray:
    """Scores of beams after ``keep_to``: probabilities again, where the model asks for it."""
    return log_probabilities(scores) if target.renormalize else scores


def _repeats(ids: Sequence[int], size: int) -> list[int]:
    """Tokens that would end a row of ``size`` tokens which is there already."""
    if len(ids) < size:
        return []
    last = tuple(ids[len(ids) - size + 1 :])
    starts = range(len(ids) - size + 1)
    return [ids[i + size - 1] for i in starts if tuple(ids[i : i + size - 1]) == last]


def _only(scores: np.ndarray, token: int) -> np.ndarray:
    alone = np.full_like(scores, -np.inf)
    alone[:, token] = 0
    return alone
