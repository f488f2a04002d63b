"""Time calls, and tell when a model has warmed up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# A clock gives nanoseconds since some moment, and never goes back.
Clock = Callable[[], int]

# A window of warm-up calls has at least this many calls and takes at least this long, so that
# its median is one of several calls even when a call takes microseconds.
WINDOW_CALLS = 5
WINDOW_NS = 20_000_000
# Two windows in a row must be this near to the one before them.
STEADY_RATIO = 0.05
STEADY_WINDOWS = 2

# A block is this long at least, so that microseconds are not lost between two rows.
BLOCK_MS = 20.0
BLOCK_CALLS = (5, 100)
# Threads of a pool spin for a while after a run and take the CPU from the next row. MiniLM 1x128 on
# 2 cores, medians of 25 rounds: PyTorch takes 21 ms a call by itself, and right after ONNX Runtime
# 52 ms, 36 ms, then 21 ms; after a pause of 20 ms 38 ms, then 20 ms. ONNX Runtime right after
# PyTorch takes 17 ms, then its usual 10.5 ms; after a pause of 20 ms 11 ms. So the spinning is over
# after about 50 ms, and the call that is not timed takes what is left. Spinning stays on in ONNX
# Runtime's own settings: what is measured is what ``predict`` does.
SETTLE_S = 0.05


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How a model behaved until its time per call was steady.

    Attributes:
        calls: Made in all.
        duration_s: They took.
        median_ms: Of the last window.
        settled: Whether the median was steady before the time was up.
    """

    calls: int
    duration_s: float
    median_ms: float
    settled: bool


def time_calls(call: Callable[[], object], count: int, clock: Clock) -> list[int]:
    """Make ``count`` calls one after another.

    Returns:
        Nanoseconds of each, in order.
    """
    samples = []
    for _ in range(count):
        started = clock()
        call()
        samples.append(clock() - started)
    return samples


def block_calls(median_ms: float) -> int:
    """How many calls a block has: ``BLOCK_MS`` of them, within ``BLOCK_CALLS``.

    Args:
        median_ms: Of one call, as the warm-up found it.
    """
    wanted = math.ceil(BLOCK_MS / max(median_ms, 1e-6))
    return min(max(wanted, BLOCK_CALLS[0]), BLOCK_CALLS[1])


def warm_up(
    call: Callable[[], object],
    *,
    limit_s: float,
    turn: int = 1,
    clock: Clock = time.perf_counter_ns,
) -> WarmUp:
    """Call until the medians of ``STEADY_WINDOWS`` windows stay within ``STEADY_RATIO``.

    Args:
        call: What to warm up.
        limit_s: Give up after this many seconds, at the end of a window.
        turn: Calls after which the same work comes again; a window has whole turns, for of parts
            of one the medians differ however warm the model is.
        clock: Gives nanoseconds.
    """
    started = clock()
    calls, steady, before = 0, 0, float("inf")
    while True:
        window: list[int] = []
        while len(window) < WINDOW_CALLS or sum(window) < WINDOW_NS or len(window) % turn:
            window += time_calls(call, 1, clock)
        calls += len(window)
        median = float(np.median(window))
        steady = steady + 1 if abs(median - before) <= STEADY_RATIO * before < np.inf else 0
        before = median
        duration_s = (clock() - started) / 1e9
        if steady >= STEADY_WINDOWS or duration_s >= limit_s:
            return WarmUp(calls, duration_s, median / 1e6, steady >= STEADY_WINDOWS)
