"""Samples to numbers: percentiles, the interval of a ratio, and the verdict it allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from .bootstrap import draw, percentile_interval

# Ten samples lie above a percentile of so many; with fewer, a few slow calls decide it.
LEAST_SAMPLES = {95: 200, 99: 1000}
# The bootstrap draws rounds; from fewer than this its intervals are too narrow for a verdict.
LEAST_ROUNDS = 8

# Of fewer independent samples no two hold the median in 95 % of all cases.
LEAST_FOR_MEDIAN = 6

# Smaller differences are called none: loading one model twice already gives this much, from
# where its weights happen to lie in memory.
MARGIN = 0.03


@dataclass(frozen=True, slots=True)
class Latency:
    """Time per call, of all samples: none is thrown away as an outlier.

    Attributes:
        samples: How many calls were timed.
        median_ms: Half of them took less.
        p95_ms: 95 % took less; None with fewer than 200 samples.
        p99_ms: 99 % took less; None with fewer than 1000 samples.
        min_ms: The fastest.
        max_ms: The slowest.
    """

    samples: int
    median_ms: float
    p95_ms: float | None
    p99_ms: float | None
    min_ms: float
    max_ms: float


class Verdict(StrEnum):
    """What the interval of a ratio allows to say."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    UNSURE = "cannot say"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row's speed against another's.

    Attributes:
        against: The other row, e.g. "minilm on torch".
        speedup: The other's median time over this one's: 2.0 is twice as fast.
        low: Lower end of the 95 % bootstrap interval of ``speedup``.
        high: Its upper end.
        verdict: What the interval allows to say; nothing with fewer than ``LEAST_ROUNDS`` rounds.
    """

    against: str
    speedup: float
    low: float
    high: float
    verdict: Verdict


def latency_of(rounds: Sequence[Sequence[int]]) -> Latency:
    """Summarise the samples of all rounds.

    Args:
        rounds: Nanoseconds per call, of each round; at least one sample.
    """
    samples = np.concatenate([np.asarray(r, np.float64) for r in rounds]) / 1e6

    def percentile(percent: int) -> float | None:
        if len(samples) < LEAST_SAMPLES[percent]:
            return None
        return float(np.percentile(samples, percent))

    return Latency(
        samples=len(samples),
        median_ms=float(np.median(samples)),
        p95_ms=percentile(95),
        p99_ms=percentile(99),
        min_ms=float(samples.min()),
        max_ms=float(samples.max()),
    )


def compare_speed(
    rounds: Sequence[Sequence[int]],
    baseline: Sequence[Sequence[int]],
    *,
    against: str,
    rng: np.random.Generator,
) -> Comparison:
    """Compare two rows measured in the same rounds.

    Percentile bootstrap of ``median(baseline) / median(row)`` (Efron & Tibshirani 1993, section
    13.3). Whole rounds are drawn, the same ones for both rows: calls of one round share what the
    machine did meanwhile, so they are not independent, and a slow round slows both.

    Args:
        rounds: Nanoseconds per call of each round; rounds of one length each.
        baseline: The other row's, as many rounds.
        against: The other row's name.
        rng: Draws the rounds.
    """
    row, other = np.asarray(rounds, np.float64), np.asarray(baseline, np.float64)
    drawn = draw(len(row), rng)  # [resamples, rounds]
    ratios = _medians(other, drawn) / _medians(row, drawn)
    low, high = percentile_interval(ratios)
    speedup = float(np.median(other) / np.median(row))
    verdict = judge(low, high) if len(row) >= LEAST_ROUNDS else Verdict.UNSURE
    return Comparison(against, speedup, low, high, verdict)


def judge(low: float, high: float, margin: float = MARGIN) -> Verdict:
    """The verdict an interval of a speedup allows.

    "same" is a claim too: the whole interval must lie within the margin. An interval that
    reaches over its edge allows no verdict.
    """
    if low > 1 + margin:
        return Verdict.FASTER
    if high < 1 / (1 + margin):
        return Verdict.SLOWER
    if low >= 1 / (1 + margin) and high <= 1 + margin:
        return Verdict.SAME
    return Verdict.UNSURE


def median_interval(values: np.ndarray) -> tuple[float, float | None, float | None]:
    """Median of independent samples, with its 95 % interval, whatever they are drawn from.

    How many of them are below the true median is binomial, so two of the ordered samples hold it
    between them in 95 % of all cases or a little more (David & Nagaraja 2003, section 7.1). A
    bootstrap of 5 to 15 samples holds it in 87 to 94 %.

    Args:
        values: ``[n]``.

    Returns:
        Median, lower end, upper end; no ends of fewer than ``LEAST_FOR_MEDIAN``.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    count = len(ordered)
    # Ways in which fewer than ``left_out`` samples are below, of 2**count: at most 2.5 % of them.
    left_out, ways, more = 0, 0, 1
    while 40 * (ways + more) <= 2**count:
        ways += more
        more = more * (count - left_out) // (left_out + 1)
        left_out += 1
    median = float(np.median(ordered))
    if not left_out:
        return median, None, None
    return median, float(ordered[left_out - 1]), float(ordered[-left_out])


def _medians(samples: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Median of all samples of the drawn rounds, per resample: ``[resamples]``."""
    # One resample at a time: all at once would be resamples x rounds x calls numbers.
    return np.array([np.median(samples[index]) for index in drawn], np.float64)
