"""A fixed piece of work that tells how fast the machine is at a moment."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tfx.runtime.clock import Clock

# Of each matrix's rows and columns, in float32: 1 to 5 ms on one CPU.
SIZE = 384
CALLS = 3


class Probe:
    """A product of two matrices in NumPy, which no bundle and no backend changes."""

    def __init__(self, clock: Clock = time.perf_counter_ns) -> None:
        """Make the matrices and multiply them once, untimed."""
        self._clock = clock
        self._left, self._right = (
            np.random.default_rng(0).normal(size=(2, SIZE, SIZE)).astype(np.float32)
        )
        self._out = self._left @ self._right

    def __call__(self) -> float:
        """Milliseconds of the fastest of ``CALLS`` products."""
        return min(self._once() for _ in range(CALLS)) / 1e6

    def _once(self) -> int:
        started = self._clock()
        np.matmul(self._left, self._right, out=self._out)
        return self._clock() - started


# What runs before each round of a shape; tests give others.
Probing = Callable[[], float]
