"""The bootstrap: how far a number would move if the samples were drawn again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95

# Numbers of one chunk of resamples, 32 MiB of them: all at once would be gigabytes.
CHUNK = 2**22


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The middle ``LEVEL`` of resampled values (Efron & Tibshirani 1993, section 13.3).

    Args:
        values: Of a statistic, one for each resample; ``[resamples]``.

    Returns:
        Its lower and upper end.
    """
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def draw(count: int, rng: np.random.Generator) -> np.ndarray:
    """``RESAMPLES`` times ``count`` indices below ``count``: ``[RESAMPLES, count]``."""
    return rng.integers(0, count, (RESAMPLES, count))


def resampled(
    statistic: Callable[[np.ndarray], np.ndarray], *rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """A statistic of each resample, of several sets of rows that are drawn together.

    Args:
        statistic: ``[resamples, samples, numbers]`` to ``[resamples]``.
        rows: ``[samples, numbers]``, of equally many samples; row by row about the same thing.
        rng: Draws the samples.

    Returns:
        For each set ``[RESAMPLES]``; values of one position are of the same draw.
    """
    found: list[list[np.ndarray]] = [[] for _ in rows]
    for drawn in _chunks(draw(len(rows[0]), rng), max(one.shape[1] for one in rows)):
        for one, values in zip(rows, found, strict=True):
            values.append(statistic(one[drawn]))
    return tuple(np.concatenate(values) for values in found)


def _chunks(drawn: np.ndarray, numbers: int) -> Iterator[np.ndarray]:
    size = max(1, CHUNK // (drawn.shape[1] * max(1, numbers)))
    for start in range(0, len(drawn), size):
        yield drawn[start : start + size]
