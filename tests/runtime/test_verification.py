import json
import os
import shutil
import subprocess
import sys

import pytest
from support.bundles import text_graph, write_bundle

import tfx
from tfx.bundle import open_bundle
from tfx.digests import sha256_of
from tfx.errors import BackendError, BundleError
from tfx.runtime import loading as module
from tfx.runtime.verification import Verification


def damage(bundle):
    data = bundle.model.read_bytes()
    bundle.model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_whole_bundle_passes(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    Verification(bundle.path).finish(bundle)


def test_without_another_thread_all_is_read_where_it_is_waited_for(tmp_path, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    bundle = write_bundle(tmp_path / "b")
    monkeypatch.setattr(Verification, "start", start)
    Verification(bundle.path).finish(bundle)
    damage(bundle)
    with pytest.raises(BundleError, match=r"model\.onnx: sha256 is not the one"):
        Verification(bundle.path).finish(bundle)


def test_what_is_damaged_is_said_where_it_is_waited_for(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    damage(bundle)
    verification = Verification(bundle.path)
    with pytest.raises(BundleError, match=r"model\.onnx: sha256 is not the one in tfx\.json"):
        verification.finish(bundle)


def test_a_bundle_that_is_replaced_meanwhile_is_not_called_damaged(tmp_path):
    """The digests read first are of the one before; the manifest is the new one's."""
    verification = Verification(write_bundle(tmp_path / "b", text_graph(2)).path)
    verification.join()
    new = write_bundle(tmp_path / "c")
    os.replace(tmp_path / "b", tmp_path / "old")
    os.replace(new.path, tmp_path / "b")
    verification.finish(open_bundle(tmp_path / "b", verify=False))


def test_nothing_is_loaded_before_it_is_verified(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    damage(bundle)

    class Eager:
        def load(self, bundle, options):
            pytest.fail("loaded a damaged bundle")

    monkeypatch.setattr(module, "get_backend", lambda name: Eager())
    with pytest.raises(BundleError, match="is damaged"):
        tfx.open_session(bundle.path, backend="onnxruntime")


def test_damage_is_said_before_a_backend_that_is_missing(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    with pytest.raises(BackendError, match="no backend called 'none'"):
        tfx.open_session(bundle.path, backend="none")
    damage(bundle)
    with pytest.raises(BundleError, match="is damaged"):
        tfx.open_session(bundle.path, backend="none")


def test_an_opened_bundle_is_not_verified_again(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    for name in ("tfx.bundle.sha256_of", "tfx.runtime.verification.sha256_of"):
        monkeypatch.setattr(name, lambda path: pytest.fail(f"read {path}"))
    tfx.open_session(bundle, backend="onnxruntime").close()
    tfx.open_session(bundle.path, backend="onnxruntime", verify=False).close()


def test_files_are_read_once(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b", files={"more.bin": b"more"})
    verification = Verification(bundle.path)
    verification.join()
    monkeypatch.setattr("tfx.bundle.sha256_of", lambda path: pytest.fail(f"read {path} again"))
    verification.finish(bundle)


def test_they_are_read_before_numpy_is_there(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    code = """
import sys, tfx
from tfx.runtime import opening
def begun(folder):
    print("numpy" in sys.modules)
    raise SystemExit
opening.Verification = begun
tfx.open_session(sys.argv[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"files": 3}', b'{"files": [{}]}', b"\xff", b'{"files": [3]}']
)
def test_a_manifest_that_says_nothing_is_for_opening_to_refuse(tmp_path, document, capfd):
    (tmp_path / "tfx.json").write_bytes(document)
    Verification(tmp_path).join()
    Verification(tmp_path / "none").join()
    assert capfd.readouterr().err == ""  # no thread's traceback
    with pytest.raises(BundleError):
        tfx.open_session(tmp_path)


@pytest.mark.parametrize("path", ["pipe", "link", "../outside", "short"])
def test_what_is_no_file_of_the_bundle_is_not_read(tmp_path, monkeypatch, path):
    folder = tmp_path / "b"
    folder.mkdir()
    (tmp_path / "outside").write_bytes(b"123")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "short").write_bytes(b"1")
    entry = {"path": path, "size_bytes": 3}
    (folder / "tfx.json").write_text(json.dumps({"files": [entry]}))
    read = []
    monkeypatch.setattr("tfx.runtime.verification.sha256_of", read.append)
    Verification(folder).join(60)
    assert read == []


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A cache of this test alone, for files that may be as young as they are here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFX_CACHE_MB", "10")
    monkeypatch.setattr("tfx.runtime.untouched.SETTLED_NS", 0)
    return tmp_path / "cache" / "tfx" / "compared"


def read_by(monkeypatch, bundle):
    """Names of the files that an opening reads; they are whole, or it says so."""
    names = []

    def reading(path):
        names.append(path.name)
        return sha256_of(path)

    with monkeypatch.context() as patch:
        patch.setattr("tfx.runtime.verification.sha256_of", reading)
        patch.setattr("tfx.bundle.sha256_of", reading)
        Verification(bundle.path).finish(bundle)
    return names


def test_what_was_compared_and_not_touched_is_not_read_again(cached, tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b", files={"more.bin": b"more"})
    every = sorted(entry.path for entry in bundle.manifest.files)
    assert sorted(read_by(monkeypatch, bundle)) == every
    assert read_by(monkeypatch, bundle) == []
    assert cached.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("touch", ["a bit", "a bit, with its time put back", "a copy in its place"])
def test_what_was_touched_is_read_again(cached, tmp_path, monkeypatch, touch):
    bundle = write_bundle(tmp_path / "b")
    read_by(monkeypatch, bundle)
    before = bundle.model.stat()
    if touch == "a copy in its place":
        shutil.copy2(bundle.model, tmp_path / "copy")
        os.replace(tmp_path / "copy", bundle.model)
        assert bundle.model.name in read_by(monkeypatch, bundle)
        return
    damage(bundle)
    if touch == "a bit, with its time put back":
        os.utime(bundle.model, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert bundle.model.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(BundleError, match=r"model\.onnx: sha256 is not the one"):
        read_by(monkeypatch, bundle)


def test_what_is_damaged_is_not_noted(cached, tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    damage(bundle)
    for _ in range(2):
        with pytest.raises(BundleError, match="is damaged"):
            read_by(monkeypatch, bundle)
    assert not cached.exists()


def test_a_manifest_of_other_digests_is_compared(cached, tmp_path, monkeypatch):
    """The files are as they were; what they must be is not."""
    bundle = write_bundle(tmp_path / "b")
    read_by(monkeypatch, bundle)
    manifest = bundle.path / "tfx.json"
    [digest] = {entry.sha256 for entry in bundle.manifest.files if entry.path == "model.onnx"}
    manifest.write_text(manifest.read_text().replace(digest, "0" * 64))
    with pytest.raises(BundleError, match=r"model\.onnx: sha256 is not the one"):
        read_by(monkeypatch, open_bundle(bundle.path, verify=False))


def test_what_was_just_written_is_not_noted(cached, tmp_path, monkeypatch):
    """A write in the same tick of the clock would not show."""
    monkeypatch.setattr("tfx.runtime.untouched.SETTLED_NS", 3600 * 10**9)
    bundle = write_bundle(tmp_path / "b")
    assert read_by(monkeypatch, bundle)
    assert read_by(monkeypatch, bundle)


@pytest.mark.parametrize("limit", ["0", "many"])
def test_without_a_cache_every_byte_is_read_each_time(cached, tmp_path, monkeypatch, limit):
    bundle = write_bundle(tmp_path / "b")
    monkeypatch.setenv("TFX_CACHE_MB", limit)
    assert read_by(monkeypatch, bundle)
    assert read_by(monkeypatch, bundle)


def test_a_note_that_another_user_may_write_to_says_nothing(cached, tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    read_by(monkeypatch, bundle)
    [note] = cached.iterdir()
    note.chmod(0o666)
    assert read_by(monkeypatch, bundle)


def test_a_note_that_cannot_be_written_is_no_error(cached, tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    cached.parent.mkdir(parents=True)
    cached.write_text("no folder")
    assert read_by(monkeypatch, bundle)
    assert read_by(monkeypatch, bundle)


def test_two_copies_of_a_bundle_have_a_note_each(cached, tmp_path, monkeypatch):
    first, second = write_bundle(tmp_path / "a"), write_bundle(tmp_path / "b")
    assert first.digest == second.digest
    for bundle in (first, second):
        assert read_by(monkeypatch, bundle)
    for bundle in (first, second):
        assert read_by(monkeypatch, bundle) == []


def test_notes_of_many_bundles_stay_few(cached, tmp_path, monkeypatch):
    monkeypatch.setattr("tfx.runtime.verification.MOST_NOTES_BYTES", 0)
    first, second = write_bundle(tmp_path / "a"), write_bundle(tmp_path / "b")
    read_by(monkeypatch, first)
    read_by(monkeypatch, second)
    assert not any(cached.iterdir())
