"""WAV files of every kind that is read, and each way in which one can be wrong."""

import struct
import wave

import numpy as np
import pytest
from support.sounds import EXTENSIBLE, FLOAT, wav_bytes, write_sound

from tfx.errors import DataError
from tfx.runtime.speech.wav import read_wav

LEVELS = np.array([0, 0.5, -0.5, -1.0, 0.25])


@pytest.fixture
def read(tmp_path):
    def reading(content):
        path = tmp_path / "a.wav"
        path.write_bytes(content)
        return read_wav(path)

    return reading


def as_24_bits(levels):
    wide = (levels * (1 << 23)).astype("<i4")
    return b"".join(int(one).to_bytes(3, "little", signed=True) for one in wide)


KINDS = {
    8: ((LEVELS * 128 + 128).astype("u1").tobytes(), 1),
    16: ((LEVELS * 32768).astype("<i2").tobytes(), 1),
    24: (as_24_bits(LEVELS), 1),
    32: ((LEVELS * 2**31).astype("<i4").tobytes(), 1),
    "float": (LEVELS.astype("<f4").tobytes(), FLOAT),
    "double": (LEVELS.astype("<f8").tobytes(), FLOAT),
}


@pytest.mark.parametrize("bits", KINDS)
def test_samples_of_every_width(bits, read):
    data, kind = KINDS[bits]
    width = {"float": 32, "double": 64}.get(bits, bits)
    found = read(wav_bytes(data, bits=width, kind=kind, rate=8000))
    np.testing.assert_array_equal(found.samples, LEVELS.astype(np.float32))
    assert found.samples.dtype == np.float32
    assert found.rate == 8000
    assert found.seconds == len(LEVELS) / 8000


def test_a_file_of_the_standard_library(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes(np.array([[16384, -16384], [32767, 1]], "<i2").tobytes())
    found = read_wav(tmp_path / "a.wav")
    np.testing.assert_array_equal(found.samples, np.float32([0, 0.5]))  # the mean of both
    assert found.rate == 44100


def test_parts_before_the_samples_are_passed_over(read):
    note = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # of odd length, filled up
    found = read(wav_bytes(b"\x00\x40", before=note))
    assert found.samples.tolist() == [0.5]


def test_the_extensible_form(read):
    guid = struct.pack("<HHIH", 22, 16, 4, 1) + bytes(14)
    assert read(wav_bytes(b"\x00\x40", kind=EXTENSIBLE, extension=guid)).samples.tolist() == [0.5]


def test_samples_of_unknown_length_go_on_to_the_end(read):
    assert len(read(wav_bytes(bytes(20), size=0xFFFFFFFF)).samples) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, expected a WAV file"),
        (b"ID3\x04" + bytes(40), "is not a WAV file"),
        (b"RIFF\x04\0\0\0WAVE", "cut off: it ends before its samples"),
        (wav_bytes(bytes(8))[:30], "cut off: it ends before its samples"),
        (wav_bytes(bytes(8), size=12), "cut off: it has 8 of 12 bytes of samples"),
        (wav_bytes(bytes(7)), "cut off: it ends within a sample"),
        (wav_bytes(b""), "holds no samples"),
        (wav_bytes(bytes(8), kind=7, bits=8), "holds mu-law, expected PCM or floats"),
        (wav_bytes(bytes(8), kind=99), "holds format 99, expected PCM or floats"),
        (wav_bytes(bytes(8), bits=12), "samples of 12 bits, expected 8, 16, 24, 32"),
        (wav_bytes(bytes(8), bits=16, kind=FLOAT), "samples of 16 bits, expected 32, 64"),
        (wav_bytes(bytes(8), channels=0), "damaged: 0 channels"),
        (wav_bytes(bytes(8), rate=0), "0 samples a second"),
        (wav_bytes(bytes(8))[:32] + b"\4\0" + wav_bytes(bytes(8))[34:], "4 bytes for a sample of"),
        (b"RIFF\x04\0\0\0WAVEfmt \x04\0\0\0abcd", "its format takes 4 bytes, expected 16"),
        (b"RIFF\x04\0\0\0WAVEdata\x04\0\0\0abcd", "its samples come before their format"),
        (wav_bytes(np.float32([0, np.nan]).tobytes(), bits=32, kind=FLOAT), "holds NaN"),
    ],
)
def test_what_cannot_be_read(content, message, read):
    with pytest.raises(DataError, match=message):
        read(content)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_wav(tmp_path / "none.wav")


def test_how_to_convert_is_said(read):
    with pytest.raises(DataError) as caught:
        read(wav_bytes(bytes(8), kind=2, bits=16))
    assert "ADPCM" in str(caught.value)
    assert caught.value.hint.startswith("Convert it")


def test_written_and_read(tmp_path, rng):
    samples = rng.uniform(-0.9, 0.9, 100).astype(np.float32)
    found = read_wav(write_sound(tmp_path / "a.wav", samples))
    np.testing.assert_allclose(found.samples, samples, atol=1 / 65536 + 1e-7)
