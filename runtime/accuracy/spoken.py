"""How far what a model hears is from what was said: error rates of words and characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})


def normalized_speech(text: str) -> str:
    """A text as error rates compare it: what one hears of it, and not how it is written.

    Unicode's NFKC and lower case; every character that is no letter, mark or digit ends a word,
    but an apostrophe between two letters is part of one; one space between words. Numbers,
    abbreviations and spellings stay as they are: "Mr." and "mister" are two words. So a rate is
    higher than one after Whisper's own normalizer, which knows English ones.
    """
    shown = unicodedata.normalize("NFKC", text).lower().translate(APOSTROPHES)
    kept = []
    for index, one in enumerate(shown):
        inside = 0 < index < len(shown) - 1
        if one == "'" and inside and shown[index - 1].isalpha() and shown[index + 1].isalpha():
            kept.append(one)
        else:
            kept.append(one if unicodedata.category(one)[0] in "LMN" else " ")
    return " ".join("".join(kept).split())


def edits(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and replacements that make ``left`` into ``right``.

    Levenshtein's distance, a row of the table at a time.
    """
    numbers: dict[Hashable, int] = {}
    target = np.array([numbers.setdefault(one, len(numbers)) for one in right], np.int64)
    places = np.arange(len(right) + 1)
    row = places
    for count, one in enumerate(left, 1):
        replaced = row[:-1] + (target != numbers.get(one, -1))
        found = np.concatenate([[count], np.minimum(row[1:] + 1, replaced)])
        # What is inserted costs one for each place to the left it comes from.
        row = np.minimum.accumulate(found - places) + places
    return int(row[-1])


def word_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    """Wrong words and all words of each text, ``float64[samples, 2]``."""
    return _rows(predicted, expected, lambda text: text.split())


def character_rows(predicted: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    """Wrong characters and all characters of each text, spaces between words included."""
    return _rows(predicted, expected, list)


def error_rate(rows: np.ndarray) -> np.ndarray:
    """Wrong parts of all texts for each part of what was said; above 1 where much is invented.

    Args:
        rows: ``[..., samples, 2]``.
    """
    wrong, said = np.moveaxis(rows.sum(axis=-2), -1, 0)
    found: np.ndarray = wrong / np.maximum(said, 1)
    return found


def _rows(predicted: Sequence[Any], expected: Sequence[Any], parts: Any) -> np.ndarray:
    found = []
    for left, right in zip(predicted, expected, strict=True):
        said = parts(normalized_speech(right))
        found.append((edits(parts(normalized_speech(left)), said), len(said)))
    return np.array(found, np.float64)
