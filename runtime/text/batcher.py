"""A batcher: requests that come at about the same time run as one, in the order they came."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfx.errors import BackendError, QueueFullError
from tfx.signature import Signature

from ..backend import session_closed
from ..counts import count_problem
from .requests import LOOK_AHEAD, Cancellations, FeedRequest, Item, Request, TextRequest, pick
from .texts import BATCH_ROWS, BATCH_TOKENS, Piece, TextRunner
from .threads import begin, program_ended, program_ends
from .tokenizer import LongTexts

# Requests tokenized at a time: few enough that the first of a thousand does not wait for the last.
READ_AT_ONCE = 64

# Who got an answer often asks again at once, and goes well with those that wait. They wait for it
# no longer than this share of the run that gave the answer; where more wait than one run takes,
# not at all.
RETURN_SHARE = 0.1

# Who waits for more requests looks this often whether the program ends: nothing wakes it then.
LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests are merged.

    Attributes:
        max_wait_ms: How long a request may wait for others while the model has nothing to do.
            While it runs they wait anyway, so that 0 merges what comes at the same time too.
        max_rows: Most texts, or rows of arrays, in one run.
        max_tokens: Most tokens in one run, padding included; a single request may have more.
        max_queue: Most texts, or feeds, that wait; windows of a long text count once it is read.
    """

    max_wait_ms: float = 0.0
    max_rows: int = BATCH_ROWS
    max_tokens: int = BATCH_TOKENS
    max_queue: int = 1024

    def __post_init__(self) -> None:
        wait_ms = self.max_wait_ms
        if not (isinstance(wait_ms, int | float) and 0 <= wait_ms < math.inf):
            raise BackendError(f"max_wait_ms is {wait_ms!r}, expected 0 or more, and finite")
        for name in ("max_rows", "max_tokens", "max_queue"):
            if problem := count_problem(name, getattr(self, name)):
                raise BackendError(problem)


class Batcher:
    """Merges requests of many threads into runs of a model. Thread-safe.

    Nothing runs while nothing is asked: a thread that tokenizes and one for each stream of runs
    come to life with a request and rest when none is left. When the program ends, what does not run
    yet fails.
    """

    def __init__(
        self,
        runner: TextRunner,
        signature: Signature,
        run_feed: Callable[[Mapping[str, Any]], dict[str, Any]],
        *,
        check_feed: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        count: Callable[[int, int, int], None],
        streams: int = 1,
        settings: Batching | None = None,
    ) -> None:
        """Prepare; no thread is started yet.

        Args:
            runner: What answers texts.
            signature: Says which feeds can be merged.
            run_feed: Runs the model on arrays.
            check_feed: Gives the arrays of a feed, or raises what is wrong with it.
            count: Told of every text that was read: how many, cut, and read in windows.
            streams: Runs at once.
            settings: How requests are merged; None for the defaults.
        """
        self.settings = settings or Batching()
        self._runner = runner
        self._signature = signature
        self._run_feed = run_feed
        self._check_feed = check_feed
        self._count = count
        self._streams = streams
        self._merges = _batch_axis_leads(signature)
        self._pool = ThreadPoolExecutor(streams + 1, "tfx-batch")
        self._changed = threading.Condition()
        self._arrived: deque[Request] = deque()
        self._unread = 0  # texts and feeds that arrived and do not wait as items yet
        self._waiting: list[Item] = []
        self._cancelled = Cancellations()
        self._read = 0  # requests, so far
        self._returned = 0  # what ``_read`` is when as many came as were answered last
        self._return_by = 0.0  # when they are waited for no longer, by ``time.monotonic``
        self._reading = False
        self._running = 0
        self._closing = self._dropping = False
        self._own: set[int] = set()  # threads of the pool

    def submit(self, request: Request) -> Future[Any]:
        """Have a request answered.

        Raises:
            QueueFullError: If ``max_queue`` texts or feeds wait already.
            BackendError: If it is closed, or can start no thread.
        """
        with self._changed:
            if self._closing:
                raise session_closed()
            most = self.settings.max_queue
            if self._queued() + request.size > most:
                self._forget_cancelled()
            if (queued := self._queued()) + request.size > most:
                raise QueueFullError(
                    f"{queued} of at most {most} texts or feeds wait, got {request.size} more",
                    hint="Wait for answers before asking again, or raise max_queue.",
                )
            if not self._reading:
                self._start(self._read_all, can_wait=self._running > 0)
                self._reading = True
            self._unread += request.size
            self._arrived.append(request)
            self._cancelled.watch(request.future)
        return request.future

    def close(self, *, drop: bool = False) -> None:
        """Accept no more, and wait until everything accepted has its answer.

        Args:
            drop: Fail what has not begun to run, and wait for the rest only.
        """
        with self._changed:
            self._closing = True
            self._dropping |= drop
            dropped = self._taken_out() if drop else []
            self._changed.notify_all()
        for request in dropped:
            request.fail(session_closed())
        # From a callback of a future: this thread is one of those that would be waited for.
        if threading.get_ident() in self._own:
            self._pool.shutdown(wait=False)
            return
        with self._changed:
            self._changed.wait_for(lambda: not (self._reading or self._running))
        self._pool.shutdown()

    def _queued(self) -> int:
        return self._unread + len(self._waiting)

    def _forget_cancelled(self) -> None:
        if not self._cancelled.any_since():
            return
        arrived = [request for request in self._arrived if request.future.cancelled()]
        waiting = [item for item in self._waiting if item.request.future.cancelled()]
        self._unread -= sum(request.size for request in arrived)
        gone = {*map(id, arrived), *(id(item.request) for item in waiting)}
        self._arrived = deque(one for one in self._arrived if id(one) not in gone)
        self._waiting = [item for item in self._waiting if id(item.request) not in gone]
        for request in dict.fromkeys([*arrived, *(item.request for item in waiting)]):
            request.begin()  # tells whoever is in concurrent.futures.wait

    def _start(self, work: Callable[[], None], *, can_wait: bool = False) -> None:
        """Let a thread of the pool do it.

        Args:
            work: What to do.
            can_wait: Where no thread can be started, one that runs does it when it has the time.

        Raises:
            BackendError: If there is none.
        """
        job = [work]  # taken out of it once: a pool without a thread keeps what it was given
        try:
            begin(self._pool, _do, job)
        except BackendError:
            if job and (program_ends() or not can_wait):
                job.clear()
                raise

    def _help(self) -> int:
        """Let another thread run what waits, if there is one; 1 if there is."""
        try:
            self._start(self._run_all)
        except BackendError:
            return 0  # whoever calls does it all
        return 1

    def _taken_out(self) -> list[Request]:
        """Everything that waits, which then waits no more."""
        requests = dict.fromkeys([*self._arrived, *(item.request for item in self._waiting)])
        self._unread -= sum(request.size for request in self._arrived)
        self._arrived.clear()
        self._waiting.clear()
        return list(requests)

    def _refusal(self) -> BackendError:
        return session_closed() if self._dropping else program_ended()

    # One thread turns requests into items.

    def _read_all(self) -> None:
        self._own.add(threading.get_ident())
        taken: list[Request] = []
        while True:
            items = self._items_of(taken)
            with self._changed:
                self._unread -= sum(request.size for request in taken)
                self._read += len(taken)
                self._waiting += items
                # close() came while they were read
                dropped = self._taken_out() if self._dropping or program_ends() else []
                taken = [
                    self._arrived.popleft() for _ in range(min(READ_AT_ONCE, len(self._arrived)))
                ]
                runs = bool(self._waiting) and self._running < self._streams
                if taken and runs:
                    self._running += self._help()
                elif not taken:  # and no other thread need wake up to run the rest
                    self._reading = False
                    self._running += runs
                self._changed.notify_all()
            for request in dropped:
                request.fail(self._refusal())
            if not taken:
                break
        if runs:
            self._run_all()

    def _items_of(self, requests: Sequence[Request]) -> list[Item]:
        """In the order of the requests; one that cannot be read ends here, alone."""
        texts = [one for one in requests if isinstance(one, TextRequest)]
        for long in dict.fromkeys(one.long for one in texts):
            self._read_texts([one for one in texts if one.long == long], long)
        items: list[Item] = []
        for one in requests:
            try:
                if isinstance(one, FeedRequest):
                    items.append(self._item_of_feed(one))
                elif isinstance(one, TextRequest) and one.reading is not None:
                    items += one.items(one.reading, pads=self._runner.pads)
            except BaseException as error:  # noqa: BLE001  it is the request's answer
                one.fail(error)
        return items

    def _read_texts(self, requests: list[TextRequest], long: LongTexts | str) -> None:
        """Tokenize requests at once; when one fails, each alone, for the others not to."""
        texts = [text for one in requests for text in one.texts]
        try:
            whole = self._runner.read(texts, long)
        except BaseException as error:  # noqa: BLE001  it is the request's answer
            if len(requests) == 1:
                requests[0].fail(error)
                return
            for one in requests:
                self._read_texts([one], long)
            return
        self._count(len(texts), whole.truncated, whole.windowed)
        first = 0
        for one in requests:
            one.reading = whole.part(first, first + len(one.texts))
            first += len(one.texts)

    def _item_of_feed(self, request: FeedRequest) -> Item:
        feed = self._check_feed(request.feed)
        if not self._merges or not all(isinstance(one, np.ndarray) for one in feed.values()):
            return Item(request, 0, feed, 1, 1, object())  # of a key that nothing else has
        first = next(iter(feed.values()))
        width = int(first.shape[1]) if first.ndim > 1 else 1
        shapes = frozenset((name, array.shape[1:]) for name, array in feed.items())
        return Item(request, 0, feed, len(first), width, ("feed", shapes))

    # The others run them.

    def _run_all(self) -> None:
        self._own.add(threading.get_ident())
        while True:
            with self._changed:
                batch = self._next_batch()
                dropped = self._taken_out() if program_ends() else []
                if not batch:
                    self._running -= 1
                    self._changed.notify_all()
                # More than one run can take: let the other streams help.
                elif self._waiting and self._running < self._streams:
                    self._running += self._help()
            for request in dropped:
                request.fail(self._refusal())
            if not batch:
                return
            self._answer([item for item in batch if item.request.begin()])

    def _next_batch(self) -> list[Item]:
        """What runs next, when it is time for that; nothing when nothing waits."""
        while True:
            self._forget_cancelled()
            if not self._waiting or program_ends():
                return []
            batch = pick(
                self._waiting, max_rows=self._most_rows(), max_tokens=self.settings.max_tokens
            )
            until = batch[0].came + self.settings.max_wait_ms / 1000
            if self._read < self._returned and len(batch) == len(self._waiting):
                until = max(until, self._return_by)
            left_s = until - time.monotonic()
            full = sum(item.rows for item in batch) >= self.settings.max_rows
            if left_s <= 0 or full or self._closing:
                chosen = set(map(id, batch))
                ahead = self._waiting[:LOOK_AHEAD]  # all of the batch is among them
                self._waiting[:LOOK_AHEAD] = [item for item in ahead if id(item) not in chosen]
                return batch
            self._changed.wait(min(left_s, LOOK_EVERY_S))

    def _most_rows(self) -> int:
        axis = self._signature.inputs[0].shape[:1]
        sizes = self._signature.ranges.get(axis[0]) if axis and isinstance(axis[0], str) else None
        limit = sizes.max if sizes else axis[0] if axis and isinstance(axis[0], int) else None
        most = self.settings.max_rows
        return min(most, limit) if isinstance(limit, int) else most

    def _answer(self, batch: list[Item]) -> None:
        if not batch:
            return
        began = time.monotonic()
        try:
            answers = self._run(batch)
        except BaseException as error:  # noqa: BLE001  it is the requests' answer
            if len(batch) == 1:
                batch[0].request.fail(error)
                return
            for item in batch:  # for the one that fails not to fail its neighbours
                self._answer([item])
            return
        self._expect(len({id(item.request) for item in batch}), time.monotonic() - began)
        for item, answer in zip(batch, answers, strict=True):
            try:
                if isinstance(item.request, TextRequest):
                    item.request.take(item.index, answer, self._runner)
                else:
                    item.request.end(answer)
            except BaseException as error:  # noqa: BLE001  it is the request's answer
                item.request.fail(error)

    def _expect(self, requests: int, ran_s: float) -> None:
        """Have who waits wait for those that get an answer now, to run with them."""
        with self._changed:
            self._returned = self._read + requests
            self._return_by = time.monotonic() + ran_s * RETURN_SHARE

    def _run(self, batch: list[Item]) -> Sequence[Any]:
        if isinstance(batch[0].content, Piece):
            return self._runner.run([item.content for item in batch])
        if len(batch) == 1:
            return [self._run_feed(batch[0].content)]
        names = batch[0].content
        outputs = self._run_feed(
            {name: np.concatenate([item.content[name] for item in batch]) for name in names}
        )
        ends = [0, *itertools.accumulate(item.rows for item in batch)]
        # A view would keep the whole batch alive.
        return [
            {name: array[start:stop].copy() for name, array in outputs.items()}
            for start, stop in itertools.pairwise(ends)
        ]


def _do(job: list[Callable[[], None]]) -> None:
    try:
        work = job.pop()
    except IndexError:  # whoever asked was told that nobody does it
        return
    work()


def _batch_axis_leads(signature: Signature) -> bool:
    """Whether every input and output begins with one dynamic axis, so that feeds can be joined."""
    leading = {spec.shape[:1] for spec in (*signature.inputs, *signature.outputs)}
    return len(leading) == 1 and all(shape and isinstance(shape[0], str) for shape in leading)
