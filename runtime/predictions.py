"""A stream of texts, files of sound or of arrays through a session, answers out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfx.errors import DataError, FeedError

from .answer_lines import answer_arrays, answer_line, array_lines
from .array_parts import run_arrays
from .records import FileFormat, Record, read_arrays, read_jsonl, read_texts, write_arrays
from .session import Session
from .text.answers import Answer
from .text.tokenizer import LongTexts, Text, TextError

Answered = tuple[Record, Answer]

# Files of sound that are read before the first is answered.
SOUNDS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class _Target:
    """What answers are written to.

    Attributes:
        stream: The bytes.
        as_arrays: Whether they are npz, which is written once all answers are there; else JSONL.
        advance: Told how many more are answered.
    """

    stream: BinaryIO
    as_arrays: bool
    advance: Callable[[int], None]

    def write(self, lines: Iterable[bytes]) -> None:
        self.stream.write(b"".join(lines))
        self.stream.flush()


def predict_stream(
    session: Session,
    source: Sequence[str] | BinaryIO,
    into: BinaryIO,
    *,
    kind: FileFormat = FileFormat.TEXT,
    where: str,
    field: str = "text",
    as_arrays: bool = False,
    max_rows: int | None = None,
    long: LongTexts | str = LongTexts.TRUNCATE,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Answer what a stream holds into another.

    Texts and JSONL become JSONL in constant memory; npz, on either side, is held whole.

    Args:
        session: What answers.
        source: A stream, or texts themselves.
        into: What is written to.
        kind: What the stream holds.
        where: Its name, for messages.
        field: Of a JSONL object, the one that holds the text.
        as_arrays: Write npz, not JSONL.
        max_rows: Most texts or rows in one run of the model.
        long: What is done with texts longer than the model takes, as ``Session.predict``.
        advance: Told how many more texts, or parts of an npz file, are done.

    Raises:
        DataError: If the source cannot be read, or an answer not be written.
        FeedError: If arrays do not fit the model, or it takes no text.
    """
    target = _Target(into, as_arrays, advance)
    records: Iterable[Record]
    if isinstance(source, Sequence):
        records = (Record(i, text, {"text": text}) for i, text in enumerate(source, 1))
    elif kind is FileFormat.NPZ:
        _predict_arrays(session, read_arrays(source, where), where, target, max_rows)
        return
    elif kind is FileFormat.JSONL:
        records = read_jsonl(source, where, field=field)
    else:
        records = read_texts(source, where)
    _predict_texts(session, records, where, target, max_rows, long)


def predict_sounds(
    session: Session,
    paths: Sequence[Path],
    into: BinaryIO,
    *,
    as_arrays: bool = False,
    max_rows: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Answer WAV files into a stream.

    Args:
        session: What answers.
        paths: The files.
        into: What is written to: a line for each, with its path as ``audio``.
        as_arrays: Write npz, not JSONL.
        max_rows: Most sounds in one run of the model.
        advance: Told how many more files are done.

    Raises:
        DataError: If a file cannot be read, or an answer not be written.
        FeedError: If the bundle takes no sound, or one does not fit.
    """
    if session.bundle.manifest.processing.audio is None:
        raise FeedError(
            f"{session.bundle.name} does not say how sound becomes arrays",
            hint="Give an npz of arrays named as the model's inputs.",
        )
    target = _Target(into, as_arrays, advance)
    kept: list[Any] = []
    for first in range(0, len(paths), SOUNDS_AT_ONCE):
        part = list(paths[first : first + SOUNDS_AT_ONCE])
        answers = session.predict(part, max_rows=max_rows)
        if as_arrays:
            kept += answers
        else:
            for line, (path, answer) in enumerate(zip(part, answers, strict=True), first + 1):
                record = Record(line, "", {"audio": str(path)})
                target.write([answer_line(session, record, answer, "--audio")])
        target.advance(len(part))
    if as_arrays:
        write_arrays(into, answer_arrays(session, kept))


def _predict_texts(
    session: Session,
    records: Iterable[Record],
    where: str,
    target: _Target,
    max_rows: int | None,
    long: LongTexts | str,
) -> None:
    kept: list[Answer] = []
    empty = True
    for chunk in answer_records(session, records, where, max_rows=max_rows, long=long):
        if target.as_arrays:
            kept += [answer for _, answer in chunk]
        else:
            target.write(answer_line(session, record, answer, where) for record, answer in chunk)
        empty = False
        target.advance(len(chunk))
    if empty:
        raise DataError(f"{where} is empty, expected at least one text")
    if target.as_arrays:
        write_arrays(target.stream, answer_arrays(session, kept))


def _predict_arrays(
    session: Session,
    feed: Mapping[str, np.ndarray],
    where: str,
    target: _Target,
    max_rows: int | None,
) -> None:
    parts = []
    for outputs in run_arrays(session, feed, max_rows=max_rows):
        if target.as_arrays:
            parts.append(outputs)
        else:
            target.write(array_lines(session, outputs, where))
        target.advance(1)
    if target.as_arrays:
        joined = {
            name: np.concatenate([part[name] for part in parts]) if len(parts) > 1 else array
            for name, array in parts[0].items()
        }
        write_arrays(target.stream, joined)


def answer_records(
    session: Session,
    records: Iterable[Record],
    where: str,
    *,
    max_rows: int | None = None,
    long: LongTexts | str = LongTexts.TRUNCATE,
    stretch: int | None = None,
) -> Iterator[list[Answered]]:
    """Answer a stream of texts, some hundreds at a time, in their order.

    Args:
        session: What answers.
        records: Taken as they are needed.
        where: Where they come from, for messages.
        max_rows: Most texts in one run of the model.
        long: What is done with texts longer than the model takes.
        stretch: Texts sorted by length together; None for what ``Session.map`` takes.

    Raises:
        DataError: If a text cannot be read by the tokenizer; names its line.
        FeedError: If the bundle takes no text.
    """
    waiting: deque[Record] = deque()  # from the oldest that is not answered
    given = 0

    def texts() -> Iterator[Text]:
        for record in records:
            waiting.append(record)
            yield record.text

    try:
        for answers in session.map_stretches(
            texts(), max_rows=max_rows, long=long, stretch=stretch
        ):
            given += len(answers)
            yield [(waiting.popleft(), answer) for answer in answers]
    except TextError as error:
        index, problem = next(iter(error.problems.items()))
        line = waiting[index - given].line
        raise DataError(f"{where}, line {line}: {problem}", hint=error.hint) from error
