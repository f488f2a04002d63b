"""WAV files to samples, with the standard library and NumPy alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfx.errors import DataError

# Numbers of formats in a WAV file (Microsoft's mmreg.h).
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
COMPRESSED = {2: "ADPCM", 6: "A-law", 7: "mu-law", 0x11: "IMA ADPCM", 0x50: "MPEG", 0x55: "MP3"}

# What a program writes as the size of a part when it does not know how long it will be.
UNKNOWN_SIZE = 0xFFFFFFFF

# Bits of a sample -> its type and the level that is 1.0; 24 bits are read as the upper three
# bytes of 32.
INTEGERS = {8: ("u1", 1 << 7), 16: ("<i2", 1 << 15), 24: ("<i4", 1 << 31), 32: ("<i4", 1 << 31)}
FLOATS = {32: "<f4", 64: "<f8"}

CONVERT = "Convert it, e.g. with ffmpeg -i FILE -c:a pcm_s16le NEW.wav."


@dataclass(frozen=True, slots=True)
class Waveform:
    """Sound as numbers.

    Attributes:
        samples: ``float32[samples]`` between -1 and 1, one channel.
        rate: Samples a second.
    """

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the bytes of a WAV file are samples."""

    kind: int
    channels: int
    rate: int
    bits: int


def read_wav(path: Path) -> Waveform:
    """Read a WAV file: PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64.

    Several channels become one, their mean.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read, is damaged, cut off, empty, or compressed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not content:
        raise DataError(f"{path} is empty, expected a WAV file")
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise DataError(f"{path} is not a WAV file", hint=CONVERT)
    layout, data = _parts(content, path)
    numbers = _numbers(layout, data, path)
    if not len(numbers):
        raise DataError(f"{path} holds no samples", hint="Name a file with sound.")
    if not np.isfinite(numbers).all():
        raise DataError(f"{path} holds NaN or infinity", hint="Convert it again from its source.")
    channels = numbers.reshape(-1, layout.channels)
    mono = channels[:, 0] if layout.channels == 1 else channels.mean(axis=1)
    return Waveform(np.ascontiguousarray(mono, np.float32), layout.rate)


def _parts(content: bytes, path: Path) -> tuple[_Layout, memoryview]:
    """The format, and the bytes of the samples."""
    layout = None
    place = 12
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        place += 8
        left = len(content) - place
        if name == b"data":
            if layout is None:
                raise DataError(
                    f"{path} is damaged: its samples come before their format",
                    hint="Copy or record it again.",
                )
            if size == UNKNOWN_SIZE:
                size = left
            if size > left:
                raise DataError(
                    f"{path} is cut off: it has {left} of {size} bytes of samples",
                    hint="Copy or record it again.",
                )
            return layout, memoryview(content)[place : place + size]
        if size > left:
            break
        if name == b"fmt ":
            layout = _layout(content[place : place + size], path)
        place += size + size % 2  # parts begin at even places
    raise DataError(
        f"{path} is cut off: it ends before its samples", hint="Copy or record it again."
    )


def _layout(part: bytes, path: Path) -> _Layout:
    if len(part) < 16:
        raise DataError(f"{path} is damaged: its format takes {len(part)} bytes, expected 16")
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", part)
    if kind == EXTENSIBLE and len(part) >= 26:
        kind = struct.unpack_from("<H", part, 24)[0]  # the first two bytes of a GUID
    if kind not in (PCM, FLOAT):
        named = COMPRESSED.get(kind, f"format {kind}")
        raise DataError(f"{path} holds {named}, expected PCM or floats", hint=CONVERT)
    known = INTEGERS if kind == PCM else FLOATS
    if bits not in known:
        raise DataError(
            f"{path} has samples of {bits} bits, expected {', '.join(map(str, known))}",
            hint=CONVERT,
        )
    if not channels or not rate or block != channels * bits // 8:
        raise DataError(
            f"{path} is damaged: {channels} channels, {rate} samples a second, "
            f"{block} bytes for a sample of each channel",
            hint="Copy or record it again.",
        )
    return _Layout(kind, channels, rate, bits)


def _numbers(layout: _Layout, data: memoryview, path: Path) -> np.ndarray:
    """The samples of all channels, ``float32[samples * channels]``."""
    width = layout.bits // 8
    if len(data) % (width * layout.channels):
        raise DataError(
            f"{path} is cut off: it ends within a sample", hint="Copy or record it again."
        )
    if layout.kind == FLOAT:
        return np.frombuffer(data, FLOATS[layout.bits]).astype(np.float32)
    kind, whole = INTEGERS[layout.bits]
    if layout.bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        levels = wide.view(kind).reshape(-1)
    else:
        levels = np.frombuffer(data, kind)
    centred = levels.astype(np.float32) - (whole if layout.bits == 8 else 0)
    return centred / np.float32(whole)
