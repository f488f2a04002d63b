"""``python -m tfx.bench.decoding``: how fast bundles write tokens, beside what users would take.

Everybody takes the likeliest token each time, from the same prompt of random tokens, and never
stops early. Each has a process of its own, libraries whose versions clash an environment of its
own (``python -m tfx.bench.environments``), and they write by turns, in an order drawn anew. A peer
that does not run is a row that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from tfx.bundle import open_bundle
from tfx.codec import encode
from tfx.console import FOLDER, Progress, console, emit_json, json_option, progress, told_errors
from tfx.runtime.backend import PRECISIONS
from tfx.runtime.cpus import usable_cpus
from tfx.runtime.stats import LEAST_FOR_MEDIAN, median_interval

from .environments import read_environments
from .measuring.generation import cache_bytes, same_share
from .measuring.machine import Machine, this_machine
from .pages.figures import Figure, figure_table, figures_of
from .pages.stored import now, save_option, save_result
from .peers.contestants import Contestant
from .peers.generators import PEERS
from .peers.writing import BACKENDS, WritingRun, contestants_of, random_prompt, write_by_turns

# Whose tokens the others' are compared with, if it runs; else those of the first row.
REFERENCE = "transformers"


@dataclass(frozen=True, slots=True)
class DecodingRow:
    """What one way to write took; medians over the rounds, in each round those of its tokens.

    Attributes:
        name: Bundle and backend, or the peer.
        own: Whether it is tfx.
        reason: Why it did not run; "".
        versions: Of the library, and of the engine under it.
        precision: Element type it multiplies in.
        note: What a reader must know.
        rounds: Texts that were measured.
        first_ms: From the prompt to the first token.
        step_ms: From a token to the next, half of them take less.
        step_p95_ms: 95 % take less.
        early_ms: As ``step_ms``, of the first quarter of the text.
        late_ms: Of its last.
        total_s: Of the whole text.
        cpu_s: Processor time of it, of all threads.
        row_tokens_per_s: New tokens of each row.
        tokens_per_s: New tokens of all rows together.
        cpu_ratio: Its processor time over that of tfx's first row in the same rounds.
        cpu_low: Lower end of the 95 % interval of that; None of fewer than 6 rounds.
        cpu_high: Its upper end.
        same_tokens: Share of the tokens before the first that is not the reference's.
        copies: How often the cache was copied in a text; None where it is not known.
        loaded_mb: Resident once loaded.
        grown_mb: By how much more memory writing took at most; what ``cache_mb`` is for.
    """

    name: str
    own: bool
    reason: str = ""
    versions: str = ""
    precision: str = ""
    note: str = ""
    rounds: int = 0
    first_ms: float | None = None
    step_ms: float | None = None
    step_p95_ms: float | None = None
    early_ms: float | None = None
    late_ms: float | None = None
    total_s: float | None = None
    cpu_s: float | None = None
    row_tokens_per_s: float | None = None
    tokens_per_s: float | None = None
    cpu_ratio: float | None = None
    cpu_low: float | None = None
    cpu_high: float | None = None
    same_tokens: float | None = None
    copies: int | None = None
    loaded_mb: float | None = None
    grown_mb: float | None = None


@dataclass(frozen=True, slots=True)
class DecodingReport:
    """Rows, and the conditions they were measured under.

    Attributes:
        machine: Where.
        created: When it began, ISO 8601 in UTC.
        batch: Rows written at once.
        prompt: Tokens read first.
        new_tokens: Tokens written.
        threads: CPU threads of each.
        cache_mb: What keys and values of all tokens take.
        reference: Row whose tokens the others' were compared with.
        rows: One per contestant.
    """

    machine: Machine
    created: str
    batch: int
    prompt: int
    new_tokens: int
    threads: int
    cache_mb: float
    reference: str
    rows: tuple[DecodingRow, ...]


def measure_decoding(
    contestants: Sequence[Contestant],
    prompt: np.ndarray,
    new_tokens: int,
    *,
    rounds: int,
    limit_s: float,
    progress: Progress,
    seed: int = 0,
) -> tuple[tuple[DecodingRow, ...], str]:
    """Let all contestants write, by turns.

    Args:
        contestants: At least one.
        prompt: ``int64[batch, sequence]``.
        new_tokens: Tokens written.
        rounds: Texts of each; a short one comes before, to warm up.
        limit_s: Seconds each may take for anything.
        progress: Told of every step.
        seed: Of the order.

    Returns:
        A row for each, in their order, and which was the reference, or "".
    """
    rng = np.random.default_rng(seed)
    runs = write_by_turns(
        contestants,
        prompt,
        new_tokens,
        rounds=rounds,
        limit_s=limit_s,
        progress=progress,
        rng=rng,
    )
    able = [run for run in runs if not run.reason]
    judge = next((run for run in able if run.who.name == REFERENCE), able[0] if able else None)
    own = next((run for run in able if run.who.own), None)
    rows = tuple(_row(run, own, judge, len(prompt)) for run in runs)
    return rows, judge.who.name if judge else ""


def _row(
    run: WritingRun,
    own: WritingRun | None,
    judge: WritingRun | None,
    batch: int,
) -> DecodingRow:
    if run.reason:
        return DecodingRow(run.who.name, run.who.own, run.reason)
    assert judge is not None  # this one ran, so there is one

    def median(of: Callable[[np.ndarray], float]) -> float:
        return float(np.median([of(np.array(one["times_s"])) for one in run.texts]))

    expected = np.array(judge.texts[0]["ids"])
    count = expected.shape[1]
    seen = all(len(one["times_s"]) == count > 4 for one in run.texts)

    def step(share: float, start: float = 0.0, end: float = 1.0) -> float | None:
        if not seen:
            return None

        def of(times: np.ndarray) -> float:
            gaps = np.diff(times)
            return float(np.quantile(gaps[int(len(gaps) * start) : int(len(gaps) * end)], share))

        return median(of) * 1e3

    total_s = median(lambda times: float(times[-1]))
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    if own is not None:
        pairs = zip(run.texts, own.texts, strict=True)
        ratio, low, high = median_interval(
            np.array([one["cpu_s"] / other["cpu_s"] for one, other in pairs])
        )
    peaks = [one["peak_mb"] for one in run.texts if one["peak_mb"] is not None]
    loaded_mb = run.loaded["resident_mb"]
    return DecodingRow(
        name=run.who.name,
        own=run.who.own,
        versions=run.loaded["versions"],
        precision=run.loaded["precision"],
        note=run.loaded["note"],
        rounds=len(run.texts),
        first_ms=median(lambda times: float(times[0])) * 1e3 if seen else None,
        step_ms=step(0.5),
        step_p95_ms=step(0.95),
        early_ms=step(0.5, 0.0, 0.25),
        late_ms=step(0.5, 0.75, 1.0),
        total_s=total_s,
        cpu_s=float(np.median([one["cpu_s"] for one in run.texts])),
        row_tokens_per_s=count / total_s,
        tokens_per_s=batch * count / total_s,
        cpu_ratio=ratio,
        cpu_low=low,
        cpu_high=high,
        same_tokens=min(same_share(np.array(one["ids"]), expected) for one in run.texts),
        copies=run.texts[-1]["copies"],
        loaded_mb=loaded_mb,
        grown_mb=max(peaks) - loaded_mb if peaks and loaded_mb is not None else None,
    )


@click.command
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=FOLDER)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1))
@click.option("--prompt", default=128, show_default=True, type=click.IntRange(1))
@click.option("--new-tokens", default=128, show_default=True, type=click.IntRange(2))
@click.option("--rounds", default=8, show_default=True, type=click.IntRange(1))
@click.option("--backend", "backends", multiple=True, type=click.Choice(BACKENDS))
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(PRECISIONS)))
@click.option("--peer", "chosen", multiple=True, type=click.Choice(list(PEERS)), help="Only these.")
@click.option("--no-peers", is_flag=True, help="Only tfx.")
@click.option("--peers", "environments", type=FOLDER, help="Environments made for peers.")
@click.option("--threads", type=click.IntRange(1), help="Default: all this process may use.")
@click.option("--limit", "limit_s", default=600.0, show_default=True, help="Seconds to load.")
@click.option("--seed", default=0, help="Of the prompt and the order.  [default: 0]")
@save_option
@json_option
def decoding(
    bundles: tuple[Path, ...],
    batch: int,
    prompt: int,
    new_tokens: int,
    rounds: int,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    chosen: tuple[str, ...],
    no_peers: bool,
    environments: Path | None,
    threads: int | None,
    limit_s: float,
    seed: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure how fast BUNDLE writes tokens, beside other libraries."""
    with told_errors():
        opened = [open_bundle(path) for path in dict.fromkeys(bundles)]
        count = threads or usable_cpus()
        contestants = contestants_of(
            opened,
            tuple(dict.fromkeys(backends)) or BACKENDS,
            tuple(dict.fromkeys(precisions)) or ("",),
            () if no_peers else tuple(dict.fromkeys(chosen)) or tuple(PEERS),
            read_environments(environments) if environments else {},
            count,
            prompt + new_tokens,
        )
        signature = opened[0].manifest.signature
        ids = random_prompt(signature, batch, prompt, seed)
        machine, created = this_machine(), now()
        with progress() as shown:
            rows, reference = measure_decoding(
                contestants,
                ids,
                new_tokens,
                rounds=rounds,
                limit_s=limit_s,
                progress=shown,
                seed=seed,
            )
        size = batch * (prompt + new_tokens) * cache_bytes(signature) / 1e6
        report = DecodingReport(
            machine, created, batch, prompt, new_tokens, count, size, reference, rows
        )
        if save is not None:
            save_result(save, "decoding", created, encode(report), machine)
    if as_json:
        emit_json(encode(report))
        return
    show_decoding(report)


COLUMNS: tuple[Figure, ...] = (
    ("first ms", "first_ms", ".0f"),
    ("next ms", "step_ms", ".2f"),
    ("p95 ms", "step_p95_ms", ".2f"),
    ("early ms", "early_ms", ".2f"),
    ("late ms", "late_ms", ".2f"),
    ("tokens/s", "tokens_per_s", ".1f"),
    ("of a row", "row_tokens_per_s", ".1f"),
    ("CPU s", "cpu_s", ".2f"),
    ("CPU ratio", "cpu_ratio", ".2f"),
    ("low", "cpu_low", ".2f"),
    ("high", "cpu_high", ".2f"),
    ("same", "same_tokens", ".0%"),
    ("copies", "copies", "d"),
    ("loaded MB", "loaded_mb", ".0f"),
    ("more MB", "grown_mb", ".0f"),
)


def title_of(report: DecodingReport) -> str:
    """What was written."""
    return (
        f"batch {report.batch}, prompt {report.prompt}, {report.new_tokens} new tokens, "
        f"{report.threads} threads"
    )


def ran(report: DecodingReport) -> list[DecodingRow]:
    """Rows that ran, least processor time first."""
    return sorted((row for row in report.rows if not row.reason), key=lambda row: row.cpu_s or 0)


def notes_of(report: DecodingReport) -> Iterator[str]:
    """What did not run and why, what the columns say, and the versions."""
    for row in report.rows:
        if row.reason:
            yield f"{row.name} not run: {row.reason}"
        elif row.note:
            yield f"{row.name}: {row.note}"
    yield "next: from a token to the one after it, median; early, late: of a text's quarters"
    yield f"CPU ratio: of processor time, to the first row of tfx, {_spread(ran(report))}"
    yield f"same: tokens before the first that {report.reference} does not write"
    yield f"more MB: at most, by writing; the cache is {report.cache_mb:.1f} MB"
    yield "; ".join(dict.fromkeys(row.versions for row in ran(report)))


def _spread(rows: Sequence[DecodingRow]) -> str:
    """What ``cpu_low`` and ``cpu_high`` of rows are."""
    rounds = min((row.rounds for row in rows), default=0)
    if all(row.cpu_low is None for row in rows):
        return f"no interval of {rounds} rounds"
    # Files of before there was none of so few.
    return "its 95 % interval" if rounds >= LEAST_FOR_MEDIAN else f"range of {rounds} rounds"


def show_decoding(report: DecodingReport) -> None:
    """Print the rows, then what did not run, and the conditions."""
    out = console()
    table = figure_table(title_of(report), COLUMNS)
    for row in ran(report):
        table.add_row(row.name, *figures_of(row, COLUMNS))
    out.print(table)
    for note in notes_of(report):
        out.print(note, markup=False)
    out.print(f"{report.machine}", markup=False)


if __name__ == "__main__":
    decoding()
