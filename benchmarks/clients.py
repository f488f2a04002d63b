"""``python -m tfx.bench.clients``: many callers with a text each, merged or one by one.

Each client asks, waits for its answer and asks again. The same texts go through four ways in each
round, in an order drawn anew: one caller of ``predict``; as many threads as clients that call
``predict``; as many that call ``predict_async``, which merges what they ask at the same time; and
``map``, which has them all beforehand: no merging can be faster. Every answer is compared with that
of the first way. ``--sweep`` asks of ``predict_async`` alone, with few clients and with many.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import FILE, FOLDER, chosen_bundle, console, emit_json, json_option, told_errors
from tfx.errors import DataError, TfxError
from tfx.runtime.backend import PRECISIONS
from tfx.runtime.opening import open_session
from tfx.runtime.session import Session
from tfx.runtime.stats import median_interval
from tfx.runtime.text.batcher import Batching

from .measuring.machine import Machine, this_machine
from .pages.stored import now, save_option, save_result

ONE_BY_ONE, THREADS, MERGED, ALL = "one by one", "predict", "predict_async", "map"

# Clients of a sweep.
SWEEP = (1, 2, 4, 8, 16, 32, 64)

# A way to ask, by its name and its threads.
Ways = Mapping[tuple[str, int], Callable[[], "Served"]]

# What the batcher is for: so many times the throughput of one by one, on short sentences.
TARGET = 3.0

# Cosine of two answers that are called the same: a batch of another shape rounds otherwise.
LEAST_COSINE = 0.999

# fmt: off
WORDS = (
    "film", "song", "meal", "house", "river", "dog", "child", "teacher", "market", "city", "the",
    "every", "my", "was", "is", "seems", "never", "quite", "very", "too", "good", "old", "new",
    "slow", "warm", "and", "but", "when", "near", "after", "without", "us",
)
# fmt: on


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
        p50_ms: Half of the answers took less.
        p99_ms: 99 % took less.
        speedup: Median over the rounds of the throughput over that of one by one.
        low: Lower end of its 95 % bootstrap interval.
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
    p50_ms: float
    p99_ms: float
    speedup: float
    low: float
    high: float
    processor_ratio: float


def made_sentences(count: int, seed: int) -> list[str]:
    """Short sentences without much sense, of 5 to 12 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 13))) for _ in range(count)]


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
        seed: Of the order, and of the bootstrap.
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
        _row(way, threads, texts, found[way, threads], found[names[0]], rng)
        for way, threads in names
    ]


def _row(
    way: str,
    clients: int,
    texts: int,
    rounds: Sequence[Served],
    baseline: Sequence[Served],
    rng: np.random.Generator,
) -> Row:
    expected = baseline[0].answers
    ratios = np.array(
        [one.seconds / ours.seconds for one, ours in zip(baseline, rounds, strict=True)]
    )
    speedup, low, high = median_interval(ratios, rng)
    latencies = np.array([ms for one in rounds for ms in one.latencies_ms] or [np.nan])
    given = [len(one.answers) for one in rounds]
    return Row(
        way=way,
        clients=clients,
        asked=texts * len(rounds),
        lost=texts * len(rounds) - sum(given),
        wrong=sum(
            index not in expected or not is_same(expected[index], answer)
            for one in rounds
            for index, answer in one.answers.items()
        ),
        per_second=float(
            np.median([n / one.seconds for n, one in zip(given, rounds, strict=True)])
        ),
        processor_ms=float(np.median([one.processor_s for one in rounds])) / texts * 1000,
        p50_ms=float(np.percentile(latencies, 50)),
        p99_ms=float(np.percentile(latencies, 99)),
        speedup=speedup,
        low=low,
        high=high,
        processor_ratio=float(
            np.median(
                [o.processor_s / r.processor_s for o, r in zip(baseline, rounds, strict=True)]
            )
        ),
    )


def bundle_clients(
    bundle: Bundle,
    texts: Sequence[str],
    *,
    backend: str,
    precision: str,
    threads: int | None,
    streams: int,
    batching: Batching,
    clients: Sequence[int],
    rounds: int,
    seed: int,
) -> tuple[list[Row], str]:
    """Open a bundle's sessions and measure; the rows, and what really ran.

    Raises:
        BackendError: If the backend cannot run it.
        FeedError: If the bundle takes no text.
    """
    with contextlib.ExitStack() as stack:

        def opened(streams: int) -> Session:
            return stack.enter_context(
                open_session(
                    bundle,
                    backend=backend,
                    precision=precision,
                    threads=threads,
                    streams=streams,
                    batching=batching,
                    verify=False,
                )
            )

        latency = opened(1)
        throughput = opened(streams) if streams > 1 else latency
        latency.predict(list(texts[:1]))  # before the threads: what is wrong is said once
        ways = ways_to_ask(latency, throughput, texts, clients)
        rows = measure_clients(ways, len(texts), rounds=rounds, seed=seed)
        facts = throughput.report.facts
    return rows, f"{facts}, {facts.streams} streams of {facts.threads} threads"


def read_lines(path: Path, count: int) -> list[str]:
    """The first lines of a file that hold something.

    Raises:
        DataError: If there are fewer.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line][:count]
    if len(found) < count:
        raise DataError(f"{path} holds {len(found)} texts, expected {count}")
    return found


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--clients", default=64, show_default=True, type=click.IntRange(1))
@click.option("--sweep", is_flag=True, help=f"Ask with {', '.join(map(str, SWEEP))} clients.")
@click.option("--texts", "count", default=640, show_default=True, type=click.IntRange(1))
@click.option("--data", type=FILE, help="Texts, one a line; default: made-up sentences.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--backend", default="", help="What to run it on; default: the first there is.")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), help="Default: the bundle's own.")
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@click.option("--streams", default=1, show_default=True, help="Runs at once, for predict_async.")
@click.option("--max-wait-ms", default=Batching().max_wait_ms, show_default=True)
@click.option("--max-rows", default=Batching().max_rows, show_default=True)
@click.option("--seed", default=0, show_default=True)
@save_option
@json_option
def clients(
    bundle: Path | None,
    clients: int,
    sweep: bool,
    count: int,
    data: Path | None,
    rounds: int,
    backend: str,
    precision: str | None,
    threads: int | None,
    streams: int,
    max_wait_ms: float,
    max_rows: int,
    seed: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure what merging the requests of many callers gives."""
    machine, created = this_machine(), now()
    with told_errors():
        opened = chosen_bundle(bundle)
        rows, ran = bundle_clients(
            opened,
            read_lines(data, count) if data else made_sentences(count, seed),
            backend=backend,
            precision=precision or "",
            threads=threads,
            streams=streams,
            batching=Batching(
                max_wait_ms=max_wait_ms, max_rows=max_rows, max_queue=max(1024, clients)
            ),
            clients=SWEEP if sweep else (clients,),
            rounds=rounds,
            seed=seed,
        )
        document = {
            "machine": encode(machine),
            "bundle": opened.name,
            "ran": ran,
            "rows": [encode(row) for row in rows],
        }
        if save is not None:
            save_result(save, "clients", created, document, machine)
    if as_json:
        emit_json(document)
    else:
        show_clients(rows, ran, machine)
    if any(row.lost or row.wrong for row in rows):
        raise click.ClickException("answers were lost or differ from those given one by one")


def show_clients(rows: Sequence[Row], ran: str, machine: Machine) -> None:
    """Print a table, one row for each way."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("way", "clients", "answers/s", "ms p50", "p99", "times", "95 %", "CPU", "lost"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in rows:
        table.add_row(
            row.way,
            str(row.clients),
            f"{row.per_second:.0f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.speedup:.2f}",
            f"{row.low:.2f}..{row.high:.2f}",
            f"{row.processor_ratio:.2f}",
            f"{row.lost + row.wrong} of {row.asked}",
        )
    out = console()
    out.print(table)
    out.print(f"{ran}; load average {machine.load_average:.1f} when it began", markup=False)
    out.print("CPU: processor time of an answer one by one, over this way's", markup=False)
    merged = max((row for row in rows if row.way == MERGED), key=lambda row: row.clients)
    verdict = "yes" if merged.low >= TARGET else "no" if merged.high < TARGET else "cannot say"
    out.print(f"{TARGET:g} times one by one: {verdict}", markup=False)
    for best in (row for row in rows if row.way == ALL):
        share = merged.speedup / best.speedup
        out.print(
            f"map has all texts beforehand: {best.speedup:.2f} times is what merging can reach "
            f"here, predict_async reaches {share:.0%} of it",
            markup=False,
        )


if __name__ == "__main__":
    clients()
