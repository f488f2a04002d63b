"""Another sampling rate: against the sound itself, and against scipy with the same filter."""

import math

import numpy as np
import pytest
import scipy.signal
from support.sounds import tone

from tfx.runtime.speech import resampling
from tfx.runtime.speech.resampling import resampled

RATES = (8000, 11025, 22050, 44100, 48000)
EDGE = 400  # samples at the ends, where there is silence beyond


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_stays_a_tone_and_better_than_scipys(rate):
    for hertz in (200, 1000, 3000):
        given, wanted = tone(hertz, 0.5, rate), tone(hertz, 0.5, 16000)
        found = resampled(given, rate, 16000)
        assert found.dtype == np.float32
        assert len(found) == math.ceil(len(given) * 16000 / rate)
        theirs = scipy.signal.resample_poly(given, 16000, rate)
        ours, scipys = (
            np.abs(one[: len(wanted)] - wanted[: len(one)])[EDGE:-EDGE].max()
            for one in (found, theirs)
        )
        assert ours < 3e-5
        assert scipys < 3e-3  # its own filter is shorter
        assert ours < scipys


@pytest.mark.parametrize("rate", RATES)
def test_scipy_gives_the_same_with_the_same_filter(rate, rng):
    common = math.gcd(rate, 16000)
    up, down = 16000 // common, rate // common
    limit = resampling.CUTOFF * min(1, up / down)
    half = math.floor(resampling.ZEROS / limit * up)
    offsets = np.arange(-half, half + 1) / up
    inside = np.clip(1 - (offsets * limit / resampling.ZEROS) ** 2, 0, None)
    window = np.i0(resampling.BETA * np.sqrt(inside)) / np.i0(resampling.BETA)
    given = rng.normal(size=3000).astype(np.float32)
    theirs = scipy.signal.resample_poly(
        given.astype(np.float64), up, down, window=np.sinc(limit * offsets) * window * limit / up
    )
    found = resampled(given, rate, 16000)
    assert len(found) == len(theirs)
    np.testing.assert_allclose(found, theirs, atol=5e-5)


@pytest.mark.parametrize("rate", [44100, 48000])
def test_what_the_lower_rate_cannot_hold_is_gone(rate):
    for hertz in (9000, 15000):
        assert np.abs(resampled(tone(hertz, 0.3, rate), rate, 16000)[EDGE:-EDGE]).max() < 5e-5


def test_a_constant_stays_and_lengths_add_up(rng):
    assert np.abs(resampled(np.ones(2000, np.float32), 22050, 16000)[EDGE:-EDGE] - 1).max() < 1e-6
    for size in (1, 2, 7, 100):
        for rate in (8000, 44100):
            assert len(resampled(np.ones(size, np.float32), rate, 16000)) == math.ceil(
                size * 16000 / rate
            )


def test_the_same_rate_is_left_alone(rng):
    samples = rng.normal(size=10).astype(np.float32)
    assert resampled(samples, 16000, 16000) is samples
