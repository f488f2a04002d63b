"""Rows of TSV, CSV and JSONL files, as fields by name with the number of their line."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tfx.errors import DataError

from ..records import bad_line, numbered_lines, read_json_lines

TSV, CSV = ".tsv", ".csv"
WHOLE = "Check that the file is whole, and that its suffix says what parts it."

# Suffixes of files with fields by name.
TABLES = (TSV, CSV, ".jsonl", ".ndjson")

Row = tuple[int, Mapping[str, Any]]


def read_table(stream: BinaryIO, where: str, suffix: str) -> tuple[list[str], Iterator[Row]]:
    """Read a header and the lines below it.

    Args:
        stream: UTF-8; read as the rows are taken.
        where: Its name, for messages.
        suffix: ``TSV``, where nothing is quoted, or ``CSV``.

    Returns:
        Names of the columns, none of an empty file; and the rows, without empty lines.

    Raises:
        DataError: If a line is damaged, or has not as many columns as the header.
    """
    lines = (line + "\n" for _, line in numbered_lines(stream, where))
    if suffix == TSV:
        rows = csv.reader(lines, csv.excel_tab, quoting=csv.QUOTE_NONE, strict=True)
    else:
        rows = csv.reader(lines, csv.excel, quoting=csv.QUOTE_MINIMAL, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
    except csv.Error as error:
        raise bad_line(where, rows.line_num, f"damaged: {error}", hint=WHOLE) from error
    return header, _rows_below(header, rows, where)


def read_rows(path: Path) -> list[Row]:
    """All rows of a table, or all objects of a JSONL file.

    Raises:
        DataError: If it cannot be read, is damaged or has no row.
    """
    with _opened(path) as rows:
        found = list(rows)
    if not found:
        raise DataError(f"{path} is empty, expected at least one row")
    return found


def first_row(path: Path) -> Mapping[str, Any]:
    """The fields of a file's first row; none of one that is empty or damaged there.

    Raises:
        DataError: If it cannot be read.
    """
    with _opened(path) as rows:
        try:
            return next(iter(rows))[1]
        except (DataError, StopIteration):
            return {}  # whoever reads all of it says what is wrong


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Iterable[Row]]:
    """The rows of a file, read as they are taken.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if (suffix := path.suffix.lower()) in (TSV, CSV):
                yield read_table(stream, path.name, suffix)[1]
            else:
                yield _objects(stream, path.name)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _rows_below(header: list[str], rows: Any, where: str) -> Iterator[Row]:
    try:
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise bad_line(
                    where,
                    rows.line_num,
                    f"got {len(row)} columns, expected {len(header)} as in the header",
                    hint=WHOLE,
                )
            yield rows.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise bad_line(where, rows.line_num, f"damaged: {error}", hint=WHOLE) from error


def _objects(stream: BinaryIO, where: str) -> Iterator[Row]:
    for number, value in read_json_lines(stream, where):
        if isinstance(value, str):
            raise bad_line(
                where,
                number,
                "got a string, expected an object",
                hint="Write each line as an object with fields.",
            )
        yield number, value
