"""Sums of kept files: what changed is found, whatever it is, and before it is used where asked."""

import contextlib
import json

import pytest

from tfx.runtime import cache, sums
from tfx.runtime.sums import Sums


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three files, one of several pieces and one empty, with their sums."""
    monkeypatch.setattr(sums, "PIECE_BYTES", 100)
    monkeypatch.setattr(sums, "READ_BYTES", 32)
    path = tmp_path / "kept"
    path.mkdir()
    (path / "large").write_bytes(bytes(range(250)))
    (path / "small").write_bytes(b"small")
    (path / "empty").write_bytes(b"")
    with Sums(path) as found:
        found.write()
    return path


def is_whole(folder, later=""):
    with Sums(folder) as found, contextlib.suppress(ValueError):
        found.compare(later=later)
        return True
    return False


def test_what_is_as_it_was(folder):
    assert is_whole(folder)
    written = json.loads((folder / sums.FILE_NAME).read_text())
    assert {name: len(one["crc32"]) for name, one in written.items()} == {
        "empty": 0,
        "small": 1,
        "large": 3,
    }


@pytest.mark.parametrize("at", [0, 99, 100, 131, 199, 200, 249])
def test_one_wrong_bit_anywhere(folder, at):
    content = bytearray((folder / "large").read_bytes())
    content[at] ^= 4
    (folder / "large").write_bytes(content)
    assert not is_whole(folder)
    assert is_whole(folder, later="large")
    assert not is_whole(folder, later="small")


def test_another_size_is_found_at_once(folder):
    (folder / "large").write_bytes(bytes(range(249)))
    assert not is_whole(folder, later="large")


def test_a_file_more_or_less(folder):
    (folder / "more").write_bytes(b"more")
    assert not is_whole(folder)
    (folder / "more").unlink()
    (folder / "small").unlink()
    assert not is_whole(folder)


def test_nothing_was_written(folder):
    (folder / sums.FILE_NAME).unlink()
    with (
        Sums(folder) as found,
        pytest.raises(ValueError, match=r"^its files are not as they were written$"),
    ):
        found.compare()


def test_what_is_mapped_is_checked_after_it_was_read_and_before_it_is_given(folder, caplog):
    read = []
    assert cache.reopened(folder, lambda path: read.append(path) or 1, mapped="large") == 1
    (folder / "large").write_bytes(bytes(250))
    assert cache.reopened(folder, lambda path: read.append(path) or 1, mapped="large") is None
    assert read == [folder, folder]
    assert not folder.exists()
    assert "its files are not as they were written" in caplog.text


def test_what_is_not_mapped_is_checked_before_it_is_read(folder):
    (folder / "small").write_bytes(b"smell")
    assert cache.reopened(folder, lambda path: pytest.fail("read"), mapped="large") is None
