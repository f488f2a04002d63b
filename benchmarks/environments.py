"""``python -m tfx.bench.environments``: an environment for each peer whose versions clash.

Each is a folder of its own with a virtual environment, its log, and a line that says whether it
worked. One that is there, working or not, is not tried again: delete its folder for that.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from tfx.codec import DecodeError, decode, encode
from tfx.console import FILE, FOLDER, told_errors
from tfx.errors import DataError

STATE = "state.json"

# Name -> what pip installs; the newest that fit together, for what is compared is what a user gets.
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "optimum": (
        "sentence-transformers",
        "optimum-onnx[onnxruntime]",
        "optimum-intel[openvino]",
        "torch",
    ),
    "fastembed": ("fastembed",),
    "ctranslate2": ("ctranslate2", "transformers[torch]", "torch"),
    "genai": ("onnxruntime-genai", "onnx", "onnx_ir", "transformers", "torch"),
}

# Installed from a version without a build, pip would take one for GPUs.
CONSTRAINED = ("torch",)

# Runs a command, writes what it prints to a file, and gives its exit status.
Run = Callable[[Sequence[str], Path], int]


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a peer's library is.

    Attributes:
        name: Key of ``ENVIRONMENTS``.
        python: Its interpreter.
        problem: Why it cannot be used; "" if it can.
    """

    name: str
    python: str
    problem: str = ""


def run_logged(command: Sequence[str], log: Path) -> int:
    """Run a command with its output at the end of a file; its exit status."""
    with log.open("ab") as file:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        ).returncode


def make_environment(
    name: str, folder: Path, constraints: Iterable[str], run: Run = run_logged
) -> Environment:
    """Make one environment, or find the one that was made.

    Args:
        name: Key of ``ENVIRONMENTS``.
        folder: Of all environments.
        constraints: Lines for pip.
        run: Runs pip.

    Raises:
        DataError: If the folder holds something else.
    """
    own = folder / name
    if (own / STATE).is_file():
        return read_environment(own / STATE)
    own.mkdir(parents=True, exist_ok=True)
    (own / "constraints.txt").write_text("".join(f"{line}\n" for line in constraints))
    log, python = own / "log.txt", own / "venv" / "bin" / "python"
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(own / "venv")],
        [
            *(str(python), "-m", "pip", "install", "-c", str(own / "constraints.txt")),
            *ENVIRONMENTS[name],
        ],
    )
    failed = any(run(step, log) for step in steps)
    environment = Environment(name, str(python.absolute()), _why(log) if failed else "")
    (own / STATE).write_text(json.dumps(encode(environment)) + "\n")
    return environment


def read_environment(state: Path) -> Environment:
    """What was written when it was made.

    Raises:
        DataError: If the file holds something else.
    """
    try:
        return decode(Environment, json.loads(state.read_text()))
    except (OSError, ValueError, DecodeError) as error:
        raise DataError(
            f"{state} cannot be read: {error}", hint="Delete its folder, to make it again."
        ) from error


def read_environments(folder: Path) -> dict[str, Environment]:
    """All that were made in a folder, by name.

    Raises:
        DataError: If one cannot be read.
    """
    found = (read_environment(path) for path in sorted(folder.glob(f"*/{STATE}")))
    return {one.name: one for one in found}


def constraints_of(text: str) -> list[str]:
    """Lines of our constraints that a peer must follow too."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if re.split(r"[=<>~!; ]", line)[0] in CONSTRAINED]


def _why(log: Path) -> str:
    """The last line of a log in which pip says what is wrong."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    errors = [line for line in lines if line.startswith("ERROR: ")]
    said = (errors or lines or ["it printed nothing"])[-1]
    return f"not installed: {said.removeprefix('ERROR: ')}"


@click.command
@click.argument("folder", type=FOLDER)
@click.option("--constraints", type=FILE, help="A file of pip's; only its torch is taken.")
def environments(folder: Path, constraints: Path | None) -> None:
    """Make an environment in FOLDER for each peer that needs one of its own."""
    lines = constraints_of(constraints.read_text()) if constraints else []
    with told_errors():
        for name in ENVIRONMENTS:
            click.echo(f"{name} ...", err=True)
            made = make_environment(name, folder, lines)
            click.echo(f"{name}: {made.problem or made.python}")


if __name__ == "__main__":
    environments()
