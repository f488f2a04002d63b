"""What a language model says of the tokens of texts, long ones in windows that overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfx.errors import DataError

from ..generation.kv_cache import whole_feed
from ..session import Session
from ..text.batching import cut_batches
from ..text.texts import BATCH_ROWS, BATCH_TOKENS
from ..text.tokenizer import Encoded, TextError, Tokenizer
from .samples import Dataset

# A window begins half of what the model takes after the one before: the stride of Hugging Face's
# guide to perplexity.
WINDOWS_OVER_A_TOKEN = 2


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of a text that the model reads at once.

    Attributes:
        encoded: The tokens.
        known: How many of the first are only context: windows before have counted them.
    """

    encoded: Encoded
    known: int


class NextTokens:
    """A language model on texts of any length: each token is counted once, with those before it.

    Attributes:
        windowed: Texts so far that are longer than the model takes.
    """

    def __init__(self, session: Session, dataset: Dataset, *, max_rows: int | None = None) -> None:
        """Load the tokenizer; nothing runs yet.

        Args:
            session: Of a causal language model.
            dataset: Texts.
            max_rows: Most windows in one run of the model.

        Raises:
            FeedError: If the bundle takes no text.
        """
        self._session = session
        self._dataset = dataset
        self._tokenizer = Tokenizer(session.bundle, windows=True)
        self._max_rows = min(max_rows or BATCH_ROWS, self._tokenizer.max_rows or BATCH_ROWS)
        self.windowed = 0

    def rows(
        self,
        rows: slice,
        contributions: Callable[[Sequence[Any], Sequence[Any]], np.ndarray],
    ) -> np.ndarray:
        """What some texts add to a metric: the sum of what their windows add.

        Args:
            rows: Which texts.
            contributions: Logits ``[tokens, vocabulary]`` and ids ``[tokens]`` of windows, to
                ``float64[windows, numbers]``; the first token has nothing before it.

        Returns:
            ``float64[texts, numbers]``.

        Raises:
            DataError: If a text cannot be read; names it.
            BackendError: If the model fails.
        """
        windows, owners = [], []
        for owner, encoded in enumerate(self._encoded(rows)):
            own = list(windows_of(encoded, self._tokenizer.max_tokens))
            self.windowed += len(own) > 1
            windows += own
            owners += [owner] * len(own)
        found: np.ndarray | None = None
        for indices in cut_batches(
            [len(one.encoded.ids) for one in windows],
            max_rows=self._max_rows,
            max_tokens=BATCH_TOKENS,
            equal=not self._tokenizer.has_mask,
        ):
            added = contributions(*self._counted([windows[index] for index in indices]))
            if found is None:
                found = np.zeros((rows.stop - rows.start, added.shape[1]))
            np.add.at(found, [owners[index] for index in indices], added)
        assert found is not None  # no text is without tokens
        return found

    def _encoded(self, rows: slice) -> list[Encoded]:
        try:
            return self._tokenizer.whole(self._dataset.texts[rows])
        except TextError as error:
            index, problem = next(iter(error.problems.items()))
            raise DataError(
                f"{self._dataset.name}, sample {rows.start + index + 1}: {problem}", hint=error.hint
            ) from error

    def _counted(self, windows: Sequence[Window]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Logits and ids of each window, from the last token that is only context."""
        batch = self._tokenizer.batch([one.encoded for one in windows])
        outputs = self._session.predict(whole_feed(self._session.signature, batch.feed))
        logits, ids = [], []
        for row, window in enumerate(windows):
            begin = max(window.known - 1, 0)
            logits.append(outputs["logits"][row][batch.mask[row]][begin:])
            ids.append(window.encoded.ids[begin:])
        return logits, ids


def windows_of(encoded: Encoded, size: int) -> Iterator[Window]:
    """All tokens of a text, ``size`` at a time; where it is longer, half of them in two windows.

    Args:
        encoded: The text; what is special in it is in one place only, as in the text.
        size: Most tokens of a window.
    """
    total, known = len(encoded.ids), 0
    for begin in range(0, total, max(size // WINDOWS_OVER_A_TOKEN, 1)):
        end = min(begin + size, total)
        part = Encoded(encoded.ids[begin:end], encoded.types[begin:end], truncated=False)
        yield Window(part, max(known - begin, 0))
        if end == total:
            return
        known = end
