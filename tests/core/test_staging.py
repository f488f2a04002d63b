"""Folders of dead processes are removed, those of living ones stay."""

import os
import signal
import subprocess
import sys

import pytest

from tfx import staging as module
from tfx.manifest import FILE_NAME
from tfx.staging import remove_abandoned, staging_folder


def killed(tmp_path, text=""):
    """A folder whose process was killed while it wrote it."""
    code = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from tfx.staging import staging_folder
with staging_folder(Path({str(tmp_path / "x")!r})) as folder:
    (folder / "model.onnx").write_text("half")
    print(folder, flush=True)
    {text or "pass"}
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return tmp_path / done.stdout.strip()


def test_folder_of_a_killed_process_is_removed_and_said(tmp_path, caplog):
    left = killed(tmp_path)
    assert left.is_dir()
    with staging_folder(tmp_path / "y") as ours:
        assert os.listdir(tmp_path) == [ours.name]
    assert caplog.messages == [f"removed {left}, left by a command that was killed"]
    assert os.listdir(tmp_path) == []


def test_folder_of_a_living_process_stays(tmp_path, caplog):
    with staging_folder(tmp_path / "x") as ours:
        remove_abandoned(tmp_path)
        assert ours.is_dir()
        with staging_folder(tmp_path / "x") as other:
            assert ours.is_dir()
            assert other != ours
    assert not caplog.messages


def test_what_may_be_a_whole_bundle_is_only_named(tmp_path, caplog):
    left = killed(tmp_path, f"(folder / {FILE_NAME!r}).write_text('{{}}')")
    remove_abandoned(tmp_path)
    assert left.is_dir()
    assert f"{left} was left by a command that was killed; it may hold a whole" in caplog.text
    assert "rename it to use it, or delete it" in caplog.text


def test_file_with_such_a_name_stays(tmp_path):
    (tmp_path / f"{module.STAGING_PREFIX}x").write_text("")
    remove_abandoned(tmp_path)
    assert len(os.listdir(tmp_path)) == 1


def test_folder_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    real = module._lock
    seen = []

    def late(folder, *, wait):
        seen.append(folder)
        if len(seen) == 1:
            folder.rmdir()
        return real(folder, wait=wait)

    monkeypatch.setattr(module, "_lock", late)
    with staging_folder(tmp_path / "x") as ours:
        assert ours == seen[1]
        assert ours.is_dir()


def test_folder_that_cannot_be_locked_is_written_and_left_alone(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refused(descriptor, flags):
        raise OSError("no locks here")

    left = killed(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refused)
    with staging_folder(tmp_path / "x") as ours:
        assert ours.is_dir()
    assert left.is_dir()
