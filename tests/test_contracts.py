"""The import contracts of pyproject.toml hold, and break where they should."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def linted(tmp_path_factory):
    """Lint a copy of the code after appending a line to one of its files."""
    folder = tmp_path_factory.mktemp("contracts")
    for name in ("src", "benchmarks", "export", "quantize", "runtime"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", folder)

    def lint(path=None, line=""):
        code = "import sys; from importlinter.cli import lint_imports; "
        code += "sys.exit(lint_imports(no_cache=True))"
        environment = os.environ | {"PYTHONPATH": str(folder / "src")}
        file = folder / path if path else None
        kept = file.read_text() if file else ""
        try:
            if file:
                file.write_text(f"{kept}\n{line}\n")
            return subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                cwd=folder,
                env=environment,
            )
        finally:
            if file:
                file.write_text(kept)

    return lint


def test_contracts_hold(linted):
    done = linted()
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        (
            "runtime/cpus.py",
            "from tfx.export.checkpoint import loader",
            "folders import downwards only",
        ),
        (
            "benchmarks/measuring/workload.py",
            "def f():\n    from tfx.export.checkpoint import loader",
            "bench measures bundles and never builds them",
        ),
        (
            "src/tfx/feeds.py",
            "def f():\n    import tfx.runtime.session",
            "the core imports no folder",
        ),
    ],
)
def test_planted_import_breaks_its_contract(linted, path, line, contract):
    done = linted(path, line)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in done.stdout
