"""Files that the standing comparisons are kept in: one a run, with its machine and its date.

A file is ``{"command", "created", "machine", "result"}``: the last is the JSON document that the
command prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from tfx.codec import DecodeError, decode, encode
from tfx.errors import DataError

from ..measuring.machine import Machine, this_machine
from .files import write_text

F = TypeVar("F", bound=Callable[..., Any])

# What a maker writes around a CPU's name, and what tells no machine from another.
NOISE = re.compile(r"\((?:R|TM)\)|\bCPU\b|\bProcessor\b|\bunknown\b|@.*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Stored:
    """What one run of a standing comparison found.

    Attributes:
        command: Its name, e.g. "cpu".
        created: When it began, ISO 8601 in UTC.
        machine: Where.
        result: The JSON document it prints.
    """

    command: str
    created: str
    machine: Machine
    result: Mapping[str, Any]


def save_option(function: F) -> F:
    """Add ``--save FOLDER``."""
    return click.option(
        "--save",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder to keep results in.",
    )(function)


def now() -> str:
    """This moment, as files of results say when they began."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def save_result(
    folder: Path,
    command: str,
    created: str,
    document: Mapping[str, Any],
    machine: Machine | None = None,
) -> Path:
    """Write a result under its machine, command and date; the file.

    Args:
        folder: Made if it is not there.
        command: What measured.
        created: When it began, ISO 8601 in UTC.
        document: What it found.
        machine: Where; None for this one as it is now.

    Raises:
        DataError: If it cannot be written.
    """
    machine = machine or this_machine()
    when = created[:19].replace(":", "")
    path = folder / f"{slug_of(machine)}-{command}-{when}.json"
    stored = Stored(command, created, machine, document)
    write_text(path, json.dumps(encode(stored), indent=1, allow_nan=False) + "\n")
    return path


def read_stored(document: Any) -> Stored | None:
    """What ``save_result`` wrote, or None for something else.

    Raises:
        DataError: If it is damaged.
    """
    if not isinstance(document, dict) or not {"command", "result"} <= document.keys():
        return None
    try:
        found = decode(Stored, document)
    except DecodeError as error:
        raise DataError(f"no stored result: {error}", hint="Measure again with --save.") from error
    return found


def slug_of(machine: Machine) -> str:
    """A machine in a file's name: its CPU, and how many may be used."""
    words = re.findall(r"[a-z0-9.]+", NOISE.sub(" ", machine.cpu).lower())
    return "-".join([*(words or ["cpu"]), f"{machine.usable_cpus}cpu"])
