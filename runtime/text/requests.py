"""Requests of many threads, the items they are run as, and which of those are best run together."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tfx.errors import FeedError

from .batching import cut_batches
from .texts import Reading, TextRunner, stacked
from .tokenizer import LongTexts, Text, checked_long

log = logging.getLogger(__name__)

# Of the waiting, how many are looked at for those that go well with the oldest: it takes 1 ms.
LOOK_AHEAD = 128


class Request:
    """What one call asked for.

    Attributes:
        future: Its answer.
        size: Texts, or 1 for a feed.
    """

    def __init__(self, size: int) -> None:
        self.future: Future[Any] = Future()
        self.size = size
        self._lock = threading.Lock()
        self._begun: bool | None = None  # whether it may run; None until that is asked
        self._ended = False

    def begin(self) -> bool:
        """Whether it is still wanted; from now on it cannot be cancelled."""
        with self._lock:
            if self._begun is None:
                self._begun = self.future.set_running_or_notify_cancel()
            return self._begun and not self._ended

    def end(self, answer: Any) -> None:
        """Give the answer, unless it has ended."""
        self._settle(self.future.set_result, answer)

    def fail(self, error: BaseException) -> None:
        """End it with an error, unless it has ended."""
        self._settle(self.future.set_exception, error)

    def _settle(self, settle: Callable[[Any], None], value: Any) -> None:
        if not self._may_end():
            return
        try:
            settle(value)
        except BaseException:  # the future logs an Exception itself; a SystemExit ends no thread
            log.exception("a callback of a future failed")

    def _may_end(self) -> bool:
        wanted = self.begin()
        with self._lock:
            may, self._ended = wanted and not self._ended, True
        return may


class Cancellations:
    """Whether futures were cancelled since that was last asked. They may outlive who asks."""

    def __init__(self) -> None:
        self._any = False

    def watch(self, future: Future[Any]) -> None:
        """Look out for one more future."""
        future.add_done_callback(self._look)

    def any_since(self) -> bool:
        """Whether one was cancelled since the last call."""
        if not self._any:
            return False
        self._any = False  # before the caller looks: one that comes meanwhile is seen again
        return True

    def _look(self, future: Future[Any]) -> None:
        if future.cancelled():
            self._any = True  # without a lock: whoever cancels may hold any


class TextRequest(Request):
    """Texts to answer, as tokens once they are read."""

    def __init__(self, texts: Iterable[Text], single: bool, long: LongTexts | str) -> None:
        self.texts = tuple(texts)  # the caller may fill the list anew meanwhile
        super().__init__(len(self.texts))
        self.single = single
        self.long = long
        self.reading: Reading | None = None
        self._found: list[Any] = []
        self._left = 0

    def items(self, reading: Reading, *, pads: bool) -> list[Item]:
        """What is to be run for it."""
        self.reading = reading
        self._found = [None] * len(reading.pieces)
        self._left = len(reading.pieces)
        return [
            Item(self, index, piece, 1, piece.tokens, None if pads else piece.tokens)
            for index, piece in enumerate(reading.pieces)
        ]

    def take(self, index: int, answer: Any, runner: TextRunner) -> None:
        """Take the answer to one piece; the last one ends the request."""
        self._found[index] = answer
        with self._lock:
            self._left -= 1
            if self._left:
                return
        assert self.reading is not None  # its items were made from it
        answers = runner.joined(self.reading, self._found)
        self.end(answers[0] if self.single else stacked(answers))


class FeedRequest(Request):
    """Arrays to run the model on."""

    def __init__(self, feed: Mapping[str, Any]) -> None:
        super().__init__(1)
        self.feed = feed


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A piece of a text, or a feed: what runs as a whole.

    Attributes:
        request: Whose it is.
        index: Which piece of the request's.
        content: The piece; or the arrays.
        rows: Of the batch axis.
        width: Tokens of a row; items of other widths are padded.
        key: Only items of one key can run together; None for texts that can be padded.
        came: When it began to wait, by ``time.monotonic``.
    """

    request: Request
    index: int
    content: Any
    rows: int
    width: int
    key: object
    came: float = field(default_factory=time.monotonic)


def pick(waiting: Sequence[Item], *, max_rows: int, max_tokens: int) -> list[Item]:
    """The oldest item, and those that are best run with it.

    The oldest is always among them: whoever waits runs after as many batches, at most, as there
    were items before it. Texts are cut into batches as a list of them is; then it is the oldest's.

    Args:
        waiting: Oldest first, at least one.
        max_rows: Most rows.
        max_tokens: Most tokens, padding included; the oldest may have more.
    """
    lead = waiting[0]
    alike = [item for item in itertools.islice(waiting, LOOK_AHEAD) if item.key == lead.key]
    widths = [item.width for item in alike]
    if len(set(widths)) > 1:
        batches = cut_batches(widths, max_rows=max_rows, max_tokens=max_tokens)
        return [alike[index] for index in sorted(next(one for one in batches if 0 in one))]
    picked, rows = [lead], lead.rows
    for item in alike[1:]:  # arrays of one width
        if rows + item.rows <= max_rows and (rows + item.rows) * lead.width <= max_tokens:
            picked.append(item)
            rows += item.rows
    return picked


def request_of(inputs: Any, long: LongTexts | str) -> Request:
    """The request that some inputs make.

    Args:
        inputs: As ``Session.predict`` takes them.
        long: What is done with long texts.

    Raises:
        FeedError: If they are of another kind, or no text at all, or ``long`` is unknown.
    """
    if isinstance(inputs, Mapping):
        return FeedRequest(inputs)
    long = checked_long(long)
    if isinstance(inputs, str | tuple):
        return TextRequest([inputs], True, long)
    if isinstance(inputs, list):
        if not inputs:
            raise FeedError("got an empty list, expected at least one text")
        return TextRequest(inputs, False, long)
    raise no_inputs(inputs)


def no_inputs(inputs: object) -> FeedError:
    """What is raised for inputs that are neither arrays nor texts."""
    return FeedError(
        f"got {type(inputs).__name__}, expected arrays by name, a text or a list of texts",
        hint="Pass a mapping of input names to arrays, a text, or a list of texts.",
    )
