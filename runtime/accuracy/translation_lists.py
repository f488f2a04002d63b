"""Lists of texts and what each is in another language."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..records import bad_line
from ..text.tokenizer import text_problem
from .samples import Dataset, DatasetKind
from .tables import TABLES, first_row, read_rows

# Columns of a text and of its translation.
TRANSLATION_COLUMNS = (("source", "target"), ("src", "tgt"), ("source", "reference"))


def is_translation_list(path: Path) -> bool:
    """Whether a table or JSONL file has columns of ``TRANSLATION_COLUMNS``.

    Raises:
        DataError: If it cannot be read.
    """
    return path.suffix.lower() in TABLES and bool(_columns(first_row(path)))


def read_translation_list(path: Path) -> Dataset:
    """Read texts and their translations: a row for each.

    Args:
        path: TSV or CSV with a header, or JSONL.

    Raises:
        DataError: If it is damaged, or a row lacks one of the two; names the line.
    """
    rows = read_rows(path)
    used = _columns(rows[0][1])
    texts, labels = [], []
    for number, fields in rows:
        pair = [fields.get(name) for name in used]
        for name, text in zip(used, pair, strict=True):
            problem = text_problem(text) if isinstance(text, str) else "is no text"
            if problem or not str(text).strip():
                raise bad_line(path.name, number, f"{name!r} {problem or 'is empty'}")
        texts.append(str(pair[0]))
        labels.append(str(pair[1]))
    return Dataset(path.name, DatasetKind.TRANSLATIONS, tuple(texts), tuple(labels), used)


def _columns(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of a text and its translation; none where there are no such two."""
    known = {str(name).lower(): name for name in fields}
    for wanted in TRANSLATION_COLUMNS:
        if all(name in known for name in wanted):
            return tuple(known[name] for name in wanted)
    return ()
