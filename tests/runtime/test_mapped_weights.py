"""Pages of mapped files are given back, unless they were written to, and read the same later."""

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.bundles import write_bundle

from tfx.runtime import loading
from tfx.runtime.backends import mapped_weights
from tfx.runtime.backends.mapped_weights import give_back_pages, mapped_places
from tfx.runtime.opening import open_session

LINES = """\
7f00-7f40 r--s 00000000 fe:00 3244143                    {folder}/model.onnx.data
Rss:               16416 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me ms sd
7f40-7f80 rw-p 00000000 fe:00 3244143                    {folder}/model.onnx.data
Anonymous:             0 kB
Swap:                  8 kB
7f80-7fc0 rw-p 00000000 fe:00 3244144                    {folder}/a name with spaces
Anonymous:             0 kB
7fc0-8000 rw-p 00000000 fe:00 3244144                    {folder}/a name with spaces
Anonymous:             4 kB
Swap:                  0 kB
8000-8040 r--s 00000000 fe:00 3244145                    {folder}-int8/model.onnx.data
Anonymous:             0 kB
8040-8080 r--p 00000000 00:00 0
Anonymous:             0 kB
"""


def test_only_files_that_are_named_and_that_nobody_has_written_to():
    files = {"/models/a/model.onnx.data", "/models/a/a name with spaces"}
    found = mapped_weights._unwritten(LINES.format(folder="/models/a"), files)
    assert found == [(0x7F00, 0x7F40), (0x7F80, 0x7FC0)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("mode", ["r", "c"])
def test_pages_are_not_resident_afterwards_and_read_the_same(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(mapped_weights, "LEAST_BYTES", 1 << 20)
    size = 8 << 20
    expected = np.arange(size // 8)
    (tmp_path / "weights").write_bytes(expected.tobytes())
    array = np.memmap(tmp_path / "weights", np.int64, mode)
    assert array.sum() == expected.sum()
    before = resident(array)
    assert give_back_pages(tmp_path) == size
    assert before - resident(array) > 0.9 * size
    np.testing.assert_array_equal(array, expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_was_written_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_weights, "LEAST_BYTES", 1 << 20)
    (tmp_path / "weights").write_bytes(bytes(1 << 20))
    array = np.memmap(tmp_path / "weights", np.uint8, "c")
    array[5] = 7
    assert give_back_pages(tmp_path) == 0
    assert array[5] == 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_others_have_mapped_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_weights, "LEAST_BYTES", 1 << 20)
    (tmp_path / "weights").write_bytes(bytes(1 << 20))
    array = np.memmap(tmp_path / "weights", np.uint8, "c")
    others = mapped_places(tmp_path)
    assert others == {array.ctypes.data}
    assert give_back_pages(tmp_path, others) == 0
    assert give_back_pages(tmp_path) == 1 << 20


@pytest.mark.parametrize("missing", ["folder", "list of mappings"])
def test_what_cannot_be_looked_at_is_left_alone(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(mapped_weights, "LEAST_BYTES", 1)
    for name in ("PLACES", "MAPPINGS"):
        monkeypatch.setattr(mapped_weights, name, tmp_path / "none")
    (tmp_path / "weights").write_bytes(b"1")
    folder = tmp_path / "gone" if missing == "folder" else tmp_path
    assert mapped_places(folder) == frozenset()
    assert give_back_pages(folder) == 0


@pytest.mark.parametrize(("size", "most"), [(1 << 30, 2), (1, 1)])
def test_bundles_with_large_files_are_loaded_one_at_a_time(tmp_path, monkeypatch, size, most):
    """What one load maps, another one's look must not take for its own."""
    monkeypatch.setattr(mapped_weights, "LEAST_BYTES", size)
    (tmp_path / "weights").write_bytes(bytes(10))
    inside, counts, both = [], [], threading.Barrier(most)

    def load():
        with mapped_weights.one_load_at_a_time(tmp_path):
            inside.append(1)
            both.wait(30)  # all that may load together do
            time.sleep(0.05)  # and any other has the time to
            counts.append(len(inside))
            both.wait(30)
            inside.pop()

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == [most, most]


def test_a_session_is_loaded_so(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(
        loading,
        "one_load_at_a_time",
        lambda folder: folders.append(folder) or contextlib.nullcontext(),
    )
    bundle = write_bundle(tmp_path / "b")
    open_session(bundle).close()
    assert folders == [bundle.path]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_forked_during_a_load_is_not_held_up():
    script = """
import os, signal
from pathlib import Path
from tfx.runtime.backends import mapped_weights
mapped_weights.LEAST_BYTES = 0
with mapped_weights.one_load_at_a_time(Path(".")):
    child = os.fork()
    if not child:
        signal.alarm(20)
        with mapped_weights.one_load_at_a_time(Path(".")):
            os._exit(0)
    print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "0\n"


def test_small_files_are_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_weights, "MAPPINGS", None)
    (tmp_path / "weights").write_bytes(bytes(1 << 20))
    assert give_back_pages(tmp_path) == 0


def resident(array):
    """Bytes of the array's mapping that this process has in memory."""
    start = f"{array.ctypes.data:x}-"
    with Path("/proc/self/smaps").open() as stream:
        lines = iter(stream)
        next(line for line in lines if line.startswith(start))
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024


def test_another_system_has_none_of_this(tmp_path, monkeypatch):
    (tmp_path / "weights").write_bytes(b"1")
    monkeypatch.setattr(mapped_weights, "LEAST_BYTES", 1)
    monkeypatch.setattr(mapped_weights.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert give_back_pages(tmp_path) == 0
