"""Pages of mapped files are given back, those of no other folder, and what is read stays right."""

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from tfx.runtime.backends import mapped_weights
from tfx.runtime.backends.mapped_weights import give_back_pages

LINES = """\
7f00-7f40 r--s 00000000 fe:00 3244143                    {folder}/model.onnx.data
7f40-7f80 rw-p 00000000 fe:00 3244143                    {folder}/model.onnx.data
7f80-7fc0 r--p 00000000 fe:00 3244144                    {folder}/a name with spaces
8000-8040 r--s 00000000 fe:00 3244145                    {folder}-int8/model.onnx.data
8040-8080 r--p 00000000 00:00 0
8080-80c0 r-xp 00000000 fe:00 3244146                    /usr/lib/libc.so.6
"""


def test_only_what_cannot_have_been_written_to_and_is_of_the_folder(tmp_path):
    found = mapped_weights._mappings(LINES.format(folder=tmp_path), tmp_path)
    assert found == [(0x7F00, 0x7F40), (0x7F80, 0x7FC0)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_are_not_resident_afterwards_and_read_the_same(tmp_path):
    size = 8 << 20
    expected = np.arange(size // 8)
    (tmp_path / "weights").write_bytes(expected.tobytes())
    with (tmp_path / "weights").open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
    array = np.frombuffer(mapped, np.int64)
    assert array.sum() == expected.sum()
    before = resident(array)
    assert give_back_pages(tmp_path) == size
    assert before - resident(array) > 0.9 * size
    np.testing.assert_array_equal(array, expected)


def resident(array):
    """Bytes of the array's mapping that this process has in memory."""
    start = f"{array.ctypes.data:x}-"
    with Path("/proc/self/smaps").open() as stream:
        lines = iter(stream)
        next(line for line in lines if line.startswith(start))
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024


def test_another_system_has_none_of_this(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_weights.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert give_back_pages(tmp_path) == 0
