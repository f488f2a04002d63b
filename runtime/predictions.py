"""A stream of texts, files of sound or of arrays through a session, answers out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfx.codec import encode
from tfx.errors import DataError, FeedError
from tfx.processing import Activation
from tfx.signature import Signature

from .records import (
    FileFormat,
    Record,
    json_line,
    plain_numbers,
    read_arrays,
    read_jsonl,
    read_texts,
    short_number,
    write_arrays,
)
from .session import Session
from .speech.sounds import SoundAnswer
from .speech.transcript import Transcript
from .text.answers import Answer, TextLabel
from .text.batching import even_slices
from .text.extraction import TextAnswer
from .text.tokenizer import LongTexts, Text, TextError

Answered = tuple[Record, Answer]

# Files of sound that are read before the first is answered.
SOUNDS_AT_ONCE = 32


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
    records: Iterable[Record]
    if isinstance(source, Sequence):
        records = (Record(i, text, {"text": text}) for i, text in enumerate(source, 1))
    elif kind is FileFormat.NPZ:
        feed = read_arrays(source, where)
        _predict_arrays(session, feed, where, into, as_arrays, max_rows, advance)
        return
    elif kind is FileFormat.JSONL:
        records = read_jsonl(source, where, field=field)
    else:
        records = read_texts(source, where)
    _predict_texts(session, records, where, into, as_arrays, max_rows, long, advance)


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
    kept: list[Any] = []
    for first in range(0, len(paths), SOUNDS_AT_ONCE):
        part = list(paths[first : first + SOUNDS_AT_ONCE])
        answers = session.predict(part, max_rows=max_rows)
        if as_arrays:
            kept += answers
        else:
            for line, (path, answer) in enumerate(zip(part, answers, strict=True), first + 1):
                record = Record(line, "", {"audio": str(path)})
                into.write(answer_line(session, record, answer, "--audio"))
            into.flush()
        advance(len(part))
    if as_arrays:
        write_arrays(into, answer_arrays(session, kept))


def _predict_texts(
    session: Session,
    records: Iterable[Record],
    where: str,
    into: BinaryIO,
    as_arrays: bool,
    max_rows: int | None,
    long: LongTexts | str,
    advance: Callable[[int], None],
) -> None:
    kept: list[Answer] = []
    empty = True
    for chunk in answer_records(session, records, where, max_rows=max_rows, long=long):
        if as_arrays:
            kept += [answer for _, answer in chunk]
        else:
            lines = (answer_line(session, record, answer, where) for record, answer in chunk)
            into.write(b"".join(lines))
            into.flush()
        empty = False
        advance(len(chunk))
    if empty:
        raise DataError(f"{where} is empty, expected at least one text")
    if as_arrays:
        write_arrays(into, answer_arrays(session, kept))


def _predict_arrays(
    session: Session,
    feed: Mapping[str, np.ndarray],
    where: str,
    into: BinaryIO,
    as_arrays: bool,
    max_rows: int | None,
    advance: Callable[[int], None],
) -> None:
    parts = []
    for outputs in run_arrays(session, feed, max_rows=max_rows):
        if as_arrays:
            parts.append(outputs)
        else:
            into.write(b"".join(array_lines(session, outputs, where)))
            into.flush()
        advance(1)
    if as_arrays:
        joined = {
            name: np.concatenate([part[name] for part in parts]) if len(parts) > 1 else array
            for name, array in parts[0].items()
        }
        write_arrays(into, joined)


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


def run_arrays(
    session: Session, feed: Mapping[str, np.ndarray], *, max_rows: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Run a feed in as few parts along the batch axis as the model allows.

    Args:
        session: What runs.
        feed: Input name to array; the batch may be larger than the signature's range.
        max_rows: Most rows in one run; None for the range's largest.

    Yields:
        Output name to array, part by part.

    Raises:
        FeedError: If the feed does not fit, or was cut and an output has no batch axis.
    """
    signature = session.signature
    axis = batch_axis(signature)
    cut = {spec.name for spec in signature.inputs if spec.shape and spec.shape[0] == axis}
    rows = {len(feed[name]) for name in cut if name in feed and feed[name].ndim}
    limit = _most_rows(signature, axis, max_rows)
    if axis is None or len(rows) != 1 or limit is None or (total := rows.pop()) <= limit:
        yield session.predict(feed)
        return
    if whole := [spec.name for spec in signature.outputs if spec.shape[:1] != (axis,)]:
        raise FeedError(
            f"a batch of {total} is run in parts of {limit}, and {', '.join(whole)} "
            "has no batch axis to join them by",
            hint="Split the arrays and run each part by itself.",
        )
    for part in even_slices(total, limit):
        yield session.predict(
            {name: array[part] if name in cut else array for name, array in feed.items()}
        )


def answer_line(
    session: Session, record: Record, answer: Answer | SoundAnswer, where: str
) -> bytes:
    """The JSONL line of an answer: the record's fields, then the answer's.

    Raises:
        DataError: If both have a field of one name, or the answer holds NaN.
    """
    answered = answer_fields(session, answer)
    if taken := sorted(answered.keys() & record.fields.keys()):
        raise DataError(
            f"{where}, line {record.line}: the field {taken[0]!r} is the answer's as well",
            hint="Rename it in the input.",
        )
    try:
        return json_line({**record.fields, **answered})
    except ValueError as error:
        raise DataError(
            f"{where}, line {record.line}: the answer holds NaN or infinity, which JSON cannot",
            hint="Write npz instead: --format npz.",
        ) from error


def answer_fields(session: Session, answer: Answer | SoundAnswer) -> dict[str, Any]:
    """What a JSONL line says of one answer."""
    if isinstance(answer, Transcript):
        spoken: dict[str, Any] = encode(answer)
        return spoken
    if isinstance(answer, np.ndarray):
        return {"embedding": plain_numbers(answer)}
    if isinstance(answer, dict):
        return {name: plain_numbers(array) for name, array in answer.items()}
    if isinstance(answer, TextAnswer):
        return {
            "answer": answer.text,
            "score": short_number(answer.score),
            "start": answer.start,
            "end": answer.end,
        }
    if isinstance(answer, list):
        return {"tokens": [asdict(one) | {"score": short_number(one.score)} for one in answer]}
    fields: dict[str, Any] = {"label": answer.label, "score": short_number(answer.score)}
    said = session.bundle.manifest.processing.classification
    # Of labels that exclude each other the best one says enough.
    if said is not None and said.activation is not Activation.SOFTMAX and len(said.labels) > 1:
        fields["scores"] = {
            label: short_number(score)
            for label, score in zip(said.labels, answer.scores, strict=True)
        }
    return fields


def answer_arrays(session: Session, answers: list[Answer]) -> dict[str, np.ndarray]:
    """Answers of equal shape as named arrays: ``embeddings``, or ``scores`` and ``labels``.

    Raises:
        DataError: If each text's answer has a size of its own.
    """
    if answers and isinstance(answers[0], np.ndarray):
        return {"embeddings": np.stack([np.asarray(answer) for answer in answers])}
    labels = [answer for answer in answers if isinstance(answer, TextLabel)]
    said = session.bundle.manifest.processing.classification
    if said is None or said.per_token or len(labels) != len(answers):
        raise DataError(
            "npz holds embeddings, scores of texts, or outputs for arrays: "
            "these answers differ in size from text to text",
            hint="Use --format jsonl.",
        )
    scores = np.array([answer.scores for answer in labels], np.float32)
    return {"scores": scores.reshape(len(labels), -1), "labels": np.array(said.labels)}


def array_lines(session: Session, outputs: Mapping[str, np.ndarray], where: str) -> Iterator[bytes]:
    """JSONL lines of outputs, one per row of the batch; one in all where there is no batch axis.

    Raises:
        DataError: If an output holds NaN.
    """
    axis = batch_axis(session.signature)
    shapes = {spec.name: spec.shape for spec in session.signature.outputs}
    batched = [name for name in outputs if axis is not None and shapes[name][:1] == (axis,)]
    for row in range(len(outputs[batched[0]]) if batched else 1):
        document = {
            name: plain_numbers(array[row] if name in batched else array)
            for name, array in outputs.items()
        }
        try:
            yield json_line(document)
        except ValueError as error:
            raise DataError(
                f"{where}: the outputs of row {row} hold NaN or infinity, which JSON cannot",
                hint="Use --format npz.",
            ) from error


def batch_axis(signature: Signature) -> str | None:
    """The dynamic axis that the first input begins with, or None."""
    first = signature.inputs[0].shape[:1]
    return first[0] if first and isinstance(first[0], str) else None


def _most_rows(signature: Signature, axis: str | None, max_rows: int | None) -> int | None:
    sizes = signature.ranges.get(axis) if axis else None
    limits = [limit for limit in (sizes.max if sizes else None, max_rows) if limit is not None]
    return min(limits, default=None)
