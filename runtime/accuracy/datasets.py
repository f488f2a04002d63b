"""Files of samples, labelled or not: what accuracy is measured and ranges are calibrated on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfx.errors import DataError

from ..records import bad_line, numbered_lines, read_arrays, read_json_lines, read_texts
from ..text.tokenizer import Text, text_problem
from .samples import IMAGES, LABEL_COLUMNS, Dataset, DatasetKind, typed_labels
from .tables import CSV, TSV, read_table

# Columns that hold the text, in the order they are looked for.
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("text", "text_pair"),
    ("text1", "text2"),
)
TEXT_COLUMNS = ("sentence", "text", "question")


LABELS, CLASSES, STRING = "labels", "classes", "string"


def read_dataset(path: Path, *, limit: int | None = None, seed: int = 0) -> Dataset:
    """Read a file of samples, whatever it holds; its suffix says how.

    - ``.tsv`` (nothing quoted) and ``.csv``: a header, then one sample a line. Columns are
      recognised by name, any case: ``PAIR_COLUMNS``, ``TEXT_COLUMNS``, ``LABEL_COLUMNS``.
    - ``.jsonl``, ``.ndjson``: one string or object a line, fields as those columns.
    - ``.txt``: one text a line; lines without a word are left out.
    - ``.conll``, ``.bio``: a word and its tag (B-, I-, O) a line, first and last of the columns;
      an empty line after each sentence.
    - ``.json``: SQuAD version 1.1.
    - ``.npz``: arrays named as the model's inputs; or ``images``, uint8 of
      ``[samples, height, width, 3]``. ``labels`` and the names of the ``classes`` are optional.
    - a table or JSONL whose first row names a WAV file: sounds, as ``read_sound_list`` says; or
      with columns of a text and its translation, as ``read_translation_list`` says.
    - a folder: images, as ``read_image_folder`` says.

    Args:
        path: The file or folder.
        limit: Most samples; drawn with ``seed`` where the file has more. None for all.
        seed: Of that draw.

    Raises:
        DataError: If it cannot be read, is damaged or empty, or lacks what is needed; names
            the line where there is one.
    """
    if path.is_dir():
        from .image_folders import read_image_folder

        return read_image_folder(path, limit=limit, seed=seed)
    from .lists import read_list

    if (listed := read_list(path)) is not None:
        return listed if limit is None else listed.sample(limit, seed=seed)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"what {path} holds is not clear: its suffix is {path.suffix!r}, expected one of "
            f"{', '.join(READERS)}",
            hint="Rename it after what it holds.",
        )
    try:
        with path.open("rb") as stream:
            dataset = reader(stream, path.name)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return dataset if limit is None else dataset.sample(limit, seed=seed)


def _read_tsv(stream: BinaryIO, where: str) -> Dataset:
    return _read_table(stream, where, TSV)


def _read_csv(stream: BinaryIO, where: str) -> Dataset:
    return _read_table(stream, where, CSV)


def _read_table(stream: BinaryIO, where: str, suffix: str) -> Dataset:
    header, rows = read_table(stream, where, suffix)
    chosen = _columns(header, where, "a header with")
    return _from_fields(list(rows), chosen, where)


def _read_jsonl(stream: BinaryIO, where: str) -> Dataset:
    found: list[tuple[int, Mapping[str, Any]]] = []
    for number, value in read_json_lines(stream, where):
        found.append((number, {STRING: value} if isinstance(value, str) else value))
    if not found:
        raise _empty(where)
    strings = {STRING} == found[0][1].keys()
    chosen = ((STRING,), "") if strings else _columns(list(found[0][1]), where, "objects with")
    return _from_fields(found, chosen, where)


def _columns(names: Sequence[str], where: str, expected: str) -> tuple[tuple[str, ...], str]:
    """The columns that hold the text or texts, and that of the label or ""."""
    if not names:
        raise _empty(where)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where} has two columns called {twice[0]!r}", hint="Rename one of them.")
    known = {name.lower(): name for name in names}
    label = next((known[name] for name in LABEL_COLUMNS if name in known), "")
    for wanted in (*PAIR_COLUMNS, *((name,) for name in TEXT_COLUMNS)):
        if all(name in known for name in wanted):
            return tuple(known[name] for name in wanted), label
    choices = " or ".join(" and ".join(wanted) for wanted in ((TEXT_COLUMNS[0],), PAIR_COLUMNS[0]))
    raise DataError(
        f"{where} has no column of text: got {', '.join(map(repr, names))[:200]}, "
        f"expected {expected} {choices}",
        hint=f"Name one of: {', '.join(TEXT_COLUMNS)}; or two of: "
        f"{', '.join('+'.join(pair) for pair in PAIR_COLUMNS)}.",
    )


def _from_fields(
    rows: Sequence[tuple[int, Mapping[str, Any]]],
    chosen: tuple[tuple[str, ...], str],
    where: str,
) -> Dataset:
    columns, label = chosen
    texts: list[Text] = []
    labels: list[Any] = []
    for number, fields in rows:
        used = (*columns, label) if label else columns
        if missing := [name for name in used if name not in fields]:
            raise bad_line(
                where,
                number,
                f"no field {missing[0]!r}, it has: {', '.join(map(repr, fields)) or 'none'}",
                hint="Give every line the fields of the first.",
            )
        parts = [fields[name] for name in columns]
        text = parts[0] if len(parts) == 1 else tuple(parts)
        if problem := text_problem(text):
            raise bad_line(where, number, problem)
        texts.append(text)
        if label:
            value = fields[label]
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise bad_line(
                    where, number, f"{label} is {json.dumps(value)}, expected a number or a name"
                )
            if value == "":
                raise bad_line(where, number, f"{label} is empty, expected a number or a name")
            labels.append(value)
    kind = DatasetKind.PAIRS if len(columns) == 2 else DatasetKind.TEXTS
    used = (*columns, label) if label else columns
    return Dataset(where, kind, tuple(texts), typed_labels(labels) if label else None, used)


def _read_plain(stream: BinaryIO, where: str) -> Dataset:
    texts = (record.text for record in read_texts(stream, where))
    kept = tuple(text for text in texts if isinstance(text, str) and text.strip())
    return Dataset(where, DatasetKind.TEXTS, kept, None)


def _read_conll(stream: BinaryIO, where: str) -> Dataset:
    texts: list[str] = []
    labels: list[tuple[str, ...]] = []
    words: list[str] = []
    tags: list[str] = []

    def finish() -> None:
        if words:
            texts.append(" ".join(words))
            labels.append(tuple(tags))
        words.clear()
        tags.clear()

    for number, line in numbered_lines(stream, where):
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or parts[0] == "-DOCSTART-":
            finish()
            continue
        word, tag = parts[0].strip(), parts[-1].strip()
        if len(parts) < 2 or not word or " " in word:
            raise bad_line(where, number, f"got {line[:60]!r}, expected a word, a tab and its tag")
        if tag != "O" and not (tag.startswith(("B-", "I-")) and len(tag) > 2):
            raise bad_line(
                where, number, f"got the tag {tag!r}, expected O, or B- or I- and a type"
            )
        words.append(word)
        tags.append(tag)
    finish()
    return Dataset(where, DatasetKind.TOKENS, tuple(texts), tuple(labels), ("token", "tag"))


def _read_squad(stream: BinaryIO, where: str) -> Dataset:
    try:
        document = json.loads(stream.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: {error.reason} at {error.start}",
            hint="Convert the file to UTF-8.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON: {error}", hint="Check that the file is whole."
        ) from error
    questions: list[Text] = []
    answers: list[tuple[str, ...]] = []
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    questions.append((asked["question"], paragraph["context"]))
                    answers.append(tuple(answer["text"] for answer in asked["answers"]))
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{where} is not SQuAD: expected data[].paragraphs[].qas[].answers[], "
            f"a question each and a context: {error!r}"
        ) from error
    for number, (question, accepted) in enumerate(zip(questions, answers, strict=True), 1):
        problem = text_problem(question)
        if not problem and not accepted:
            problem = "has no answer, expected version 1.1, where each has one"
        if not problem and not all(isinstance(answer, str) for answer in accepted):
            problem = "has an answer that is no text"
        if problem:
            raise DataError(f"{where}, question {number}: {problem}")
    columns = ("question", "context", "answers")
    return Dataset(where, DatasetKind.QUESTIONS, tuple(questions), tuple(answers), columns)


def _read_npz(stream: BinaryIO, where: str) -> Dataset:
    arrays = read_arrays(stream, where)
    columns = tuple(arrays)
    labels, classes = arrays.pop(LABELS, None), arrays.pop(CLASSES, None)
    kind = DatasetKind.IMAGES if IMAGES in arrays else DatasetKind.FEEDS
    if kind is DatasetKind.IMAGES:
        images = arrays[IMAGES]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise DataError(
                f"{where}: images are {images.dtype}{list(images.shape)}, expected uint8 of "
                "[samples, height, width, 3]"
            )
        arrays = {IMAGES: images}
        columns = tuple(name for name in columns if name in (IMAGES, LABELS, CLASSES))
    if not arrays:
        raise DataError(
            f"{where} has no inputs: got {', '.join(columns) or 'no arrays'}, expected arrays "
            "named as the model's inputs"
        )
    counted = arrays | ({LABELS: labels} if labels is not None else {})
    if len({array.shape[:1] for array in counted.values()}) != 1 or not all(
        array.ndim for array in counted.values()
    ):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in counted.items())
        raise DataError(
            f"{where}: the arrays differ in samples, their first axis: {shapes}",
            hint="Save arrays with one row for each sample.",
        )
    if labels is not None and labels.ndim != 1:
        raise DataError(
            f"{where}: labels are {list(labels.shape)}, expected one for each sample: [samples]"
        )
    return Dataset(
        where,
        kind,
        arrays,
        None if labels is None else typed_labels(labels.tolist()),
        columns,
        () if classes is None else tuple(str(name) for name in classes.tolist()),
    )


def _empty(where: str) -> DataError:
    return DataError(f"{where} is empty, expected at least one sample")


# How a file is read, by its suffix.
READERS: dict[str, Callable[[BinaryIO, str], Dataset]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".txt": _read_plain,
    ".conll": _read_conll,
    ".bio": _read_conll,
    ".json": _read_squad,
    ".npz": _read_npz,
}
