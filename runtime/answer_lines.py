"""Answers as JSONL lines, and as the arrays of an npz file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from tfx.codec import encode
from tfx.errors import DataError
from tfx.processing import Activation

from .array_parts import batch_axis
from .records import Record, json_line, plain_numbers, short_number
from .session import Session
from .speech.sounds import SoundAnswer
from .speech.transcript import Transcript
from .text.answers import Answer, TextLabel
from .text.extraction import TextAnswer


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
