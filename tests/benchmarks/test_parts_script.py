"""Files carried in parts: whole again, or an error."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "parts.sh"

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


def parts(*arguments):
    return subprocess.run(["bash", SCRIPT, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def wheels(tmp_path, rng):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "large-1.0+cu12.whl").write_bytes(rng.bytes(2_500_000))
    (folder / "small one.whl").write_bytes(b"small")
    (folder / "empty.whl").write_bytes(b"")
    return folder


def test_there_and_back(wheels, tmp_path):
    assert parts("split", wheels, tmp_path / "parts", 1).returncode == 0
    found = {path.name: path.stat().st_size for path in (tmp_path / "parts").iterdir()}
    assert len([name for name in found if name.startswith("large")]) == 3
    assert max(found.values()) <= 1 << 20
    done = parts("join", tmp_path / "parts", tmp_path / "back")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for path in wheels.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_a_damaged_part(wheels, tmp_path):
    parts("split", wheels, tmp_path / "parts", 1)
    part = tmp_path / "parts" / "large-1.0+cu12.whl.part0001"
    part.write_bytes(part.read_bytes()[::-1])
    done = parts("join", tmp_path / "parts", tmp_path / "back")
    assert done.returncode == 1
    assert "error: parts are damaged or missing" in done.stderr
    assert "large-1.0+cu12.whl: FAILED" in done.stdout


@pytest.mark.parametrize("lost", ["large-1.0+cu12.whl.part0002", "small one.whl.part0000"])
def test_a_lost_part(wheels, tmp_path, lost):
    parts("split", wheels, tmp_path / "parts", 1)
    (tmp_path / "parts" / lost).unlink()
    assert parts("join", tmp_path / "parts", tmp_path / "back").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "split FOLDER PARTS"),
        (["split", "none", "to"], 1, "error: no such folder: none"),
        (["join", "none", "to"], 1, "error: none holds no SHA256SUMS"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    done = parts(*arguments)
    assert done.returncode == code
    assert said in done.stderr


def test_sizes_and_folders_that_cannot_be(wheels, tmp_path):
    assert "expected a number of megabytes" in parts("split", wheels, tmp_path / "p", "x").stderr
    assert "is there already" in parts("split", wheels, wheels).stderr
    (wheels / "folder").mkdir()
    assert "is no file" in parts("split", wheels, tmp_path / "q").stderr
    (tmp_path / "nothing").mkdir()
    assert "holds no files" in parts("split", tmp_path / "nothing", tmp_path / "r").stderr
