"""Sounds and WAV files, made byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    """A sine of amplitude 1, ``float32[samples]``."""
    times = np.arange(round(seconds * rate)) / rate
    return np.sin(2 * np.pi * hertz * times).astype(np.float32)


def wav_bytes(
    data: bytes,
    *,
    rate: int = 16000,
    channels: int = 1,
    bits: int = 16,
    kind: int = PCM,
    size: int | None = None,
    before: bytes = b"",
    extension: bytes = b"",
) -> bytes:
    """A WAV file with these samples; ``size`` is what it says of them, if that is not true."""
    block = channels * bits // 8
    layout = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits) + extension
    parts = b"fmt " + struct.pack("<I", len(layout)) + layout + before
    parts += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


def write_sound(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """A WAV file of 16 bits with one channel."""
    levels = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2")
    path.write_bytes(wav_bytes(levels.tobytes(), rate=rate))
    return path
