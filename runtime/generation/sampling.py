"""How the next token is chosen from logits: the functions of transformers, in NumPy.

All take logits ``float32[rows, vocabulary]`` and give the same shape; minus infinity is a token
that cannot be chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np


def penalize_repetition(
    logits: np.ndarray, seen: Sequence[Iterable[int]], penalty: float
) -> np.ndarray:
    """Make tokens less likely that were seen before (Keskar et al. 2019, arXiv:1909.05858).

    Positive logits are divided by ``penalty``, negative ones multiplied by it.

    Args:
        logits: ``[rows, vocabulary]``.
        seen: Token ids of each row so far, those of the prompt included.
        penalty: 1 changes nothing; more penalizes.
    """
    if penalty == 1:
        return logits
    changed = logits.copy()
    for row, ids in enumerate(seen):
        places = np.unique(np.fromiter(ids, np.int64))
        found = changed[row, places]
        changed[row, places] = np.where(found < 0, found * penalty, found / penalty)
    return changed


def cooled(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Logits divided by a temperature, their largest made 0: near 0 too, none becomes infinite.

    Args:
        logits: ``[rows, vocabulary]``.
        temperature: Above 0.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # minus infinity cannot be chosen, which is meant
        found: np.ndarray = shifted / max(np.float32(temperature), np.finfo(np.float32).tiny)
    return found


def keep_top_k(logits: np.ndarray, count: int) -> np.ndarray:
    """Keep the ``count`` largest logits of each row, and those equal to the least of them.

    Args:
        logits: ``[rows, vocabulary]``.
        count: 0 keeps all.
    """
    if count == 0 or count >= logits.shape[1]:
        return logits
    least = np.partition(logits, -count, axis=1)[:, -count, None]
    return np.where(logits < least, np.float32(-np.inf), logits)


def keep_top_p(logits: np.ndarray, share: float) -> np.ndarray:
    """Keep the likeliest tokens whose probabilities make up ``share`` (arXiv:1904.09751).

    Args:
        logits: ``[rows, vocabulary]``.
        share: Above 0; 1 keeps all. The likeliest token stays whatever it is.
    """
    if share >= 1:
        return logits
    order = np.argsort(logits, axis=1, kind="stable")
    ascending = np.take_along_axis(probabilities(logits), order, axis=1)
    dropped = ascending.cumsum(axis=1) <= 1 - share
    dropped[:, -1] = False
    kept = np.empty_like(dropped)
    np.put_along_axis(kept, order, ~dropped, axis=1)
    return np.where(kept, logits, np.float32(-np.inf))


def without(logits: np.ndarray, tokens: Collection[int]) -> np.ndarray:
    """Make tokens impossible to choose.

    Args:
        logits: ``[rows, vocabulary]``.
        tokens: Their ids; none changes nothing.
    """
    if not tokens:
        return logits
    changed = logits.copy()
    changed[:, list(tokens)] = -np.inf
    return changed


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def draw(logits: np.ndarray, rngs: Sequence[np.random.Generator]) -> np.ndarray:
    """Draw one token of each row by its probability.

    Args:
        logits: ``[rows, vocabulary]``.
        rngs: One per row, so that a row draws the same alone and in a batch.

    Returns:
        Token ids, ``int64[rows]``.
    """
    heaps = probabilities(logits.astype(np.float64)).cumsum(axis=1)
    drawn = [
        np.searchsorted(heap, rng.random() * heap[-1], side="right")
        for heap, rng in zip(heaps, rngs, strict=True)
    ]
    return np.array(drawn, np.int64)
