"""A stream of texts to answers: read ahead, tokenized and run at the same time, given in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..forks import inherited_session
from .texts import Piece, Reading, TextRunner
from .threads import begin, program_ended, program_ends
from .tokenizer import LongTexts, Text, TextError

# Texts that are sorted by length together. Of sentences and paragraphs mixed, padding is 1.8 % of
# the tokens with so many, 2.7 % with 512 and 4.1 % with 256, and there are a fifth fewer runs than
# with 512: MiniLM in bfloat16 takes 2 % less processor time, 4 % where the shapes are new.
STRETCH_TEXTS = 1024
# The same where an answer is the text's part of every output: 1024 would be many hundred megabytes.
STRETCH_OUTPUTS = 32

# Stretches that are read before the first of them is answered: one is run, one tokenized.
STRETCHES_AHEAD = 2

Read = Callable[[int, int, int], None]


class Stretch:
    """Neighbours in a stream of texts, on their way to answers.

    Attributes:
        first: Index of the first of them in the stream.
        texts: All of them.
    """

    def __init__(self, first: int, texts: list[Text]) -> None:
        self.first = first
        self.texts = texts
        self._error: TextError | None = None
        self._reading: Reading | None = None
        self._runs: list[tuple[list[int], Future[Any]]] = []
        self._read: Future[None] | None = None

    def start(self, workers: Workers) -> None:
        """Have it tokenized, and its batches run."""
        workers.check_here()
        self._read = begin(workers.readers, self._prepare, workers)

    def is_done(self) -> bool:
        """Whether ``answers`` would not wait."""
        read = self._read
        if read is None or not read.done():
            return False
        return read.exception() is not None or all(run.done() for _, run in self._runs)

    def answers(self, runner: TextRunner) -> tuple[list[Any], TextError | None]:
        """The answers to its texts; to those before the first that cannot be read, and why."""
        assert self._read is not None  # it was started
        self._read.result()
        if self._reading is None:
            return [], self._error
        found: list[Any] = [None] * len(self._reading.pieces)
        for indices, run in self._runs:
            for index, answer in zip(indices, run.result(), strict=True):
                found[index] = answer
        return runner.joined(self._reading, found), self._error

    def _prepare(self, workers: Workers) -> None:
        if not workers.wanted():
            return
        runner, texts = workers.runner, self.texts
        try:
            self._reading = runner.read(texts, workers.long)
        except TextError as error:
            self._error = error.shifted(self.first)
            if not (good := min(error.problems)):
                return
            self._reading = runner.read(texts[:good], workers.long)
        reading = self._reading
        workers.count(len(reading.texts), reading.truncated, reading.windowed)
        for indices in runner.batches(reading.pieces, max_rows=workers.max_rows):
            pieces = [reading.pieces[index] for index in indices]
            self._runs.append((indices, begin(workers.runners, workers.run, pieces)))


class Workers:
    """Threads of one stream: one that tokenizes, others that run the model.

    Attributes:
        runner: What answers.
        readers: The thread that tokenizes.
        runners: Those that run.
        long: What is done with long texts.
        max_rows: Most pieces in a run.
        count: Told of every text that was read: how many, cut, and read in windows.
        left: Whether nobody waits for answers any more.
    """

    def __init__(
        self,
        runner: TextRunner,
        *,
        streams: int,
        long: LongTexts | str,
        max_rows: int | None,
        count: Read,
    ) -> None:
        self.runner = runner
        self.long = long
        self.max_rows = max_rows
        self.count = count
        self.left = False
        self._process = os.getpid()
        self.readers = ThreadPoolExecutor(1, "tfx-tokenize")
        self.runners = ThreadPoolExecutor(streams, "tfx-run")

    def run(self, pieces: Sequence[Piece]) -> Sequence[Any]:
        """What the model says of each piece; nothing where nobody waits for it."""
        return self.runner.run(pieces) if self.wanted() else []

    def wanted(self) -> bool:
        """Whether somebody waits for answers.

        Raises:
            BackendError: If the program ends; whoever still waits, in another thread, is told.
        """
        if not self.left and program_ends():
            raise program_ended()
        return not self.left

    def check_here(self) -> None:
        """Refuse to wait for threads that are another process's.

        Raises:
            BackendError: If this process was forked since.
        """
        if os.getpid() != self._process:
            raise inherited_session()

    def leave(self) -> None:
        """Begin nothing more, and wait for nothing: whoever calls may hold any lock.

        The threads end with what they do, when the last reference to their pools is gone.
        """
        self.left = True

    def stop(self) -> None:
        """Begin nothing more, and wait for what runs."""
        self.leave()
        if os.getpid() != self._process:  # the locks of its pools may be held for ever
            return
        self.readers.shutdown(wait=True, cancel_futures=True)  # it hands work to the others
        self.runners.shutdown(wait=True, cancel_futures=True)


def answer_stretches(
    runner: TextRunner,
    texts: Iterable[Text],
    *,
    streams: int,
    count: Read,
    max_rows: int | None = None,
    long: LongTexts | str = LongTexts.TRUNCATE,
    stretch: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Iterator[list[Any]]:
    """Answer texts in their order, some hundreds at a time.

    The iterable is read in the caller's thread, and no further ahead than ``STRETCHES_AHEAD``
    stretches beyond the one that was given last. An error waits for the threads to end; one that
    is not read to its end tells them to, and waits for nothing: it may be the garbage collector
    that has no use for it, in a thread that holds any lock.

    Args:
        runner: What answers.
        texts: Of any number; taken as they are needed.
        streams: Runs of the model at once.
        count: Told of every text that was read: how many, cut, and read in windows.
        max_rows: Most texts, or windows, in one run.
        long: What is done with texts longer than the model takes.
        stretch: Texts sorted by length together; None for ``STRETCH_TEXTS``, or fewer where an
            answer is large.
        on_progress: Told how many more texts are answered, in the caller's thread.

    Raises:
        TextError: If a text cannot be read, when those before it were given; its ``problems`` are
            numbered as the stream is.
        BackendError: If this process was forked since it began, or can start no thread.
        Exception: What the iterable raised, when the texts before were answered.
    """
    size = stretch or (STRETCH_OUTPUTS if runner.gives_outputs else STRETCH_TEXTS)
    source = Source(texts, size)
    workers = Workers(runner, streams=streams, long=long, max_rows=max_rows, count=count)
    ahead: deque[Stretch] = deque()

    def oldest() -> Iterator[list[Any]]:
        workers.check_here()
        found, error = ahead.popleft().answers(runner)
        if found:
            on_progress(len(found))
            yield found
        if error is not None:
            raise error

    first = 0
    try:
        for filled in source:
            if filled:
                ahead.append(Stretch(first, filled))
                ahead[-1].start(workers)
                first += len(filled)
            while ahead and (len(ahead) > STRETCHES_AHEAD or ahead[0].is_done()):
                yield from oldest()
        while ahead:
            yield from oldest()
        if source.failure is not None:
            raise source.failure
    except GeneratorExit:
        workers.leave()
        raise
    except BaseException:
        workers.stop()
        raise
    workers.stop()


class Source:
    """An iterable of texts, cut into stretches.

    Attributes:
        failure: What the iterable raised, if it did.
    """

    def __init__(self, texts: Iterable[Text], size: int) -> None:
        self.failure: Exception | None = None
        self._texts = texts
        self._size = size

    def __iter__(self) -> Iterator[list[Text]]:
        """Stretches; after a text that fills none, an empty one: there may be answers by now."""
        filling: list[Text] = []
        texts = iter(self._texts)
        while True:
            try:
                filling.append(next(texts))
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001  the caller raises it
                self.failure = error
                break
            if len(filling) == self._size:
                yield filling
                filling = []
            else:
                yield []
        if filling:
            yield filling
