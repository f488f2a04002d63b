"""Sound at another sampling rate, by a windowed sinc; with NumPy alone."""

from __future__ import annotations

import functools
import math

import numpy as np

# Zero crossings of the sinc on either side. More make the filter steeper.
ZEROS = 32

# Of Kaiser's window: what the filter lets through above the limit is 90 dB below (Kaiser 1974).
BETA = 9.0

# Where the filter is at half, as a share of the lower rate's limit: so that it is down where
# frequencies would come back as others.
CUTOFF = 0.95


def resampled(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Sound of another rate, as long as before.

    Each new sample is the sum of those around it, weighted by a sinc that ends the frequencies
    above half of the lower rate. Beyond either end there is silence.

    Args:
        samples: ``float32[samples]``.
        rate: Of them, samples a second.
        target: The rate asked for.

    Returns:
        ``float32[ceil(samples * target / rate)]``; the same array where the rates are equal.
    """
    if rate == target:
        return samples
    common = math.gcd(rate, target)
    up, down = target // common, rate // common
    phases, before = _phases(up, down)
    count = -(-len(samples) * up // down)
    taps = phases.shape[1]
    padded = np.concatenate([np.zeros(before), samples.astype(np.float64), np.zeros(taps + down)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    result = np.empty(count, np.float32)
    # New sample m lies m * down / up samples in: those of one phase are `down` samples apart.
    for first in range(min(up, count)):
        place, phase = divmod(first * down, up)
        length = len(result[first::up])
        result[first::up] = windows[place::down][:length] @ phases[phase]
    return result


@functools.lru_cache(maxsize=8)
def _phases(up: int, down: int) -> tuple[np.ndarray, int]:
    """Weights of the samples around, for each place between two of them.

    Returns:
        ``float64[up, taps]``, and how many of the taps lie before the place.
    """
    # In units of the samples that are given: the sinc is wider where fewer come out.
    limit = CUTOFF * min(1.0, up / down)
    reach = ZEROS / limit
    before = math.floor(reach)
    offsets = np.arange(-before, before + 2)[None] - np.arange(up)[:, None] / up
    inside = np.clip(1 - (offsets / reach) ** 2, 0, None)
    window = np.where(np.abs(offsets) <= reach, np.i0(BETA * np.sqrt(inside)) / np.i0(BETA), 0)
    weights = np.sinc(limit * offsets) * window
    # Each place lets silence and a constant through as they are.
    return weights / weights.sum(axis=1, keepdims=True), before
