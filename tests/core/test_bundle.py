import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.bundles import manifest, write_bundle
from support.errors import lines_of

from tfx import bundle as module
from tfx.bundle import create_bundle, is_bundle, open_bundle, sha256_of
from tfx.errors import BundleError
from tfx.manifest import FILE_NAME
from tfx.staging import STAGING_PREFIX
from tfx.workspace import bundles_in

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def tiny(tmp_path):
    return write_bundle(tmp_path / "tiny", files={"extra/notes.txt": b"hello"})


def refusal(path, **options):
    with pytest.raises(BundleError) as caught:
        open_bundle(path, **options)
    return str(caught.value)


def write(path, data=b"model", **options):
    with create_bundle(path, **options) as staging:
        (staging.path / "model.onnx").write_bytes(data)
        staging.finish(manifest())


def partial(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(STAGING_PREFIX)]


# Opening


def test_open_again(tiny):
    again = open_bundle(str(tiny.path))
    assert again == tiny
    assert again.name == "tiny"
    assert again.model == tiny.path / "model.onnx"
    assert [entry.path for entry in again.manifest.files] == ["extra/notes.txt", "model.onnx"]
    assert (
        again.size_bytes
        == sum(path.stat().st_size for path in tiny.path.rglob("*") if path.is_file())
        - (tiny.path / FILE_NAME).stat().st_size
    )
    assert again.digest == sha256_of(tiny.path / FILE_NAME)
    assert again.as_parent().digest == again.digest


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("bundle-v*")), ids=lambda path: path.name)
def test_a_bundle_of_every_schema_ever_written_opens(folder, rng):
    from tfx import open_session

    with open_session(folder) as session:
        feed = {
            "input_ids": rng.integers(0, 64, (2, 5)),
            "attention_mask": rng.integers(0, 2, (2, 5)),
        }
        assert session.predict(feed)["last_hidden_state"].shape == (2, 5, 8)


def test_there_is_an_old_bundle_to_open():
    assert (GOLDEN / "bundle-v1" / FILE_NAME).is_file()


def test_no_such_bundle(tmp_path):
    assert refusal(tmp_path / "none") == f"no such bundle: {tmp_path / 'none'}"


def test_no_such_bundle_names_those_that_are_there(tmp_path):
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path / "x")
    assert caught.value.hint == "Make one with tfx export, or name a bundle's folder."
    for number in range(8):
        write(tmp_path / f"m{number}")
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path / "x")
    assert caught.value.hint == "Name one that is there: m0, m1, m2, m3, m4, m5 and 2 more."


def test_folder_that_is_no_bundle(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} is not a bundle: it has no tfx.json"


def test_file_that_is_no_bundle(tmp_path):
    (tmp_path / "x").touch()
    assert refusal(tmp_path / "x") == f"{tmp_path / 'x'} is not a bundle: it has no tfx.json"


def test_file_without_a_digest(tiny):
    (tiny.path / "extra" / "model.onnx.data").write_bytes(b"weights of someone else")
    assert (
        refusal(tiny.path)
        == f"bundle {tiny.path} is damaged: extra/model.onnx.data: not listed in tfx.json"
    )


def test_flipped_bit(tiny):
    data = bytearray(tiny.model.read_bytes())
    data[len(data) // 2] ^= 1
    tiny.model.write_bytes(data)
    assert lines_of(refusal(tiny.path)) == [
        f"bundle {tiny.path} is damaged:",
        "  model.onnx: sha256 is not the one in tfx.json",
    ]
    assert open_bundle(tiny.path, verify=False)  # sizes are all it looks at


def test_truncated_file(tiny):
    size = tiny.model.stat().st_size
    os.truncate(tiny.model, size - 1)
    expected = f"  model.onnx: is {size - 1} bytes, expected {size}"
    assert lines_of(refusal(tiny.path, verify=False))[1] == expected


def test_missing_files_are_listed_together(tiny):
    tiny.model.unlink()
    shutil.rmtree(tiny.path / "extra")
    assert lines_of(refusal(tiny.path, verify=False))[1:] == [
        "  extra/notes.txt: missing",
        "  model.onnx: missing",
    ]


@pytest.mark.parametrize("keep", [0, 1, 200])
def test_truncated_manifest(tiny, keep):
    os.truncate(tiny.path / FILE_NAME, keep)
    assert refusal(tiny.path).startswith(f"{tiny.path / FILE_NAME} is damaged: ")


def test_manifest_that_is_no_text(tiny):
    (tiny.path / FILE_NAME).write_bytes(b"\xff\xfe")
    assert refusal(tiny.path) == f"{tiny.path / FILE_NAME} is damaged: not UTF-8"


def test_file_that_is_a_link(tiny, tmp_path):
    copy = tmp_path / "same bytes"
    tiny.model.rename(copy)
    tiny.model.symlink_to(copy)
    assert lines_of(refusal(tiny.path))[1] == "  model.onnx: leads outside the bundle"


def test_folder_inside_that_is_a_link(tiny, tmp_path):
    (tiny.path / "extra").rename(tmp_path / "elsewhere")
    (tiny.path / "extra").symlink_to(tmp_path / "elsewhere")
    assert lines_of(refusal(tiny.path))[1] == "  extra/notes.txt: leads outside the bundle"


def test_unlisted_folder_that_is_a_link(tiny, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tiny.path / "sub").symlink_to(tmp_path / "elsewhere")
    assert refusal(tiny.path).endswith(" is damaged: sub: not listed in tfx.json")


def test_folder_where_a_file_was(tiny):
    tiny.model.unlink()
    tiny.model.mkdir()
    assert lines_of(refusal(tiny.path))[1] == "  model.onnx: missing"


def test_bundle_behind_a_link_opens(tiny, tmp_path):
    (tmp_path / "link").symlink_to(tiny.path)
    assert open_bundle(tmp_path / "link").digest == tiny.digest


def test_manifest_that_cannot_be_read(tiny, monkeypatch):
    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    expected = f"cannot read bundle {tiny.path}: Permission denied: {tiny.path / FILE_NAME}"
    assert refusal(tiny.path) == expected


def test_model_that_cannot_be_read(tiny, monkeypatch):
    def refuse(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(module, "sha256_of", refuse)
    with pytest.raises(
        BundleError, match=r"cannot read bundle .*: Input/output error: .*notes.txt"
    ):
        tiny.verify()


def test_folder_that_may_not_be_looked_into_is_no_bundle(tiny, monkeypatch):
    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert not is_bundle(tiny.path)


# Creating


def test_everything_in_the_staging_folder_is_listed(tmp_path):
    write(tmp_path / "a" / "b", b"12345")
    (entry,) = open_bundle(tmp_path / "a" / "b").manifest.files
    assert (entry.path, entry.size_bytes) == ("model.onnx", 5)
    assert not partial(tmp_path / "a")


def test_bundle_has_the_mode_of_other_output(tmp_path):
    write(tmp_path / "x")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_umask_is_never_set(tmp_path, monkeypatch):
    """It is the whole process's: another thread would write files for all to change."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    write(tmp_path / "x")
    assert open_bundle(tmp_path / "x")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_error_inside_leaves_nothing(tmp_path, error):
    def fail():
        with create_bundle(tmp_path / "x") as staging:
            (staging.path / "model.onnx").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_error_inside_leaves_the_old_one(tmp_path):
    write(tmp_path / "x", b"old")

    def fail():
        with create_bundle(tmp_path / "x", force=True):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert open_bundle(tmp_path / "x").model.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_taken(tmp_path):
    write(tmp_path / "x", b"old")
    with pytest.raises(BundleError, match="x already holds a bundle") as caught:
        write(tmp_path / "x", b"new")
    assert caught.value.hint == "Use --force or another -o folder."
    assert open_bundle(tmp_path / "x").model.read_bytes() == b"old"


def test_force_replaces(tmp_path):
    write(tmp_path / "x", b"old")
    write(tmp_path / "x", b"new", force=True)
    assert open_bundle(tmp_path / "x").model.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


def test_force_replaces_what_a_link_leads_to(tmp_path):
    write(tmp_path / "there" / "x", b"old")
    (tmp_path / "x").symlink_to(tmp_path / "there" / "x")
    write(tmp_path / "x", b"new", force=True)
    assert (tmp_path / "x").is_symlink()
    assert open_bundle(tmp_path / "there" / "x").model.read_bytes() == b"new"
    assert os.listdir(tmp_path / "there") == ["x"]
    assert sorted(os.listdir(tmp_path)) == ["there", "x"]


def test_force_leaves_nothing_where_the_old_one_cannot_step_aside(tmp_path, monkeypatch):
    write(tmp_path / "x", b"old")

    def fails(source, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(BundleError, match=r"cannot write bundle .*: Input/output error"):
        write(tmp_path / "x", b"new", force=True)
    assert open_bundle(tmp_path / "x").model.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_force_brings_the_old_one_back_where_the_new_cannot_be_placed(tmp_path, monkeypatch):
    write(tmp_path / "x", b"old")
    moves = []
    real = os.replace

    def second_fails(source, target):
        moves.append(source)
        if len(moves) == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(BundleError, match=r"cannot write bundle .*: Input/output error"):
        write(tmp_path / "x", b"new", force=True)
    assert open_bundle(tmp_path / "x").model.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(tmp_path, force):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="x exists and is not a bundle") as caught:
        write(tmp_path / "x", force=force)
    assert caught.value.hint == "Choose another -o folder."
    assert (tmp_path / "x" / "thesis.txt").read_text() == "years of work"


def test_file_is_never_replaced(tmp_path):
    (tmp_path / "x").write_text("a file")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write(tmp_path / "x", force=True)


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "x").mkdir()
    write(tmp_path / "x")
    assert open_bundle(tmp_path / "x")


def test_full_disk_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"no space left to write bundle .*x") as caught:
        write(tmp_path / "x")
    assert caught.value.hint == "Free disk space and run it again."
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"cannot write bundle .*: (Not a directory|File exists)"):
        write(tmp_path / "file" / "x")


def test_name_that_could_not_be_opened_again_is_not_written(tmp_path):
    def fail():
        with create_bundle(tmp_path / "x") as staging:
            (staging.path / "model.onnx").write_bytes(b"model")
            (staging.path / "a:b").write_bytes(b"")
            staging.finish(manifest())

    with pytest.raises(BundleError, match="'a:b': path leaves the bundle"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_file_changed_after_finish_is_not_written(tmp_path):
    def fail():
        with create_bundle(tmp_path / "x") as staging:
            (staging.path / "model.onnx").write_bytes(b"model")
            staging.finish(manifest())
            (staging.path / "model.onnx").write_bytes(b"other model")

    with pytest.raises(BundleError, match=r"model.onnx: is 11 bytes, expected 5"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_forgotten_finish_is_our_own_fault(tmp_path):
    with pytest.raises(AssertionError, match="finish"), create_bundle(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []


# Other processes


def script(text):
    return [sys.executable, "-c", textwrap.dedent(text)]


def test_killed_process_leaves_no_bundle(tmp_path):
    stuck = script(f"""
        import sys, time
        sys.path[:0] = {sys.path!r}
        from support.bundles import manifest
        from tfx.bundle import create_bundle
        from tfx.manifest import FILE_NAME
        with create_bundle({str(tmp_path / "x")!r}) as staging:
            (staging.path / "model.onnx").write_bytes(b"model")
            staging.finish(manifest())
            # As late as can be: the manifest is written, the rename has not happened.
            (staging.path / FILE_NAME).write_text(staging.manifest.to_json())
            print("ready", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen(stuck, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(STAGING_PREFIX)
    assert (left / FILE_NAME).is_file()
    assert bundles_in(tmp_path) == []
    assert not is_bundle(left)
    assert "a command was stopped while it wrote it" in refusal(left)
    write(tmp_path / "x")  # the next run is not in its way
    assert [bundle.name for bundle in bundles_in(tmp_path)] == ["x"]


def test_of_two_processes_one_wins(tmp_path):
    racer = f"""
        import sys, time
        sys.path[:0] = {sys.path!r}
        from support.bundles import manifest
        from tfx.bundle import create_bundle
        from tfx.errors import BundleError
        who, start = sys.argv[1], float(sys.argv[2])
        try:
            with create_bundle({str(tmp_path / "x")!r}) as staging:
                (staging.path / "model.onnx").write_text(who)
                staging.finish(manifest())
                print("ready", flush=True)
                sys.stdin.readline()
        except BundleError as error:
            print(error)
        else:
            print("won")
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [
        subprocess.Popen([*script(racer), who, str(time.time())], **pipes) for who in ("a", "b")
    ]
    for process in racers:
        assert process.stdout.readline() == "ready\n"
    for process in racers:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0].strip() for process in racers]
    assert said.count("won") == 1
    (loser,) = set(said) - {"won"}
    assert "already holds a bundle" in loser or "by another process meanwhile" in loser
    assert open_bundle(tmp_path / "x").model.read_text() == "ab"[said.index("won")]
    assert os.listdir(tmp_path) == ["x"]


def test_one_that_is_faster_at_the_last_moment_is_not_replaced(tmp_path, monkeypatch):
    real = module._refuse_taken
    calls = []

    def other_wins_right_after(target, force):
        real(target, force)
        calls.append(target)
        if len(calls) == 2:
            monkeypatch.setattr(module, "_refuse_taken", real)
            write(tmp_path / "x", b"theirs")

    monkeypatch.setattr(module, "_refuse_taken", other_wins_right_after)
    with pytest.raises(BundleError, match="x was written by another process meanwhile"):
        write(tmp_path / "x", b"ours")
    assert open_bundle(tmp_path / "x").model.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["x"]
