"""``python -m tfx.bench.contexts``: what a token costs by how many come before it.

A step reads the weights, and the keys and values of all tokens so far. So it may grow with the
context by what reading the cache takes, and memory by the cache itself: whatever is more is a
copy, or work that is done again. One long text is written from a short prompt; a step's time is
the median of those just before a context, and memory is what is resident at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from tfx.bundle import open_bundle
from tfx.codec import encode
from tfx.console import FOLDER, Progress, console, emit_json, json_option, progress, told_errors
from tfx.errors import FeedError
from tfx.runtime.backend import PRECISIONS
from tfx.runtime.cpus import usable_cpus

from .environments import read_environments
from .measuring.generation import cache_bytes
from .measuring.machine import Machine, this_machine
from .pages.figures import Figure, figure_table, figures_of
from .pages.stored import now, save_option, save_result
from .peaks import DEFAULT_SECONDS, TRAFFIC, array_bytes, measure_bandwidth
from .peers.contestants import Contestant
from .peers.generators import PEERS
from .peers.writing import BACKENDS, WritingRun, contestants_of, random_prompt, write_by_turns

CONTEXTS = (128, 256, 512, 1000)
# Tokens read first: few, so that what reading them takes does not stay in memory.
PROMPT = 16
# Steps before a context whose median is its time.
STEPS = 32


@dataclass(frozen=True, slots=True)
class ContextRow:
    """One way to write, at one context; medians over the rounds.

    Attributes:
        name: Bundle and backend, or the peer.
        context: Tokens before the one that is written.
        reason: Why it did not run; "", and then there is nothing else.
        precision: Element type it multiplies in.
        step_ms: From a token to the next.
        cpu_ms: Processor time of it, of all threads.
        tokens_per_s: Of all rows together.
        later_ms: How much longer a step is than at the first context.
        later_cpu_ms: The same in processor time.
        read_ms: What reading the cache takes, so far as it is longer than at the first context.
        resident_mb: Memory at the context.
        later_mb: How much more it is than at the first context.
        cache_mb: By how much the keys and values of the context are more.
    """

    name: str
    context: int
    reason: str = ""
    precision: str = ""
    step_ms: float | None = None
    cpu_ms: float | None = None
    tokens_per_s: float | None = None
    later_ms: float | None = None
    later_cpu_ms: float | None = None
    read_ms: float | None = None
    resident_mb: float | None = None
    later_mb: float | None = None
    cache_mb: float | None = None


@dataclass(frozen=True, slots=True)
class ContextReport:
    """Rows, and the conditions they were measured under.

    Attributes:
        machine: Where.
        created: When it began, ISO 8601 in UTC.
        batch: Rows written at once.
        prompt: Tokens read first.
        rounds: Texts of each.
        threads: CPU threads of each.
        gb_per_s: What this machine moves at most, by so many threads.
        rows: Of each contestant, one per context.
    """

    machine: Machine
    created: str
    batch: int
    prompt: int
    rounds: int
    threads: int
    gb_per_s: float
    rows: tuple[ContextRow, ...]


def measure_contexts(
    contestants: Sequence[Contestant],
    prompt: np.ndarray,
    contexts: Sequence[int],
    token_bytes: Mapping[str, int],
    gb_per_s: float,
    *,
    rounds: int,
    limit_s: float,
    progress: Progress,
    seed: int = 0,
) -> tuple[ContextRow, ...]:
    """Let all contestants write one long text, by turns.

    Args:
        contestants: At least one.
        prompt: ``int64[batch, sequence]``.
        contexts: Tokens before a step, ascending; the least more than the prompt by ``STEPS``.
        token_bytes: Name of a contestant to what its cache takes for a token of one row.
        gb_per_s: 10^9 bytes a second that memory moves.
        rounds: Texts of each.
        limit_s: Seconds each may take for anything.
        progress: Told of every step.
        seed: Of the order.

    Raises:
        FeedError: If a context is too short.
    """
    least = prompt.shape[1] + STEPS
    if contexts[0] < least:
        raise FeedError(
            f"context {contexts[0]} is too short, expected {least} or more",
            hint="Name a longer one with --at.",
        )
    runs = write_by_turns(
        contestants,
        prompt,
        contexts[-1] - prompt.shape[1] + 1,
        rounds=rounds,
        limit_s=limit_s,
        progress=progress,
        rng=np.random.default_rng(seed),
    )
    return tuple(
        row
        for run in runs
        for row in _rows(run, prompt.shape, contexts, token_bytes[run.who.name], gb_per_s)
    )


def _rows(
    run: WritingRun,
    shape: tuple[int, ...],
    contexts: Sequence[int],
    token_bytes: int,
    gb_per_s: float,
) -> Iterator[ContextRow]:
    batch, prompt = shape
    unseen = "" if run.reason else _unseen(run, contexts[-1] - prompt + 1)
    if run.reason or unseen:
        yield ContextRow(run.who.name, contexts[0], run.reason or unseen)
        return

    def step_ms(kind: str, context: int) -> float:
        """Median step of those that end at a context, in the middle text."""
        end = context - prompt
        gaps = [np.diff(one[kind])[end - STEPS : end] for one in run.texts]
        return float(np.median([np.median(gap) for gap in gaps])) * 1e3

    first_ms, first_cpu = (step_ms(kind, contexts[0]) for kind in ("times_s", "cpu_times_s"))
    # Of the first text: what later ones free is not always given back.
    memory: Sequence[float | None] = run.texts[0]["resident_mb"]
    for context in contexts:
        ms, cpu_ms = step_ms("times_s", context), step_ms("cpu_times_s", context)
        resident_mb, least_mb = memory[context - prompt], memory[contexts[0] - prompt]
        more = batch * token_bytes * (context - contexts[0])
        yield ContextRow(
            name=run.who.name,
            context=context,
            precision=run.loaded["precision"],
            step_ms=ms,
            cpu_ms=cpu_ms,
            tokens_per_s=batch / ms * 1e3,
            later_ms=ms - first_ms,
            later_cpu_ms=cpu_ms - first_cpu,
            read_ms=more / gb_per_s / 1e6,
            resident_mb=resident_mb,
            later_mb=None if resident_mb is None or least_mb is None else resident_mb - least_mb,
            cache_mb=more / 1e6,
        )


def _unseen(run: WritingRun, count: int) -> str:
    if all(len(one["times_s"]) == count for one in run.texts):
        return ""
    return "it does not say when a token is there"


def bandwidth(threads: int) -> float:
    """10^9 bytes a second that memory moves at most, by so many threads."""
    return max(measure_bandwidth(kind, threads, array_bytes(), DEFAULT_SECONDS) for kind in TRAFFIC)


@click.command
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--at", "contexts", multiple=True, type=click.IntRange(1), help="Default: 128 to 1000."
)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1))
@click.option("--backend", "backends", multiple=True, type=click.Choice(BACKENDS))
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(PRECISIONS)))
@click.option("--peer", "chosen", multiple=True, type=click.Choice(list(PEERS)), help="These too.")
@click.option("--peers", "environments", type=FOLDER, help="Environments made for peers.")
@click.option("--threads", type=click.IntRange(1), help="Default: all this process may use.")
@click.option("--limit", "limit_s", default=600.0, show_default=True, help="Seconds to load.")
@click.option("--seed", default=0, help="Of the prompt and the order.  [default: 0]")
@save_option
@json_option
def contexts(
    bundles: tuple[Path, ...],
    contexts: tuple[int, ...],
    batch: int,
    rounds: int,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    chosen: tuple[str, ...],
    environments: Path | None,
    threads: int | None,
    limit_s: float,
    seed: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure what a token costs BUNDLE by how many come before it, in time and memory."""
    with told_errors():
        opened = [open_bundle(path) for path in dict.fromkeys(bundles)]
        count = threads or usable_cpus()
        places = sorted(set(contexts)) or [*CONTEXTS]
        contestants = contestants_of(
            opened,
            tuple(dict.fromkeys(backends)) or BACKENDS,
            tuple(dict.fromkeys(precisions)) or ("",),
            tuple(dict.fromkeys(chosen)),
            read_environments(environments) if environments else {},
            count,
            places[-1] + 1,
        )
        signature = opened[0].manifest.signature
        ids = random_prompt(signature, batch, PROMPT, seed)
        each = {str(one.path.absolute()): cache_bytes(one.manifest.signature) for one in opened}
        first = cache_bytes(signature)
        sizes = {one.name: each.get(str(one.job.get("bundle")), first) for one in contestants}
        machine, created = this_machine(), now()
        with progress() as shown:
            shown.step("what memory moves")
            gb_per_s = bandwidth(count)
            rows = measure_contexts(
                contestants,
                ids,
                places,
                sizes,
                gb_per_s,
                rounds=rounds,
                limit_s=limit_s,
                progress=shown,
                seed=seed,
            )
        report = ContextReport(machine, created, batch, PROMPT, rounds, count, gb_per_s, rows)
        if save is not None:
            save_result(save, "contexts", created, encode(report), machine)
    if as_json:
        emit_json(encode(report))
        return
    show_contexts(report)


COLUMNS: tuple[Figure, ...] = (
    ("context", "context", "d"),
    ("step ms", "step_ms", ".2f"),
    ("CPU ms", "cpu_ms", ".2f"),
    ("tokens/s", "tokens_per_s", ".1f"),
    ("later ms", "later_ms", "+.2f"),
    ("later CPU ms", "later_cpu_ms", "+.2f"),
    ("read ms", "read_ms", ".2f"),
    ("MB", "resident_mb", ".0f"),
    ("later MB", "later_mb", "+.1f"),
    ("cache MB", "cache_mb", ".1f"),
)


def title_of(report: ContextReport) -> str:
    """What was written."""
    return f"batch {report.batch}, {report.threads} threads, one text after {report.prompt} tokens"


def notes_of(report: ContextReport) -> Iterator[str]:
    """What did not run and why, and what the columns say."""
    for row in report.rows:
        if row.reason:
            yield f"{row.name} not run: {row.reason}"
    yield "later: than at the first context, in time and memory"
    yield "cache: keys and values that are more, by their sizes"
    yield f"read: what reading those takes at {report.gb_per_s:.1f} GB/s"


def show_contexts(report: ContextReport) -> None:
    """Print the rows, then what did not run, and the conditions."""
    out = console()
    table = figure_table(title_of(report), COLUMNS)
    last = ""
    for row in report.rows:
        if not row.reason:
            table.add_row("" if row.name == last else row.name, *figures_of(row, COLUMNS))
            last = row.name
    out.print(table)
    for note in notes_of(report):
        out.print(note, markup=False)
    out.print(f"{report.machine}", markup=False)


if __name__ == "__main__":
    contexts()
