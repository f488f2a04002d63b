"""The user's cache: whole files, bounded, and never in the way."""

import logging
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.bundles import TEXT_SIGNATURE, text_graph, write_bundle

import tfx
from tfx.errors import BackendError
from tfx.runtime import cache
from tfx.runtime.backend import RunOptions
from tfx.runtime.backends.openvino import BLOB, OpenVino
from tfx.runtime.cpus import Cpu

MB = 1_000_000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "10")
    return tmp_path / "cache" / "tfx" / "compiled"


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b")


def writes(data):
    return lambda path: path.write_bytes(data)


def test_folder_is_the_users_own(monkeypatch, tmp_path):
    assert cache.cache_folder() == tmp_path / "cache" / "tfx"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.cache_folder() == Path.home() / ".cache" / "tfx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "tfx"


def test_what_it_was_made_for_is_in_the_name(bundle, tmp_path, monkeypatch):
    entries = [
        cache.entry_for(bundle, "engine 1.0", "float32"),
        cache.entry_for(bundle, "engine 1.1", "float32"),
        cache.entry_for(bundle, "engine 1.0", "bfloat16"),
        cache.entry_for(write_bundle(tmp_path / "c", text_graph(1)), "engine 1.0", "float32"),
    ]
    monkeypatch.setattr(cache, "read_cpu", lambda: Cpu("another", frozenset({"avx"})))
    entries.append(cache.entry_for(bundle, "engine 1.0", "float32"))
    monkeypatch.setattr(cache, "read_cpu", lambda: Cpu("another", frozenset({"avx", "amx"})))
    entries.append(cache.entry_for(bundle, "engine 1.0", "float32"))
    monkeypatch.setattr(cache, "__version__", "9.9")
    entries.append(cache.entry_for(bundle, "engine 1.0", "float32"))
    assert len(set(entries)) == len(entries)
    assert all(entry.name.startswith("engine-1.") for entry in entries)


def test_the_same_is_found_again(bundle, folder):
    entry = cache.entry_for(bundle, "engine 1.0", "float32")
    assert not cache.found(entry)
    assert cache.keep(entry, writes(b"compiled"))
    assert cache.entry_for(bundle, "engine 1.0", "float32") == entry
    assert cache.found(entry)
    assert [path.read_bytes() for path in folder.iterdir()] == [b"compiled"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_off(bundle, folder, monkeypatch):
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0")
    assert cache.entry_for(bundle, "engine 1.0") is None
    with tfx.open_session(bundle, backend="openvino") as session:
        assert session.report.facts.notes == ()
    assert not folder.exists()


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_a_limit_that_is_no_number(bundle, monkeypatch, value):
    monkeypatch.setenv(cache.LIMIT_VARIABLE, value)
    with pytest.raises(BackendError) as caught:
        cache.entry_for(bundle, "engine 1.0")
    assert str(caught.value) == f"TFX_CACHE_MB is {value!r}, expected a number of megabytes"
    assert caught.value.hint == "Set it to 0 to keep nothing, or unset it."


def test_an_empty_limit_is_the_usual_one(monkeypatch):
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "")
    assert cache.limit_mb() == cache.DEFAULT_LIMIT_MB


def test_what_was_not_used_for_longest_goes_first(folder):
    for age, name in ((3, "a"), (2, "b"), (1, "c")):
        cache.keep(folder / name, writes(bytes(4 * MB)))
        os.utime(folder / name, (time.time() - age * 100,) * 2)
    assert {path.name for path in folder.iterdir()} == {"b", "c"}  # 12 MB are too much
    assert cache.found(folder / "b")  # used: now "c" is older
    cache.keep(folder / "d", writes(bytes(4 * MB)))
    assert {path.name for path in folder.iterdir()} == {"b", "d"}


def test_what_is_too_large_is_not_kept(folder, caplog):
    caplog.set_level(logging.INFO, "tfx")  # whatever a command set before
    cache.keep(folder / "small", writes(bytes(MB)))
    assert not cache.keep(folder / "large", writes(bytes(11 * MB)))
    assert {path.name for path in folder.iterdir()} == {"small"}
    assert f"not kept: {folder / 'large'} has 11000000 bytes" in caplog.text


def test_a_folder_that_cannot_be_made(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tfx")  # whatever a command set before
    (tmp_path / "cache").write_text("a file where a folder should be")
    entry = cache.cache_folder() / "compiled" / "x"
    assert not cache.keep(entry, writes(b"x"))
    assert "not kept: " in caplog.text


def test_a_session_opens_where_nothing_can_be_kept(bundle, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    for _ in range(2):
        with tfx.open_session(bundle, backend="openvino") as session:
            assert session.report.facts.notes == ()


def test_a_write_that_fails_leaves_nothing(folder):
    def fail(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    assert not cache.keep(folder / "x", fail)
    assert list(folder.iterdir()) == []


def test_what_killed_processes_left_goes_after_a_day(folder):
    folder.mkdir(parents=True)
    for name, age_s in ((".x.old", 2 * cache.ABANDONED_S), (".x.new", 60)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    cache.keep(folder / "y", writes(b"y"))
    assert {path.name for path in folder.iterdir()} == {".x.new", "y"}


def test_many_writers_of_one_entry(folder):
    """Whoever reads sees one of them whole."""
    entry, seen = folder / "x", []
    cache.keep(entry, writes(b"0" * MB))

    def write(digit):
        for _ in range(20):
            cache.keep(entry, writes(digit * MB))
            seen.append(len(set(entry.read_bytes())))

    writers = [threading.Thread(target=write, args=(bytes([digit]),)) for digit in b"1234"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(seen) == {1}
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_two_writers_of_one_folder(folder, caplog):
    """The second succeeds too, and the first one's stays."""
    caplog.set_level(logging.INFO, "tfx")

    def write(path, data, meanwhile=lambda: None):
        path.mkdir()
        (path / "a").write_bytes(data)
        meanwhile()

    def first():
        assert cache.keep(folder / "x", lambda path: write(path, b"first"))

    assert cache.keep(folder / "x", lambda path: write(path, b"second", first))
    assert f"another process kept it: {folder / 'x'}" in caplog.text
    assert (folder / "x" / "a").read_bytes() == b"first"
    assert cache.found(folder / "x")
    assert [path.name for path in folder.iterdir()] == ["x"]
    if hasattr(os, "geteuid"):  # one that is not taken does not count as kept
        (folder / "x").chmod(0o707)
        assert not cache.keep(folder / "x", lambda path: write(path, b"third"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no such owners here")
@pytest.mark.parametrize("mode", [0o775, 0o707])
def test_what_others_may_write_is_not_taken(folder, caplog, mode):
    entry = folder / "x"
    assert cache.keep(entry, writes(b"x"))
    assert cache.found(entry)
    for path in (folder.parent, folder, entry):
        before = path.stat().st_mode
        path.chmod(mode)
        assert not cache.found(entry)
        assert f"not used: {entry}: another user may write to {path}" in caplog.text
        path.chmod(before)
    assert cache.found(entry)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no such owners here")
def test_what_is_of_root_is_taken_and_what_is_of_another_user_is_not(folder, monkeypatch):
    entry, own = folder / "x", os.geteuid()
    assert cache.keep(entry, writes(b"x"))
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert cache.found(entry) == (own == 0)
    monkeypatch.setattr(cache, "TRUSTED_USER", -1)
    assert not cache.found(entry)


def test_what_is_kept_under_a_wide_umask_is_the_users_own(folder):
    def write(path):
        path.mkdir()
        (path / "a").write_bytes(b"a")

    before = os.umask(0)
    try:
        assert cache.keep(folder / "x", writes(b"x"))
        assert cache.keep(folder / "y", write)
    finally:
        os.umask(before)
    assert [one.stat().st_mode & 0o777 for one in (folder.parent, folder)] == [0o700, 0o700]
    assert cache.found(folder / "x")
    assert cache.found(folder / "y")


# With OpenVINO, which keeps what it compiles.

TAKEN = ("its compiled model came from the cache",)


def test_a_second_session_takes_what_the_first_compiled(bundle, folder):
    feed = {spec.name: np.ones((2, 3), np.int64) for spec in TEXT_SIGNATURE.inputs}
    found = []
    for notes in ((), TAKEN, TAKEN):
        with tfx.open_session(bundle, backend="openvino") as session:
            assert session.report.facts.notes == notes
            assert session.report.facts.precision == "float32"
            found.append(session.predict(feed)["last_hidden_state"])
    assert len(list(folder.iterdir())) == 1
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_damaged_entry_is_made_again(bundle, folder, caplog):
    with tfx.open_session(bundle, backend="openvino"):
        (entry,) = folder.iterdir()
    whole = (entry / BLOB).read_bytes()
    damaged = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]  # it would load
    (entry / BLOB).unlink()
    (entry / BLOB).write_bytes(damaged)
    with tfx.open_session(bundle, backend="openvino") as session:
        assert session.report.facts.notes == ()
    assert f"not used: {entry}: its files are not as they were written" in caplog.text
    assert (entry / BLOB).read_bytes() != damaged  # compiled again, it need not be as long
    with tfx.open_session(bundle, backend="openvino") as session:
        assert session.report.facts.notes == TAKEN


def test_an_entry_that_openvino_refuses_is_made_again(bundle, folder, caplog):
    def write(path):
        path.mkdir()
        (path / BLOB).write_bytes(b"not what OpenVINO wrote")

    with tfx.open_session(bundle, backend="openvino"):
        (entry,) = folder.iterdir()
    shutil.rmtree(entry)
    assert cache.keep(entry, write)
    for notes in ((), TAKEN):
        with tfx.open_session(bundle, backend="openvino") as session:
            assert session.report.facts.notes == notes
    assert f"not used: {entry}: " in caplog.text


def test_of_a_damaged_bundle_nothing_is_kept(bundle, folder, caplog):
    """Its digest is the whole one's, which would take the entry."""
    whole = bundle.model.read_bytes()
    weights = onnx.load(bundle.model).graph.initializer[0].raw_data
    bundle.model.write_bytes(whole.replace(weights, bytes(4) + weights[4:]))
    with tfx.open_session(bundle.path, backend="openvino", verify=False) as session:
        assert session.report.facts.notes == ()
    assert "sha256 is not the one in tfx.json" in caplog.text
    assert not folder.exists()


def test_a_model_stays_when_its_entry_goes(bundle, folder):
    feed = {name: np.ones((2, 3), np.int64) for name in ("input_ids", "attention_mask")}
    expected = OpenVino().load(bundle, RunOptions()).run(feed)
    executable = OpenVino().load(bundle, RunOptions())
    (entry,) = folder.iterdir()
    shutil.rmtree(entry)
    np.testing.assert_array_equal(
        executable.run(feed)["last_hidden_state"], expected["last_hidden_state"]
    )


def test_a_model_that_cannot_be_kept_runs(bundle, folder, caplog, monkeypatch):
    import openvino

    def refuse(self):
        raise RuntimeError("no way to write this")

    monkeypatch.setattr(openvino.CompiledModel, "export_model", refuse)
    with tfx.open_session(bundle, backend="openvino") as session:
        assert session.report.facts.notes == ()
    assert "no way to write this" in caplog.text
    assert not folder.exists()


def test_a_model_that_answers_otherwise_when_read_again_is_not_kept(
    bundle, folder, caplog, monkeypatch
):
    import openvino

    caplog.set_level(logging.INFO, logger="tfx")  # a command run before may have raised it
    other = write_bundle(bundle.path.with_name("other"), text_graph(2))
    exported = OpenVino().load(other, RunOptions()).compiled.export_model()
    shutil.rmtree(folder)
    monkeypatch.setattr(openvino.CompiledModel, "export_model", lambda self: exported)
    with tfx.open_session(bundle, backend="openvino") as session:
        assert session.report.facts.notes == ()
    assert "it gives other numbers when it is read again" in caplog.text
    assert not folder.exists()
