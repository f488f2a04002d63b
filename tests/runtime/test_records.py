"""Files in and out: every bad line named, nothing half-written."""

import errno
import io
import json
import os

import numpy as np
import pytest

from tfx.errors import DataError
from tfx.runtime.records import (
    FileFormat,
    format_of,
    json_line,
    plain_numbers,
    read_arrays,
    read_jsonl,
    read_texts,
    write_arrays,
    write_file,
    write_stdout,
)


def failing_write(path, **options):
    with write_file(path, **options) as stream:
        stream.write(b"half")
        raise RuntimeError("boom")


def outrun_write(path):
    with write_file(path) as stream:
        stream.write(b"mine")
        path.write_text("theirs")


def texts(data):
    return [(record.line, record.text) for record in read_texts(io.BytesIO(data), "f.txt")]


def jsonl(data, **options):
    return list(read_jsonl(io.BytesIO(data), "f.jsonl", **options))


def leftovers(folder):
    return sorted(os.listdir(folder))


def test_a_text_a_line():
    assert texts(b"one\n\ntwo\r\nthree") == [(1, "one"), (2, ""), (3, "two"), (4, "three")]


def test_only_line_feeds_end_a_line():
    data = "a\u2028b\x0bc\n".encode()
    assert texts(data) == [(1, "a\u2028b\x0bc")]


def test_the_mark_at_the_beginning_is_no_text():
    assert texts(b"\xef\xbb\xbfone\n") == [(1, "one")]


def test_a_line_that_is_not_utf8():
    with pytest.raises(DataError) as caught:
        texts(b"fine\nab\xe4c\n")
    assert str(caught.value) == "f.txt, line 2: not UTF-8: byte 0xe4 at 2"


def test_lines_are_read_as_they_are_taken():
    def endless():
        while True:
            yield b"again\n"

    records = read_texts(endless(), "endless")
    assert [next(records).line for _ in range(1000)][-1] == 1000


def test_a_file_that_cannot_be_read():
    class Broken(io.BytesIO):
        def __next__(self):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(DataError, match=r"cannot read f\.txt: Input/output error"):
        list(read_texts(Broken(b"a\n"), "f.txt"))


def test_strings_and_objects():
    records = jsonl(b'"plain"\n{"id": 7, "text": "named"}\n{"text": "a", "text_pair": "b"}')
    assert [record.text for record in records] == ["plain", "named", ("a", "b")]
    assert [dict(record.fields) for record in records] == [
        {"text": "plain"},
        {"id": 7, "text": "named"},
        {"text": "a", "text_pair": "b"},
    ]


def test_another_field_holds_the_text():
    records = jsonl(b'{"body": "x", "text": 3}\n"plain"', field="body")
    assert [record.text for record in records] == ["x", "plain"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"{", "not JSON: Expecting property name"),
        (b"not json", "not JSON: Expecting value"),
        (b'{"text": NaN}', "not JSON: NaN is not a JSON number"),
        (b"[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        (b"3", "got a JSON number, expected a string or an object"),
        (b"null", "got a JSON null, expected a string or an object"),
        (b"true", "got a JSON true, expected a string or an object"),
        (b'["a", "b"]', "got a JSON array, expected a string or an object"),
        (b'{"id": 1, "txt": "a"}', "no field 'text', it has: 'id', 'txt'"),
        (b"{}", "no field 'text', it has: none"),
        (b'{"text": 3}', "got int, expected a string or a pair of strings"),
        (b'{"text": "a", "text_pair": 3}', "got a pair with a int, expected a pair of strings"),
        (b'"half \\ud800"', "is not Unicode: half of a surrogate pair at character 5"),
        (b'"\xff"', "not UTF-8: byte 0xff at 1"),
    ],
)
def test_a_bad_line_is_named(line, problem):
    with pytest.raises(DataError) as caught:
        jsonl(b'"fine"\n' + line + b"\n")
    assert str(caught.value).startswith(f"f.jsonl, line 2: {problem}")


def test_a_missing_field_has_a_hint():
    with pytest.raises(DataError) as caught:
        jsonl(b"{}")
    assert caught.value.hint == "Name the field that holds the text with --field."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", FileFormat.TEXT),
        ("a.JSONL", FileFormat.JSONL),
        ("a.ndjson", FileFormat.JSONL),
        ("a.npz", FileFormat.NPZ),
        ("a.tsv", None),
        ("a", None),
    ],
)
def test_the_suffix_says_the_format(tmp_path, name, expected):
    assert format_of(tmp_path / name) is expected


def test_arrays_there_and_back(tmp_path):
    arrays = {"x": np.arange(6).reshape(2, 3), "y": np.float32([0.5])}
    with write_file(tmp_path / "a.npz") as stream:
        write_arrays(stream, arrays)
    read = read_arrays(tmp_path / "a.npz", "a.npz")
    assert sorted(read) == ["x", "y"]
    np.testing.assert_array_equal(read["x"], arrays["x"])
    with (tmp_path / "a.npz").open("rb") as stream:
        assert sorted(read_arrays(stream, "a.npz")) == ["x", "y"]


def test_nothing_pickled_is_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()], object))
    with pytest.raises(DataError, match=r"a\.npz is not an npz file of plain arrays"):
        read_arrays(tmp_path / "a.npz", "a.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"text"])
def test_a_damaged_npz(data):
    with pytest.raises(DataError, match=r"a\.npz is not an npz file of plain arrays"):
        read_arrays(io.BytesIO(data), "a.npz")


def test_a_truncated_npz():
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(1000))
    with pytest.raises(DataError, match="is not an npz file of plain arrays"):
        read_arrays(io.BytesIO(buffer.getvalue()[:-200]), "a.npz")


def test_an_npy_is_not_an_npz():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    buffer.seek(0)
    with pytest.raises(DataError, match="holds one array without a name, expected npz"):
        read_arrays(buffer, "a.npy")


def test_a_file_appears_whole(tmp_path):
    with write_file(tmp_path / "out") as stream:
        stream.write(b"half")
        assert "out" not in leftovers(tmp_path)
    assert leftovers(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"half"


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="boom"):
        failing_write(tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "out").write_text("old")
    with pytest.raises(RuntimeError, match="boom"):
        failing_write(tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "old"
    assert leftovers(tmp_path) == ["out"]


def test_what_is_there_needs_force(tmp_path):
    (tmp_path / "out").write_text("old")
    with pytest.raises(DataError, match="out exists already") as caught:
        write_file(tmp_path / "out").__enter__()
    assert caught.value.hint == "Use --force to replace it."
    with write_file(tmp_path / "out", force=True) as stream:
        stream.write(b"new")
    assert (tmp_path / "out").read_text() == "new"


def test_a_file_that_came_meanwhile_stays(tmp_path):
    with pytest.raises(DataError, match="out exists already"):
        outrun_write(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "theirs"


def test_a_link_keeps_leading_to_its_file(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with write_file(tmp_path / "link", force=True) as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    reader, writer = os.openpty()
    try:
        name = os.ttyname(writer)
        with write_file(type(tmp_path)(name)) as stream:
            stream.write(b"x")
        assert os.read(reader, 1) == b"x"
    finally:
        os.close(reader)
        os.close(writer)


def test_modes_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with write_file(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o640)
    with write_file(tmp_path / "out", force=True) as stream:
        stream.write(b"new")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "out").read_text() == "new"


def test_the_umask_is_never_set(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    with write_file(tmp_path / "out"):
        pass


@pytest.mark.parametrize(
    ("name", "problem"), [("", "is a directory"), ("no/such/out", "No such file or directory")]
)
def test_a_place_that_cannot_be_written(tmp_path, name, problem):
    with pytest.raises(DataError, match=problem):
        write_file(tmp_path / name).__enter__()


def test_a_read_only_disk(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    with pytest.raises(DataError, match=r"^cannot write .*x\.txt: Read-only file system$"):
        failing_write(tmp_path / "x.txt")


def test_a_full_disk_behind_stdout():
    with (
        pytest.raises(DataError, match="cannot write to stdout: No space left on device"),
        write_stdout(io.BytesIO()),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_reader_that_left_is_not_our_error():
    with pytest.raises(BrokenPipeError), write_stdout(io.BytesIO()):
        raise BrokenPipeError


def test_numbers_come_back_exactly():
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    again = np.array(json.loads(json_line({"x": plain_numbers(array)}))["x"], np.float32)
    np.testing.assert_array_equal(again, array)
    assert plain_numbers(np.array([1, 2])) == [1, 2]
    assert plain_numbers(np.array(0.5, np.float32)) == 0.5
    assert plain_numbers(np.array([0.1])) == [0.1]


def test_nan_is_not_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"x": float("nan")})


def test_lone_surrogate_goes_out_as_it_came_in():
    line = json_line(json.loads('{"id": "\\ud800", "text": "é"}'))
    assert line == b'{"id": "\\ud800", "text": "\xc3\xa9"}\n'
    assert json.loads(line) == {"id": "\ud800", "text": "é"}
