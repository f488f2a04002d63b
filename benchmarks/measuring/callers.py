"""Many callers with a text each: the ways to ask, and what came of each over some rounds."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfx.errors import BackendError, TfxError
from tfx.runtime.session import Session
from tfx.runtime.stats import LEAST_SAMPLES, median_interval

ONE_BY_ONE, THREADS, MERGED, ALL = "one by one", "predict", "predict_async", "map"

# A way to ask, by its name and its threads.
Ways = Mapping[tuple[str, int], Callable[[], "Served"]]

# Cosine of two answers that are called the same: a batch of another shape rounds otherwise.
LEAST_COSINE = 0.999


@dataclass(frozen=True, slots=True)
class Served:
    """What came of one way in one round.

    Attributes:
        seconds: From the first question to the last answer.
        processor_s: Of all threads of the process.
        latencies_ms: Of each answer that came.
        answers: Index of the text to what was answered.
    """

    seconds: float
    processor_s: float
    latencies_ms: tuple[float, ...]
    answers: Mapping[int, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to ask, over all rounds.

    Attributes:
        way: ``ONE_BY_ONE``, ``THREADS``, ``MERGED`` or ``ALL``.
        clients: Threads that ask.
        asked: Questions.
        lost: Questions without an answer.
        wrong: Answers that differ from those given one by one.
        per_second: Median over the rounds of answers a second.
        processor_ms: Median over the rounds of processor time for an answer.
        p50_ms: Half of the answers took less; None if there were none.
        p99_ms: 99 % took less; None of fewer than 1000 answers.
        speedup: Median over the rounds of the throughput over that of one by one.
        low: Lower end of its 95 % interval; None of fewer than 6 rounds.
        high: Its upper end.
        processor_ratio: The same of processor time, one by one over this: what the merging saves,
            whatever else the machine does.
    """

    way: str
    clients: int
    asked: int
    lost: int
    wrong: int
    per_second: float
    processor_ms: float
    p50_ms: float | None
    p99_ms: float | None
    speedup: float
    low: float | None
    high: float | None
    processor_ratio: float


def serve(
    ask: Callable[[str], Any],
    texts: Sequence[str],
    clients: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Served:
    """Let clients ask for the answers to texts, each to its share of them, one after another.

    Args:
        ask: Gives the answer to a text; from several threads at once.
        texts: All of them.
        clients: Threads.
        clock: Gives seconds.
    """
    answers: dict[int, Any] = {}
    latencies: dict[int, float] = {}
    ready = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        ready.wait()
        for index in range(number, len(texts), clients):
            asked = clock()
            # One that fails is lost, and counted; the client goes on.
            with contextlib.suppress(TfxError):
                answers[index] = ask(texts[index])
                latencies[index] = (clock() - asked) * 1000

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    started, processor = clock(), time.process_time()
    for thread in threads:
        thread.join()
    seconds = clock() - started
    spent = time.process_time() - processor
    return Served(seconds, spent, tuple(latencies.values()), answers)


def serve_all(
    session: Session, texts: Sequence[str], clock: Callable[[], float] = time.perf_counter
) -> Served:
    """Give a session all texts at once; a latency is the time from there to the answer."""
    answers: dict[int, Any] = {}
    latencies = []
    started, processor = clock(), time.process_time()
    for index, answer in enumerate(session.map(texts)):
        answers[index] = answer
        latencies.append((clock() - started) * 1000)
    spent = time.process_time() - processor
    return Served(clock() - started, spent, tuple(latencies), answers)


def is_same(first: Any, second: Any) -> bool:
    """Whether two answers say the same, but for the rounding of another batch."""
    if isinstance(first, np.ndarray):
        if first.shape != second.shape:
            return False
        lengths = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
        product = float(first.ravel().astype(np.float64) @ second.ravel().astype(np.float64))
        return product >= LEAST_COSINE * lengths
    if isinstance(first, dict):
        return all(is_same(array, second[name]) for name, array in first.items())
    if isinstance(first, list):
        return [one.label for one in first] == [one.label for one in second]
    same: bool = first.label == second.label
    return same


def ways_to_ask(
    latency: Session, throughput: Session, texts: Sequence[str], clients: Sequence[int]
) -> Ways:
    """One by one; for one number of clients every other way, for several ``predict_async`` alone.

    Args:
        latency: A session for one run at a time: one by one, and ``predict`` of all threads.
        throughput: What ``predict_async`` and ``map`` are asked of; may be the same.
        texts: Asked in each round of each way.
        clients: Threads that ask at once.
    """

    def merged(text: str) -> Any:
        return throughput.predict_async(text).result()

    ways: dict[tuple[str, int], Callable[[], Served]] = {
        (ONE_BY_ONE, 1): lambda: serve(latency.predict, texts, 1)
    }
    if len(clients) == 1:
        ways[THREADS, clients[0]] = lambda: serve(latency.predict, texts, clients[0])
    for count in clients:
        ways[MERGED, count] = lambda count=count: serve(merged, texts, count)  # type: ignore[misc]
    if len(clients) == 1:
        ways[ALL, 1] = lambda: serve_all(throughput, texts)
    return ways


def measure_clients(ways: Ways, texts: int, *, rounds: int, seed: int = 0) -> list[Row]:
    """Ask in each way, in rounds.

    Args:
        ways: The first is one by one.
        texts: How many each of them asks in a round.
        rounds: How many; one more comes first, to warm up.
        seed: Of the order.

    Raises:
        BackendError: If a round of one by one has no answer.
    """
    rng = np.random.default_rng(seed)
    names = list(ways)
    found: dict[tuple[str, int], list[Served]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for index in rng.permutation(len(names)):
            served = ways[names[index]]()
            if number:
                found[names[index]].append(served)
    return [
        _row(way, threads, texts, found[way, threads], found[names[0]]) for way, threads in names
    ]


def _row(
    way: str, clients: int, texts: int, rounds: Sequence[Served], baseline: Sequence[Served]
) -> Row:
    expected = baseline[0].answers
    rates = np.array([len(one.answers) / one.seconds for one in rounds])
    usual = np.array([len(one.answers) / one.seconds for one in baseline])
    if not usual.all():
        raise BackendError(
            "no text was answered one by one", hint="Ask for one with tfx predict, to see why."
        )
    speedup, low, high = median_interval(rates / usual)
    spent, saved = (np.array([one.processor_s for one in each]) for each in (rounds, baseline))
    latencies = [ms for one in rounds for ms in one.latencies_ms]

    def percentile(percent: int) -> float | None:
        few = len(latencies) < LEAST_SAMPLES.get(percent, 1)
        return None if few else float(np.percentile(latencies, percent))

    return Row(
        way=way,
        clients=clients,
        asked=texts * len(rounds),
        lost=texts * len(rounds) - sum(len(one.answers) for one in rounds),
        wrong=sum(
            index not in expected or not is_same(expected[index], answer)
            for one in rounds
            for index, answer in one.answers.items()
        ),
        per_second=float(np.median(rates)),
        processor_ms=float(np.median(spent)) / texts * 1000,
        p50_ms=percentile(50),
        p99_ms=percentile(99),
        speedup=speedup,
        low=low,
        high=high,
        processor_ratio=float(np.median(saved / spent)),
    )
