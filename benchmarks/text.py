"""``python -m tfx.bench.text``: texts a second, beside what users would take instead.

Texts are real and of mixed length. Peers run where they are installed: those whose versions clash
with ours in environments that ``python -m tfx.bench.environments`` makes. One that does not run is
a row that says why.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from tfx.bundle import Bundle, open_bundle
from tfx.codec import encode
from tfx.console import FOLDER, console, emit_json, json_option, progress, told_errors
from tfx.dtypes import DType
from tfx.errors import BundleError, DataError
from tfx.runtime.backend import BACKENDS, PRECISIONS, STREAMED
from tfx.runtime.cpus import usable_cpus
from tfx.runtime.pytorch.checkpoint import checkpoint_folder
from tfx.runtime.text.tokenizer import Tokenizer

from .environments import Environment, read_environments
from .measuring.family import same_model
from .measuring.machine import Machine, this_machine
from .measuring.workload import Way
from .pages.stored import now, save_option, save_result
from .peaks import Peaks, stored_peaks
from .peers.contestants import Contestant
from .peers.embedders import PEERS
from .peers.sentences import read_sentences
from .peers.throughput import (
    BATCHES,
    CHUNK,
    LEAST_COSINE,
    SCRIPT,
    Corpus,
    Limits,
    TextRow,
    measure_texts,
    text_flops,
)

# What a bundle runs on if nothing else is asked for.
WAYS = (Way("onnxruntime"), Way("openvino"), Way("openvino", "bf16"))
# Whose embeddings the others' are compared with, if it runs; else tfx's own in float32.
REFERENCE = "sentence-transformers"
# Texts to embed unless a caller says otherwise.
SENTENCES = 2000


@dataclass(frozen=True, slots=True)
class TextReport:
    """Rows, and the conditions they were measured under.

    Attributes:
        machine: Where.
        created: When it began, ISO 8601 in UTC.
        texts: How many there are.
        tokens: Of all texts, special tokens included, after truncation.
        longest: Tokens of the longest.
        threads: CPU threads of each row.
        reference: Row whose embeddings the others' were compared with; "" for none.
        peaks: Of the machine.
        rows: One per contestant.
    """

    machine: Machine
    created: str
    texts: int
    tokens: int
    longest: int
    threads: int
    reference: str
    peaks: Peaks
    rows: tuple[TextRow, ...] = field(default=())


def read_corpus(bundle: Bundle, texts: Sequence[str]) -> Corpus:
    """Texts with the tokens and operations of each.

    Args:
        bundle: Gives the tokenizer and the graph; of float32.
        texts: At least one.
    """
    encoded = Tokenizer(bundle).encode(list(texts))
    tokens = np.array([len(one.ids) for one in encoded])
    return Corpus(tuple(texts), tokens, text_flops(bundle, tokens))


def contestants_of(
    bundles: Sequence[Bundle],
    ways: Sequence[Way],
    chosen: Sequence[str],
    pythons: Mapping[str, Environment],
    threads: int,
) -> list[Contestant]:
    """Rows of tfx, a bundle in each way; then the peers.

    Args:
        bundles: Of one model that embeds; the first one's graph is what fastembed runs.
        ways: Backends and precisions.
        chosen: Keys of ``PEERS``.
        pythons: Environments by name; one that is not named is this one.
        threads: CPU threads of each.

    Raises:
        BundleError: If a bundle does not embed, or is of another model than the first.
        SourceError: If the checkpoint the peers read is not on this machine.
    """
    first = bundles[0]
    for bundle in bundles:
        if bundle.manifest.processing.embedding is None:
            raise BundleError(
                f"{bundle.name} does not embed: its answers are no vectors to compare",
                hint="Name bundles of an embedding model, such as minilm.",
            )
        if not same_model(first, bundle):
            raise BundleError(
                f"{first.name} and {bundle.name} are not of one model",
                hint="Name bundles made from one another.",
            )
    processing = first.manifest.processing
    assert processing.embedding is not None
    (output,) = (
        one for one in first.manifest.signature.outputs if one.name == processing.embedding.output
    )
    job: dict[str, Any] = {
        "checkpoint": str(checkpoint_folder(first.manifest.source).absolute()),
        "model": str(first.model.absolute()),
        "threads": threads,
        "max_length": Tokenizer(first).max_tokens,
        "dim": int(output.shape[-1]),
    }
    found = []
    for bundle in bundles:
        for way in ways:
            own = {"bundle": str(bundle.path.absolute()), "backend": way.backend}
            found.append(
                Contestant(
                    f"{bundle.name} on {way}",
                    True,
                    sys.executable,
                    "tfx",
                    job | own | {"precision": way.precision},
                    SCRIPT,
                    batches=(1, threads) if way.backend in STREAMED and threads > 1 else (1,),
                )
            )
    for name in chosen:
        environment = pythons.get(PEERS[name].environment) or Environment("", sys.executable)
        python, problem = environment.python, environment.problem
        found.append(Contestant(name, False, python, name, job, SCRIPT, problem, BATCHES))
    return found


def parse_pythons(given: Sequence[str]) -> dict[str, Environment]:
    """Environments from ``NAME=PYTHON``.

    Raises:
        DataError: If one is not of this form, or no peer is in an environment of this name.
    """
    names = {peer.environment for peer in PEERS.values()} - {""}
    found = {}
    for text in given:
        name, equals, python = text.partition("=")
        if not equals or not python or name not in names:
            raise DataError(
                f"--peer-python is {text!r}, expected NAME=PYTHON",
                hint=f"Use one of these names: {', '.join(sorted(names))}.",
            )
        found[name] = Environment(name, python)
    return found


@click.command
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="Has sst2/ and text/.")
@click.option(
    "--sentences",
    type=click.IntRange(1),
    default=SENTENCES,
    show_default=True,
    help="Texts to embed.",
)
@click.option("--backend", "backends", multiple=True, type=click.Choice(list(BACKENDS)))
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(PRECISIONS)))
@click.option("--peer", "chosen", multiple=True, type=click.Choice(list(PEERS)), help="Only these.")
@click.option("--no-peers", is_flag=True, help="Only tfx.")
@click.option("--peers", "environments", type=FOLDER, help="Environments made for peers.")
@click.option("--peer-python", "pythons", multiple=True, help="NAME=PYTHON of one environment.")
@click.option(
    "--rounds", type=click.IntRange(1), default=10, show_default=True, help="Most rounds."
)
@click.option("--seconds", default=60.0, show_default=True, help="Of the final.")
@click.option("--limit", "limit_s", default=180.0, show_default=True, help="Seconds to load.")
@click.option("--threads", type=click.IntRange(1), help="Default: all this process may use.")
@click.option(
    "--peaks", "peaks_file", type=click.Path(path_type=Path), help="Read or written, if of here."
)
@save_option
@click.option("--seed", default=0, help="Of the texts and the order.  [default: 0]")
@json_option
def text(
    bundles: tuple[Path, ...],
    data: Path,
    sentences: int,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    chosen: tuple[str, ...],
    no_peers: bool,
    environments: Path | None,
    pythons: tuple[str, ...],
    rounds: int,
    seconds: float,
    limit_s: float,
    threads: int | None,
    peaks_file: Path | None,
    save: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure how many texts a second BUNDLE embeds, beside other libraries."""
    count = threads or usable_cpus()
    ways = [
        Way(backend, precision)
        for backend in dict.fromkeys(backends)
        for precision in dict.fromkeys(precisions or ("",))
    ]
    with told_errors():
        opened = [open_bundle(path) for path in dict.fromkeys(bundles)]
        found = read_environments(environments) if environments else {}
        contestants = contestants_of(
            opened,
            ways or WAYS,
            () if no_peers else tuple(dict.fromkeys(chosen)) or tuple(PEERS),
            found | parse_pythons(pythons),
            count,
        )
        corpus = read_corpus(opened[0], read_sentences(data, sentences, seed))
        machine = this_machine()
        created = now()
        with progress() as shown:
            shown.step("peaks of this machine")
            peaks = stored_peaks(peaks_file)
            rows, reference = measure_texts(
                contestants,
                corpus,
                Limits(seconds, rounds, limit_s),
                peaks,
                reference=[REFERENCE, *(one.name for one in contestants if one.own)],
                progress=shown,
                seed=seed,
            )
        report = TextReport(
            machine,
            created,
            len(corpus.texts),
            int(corpus.tokens.sum()),
            int(corpus.tokens.max()),
            count,
            reference,
            peaks,
            rows,
        )
        if save is not None:
            save_result(save, "text", created, encode(report), machine)
    if as_json:
        emit_json(encode(report))
        return
    show_texts(report)


def show_texts(report: TextReport) -> None:
    """Print the rows, fastest first, then what did not run, and the conditions."""
    from rich.table import Table

    out = console()
    title = (
        f"{report.texts} texts of {report.tokens / report.texts:.0f} tokens on average, the "
        f"longest {report.longest}; {report.threads} threads"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    columns = ("", "runs in", "batch", "texts/s", "tokens/s", "of peak", "cosine", "mean", "ratio")
    for name in (*columns, "95 %"):
        table.add_column(name, justify="left" if name in ("", "runs in") else "right")
    ran = [row for row in report.rows if row.sentences_per_s is not None]
    for row in sorted(ran, key=lambda row: -(row.sentences_per_s or 0)):
        table.add_row(*_cells(row))
    out.print(table)
    for row in report.rows:
        if row.reason:
            out.print(f"{row.name} not run: {row.reason}", markup=False)
    for line in notes_of(report):
        out.print(line, markup=False)
    out.print(f"{report.machine}", markup=False)
    out.print("; ".join(dict.fromkeys(row.versions for row in ran)), markup=False)


def _cells(row: TextRow) -> list[str]:
    compared = row.comparison
    return [
        row.name,
        row.precision,
        f"{row.batch} at once" if row.own else str(row.batch),
        f"{row.sentences_per_s:.0f}",
        f"{row.tokens_per_s:.0f}",
        "-" if row.peak_share is None else f"{row.peak_share:.0%}",
        "-" if row.min_cosine is None else f"{row.min_cosine:.4f}",
        "-" if row.mean_cosine is None else f"{row.mean_cosine:.4f}",
        "-" if compared is None else f"{compared.speedup:.2f}x",
        "-" if compared is None else f"{compared.low:.2f} to {compared.high:.2f}",
    ]


def notes_of(report: TextReport) -> list[str]:
    """What the table does not say: what its numbers are against, and what is best."""
    notes = []
    if report.reference:
        notes.append(f"cosine: the least and the mean, with {report.reference}")
    else:
        notes.append("cosine: nothing to compare with, no row in float32 ran")
    compared = [row for row in report.rows if row.comparison is not None]
    if compared:
        assert compared[0].comparison is not None
        notes.append(
            f"ratio: to {compared[0].comparison.against}, the fastest peer whose cosine is "
            f"{LEAST_COSINE} or more; of rows that were in the final"
        )
    behind = [row.name for row in report.rows if row.rounds == 1 and report.texts > CHUNK]
    if behind:
        notes.append(f"over the first {CHUNK} texts only, being far behind: {', '.join(behind)}")
    kinds = dict.fromkeys(row.precision for row in report.rows if row.peak_share is not None)
    for kind in kinds:
        if (peak := report.peaks.best(DType.parse(kind))) is not None:
            threads = f"{peak.threads} thread{'s' * (peak.threads > 1)}"
            notes.append(
                f"peak in {kind}: {peak.gflops:.0f} GFLOP/s ({peak.engine}, {threads}, "
                f"{peak.size}); padding is not counted as work"
            )
    notes += [f"{row.name}: {row.note}" for row in report.rows if row.note]
    own = [row for row in compared if row.own and row.right and row.comparison]
    best = max(own, key=lambda row: row.sentences_per_s or 0, default=None)
    if best is not None and best.comparison is not None:
        notes.append(f"best of tfx: {best.name}, {_said(best.comparison)}")
        other = best.any_comparison
        if other is not None and other.against != best.comparison.against:
            notes.append(f"the fastest peer of any cosine: {_said(other)}")
    return notes


def _said(comparison: Any) -> str:
    return (
        f"{comparison.speedup:.2f}x {comparison.against} "
        f"({comparison.low:.2f} to {comparison.high:.2f}: {comparison.verdict})"
    )


if __name__ == "__main__":
    text()
