"""What calibration sees of an activation, streamed; and the range it leads to."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from tfx.quantization import RangeMethod

from .weights import E4M3_MAX

# Bins of a histogram of magnitudes: 16 per step of an 8-bit integer.
BINS = 2048

# Weight of the newest batch in the moving average (Krishnamoorthi 2018, arXiv:1806.08342, 3.1.2
# gives none; PyTorch's MovingAverageMinMaxObserver takes this one).
NEWEST = 0.01

# Candidates of the search for a clipping range, as shares of the largest magnitude.
SHARES = np.linspace(0.2, 1.0, 81)

# Rows of an activation kept whole, to try a choice on: drawn evenly from all that passed.
SAMPLE_ROWS = 256


@dataclass(slots=True)
class Extremes:
    """The first look at an activation: extremes, and rows drawn from it.

    Attributes:
        low: Smallest value.
        high: Largest value.
        channels: Largest magnitude per channel, ``float32[channels]``; None before the first.
        average: Moving average of the batches' largest magnitudes.
        rows: Rows drawn evenly, ``float32[up to SAMPLE_ROWS, channels]``.
        seen: Rows that passed.
        bad: NaN and infinities that passed; they count for nothing else.
    """

    low: float = np.inf
    high: float = -np.inf
    channels: np.ndarray | None = None
    average: float = 0.0
    rows: np.ndarray | None = None
    seen: int = 0
    bad: int = 0

    def see(self, values: np.ndarray, rng: np.random.Generator) -> None:
        """Take in a batch.

        Args:
            values: ``float32[rows, channels]``.
            rng: Draws the rows that are kept.
        """
        finite = np.isfinite(values)
        if not finite.all():
            self.bad += int(values.size - finite.sum())
            values = np.where(finite, values, np.float32(0))
        if not len(values):
            return
        magnitudes = np.maximum(values.max(axis=0), -values.min(axis=0))
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        largest = float(magnitudes.max())
        if self.channels is None:
            self.channels, self.average = magnitudes, largest
        else:
            self.channels = np.maximum(self.channels, magnitudes)
            self.average += NEWEST * (largest - self.average)
        self._draw(values, rng)
        self.seen += len(values)

    @property
    def amax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high)) if self.seen else 0.0

    def _draw(self, values: np.ndarray, rng: np.random.Generator) -> None:
        # Reservoir sampling (Vitter 1985, algorithm R), a batch at a time.
        if self.rows is None:
            self.rows = np.empty((0, values.shape[1]), np.float32)
        free = SAMPLE_ROWS - len(self.rows)
        if free > 0:
            self.rows = np.concatenate([self.rows, values[:free]])
        rest = values[max(free, 0) :]
        if not len(rest):
            return
        first = self.seen + max(free, 0)
        slots = rng.integers(0, np.arange(first + 1, first + len(rest) + 1))
        for index in np.flatnonzero(slots < SAMPLE_ROWS):
            self.rows[slots[index]] = rest[index]


@dataclass(slots=True)
class Histogram:
    """The second look at an activation: how often each magnitude occurs.

    Attributes:
        amax: Largest magnitude of the first look; larger ones fall into the last bin.
        counts: ``int64[BINS]``, over ``[0, amax]``.
    """

    amax: float
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def see(self, values: np.ndarray) -> None:
        """Take in a batch of any shape."""
        if self.amax <= 0:
            return
        # The smaller of two first: what is far above amax would not fit an int32.
        magnitudes = np.minimum(np.abs(values.reshape(-1)), np.float32(self.amax))
        # Divided first: BINS / amax may be infinite.
        bins = (magnitudes / np.float32(self.amax) * np.float32(BINS)).astype(np.int32)
        np.minimum(bins, BINS - 1, out=bins)
        self.counts += np.bincount(bins, minlength=BINS)


def choose_amax(
    extremes: Extremes, histogram: Histogram, method: RangeMethod, percentile: float = 99.99
) -> float:
    """The magnitude that becomes the largest integer, 127.

    Args:
        extremes: The first look.
        histogram: The second.
        method: How to choose; see ``RangeMethod``.
        percentile: Of magnitudes, for ``RangeMethod.PERCENTILE``.

    Returns:
        In the unit of the activation; 0 if nothing but zeros was seen.
    """
    amax = histogram.amax
    if amax <= 0 or not histogram.counts.any():
        return amax
    if method is RangeMethod.MINMAX:
        return amax
    if method is RangeMethod.MOVING_AVERAGE:
        return min(amax, extremes.average)
    if method is RangeMethod.PERCENTILE:
        reached = np.cumsum(histogram.counts) / histogram.counts.sum()
        return amax * (int(np.searchsorted(reached, percentile / 100)) + 1) / BINS
    errors = [
        _divergence(histogram, share) if method is RangeMethod.ENTROPY else _mse(histogram, share)
        for share in SHARES
    ]
    return amax * float(SHARES[int(np.argmin(errors))])


def _mse(histogram: Histogram, share: float) -> float:
    """Mean squared error of 8-bit rounding when magnitudes above ``share * amax`` are clipped."""
    centres = (np.arange(BINS) + 0.5) / BINS  # in units of amax
    step = share / 127
    rounded = np.minimum(np.rint(centres / step), 127) * step
    # Within a step the value is anywhere: a bin's centre alone hits grid points by chance.
    inside = centres <= share
    error = np.where(inside, step * step / 12, (centres - rounded) ** 2)
    return float((histogram.counts * error).sum() / histogram.counts.sum())


def _divergence(histogram: Histogram, share: float) -> float:
    """Kullback-Leibler divergence of the clipped histogram from its 128-level version.

    After Migacz, "8-bit inference with TensorRT", GTC 2017: the clipped tail is added to the
    last bin of the reference, and levels spread evenly over the bins that were not empty.
    """
    bins = max(128, round(share * BINS))
    reference = histogram.counts[:bins].astype(np.float64)
    tail = histogram.counts[bins:].sum()
    candidate = np.zeros(bins)
    edges = np.linspace(0, bins, 129).round().astype(int)
    for start, end in itertools.pairwise(edges):
        part = reference[start:end]
        filled = part > 0
        if filled.any():
            candidate[start:end][filled] = part.sum() / filled.sum()
    reference[-1] += tail
    if not candidate.any():
        return np.inf
    # An empty bin that the tail filled would give infinity: a small share for every such bin.
    candidate = np.where((candidate == 0) & (reference > 0), 1e-4, candidate)
    p, q = reference / reference.sum(), candidate / candidate.sum()
    present = p > 0
    return float((p[present] * np.log(p[present] / q[present])).sum())


def scale_of(amax: float, *, e4m3: bool = False) -> np.float32:
    """The step of an activation's integers, or of its 8-bit floats; 1 for a range of zero."""
    scale = np.float32(amax / (E4M3_MAX if e4m3 else 127))
    return scale if scale >= np.finfo(np.float32).tiny else np.float32(1)
