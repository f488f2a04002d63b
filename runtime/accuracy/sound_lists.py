"""Lists of WAV files and what is said in them, or what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx.errors import DataError, listing

from ..records import bad_line
from .samples import LABEL_COLUMNS, Dataset, DatasetKind, typed_labels
from .tables import TABLES, first_row, read_rows

# Columns that name a WAV file, and those that say what is said in it.
SOUND_COLUMNS = ("audio", "path", "file", "wav")
SPOKEN_COLUMNS = ("text", "transcript", "transcription", "sentence")

SUFFIX = ".wav"

# Files that are not there, shown in one message.
SHOWN_FILES = 5


def is_sound_list(path: Path) -> bool:
    """Whether the first row of a table or JSONL file names a WAV file.

    Raises:
        DataError: If it cannot be read.
    """
    return path.suffix.lower() in TABLES and bool(_sound_column(first_row(path)))


def read_sound_list(path: Path) -> Dataset:
    """Read a list of sounds: a row for each, with a file and its text or its label.

    The file is in a column of ``SOUND_COLUMNS``, relative to the list's folder; the text in one
    of ``SPOKEN_COLUMNS``, or a class or score in one of ``LABEL_COLUMNS``.

    Args:
        path: TSV or CSV with a header, or JSONL.

    Raises:
        DataError: If it is damaged, or a file is not there; names them.
    """
    rows = read_rows(path)
    sound = _sound_column(rows[0][1])
    known = {str(name).lower(): name for name in rows[0][1]}
    label = next((known[name] for name in (*SPOKEN_COLUMNS, *LABEL_COLUMNS) if name in known), "")
    used = (sound, label) if label else (sound,)
    files, labels, lost = [], [], []
    for number, fields in rows:
        for name in used:
            if not isinstance(fields.get(name), str | int | float):
                raise bad_line(
                    path.name,
                    number,
                    f"no field {name!r}, or no text in it",
                    hint="Give every line the fields of the first.",
                )
        file = path.parent / str(fields[sound])
        if not file.is_file():
            lost.append(f"line {number}: {fields[sound]}")
        files.append(str(file))
        labels.append(str(fields[label]) if label else "")
    if lost:
        more = [f"and {len(lost) - SHOWN_FILES} more"] if len(lost) > SHOWN_FILES else []
        raise DataError(
            listing(f"{path.name} names files that are not there:", [*lost[:SHOWN_FILES], *more]),
            hint="Name files relative to the folder of the list.",
        )
    said: Any = None
    if label:
        spoken = str(label).lower() in SPOKEN_COLUMNS
        said = tuple(labels) if spoken else typed_labels(labels)
    return Dataset(path.name, DatasetKind.SOUNDS, tuple(files), said, used)


def _sound_column(fields: Mapping[str, Any]) -> str:
    """The column that names a WAV file, or ""."""
    known = {str(name).lower(): name for name in fields}
    named = (known[name] for name in SOUND_COLUMNS if name in known)
    return next((name for name in named if str(fields[name]).lower().endswith(SUFFIX)), "")
