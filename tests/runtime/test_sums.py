"""Sums of kept files: what changed is found, whatever it is, and before it is used where asked."""

import contextlib
import json
import os

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
    (path / "small").write_bytes(b"small 5")
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


@pytest.fixture
def settled(monkeypatch):
    """Files may be as young as they are here."""
    monkeypatch.setattr("tfx.runtime.untouched.SETTLED_NS", 0)


def reads(monkeypatch, folder, later=""):
    """Names of the files that are read to compare them; they are whole."""
    names = []

    def crc32(path, start):
        names.append(path.name)
        return real(path, start)

    real = sums._crc32
    with monkeypatch.context() as patch:
        patch.setattr(sums, "_crc32", crc32)
        assert is_whole(folder, later)
    return set(names)


def test_what_was_compared_and_not_touched_is_not_read_again(folder, settled, monkeypatch):
    assert reads(monkeypatch, folder) == {"large", "small"}
    assert reads(monkeypatch, folder) == set()
    assert (folder / sums.NOTE_NAME).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["large", "small", sums.FILE_NAME])
def test_what_was_touched_is_compared_though_its_time_was_put_back(folder, settled, name):
    assert is_whole(folder)
    path = folder / name
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[content.index(b"5")] ^= 1  # another byte, or another digit
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert not is_whole(folder)


def test_a_file_more_is_found_behind_a_note(folder, settled):
    assert is_whole(folder)
    (folder / "more").write_bytes(b"more")
    assert not is_whole(folder)


def test_what_was_compared_in_part_is_not_noted(folder, settled, monkeypatch):
    with Sums(folder) as found:
        found.compare(later="large")
    assert reads(monkeypatch, folder) == {"large", "small"}


@pytest.mark.parametrize("spoil", ["cut off", "not text", "a folder"])
def test_a_spoiled_note_says_nothing(folder, settled, monkeypatch, spoil):
    assert is_whole(folder)
    note = folder / sums.NOTE_NAME
    if spoil == "cut off":
        note.write_text(note.read_text()[:-1])
    elif spoil == "not text":
        note.write_bytes(b"\xff\xfe")
    else:
        note.unlink()
        note.mkdir()
    assert reads(monkeypatch, folder) == {"large", "small"}


def test_what_was_just_written_is_not_noted(folder, monkeypatch):
    assert reads(monkeypatch, folder) == {"large", "small"}
    assert reads(monkeypatch, folder) == {"large", "small"}
