"""Samples in a fixed order, with labels or without: what every file of data becomes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from tfx.errors import DataError

from ..text.tokenizer import Text

# A class or a score, or the accepted answers of a question, or the tags of a text's words.
Label = int | float | str | tuple[str, ...]

# Columns that hold it, in the order they are looked for.
LABEL_COLUMNS = ("label", "score", "gold_label", "similarity_score", "is_duplicate")

# The array of a dataset of images.
IMAGES = "images"

INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class DatasetKind(StrEnum):
    """What a sample of a dataset is."""

    TEXTS = "texts"  # a text; labels are classes or scores
    PAIRS = "pairs"  # two texts; labels as of texts
    QUESTIONS = "questions"  # a question and its context; labels are the accepted answers
    TOKENS = "tokens"  # words joined by one space each; labels are a tag for every word
    IMAGES = "images"  # uint8[height, width, 3]; labels are classes
    TRANSLATIONS = "texts to translate"  # a text; labels are its translations
    SOUNDS = "sounds"  # the path of a WAV file; labels are what is said, or classes or scores
    FEEDS = "feeds"  # a row of each of the model's inputs; labels are classes or scores


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples in a fixed order, and their labels where they have some.

    Attributes:
        name: Of the file, without its folder.
        kind: What a sample is.
        inputs: Texts, pairs of texts, or arrays by name, whose first axis is the samples;
            images are one array ``images``, ``uint8[samples, height, width, 3]``, or where they
            differ in size an object array ``[samples]`` of ``uint8[height, width, 3]``.
        labels: One for each sample; None without labels.
        columns: What of the file was used: columns, fields or arrays.
        classes: Name of each class that an integer label stands for, where the file says it.
        digest: sha256 over inputs and labels, order included.
    """

    name: str
    kind: DatasetKind
    inputs: tuple[Text, ...] | Mapping[str, np.ndarray]
    labels: tuple[Label, ...] | None
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not len(self):
            raise DataError(f"{self.name} is empty, expected at least one sample")
        object.__setattr__(self, "digest", self._digest())

    def __len__(self) -> int:
        if isinstance(self.inputs, tuple):
            return len(self.inputs)
        return len(next(iter(self.inputs.values()))) if self.inputs else 0

    @property
    def texts(self) -> tuple[Text, ...]:
        """The texts or pairs.

        Raises:
            DataError: If the samples are arrays or sounds.
        """
        if isinstance(self.inputs, tuple) and self.kind is not DatasetKind.SOUNDS:
            return self.inputs
        raise DataError(f"{self.name} holds {self.kind}, expected texts")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of sounds.

        Raises:
            DataError: If the samples are something else.
        """
        if self.kind is not DatasetKind.SOUNDS:
            raise DataError(f"{self.name} holds {self.kind}, expected sounds")
        return tuple(Path(str(one)) for one in self.inputs)

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays, by name; the first axis of each is the samples.

        Raises:
            DataError: If the samples are texts.
        """
        if isinstance(self.inputs, tuple):
            raise DataError(f"{self.name} holds {self.kind}, expected arrays")
        return self.inputs

    def take(self, rows: Sequence[int]) -> Dataset:
        """The samples of these rows, in this order.

        Raises:
            DataError: If there are none.
        """
        return replace(
            self,
            inputs=tuple(self.inputs[row] for row in rows)
            if isinstance(self.inputs, tuple)
            else {name: array[list(rows)] for name, array in self.inputs.items()},
            labels=None if self.labels is None else tuple(self.labels[row] for row in rows),
        )

    def sample(self, count: int, *, seed: int = 0) -> Dataset:
        """At most ``count`` samples, drawn without replacement and kept in their order.

        Raises:
            DataError: If ``count`` is below 1.
        """
        if count < 1:
            raise DataError(f"samples wanted of {self.name} are {count}, expected 1 or more")
        if count >= len(self):
            return self
        drawn = np.random.default_rng(seed).choice(len(self), count, replace=False)
        return self.take(sorted(drawn.tolist()))

    def split(self, count: int, *, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Two datasets without a sample in common: about ``count`` samples, and the rest.

        Samples of equal input go to the same side, however often the file repeats them; so
        the first may have a few more than ``count``. Both keep their order.

        Args:
            count: Samples wanted in the first.
            seed: Of the draw; the same seed gives the same two.

        Raises:
            DataError: If either would be empty.
        """
        groups: dict[bytes, list[int]] = {}
        for row, key in enumerate(self._keys()):
            groups.setdefault(key, []).append(row)
        if count < 1 or len(groups) < 2:
            raise DataError(
                f"cannot keep two uses of {self.name} apart: {count} of {len(groups)} different "
                "samples would leave one of them none",
                hint="Give each use a file of its own.",
            )
        pending = list(groups.values())
        first: list[int] = []
        chosen = 0
        for index in np.random.default_rng(seed).permutation(len(pending)):
            if len(first) >= count:
                break
            first += pending[index]
            chosen += 1
        if chosen == len(pending):
            raise DataError(
                f"cannot keep two uses of {self.name} apart: {count} of its {len(self)} samples "
                "leave none for the other",
                hint="Ask for fewer samples, or give each use a file of its own.",
            )
        rest = sorted(set(range(len(self))) - set(first))
        return self.take(sorted(first)), self.take(rest)

    def common(self, other: Dataset) -> int:
        """How many samples have an input that ``other`` has too."""
        theirs = set(other._keys())
        return sum(key in theirs for key in self._keys())

    def _keys(self) -> Iterator[bytes]:
        """Each sample's input, as bytes that are equal for equal inputs."""
        if isinstance(self.inputs, tuple):
            of_sample = _content if self.kind is DatasetKind.SOUNDS else _plain
            yield from (of_sample(text) for text in self.inputs)
            return
        for row in range(len(self)):
            named = sorted(self.inputs.items())
            parts = (
                f"{name} {a[row].dtype} {a[row].shape}".encode() + a[row].tobytes()
                for name, a in named
            )
            yield hashlib.sha256(b"".join(parts)).digest()

    def _digest(self) -> str:
        found = hashlib.sha256(self.kind.encode())
        for row, key in enumerate(self._keys()):
            found.update(hashlib.sha256(key).digest())
            found.update(_plain(None if self.labels is None else self.labels[row]) + b"\n")
        return found.hexdigest()


def typed_labels(labels: Sequence[Any]) -> tuple[Label, ...]:
    """Labels as they are meant: all integers or all finite numbers where they are such, else names.

    Args:
        labels: As a file has them.
    """
    written = [str(label).strip() for label in labels]
    # Not whatever int() and float() take: "1_000", "nan" and digits of other scripts are names.
    if all(INTEGER.fullmatch(label) for label in written):
        return tuple(map(int, written))
    if all(NUMBER.fullmatch(label) for label in written):
        numbers = tuple(map(float, written))
        if all(map(math.isfinite, numbers)):
            return numbers
    return tuple(written)


def _content(path: Any) -> bytes:
    """Digest of a file: the same sound in another folder is the same sample."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _plain(value: Any) -> bytes:
    return json.dumps(value).encode()
