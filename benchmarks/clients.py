"""``python -m tfx.bench.clients``: many callers with a text each, merged or one by one.

Each client asks, waits for its answer and asks again. The same texts go through four ways in each
round, in an order drawn anew: one caller of ``predict``; as many threads as clients that call
``predict``; as many that call ``predict_async``, which merges what they ask at the same time; and
``map``, which has them all beforehand: no merging can be faster. Every answer is compared with that
of the first way. ``--sweep`` asks of ``predict_async`` alone, with few clients and with many.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import FILE, FOLDER, chosen_bundle, console, emit_json, json_option, told_errors
from tfx.errors import DataError
from tfx.runtime.backend import PRECISIONS
from tfx.runtime.opening import open_session
from tfx.runtime.session import Session
from tfx.runtime.text.batcher import Batching

from .measuring.callers import ALL, MERGED, Row, measure_clients, ways_to_ask
from .measuring.machine import Machine, this_machine
from .pages.figures import span_text
from .pages.stored import now, save_option, save_result

# Clients of a sweep.
SWEEP = (1, 2, 4, 8, 16, 32, 64)

# What the batcher is for: so many times the throughput of one by one, on short sentences.
TARGET = 3.0

# fmt: off
WORDS = (
    "film", "song", "meal", "house", "river", "dog", "child", "teacher", "market", "city", "the",
    "every", "my", "was", "is", "seems", "never", "quite", "very", "too", "good", "old", "new",
    "slow", "warm", "and", "but", "when", "near", "after", "without", "us",
)
# fmt: on


def made_sentences(count: int, seed: int) -> list[str]:
    """Short sentences without much sense, of 5 to 12 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 13))) for _ in range(count)]


def bundle_clients(
    bundle: Bundle,
    texts: Sequence[str],
    *,
    backend: str,
    precision: str,
    threads: int | None,
    streams: int | None,
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

        def opened(streams: int | None) -> Session:
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
        throughput = latency if streams == 1 else opened(streams)
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
@click.option("--rounds", default=8, show_default=True, type=click.IntRange(1))
@click.option("--backend", default="", help="What to run it on; default: the first there is.")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), help="Default: the bundle's own.")
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@click.option("--streams", type=int, help="Runs at once, for predict_async; default: the best.")
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
    streams: int | None,
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
            "rounds": rounds,
            "seed": seed,
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


def verdict_of(row: Row) -> str:
    """Whether a way reaches ``TARGET``, as far as the interval allows to say."""
    if row.low is None or row.high is None:
        return "cannot say"
    return "yes" if row.low >= TARGET else "no" if row.high < TARGET else "cannot say"


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
            "-" if row.p50_ms is None else f"{row.p50_ms:.1f}",
            "-" if row.p99_ms is None else f"{row.p99_ms:.1f}",
            f"{row.speedup:.2f}",
            span_text(row.low, row.high, ".2f"),
            f"{row.processor_ratio:.2f}",
            f"{row.lost + row.wrong} of {row.asked}",
        )
    out = console()
    out.print(table)
    out.print(f"{ran}; load average {machine.load_average:.1f} when it began", markup=False)
    out.print("CPU: processor time of an answer one by one, over this way's", markup=False)
    merged = max((row for row in rows if row.way == MERGED), key=lambda row: row.clients)
    out.print(f"{TARGET:g} times one by one: {verdict_of(merged)}", markup=False)
    for best in (row for row in rows if row.way == ALL):
        share = merged.speedup / best.speedup
        out.print(
            f"map has all texts beforehand: {best.speedup:.2f} times is what merging can reach "
            f"here, predict_async reaches {share:.0%} of it",
            markup=False,
        )


if __name__ == "__main__":
    clients()
