"""Files of texts, JSONL and npz: read record by record, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from tfx.errors import DataError
from tfx.staging import staging_path

from .text.tokenizer import Text, text_problem

PAIR_FIELD = "text_pair"


class FileFormat(StrEnum):
    """What a file holds."""

    TEXT = "text"  # one text a line
    JSONL = "jsonl"  # one JSON string or object a line
    NPZ = "npz"  # NumPy arrays by name


SUFFIXES = {
    ".txt": FileFormat.TEXT,
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
    ".npz": FileFormat.NPZ,
}


@dataclass(frozen=True, slots=True)
class Record:
    """One text of a file.

    Attributes:
        line: Its number, from 1.
        text: The text, or pair of texts.
        fields: What the answer's line repeats, the text among it.
    """

    line: int
    text: Text
    fields: Mapping[str, Any]


def format_of(path: Path) -> FileFormat | None:
    """What a file's suffix says it holds; None if it says nothing."""
    return SUFFIXES.get(path.suffix.lower())


def read_texts(stream: BinaryIO, where: str) -> Iterator[Record]:
    """Read one text a line; an empty line is an empty text.

    Args:
        stream: UTF-8; read as the records are taken.
        where: Its name, for messages.

    Raises:
        DataError: If a line is not UTF-8.
    """
    for number, line in numbered_lines(stream, where):
        yield Record(number, line, {"text": line})


def read_jsonl(stream: BinaryIO, where: str, *, field: str = "text") -> Iterator[Record]:
    """Read one JSON string a line, or one object that holds the text in a field.

    An object may hold a second text in ``text_pair``; its other fields are carried along.

    Args:
        stream: UTF-8; read as the records are taken.
        where: Its name, for messages.
        field: Of an object, the one that holds the text.

    Raises:
        DataError: If a line is not that; names the line.
    """
    for number, value in read_json_lines(stream, where):
        fields = {"text": value} if isinstance(value, str) else value
        key = "text" if isinstance(value, str) else field
        if key not in fields:
            named = ", ".join(map(repr, fields)) or "none"
            raise bad_line(
                where,
                number,
                f"no field {key!r}, it has: {named}",
                hint="Name the field that holds the text with --field.",
            )
        text: Any = fields[key]
        if PAIR_FIELD in fields and not isinstance(value, str):
            text = (text, fields[PAIR_FIELD])
        if problem := text_problem(text):
            raise bad_line(where, number, problem)
        yield Record(number, text, fields)


def read_json_lines(stream: BinaryIO, where: str) -> Iterator[tuple[int, str | dict[str, Any]]]:
    """Read one JSON string or object a line, with the number of its line.

    Args:
        stream: UTF-8; read as the lines are taken.
        where: Its name, for messages.

    Raises:
        DataError: If a line is neither; names the line.
    """
    for number, line in numbered_lines(stream, where):
        try:
            value = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise bad_line(
                where,
                number,
                f"not JSON: {error}",
                hint="Check that the file is whole: each line is one string or object.",
            ) from error
        if not isinstance(value, str | dict):
            raise bad_line(
                where, number, f"got a JSON {_kind(value)}, expected a string or an object"
            )
        yield number, value


def read_arrays(file: Path | BinaryIO, where: str) -> dict[str, np.ndarray]:
    """Read every array of an npz file; nothing pickled is ever loaded.

    Args:
        file: A path or a stream, which is read to its end.
        where: Its name, for messages.

    Raises:
        DataError: If it is damaged, no npz file, or holds Python objects.
    """
    try:
        source = file if isinstance(file, Path) else io.BytesIO(file.read())
        loaded = np.load(source, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(
                f"{where} holds one array without a name, expected npz",
                hint="Write it with numpy.savez, each array named as the model's input.",
            )
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{where} is not an npz file of plain arrays: {error}",
            hint="Write it with numpy.savez, and without objects.",
        ) from error


def refuse_taken(path: Path, *, force: bool) -> None:
    """Refuse to write over a file, unless ``force``, or over a directory.

    Raises:
        DataError: If ``path`` is one.
    """
    if path.is_dir():
        raise DataError(f"{path} is a directory", hint="Name a file with --output.")
    if path.is_file() and not force:
        raise DataError(f"{path} exists already", hint="Use --force to replace it.")


@contextlib.contextmanager
def write_file(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when the block ends well.

    Args:
        path: What to write. What is there and is no regular file (a pipe, a device) is
            written to directly.
        force: Replace a file that is there already.

    Raises:
        DataError: If it is there already or cannot be written.
    """
    target = path.resolve()  # a link keeps leading to the file it leads to
    refuse_taken(path, force=force)
    staged: Path | None = None
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as stream:
                yield stream
            return
        staged = staging_path(target)
        with staged.open("xb") as stream:
            if target.exists():
                staged.chmod(target.stat().st_mode & 0o777)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        refuse_taken(path, force=force)  # again: another process may have been faster
        os.replace(staged, target)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if staged is not None:
            with contextlib.suppress(OSError):  # of a read-only disk, though nothing is there
                staged.unlink()


@contextlib.contextmanager
def write_stdout(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Write to ``stream``, telling why if it cannot be; a reader that left is not an error.

    Raises:
        DataError: If it cannot be written.
    """
    try:
        yield stream
        stream.flush()
    except BrokenPipeError:
        raise  # the command group ends quietly
    except OSError as error:
        raise DataError(f"cannot write to stdout: {error.strerror}") from error


def write_arrays(stream: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file; the stream need not be seekable."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    stream.write(buffer.getbuffer())


def json_line(document: Mapping[str, Any]) -> bytes:
    """One line of JSONL.

    Raises:
        ValueError: If a number in it is NaN or infinite, which JSON has no word for.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    # A lone surrogate, as \ud800 in what was read, is no UTF-8: it goes out as it came in.
    return text.encode(errors="backslashreplace") + b"\n"


def plain_numbers(array: np.ndarray) -> Any:
    """Nested lists of Python numbers, those of float32 as ``short_number``."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 4:
        return array.tolist()
    if array.ndim > 1:
        return [plain_numbers(row) for row in array]
    if array.ndim == 0:
        return short_number(array.item())
    return [short_number(value) for value in array.tolist()]


def short_number(value: float) -> float:
    """A float32's value with the 9 digits that give it back exactly."""
    return float(f"{value:.9g}")


def numbered_lines(stream: BinaryIO, where: str) -> Iterator[tuple[int, str]]:
    """Each line of a stream and its number, from 1, as they are taken.

    Args:
        stream: UTF-8.
        where: Its name, for messages.

    Raises:
        DataError: If a line is not UTF-8, or the stream cannot be read.
    """
    number = 0
    try:
        for number, data in enumerate(stream, 1):
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")  # how some editors begin UTF-8
            # Only \n and \r\n end a line: the other separators of Unicode are text.
            yield number, data.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise bad_line(
            where,
            number,
            f"not UTF-8: byte 0x{byte:02x} at {error.start}",
            hint="Convert the file to UTF-8.",
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {where}: {error.strerror}") from error


def bad_line(where: str, number: int, problem: str, *, hint: str = "") -> DataError:
    """The error that names a line and what is wrong with it."""
    return DataError(f"{where}, line {number}: {problem}", hint=hint)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "number" if isinstance(value, int | float) else "array"
