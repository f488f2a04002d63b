"""Sound to the input of a model, by what its bundle says; with NumPy alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from tfx.errors import FeedError
from tfx.processing import AudioFeatures, AudioPreparation
from tfx.signature import Feed

# What is added to a variance before its root is taken, so that silence stays silence.
VARIANCE_FLOOR = 1e-7

# Power below which a band is taken for silent, and how far below the loudest one, in powers of
# ten (Radford et al. 2022, and openai/whisper's audio.py).
POWER_FLOOR, RANGE = 1e-10, 8.0

# Frames that are transformed together: 30 s of Whisper's.
FRAMES_AT_ONCE = 3000

# Slaney's mel scale: even up to 1000 Hz, where mel 15 is, and logarithmic above.
LINEAR_HZ, LINEAR_MELS = 1000.0, 15.0
HZ_PER_MEL = LINEAR_HZ / LINEAR_MELS
LOG_STEP = np.log(6.4) / 27.0

# Up to where Whisper's bands reach, whatever the rate.
HIGHEST_HZ = 8000.0


def audio_feed(sounds: Sequence[np.ndarray], said: AudioPreparation) -> Feed:
    """Make sounds the inputs of a model, padded to the longest.

    Args:
        sounds: ``float32[samples]`` each, at the rate of ``said``.
        said: How.

    Returns:
        Input name to array: ``float32[batch, samples]`` with, where the model takes one, a mask
        ``int64[batch, samples]``; or ``float32[batch, mel bins, frames]``.

    Raises:
        FeedError: If a sound is not a row of finite numbers, or longer than a window.
    """
    checked = [_checked(sound) for sound in sounds]
    if said.features is AudioFeatures.LOG_MEL:
        return {said.input: np.stack([log_mel(windowed(one, said), said) for one in checked])}
    if said.normalize:
        checked = [standardized(sound) for sound in checked]
    longest = max(map(len, checked))
    values = np.full((len(checked), longest), said.padding, np.float32)
    mask = np.zeros(values.shape, np.int64)
    for row, sound in enumerate(checked):
        values[row, : len(sound)] = sound
        mask[row, : len(sound)] = 1
    return {said.input: values, **({said.mask: mask} if said.mask else {})}


def _checked(sound: np.ndarray) -> np.ndarray:
    array = np.asarray(sound)
    if array.ndim != 1 or array.dtype.kind != "f" or not array.size:
        raise FeedError(
            f"a sound is {array.dtype}{list(array.shape)}, expected float32[samples]",
            hint="Give one channel, as floats between -1 and 1.",
        )
    if not np.isfinite(array).all():
        raise FeedError(
            "a sound holds NaN or infinity",
            hint="Check how it was read: samples are floats from -1 to 1.",
        )
    return array.astype(np.float32, copy=False)


def standardized(sound: np.ndarray) -> np.ndarray:
    """Sound of mean 0 and variance 1, ``(x - mean) / sqrt(variance + 1e-7)``.

    Args:
        sound: ``float32[samples]``.
    """
    scaled: np.ndarray = (sound - sound.mean()) / np.sqrt(sound.var() + VARIANCE_FLOOR)
    return scaled


def windowed(sound: np.ndarray, said: AudioPreparation) -> np.ndarray:
    """A sound filled up with silence to the length of a window.

    Args:
        sound: ``float32[samples]``.
        said: How long a window is.

    Raises:
        FeedError: If the sound is longer than that.
    """
    length = said.seconds * said.rate
    if len(sound) > length:
        raise FeedError(
            f"a sound is {len(sound) / said.rate:.1f} s, the window {said.seconds} s",
            hint="Cut it in pieces.",
        )
    filled = np.full(length, said.padding, np.float32)
    filled[: len(sound)] = sound
    return filled


def log_mel(sound: np.ndarray, said: AudioPreparation) -> np.ndarray:
    """Whisper's features: the logarithm of the power in each band of the mel scale.

    Each frame is weighted by Hann's window and transformed; what is left of the range below the
    loudest band of the sound is moved to about -1 to 1.

    Args:
        sound: ``float32[samples]``, more than half a transform and of any length.
        said: How.

    Returns:
        ``float32[mel bins, samples // hop]``.
    """
    filters = mel_filters(said.mel_bins, said.fft, said.rate)
    # The first frame is centred on the first sample, so both ends are mirrored.
    around = np.pad(sound, said.fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(around, said.fft)[:: said.hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(said.fft) / said.fft)
    count = len(sound) // said.hop
    bands = np.empty((said.mel_bins, count), np.float32)
    for first in range(0, count, FRAMES_AT_ONCE):
        last = min(first + FRAMES_AT_ONCE, count)
        spectrum = np.fft.rfft(frames[first:last] * window)
        power = (spectrum.real**2 + spectrum.imag**2).T
        bands[:, first:last] = np.log10(np.maximum(filters @ power, POWER_FLOOR))
    found: np.ndarray = (np.maximum(bands, bands.max(initial=-np.inf) - RANGE) + 4) / 4
    return found


@functools.lru_cache(maxsize=8)
def mel_filters(bins: int, fft: int, rate: int) -> np.ndarray:
    """Triangles of equal area between 0 and 8000 Hz, evenly spaced on Slaney's mel scale.

    Args:
        bins: How many.
        fft: Samples of the transform whose frequencies they weigh.
        rate: Samples a second.

    Returns:
        ``float64[bins, fft // 2 + 1]``.
    """
    corners = _hertz(np.linspace(0, _mels(HIGHEST_HZ), bins + 2))[:, None]
    frequencies = np.linspace(0, rate // 2, fft // 2 + 1)[None]
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    filters: np.ndarray = triangles * 2 / (corners[2:] - corners[:-2])
    return filters


def _mels(hertz: float) -> float:
    if hertz < LINEAR_HZ:
        return hertz / HZ_PER_MEL
    return float(LINEAR_MELS + np.log(hertz / LINEAR_HZ) / LOG_STEP)


def _hertz(mels: np.ndarray) -> np.ndarray:
    above = np.maximum(mels, LINEAR_MELS) - LINEAR_MELS
    return np.where(mels < LINEAR_MELS, mels * HZ_PER_MEL, LINEAR_HZ * np.exp(LOG_STEP * above))
