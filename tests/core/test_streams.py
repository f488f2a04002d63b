"""A command whose streams are closed or full says so, without a traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

from tfx import cli
from tfx.streams import AS_THEY_ARE, open_closed_streams, write_every_name, writing_problem

FULL = Path("/dev/full")


def shell(command, folder):
    """stdout, stderr and exit code of ``tfx`` with redirections only a shell can make."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m tfx {command}"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.stdout, done.stderr, done.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    write_bundle(folder / "x")
    return folder


def test_stdin_that_is_closed_holds_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    open_closed_streams()
    with sys.stdin as stdin:
        assert stdin.read() == ""


def test_stdout_that_is_closed_is_an_error(folder):
    _, said, code = shell("inspect x >&-", folder)
    assert code == 1
    assert said == (
        "error: stdout is closed, and the result would be lost\n"
        "hint: Lead it to a file, or to /dev/null.\n"
    )


def test_stderr_that_is_closed_loses_no_result(folder):
    told = shell("inspect x --json", folder)
    assert shell("inspect x --json 2>&-", folder) == told
    assert shell("inspect nowhere 2>&-", folder) == ("", "", 1)


@pytest.mark.parametrize("name", ["caf\u00e9", os.fsdecode(b"caf\xe9")], ids=["utf-8", "no text"])
@pytest.mark.parametrize("options", ["", " --json"], ids=["text", "json"])
def test_name_that_the_locale_has_no_letters_for(folder, name, options):
    done = subprocess.run(
        [sys.executable, "-m", "tfx", "inspect", name, "--no-graph", *options.split()],
        cwd=folder,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"error: no such bundle: " + os.fsencode(name) + b"\n")


def test_half_a_letter_is_written_as_its_number():
    write_every_name()
    assert "a\ud800".encode("utf-8", AS_THEY_ARE) == b"a\\ud800"


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["inspect x", "inspect x --json", "--help", "--version"])
def test_stdout_that_is_full_is_an_error(folder, command):
    _, said, code = shell(f"{command} > /dev/full", folder)
    assert code == 1
    assert said == "error: cannot write to stdout: No space left on device\n"


def test_full_disk_elsewhere_names_the_folder_for_temporary_files(monkeypatch):
    def fail(self, context):
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch/a")

    monkeypatch.setattr(cli.Root, "invoke", fail)
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == 1
    assert "error: no space left on a disk: /scratch/a" in result.stderr
    assert "hint: Free disk space, or name another folder for temporary" in result.stderr


def test_other_errors_are_not_hidden():
    assert writing_problem(FileNotFoundError(errno.ENOENT, "none", "x")) is None
