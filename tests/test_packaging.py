"""The wheel and the sdist: built, looked into, and the wheel run where nothing else is."""

import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tfx

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]


NOT_SOURCE = (".*cache", ".git", ".venv", ".demo", ".bench", "*.egg-info", "build", "dist")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy: a build writes into its source, and reads what an earlier one left there."""
    folder = tmp_path_factory.mktemp("source") / "tfx"
    ignored = shutil.ignore_patterns(*NOT_SOURCE, "__pycache__")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """The sdist, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def our_modules(source):
    """Path in the wheel and path in the source of every module."""
    for name, folder in FOLDERS.items():
        for path in (source / folder).rglob("*.py"):  # does not follow the links in src/tfx
            inside = path.relative_to(source / folder).as_posix()
            yield f"{name.replace('.', '/')}/{inside}", path.relative_to(source).as_posix()


def test_wheel_holds_every_module_and_nothing_else(built, source):
    with zipfile.ZipFile(built[0]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        notes = {name.partition(".dist-info/")[2] for name in archive.namelist()}
    assert names == {inside for inside, _ in our_modules(source)}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= notes


def test_sdist_holds_what_is_needed_to_build_and_test(built, source):
    prefix = f"tfx_toolkit-{tfx.__version__}/"
    with tarfile.open(built[1]) as archive:
        names = {name.removeprefix(prefix) for name in archive.getnames()}
        links = [member.name for member in archive if member.issym()]
    assert links == []
    assert {path for _, path in our_modules(source)} <= names
    tests = {path.relative_to(source).as_posix() for path in (source / "tests").rglob("*.py")}
    assert tests <= names
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt"):
        assert name in names
    assert "tests/golden/bundle-v1/model.onnx" in names


def test_wheel_runs_where_only_its_needs_are(built, tmp_path):
    """Unpacked, with the dependencies of a plain install in sight and nothing of the extras."""
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(tmp_path / "site")
    script = textwrap.dedent("""
        import importlib.metadata, sys
        for name in ("torch", "transformers", "onnx", "onnxruntime", "openvino"):
            sys.modules[name] = None  # as if it were not installed
        (command,) = importlib.metadata.distribution("tfx-toolkit").entry_points
        import tfx
        assert tfx.__file__.startswith(sys.argv.pop(1)), tfx.__file__
        command.load()(prog_name="tfx")
    """)
    for arguments, said in ((["--help"], "doctor"), (["doctor", "--json"], '"works": false')):
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "site", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def requirements():
    yield from map(Requirement, PROJECT["project"]["dependencies"])
    for listed in PROJECT["project"]["optional-dependencies"].values():
        yield from map(Requirement, listed)


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        pin.name.lower().replace("_", "-"): pin.specifier
        for pin in (Requirement(line) for line in lines if line and not line.startswith("#"))
    }


def test_tested_pins_are_what_runs():
    """A pin that nobody ran is a guess; local version suffixes (+cpu) are of one machine."""
    different = {}
    for name, specifier in pins().items():
        try:
            installed = version(name).partition("+")[0]
        except ModuleNotFoundError:
            continue
        if not specifier.contains(installed, prereleases=True):
            different[name] = f"{specifier}, {installed} runs"
    assert not different


# Their libraries need a GPU, or no test runs them yet.
UNPINNED = {"onnxruntime-gpu", "tensorrt"}
UNPINNED |= {"tfx-toolkit"}


def test_every_requirement_is_pinned_inside_what_we_claim():
    pinned = pins()
    for requirement in requirements():
        name = requirement.name.lower()
        if name in UNPINNED:
            continue
        (pin,) = pinned[name]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement
