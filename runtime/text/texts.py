"""Texts to answers on one model: tokens, batches, runs, and what the model's head makes of them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import FeedError
from tfx.signature import Feed

from .answers import Answer, Answers
from .batching import cut_batches
from .extraction import Candidate
from .tokenizer import Encoded, LongTexts, Text, Tokenizer, checked_long

# Texts, and tokens with padding, of one run. A run of a few hundred tokens costs as little for each
# as a larger one, and one of many thousands more: its numbers leave the caches. Measured on 2 CPU
# cores with MiniLM, in processor time.
BATCH_ROWS = 64
BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Piece:
    """What the model reads of a text at a time: all of it, or a window.

    Attributes:
        text: All of it.
        encoded: The tokens of this piece.
    """

    text: Text
    encoded: Encoded

    @property
    def tokens(self) -> int:
        """How many, special tokens included."""
        return len(self.encoded.ids)

    @property
    def is_cut(self) -> bool:
        """Whether the text was longer than the model takes, and its rest left out."""
        return self.encoded.truncated


@dataclass(frozen=True, slots=True)
class Reading:
    """Texts as tokens, ready to run.

    Attributes:
        texts: What was read.
        pieces: Of all texts, in their order.
        owners: Index of the text that each piece is of.
        truncated: Texts that were cut.
        windowed: Texts that are read in several windows.
    """

    texts: tuple[Text, ...]
    pieces: tuple[Piece, ...]
    owners: tuple[int, ...]
    truncated: int
    windowed: int

    def part(self, first: int, last: int) -> Reading:
        """The same of the texts ``first`` to ``last`` alone."""
        if (first, last) == (0, len(self.texts)):
            return self
        begin, end = bisect_left(self.owners, first), bisect_left(self.owners, last)
        owners = tuple(owner - first for owner in self.owners[begin:end])
        pieces = self.pieces[begin:end]
        return Reading(
            texts=self.texts[first:last],
            pieces=pieces,
            owners=owners,
            truncated=len({o for o, piece in zip(owners, pieces, strict=True) if piece.is_cut}),
            windowed=sum(count > 1 for count in Counter(owners).values()),
        )


class TextRunner:
    """What answers texts. Thread-safe."""

    def __init__(self, bundle: Bundle, run: Callable[[Feed], dict[str, np.ndarray]]) -> None:
        """Prepare for a bundle; its tokenizer is loaded when the first text comes.

        Args:
            bundle: Its manifest says what becomes of texts and outputs.
            run: Runs the model on a feed that fits the signature.
        """
        self._bundle = bundle
        self._run = run
        self._answers = Answers(bundle)
        self._lock = threading.Lock()
        self._tokenizers: dict[bool, Tokenizer] = {}

    @property
    def gives_outputs(self) -> bool:
        """Whether an answer is a text's part of every output, which may be large."""
        return not self._answers.joins_windows

    def read(self, texts: Sequence[Text], long: LongTexts | str = LongTexts.TRUNCATE) -> Reading:
        """Turn texts into tokens.

        Args:
            texts: Strings, or pairs of strings.
            long: Whether texts longer than the model takes are cut, or read in windows; a
                question's context always is.

        Raises:
            TextError: If texts cannot be read; names each.
            FeedError: If the bundle takes no text, or answers of windows cannot be joined.
        """
        texts = tuple(texts)  # another thread may change a list
        found = self._tokenizer(long).pieces(texts)
        return Reading(
            texts=texts,
            pieces=tuple(
                Piece(text, one) for text, some in zip(texts, found, strict=True) for one in some
            ),
            owners=tuple(index for index, some in enumerate(found) for _ in some),
            truncated=sum(any(one.truncated for one in some) for some in found),
            windowed=sum(len(some) > 1 for some in found),
        )

    def batches(
        self, pieces: Sequence[Piece], *, max_rows: int | None = None, max_tokens: int | None = None
    ) -> list[list[int]]:
        """Indices of pieces that are best run together.

        Args:
            pieces: Of any lengths.
            max_rows: Most of them in a run; None for ``BATCH_ROWS``.
            max_tokens: Most tokens of a run, padding included; None for ``BATCH_TOKENS``.
        """
        return cut_batches(
            [piece.tokens for piece in pieces],
            max_rows=self.most_rows(max_rows or BATCH_ROWS),
            max_tokens=max_tokens or BATCH_TOKENS,
            equal=not self.pads,
        )

    def most_rows(self, rows: int) -> int:
        """As many rows, or the fewer that the model takes."""
        return min(rows, self._settings.max_rows or rows)

    @property
    def pads(self) -> bool:
        """Whether texts of several lengths can be run together."""
        return self._settings.has_mask

    def run(self, pieces: Sequence[Piece]) -> Sequence[Answer | Candidate]:
        """Run pieces together; what the model says of each.

        Raises:
            FeedError: If they do not fit the model.
            BackendError: If it fails.
            BundleError: If its outputs do not fit the manifest.
        """
        encoded = [piece.encoded for piece in pieces]
        batch = self._settings.batch(encoded)
        self._bundle.manifest.signature.bind(batch.feed)
        outputs = self._run(batch.feed)
        return self._answers.of_batch(outputs, batch, [piece.text for piece in pieces], encoded)

    def joined(self, reading: Reading, found: Sequence[Any]) -> list[Any]:
        """The answer to each text, from what was said of all its pieces."""
        answers = []
        first = 0
        for index, text in enumerate(reading.texts):
            last = first
            while last < len(reading.owners) and reading.owners[last] == index:
                last += 1
            encoded = [piece.encoded for piece in reading.pieces[first:last]]
            answers.append(self._answers.joined(found[first:last], text, encoded))
            first = last
        return answers

    @property
    def _settings(self) -> Tokenizer:
        """Any of the tokenizers: they differ only in what they do with long texts."""
        for one in tuple(self._tokenizers.values()):
            return one
        return self._tokenizer(LongTexts.TRUNCATE)

    def _tokenizer(self, long: LongTexts | str) -> Tokenizer:
        windows = checked_long(long) is LongTexts.WINDOWS or self._answers.extracts
        if windows and not self._answers.joins_windows:
            raise FeedError(
                f"{self._bundle.name} gives outputs for tokens, and those of windows cannot be "
                "joined",
                hint="Use long='truncate'.",
            )
        with self._lock:
            if windows not in self._tokenizers:
                self._tokenizers[windows] = Tokenizer(
                    self._bundle,
                    spans=self._answers.needs_spans,
                    windows=windows,
                    questions=self._answers.extracts,
                )
            return self._tokenizers[windows]


def stacked(answers: list[Any]) -> Any:
    """Answers to a list of texts: embeddings as ``float32[texts, dim]``, others as they are."""
    return np.stack(answers) if isinstance(answers[0], np.ndarray) else answers
