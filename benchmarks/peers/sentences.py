"""Real texts of mixed length, as a service that embeds them gets them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfx.errors import DataError

# What the folder of data must have: a column of sentences, and lines of prose.
SENTENCES = ("sst2/dev.tsv", "sst2/train.tsv")
PROSE = "text/wikitext2-test.txt"

# Sentences joined to a paragraph.
PARAGRAPH = (3, 12)


def read_sentences(data: Path, count: int, seed: int = 0, *, skip: int = 0) -> list[str]:
    """Texts in a random order: half single sentences, a quarter paragraphs, a quarter prose.

    Args:
        data: Has the files of ``SENTENCES``, tab-separated with a header and the sentence first,
            and ``PROSE``, in which a line is a paragraph and headings begin with "=".
        count: How many; no sentence and no line is in it twice.
        seed: Of the draw.
        skip: Nothing of the first so many, which are those of ``count=skip``, is among them.

    Raises:
        DataError: If a file is missing, or there are too few texts.
    """
    rng = np.random.default_rng(seed)
    single = [
        line.partition("\t")[0].strip() for name in SENTENCES for line in _lines(data / name)[1:]
    ]
    prose = [
        line.strip()
        for line in _lines(data / PROSE)
        if line.strip() and not line.strip().startswith("=")
    ]
    rng.shuffle(single)
    rng.shuffle(prose)
    pool = _Pool(data, single, prose, rng)
    if skip:
        pool.draw(skip)
    return pool.draw(count)


@dataclass
class _Pool:
    """What texts are made of, in a random order, without what was taken from it."""

    data: Path
    single: list[str]
    prose: list[str]
    rng: np.random.Generator

    def draw(self, count: int) -> list[str]:
        paragraphs = count // 4
        lengths = self.rng.integers(*PARAGRAPH, paragraphs, endpoint=True)
        wanted = count - 2 * paragraphs
        if len(self.single) < wanted + lengths.sum() or len(self.prose) < paragraphs:
            raise DataError(
                f"{self.data} has {len(self.single)} sentences and {len(self.prose)} lines of "
                f"prose left: got {count} texts to make, expected fewer"
            )
        texts, rest = self.single[:wanted], self.single[wanted:]
        for length in lengths:
            texts.append(" ".join(rest[:length]))
            rest = rest[length:]
        texts += self.prose[:paragraphs]
        self.single, self.prose = rest, self.prose[paragraphs:]
        self.rng.shuffle(texts)
        return texts


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}",
            hint=f"Give a folder that has {', '.join((*SENTENCES, PROSE))}.",
        ) from error
