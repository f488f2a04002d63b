"""Prompts of a file or of stdin, one a line or JSONL; and what is written after them, as JSONL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from tfx.errors import DataError

from ..records import FileFormat, bad_line, json_line, numbered_lines, read_json_lines
from .generator import Generated

# Of a JSONL object: a chat, else one of the names that a prompt goes by.
MESSAGES, TEXTS = "messages", ("text", "prompt")

PROMPT_FIELDS_HINT = (
    'Write a string, {"text": ...}, {"prompt": ...}, or {"messages": ...} with a chat.'
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt as it was read.

    Attributes:
        prompt: A text, or a chat: messages with "role" and "content".
        line: Its line, from 1; 0 for one that is of no file.
        fields: What its line of JSONL repeats.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    line: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(stream: BinaryIO, where: str, kind: FileFormat) -> list[Asked]:
    """Read prompts; of a text's lines the empty ones are left out.

    Args:
        stream: UTF-8.
        where: Its name, for messages.
        kind: ``TEXT`` or ``JSONL``.

    Raises:
        DataError: If it is neither, or holds no prompt; names the line.
    """
    if kind is FileFormat.NPZ:
        raise DataError(f"{where} holds arrays, expected texts", hint="Give text or JSONL.")
    read = _of_jsonl if kind is FileFormat.JSONL else _of_text
    if not (found := list(read(stream, where))):
        raise DataError(f"{where} has no prompts", hint="Write one on each line.")
    return found


def written_line(asked: Asked, one: Generated, where: str) -> bytes:
    """The JSONL line of a text: fields of its prompt, then ``generated``, ``ids``, ``finish``.

    Raises:
        DataError: If the prompt has a field of such a name.
    """
    said = asdict(one)
    answered = {"generated": said.pop("text"), **said}
    if taken := sorted(answered.keys() & asked.fields.keys()):
        raise bad_line(
            where,
            asked.line,
            f"the field {taken[0]!r} is the answer's as well",
            hint="Rename it in the input.",
        )
    return json_line({**asked.fields, **answered})


def _of_text(stream: BinaryIO, where: str) -> Iterator[Asked]:
    for number, line in numbered_lines(stream, where):
        if line.strip():
            yield Asked(line, number, {"text": line})


def _of_jsonl(stream: BinaryIO, where: str) -> Iterator[Asked]:
    for number, value in read_json_lines(stream, where):
        if isinstance(value, str):
            yield Asked(value, number, {"text": value})
            continue
        named = next((name for name in (MESSAGES, *TEXTS) if name in value), "")
        prompt: Any = value.get(named)
        if named == MESSAGES and not _is_chat(prompt):
            raise bad_line(
                where,
                number,
                f"{MESSAGES!r} is no list of objects with a role",
                hint='Write each message as {"role": ..., "content": ...}.',
            )
        if named != MESSAGES and not isinstance(prompt, str):
            what = f"{named!r} is no text" if named else "has no prompt"
            raise bad_line(where, number, what, hint=PROMPT_FIELDS_HINT)
        yield Asked(prompt, number, value)


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages)
    )
