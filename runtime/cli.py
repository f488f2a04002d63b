"""Commands that run a bundle or look at it: arguments in, one call, its report out."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import (
    DATA,
    FILE,
    FOLDER,
    Progress,
    chosen_bundle,
    console,
    emit_json,
    json_option,
    progress,
)
from tfx.errors import ParityError

from .backend import PRECISIONS

INPUT = click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True)
OUTPUT = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
PRECISION = click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    help="Type of float matrix products; default: the bundle's own.",
)
BACKEND = click.option(
    "--backend",
    default="",
    help="What to run it on, or auto: what tfx tune chose.  [default: the first there is]",
)
DEVICE = click.option(
    "--device", default="", help="cpu, or cuda:0 for a GPU.  [default: what the backend is for]"
)
SHAPE_HELP = "BATCHxLENGTH or axis=size,...; twice counts twice.  [default: 1x128, 16x128]"
STDIO = Path("-")


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("-t", "--text", "texts", multiple=True, help="A text; may be given several times.")
@click.option(
    "--audio", "sounds", multiple=True, type=FILE, help="A WAV file; may be given several times."
)
@click.option("-i", "--input", "source", type=INPUT, help="What to read; - is stdin.")
@click.option(
    "--input-format",
    type=click.Choice(["text", "jsonl", "npz"]),
    help="What the input holds; default: what its suffix says, text for stdin.",
)
@click.option("--field", default="text", show_default=True, help="Field of JSONL with the text.")
@click.option("-o", "--output", "target", type=OUTPUT, help="What to write; - is stdout.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["jsonl", "npz"]),
    help="What to write; default: npz where the suffix says so, else JSONL.",
)
@click.option("--force", is_flag=True, help="Replace an output that is there already.")
@BACKEND
@DEVICE
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@PRECISION
@click.option("--batch", type=click.IntRange(1), help="Most texts or rows in one run of the model.")
@click.option(
    "--streams",
    type=click.IntRange(1),
    help="Runs at once, which share the threads.  [default: one a thread, at most 4]",
)
@click.option(
    "--long",
    type=click.Choice(["truncate", "windows"]),
    default="truncate",
    show_default=True,
    help="Cut texts longer than the model takes, or read them in windows that overlap.",
)
@click.option("--trust", is_flag=True, help="Let the factory's file or a foreign engine run.")
def predict(
    bundle: Path | None,
    texts: tuple[str, ...],
    sounds: tuple[Path, ...],
    source: Path | None,
    input_format: str | None,
    field: str,
    target: Path | None,
    output_format: str | None,
    force: bool,
    backend: str,
    device: str,
    threads: int | None,
    precision: str | None,
    batch: int | None,
    streams: int | None,
    long: str,
    trust: bool,
) -> None:
    """Run a bundle on text, JSONL, npz or WAV files.

    Reads one text a line; or JSONL, each line a string or an object with "text" (and
    "text_pair") whose other fields are repeated in the output; or npz with arrays named as the
    model's inputs. Writes one JSON object a line in the same order, or npz, which is held in
    memory until it is whole. Without BUNDLE: the newest of the current folder.
    """
    from .opening import open_session
    from .predictions import predict_sounds, predict_stream
    from .records import FileFormat, format_of, refuse_taken, write_file, write_stdout

    if texts and (source or input_format):
        raise click.UsageError("--text excludes --input and --input-format")
    if sounds and (texts or source or input_format):
        raise click.UsageError("--audio excludes --text, --input and --input-format")
    if not (texts or sounds or source) and sys.stdin.isatty():
        raise click.UsageError("nothing to read: give --text, --audio or --input, or pipe text in")
    path = None if source in (None, STDIO) else source
    kind = (
        FileFormat(input_format) if input_format else format_of(path) if path else FileFormat.TEXT
    )
    if kind is None:
        raise click.UsageError(f"what {path} holds is not clear from its name: give --input-format")
    file = None if target in (None, STDIO) else target
    if output_format is None and file is not None and format_of(file) is FileFormat.NPZ:
        output_format = "npz"
    as_arrays = output_format == "npz"
    if file is not None:
        refuse_taken(file, force=force)
    elif as_arrays and sys.stdout.isatty():
        raise click.UsageError("npz is not for a terminal: give --output FILE")
    opened = chosen_bundle(bundle, verify=True)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(
            open_session(
                opened,
                backend=backend,
                device=device,
                threads=threads,
                precision=precision or "",
                verify=False,
                trust=trust,
                streams=streams,
            )
        )
        reading: Sequence[str] | BinaryIO = texts
        if path is not None:
            reading = stack.enter_context(path.open("rb"))
        elif not (texts or sounds):
            reading = sys.stdin.buffer
        writing = write_file(file, force=force) if file else write_stdout(sys.stdout.buffer)
        into = stack.enter_context(writing)
        # A live line and the answers would write over each other on a terminal.
        live = file is not None or not sys.stdout.isatty()
        shown = stack.enter_context(progress()) if live else Progress()
        shown.step(f"predicting with {session.report.facts}")
        started = time.perf_counter()
        if sounds:
            predict_sounds(
                session,
                sounds,
                into,
                as_arrays=as_arrays,
                max_rows=batch,
                advance=shown.advance,
            )
        else:
            predict_stream(
                session,
                reading,
                into,
                kind=kind,
                where="--text" if texts else str(path or "stdin"),
                field=field,
                as_arrays=as_arrays,
                max_rows=batch,
                long=long,
                advance=shown.advance,
            )
        duration_s = time.perf_counter() - started
    report = session.report
    if report.texts:
        said = (
            f"{'1 text' if report.texts == 1 else f'{report.texts:,} texts'} in {duration_s:.1f} s"
        )
        if report.truncated:
            said += f", {report.truncated:,} of them longer than the model takes, and cut"
        if report.windowed:
            said += f", {report.windowed:,} longer than the model takes, and read in windows"
        click.echo(said, err=True)


@click.command
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1, type=FOLDER)
@click.option("--shape", "shapes", multiple=True, help=SHAPE_HELP)
@click.option("--backend", "backends", multiple=True, help="Choose from these; also torch.")
@click.option(
    "--threads", multiple=True, type=click.IntRange(1), help="Thread counts; default: some."
)
@click.option("--max-drop", type=float, help="Accuracy a child may lose; default: as it was made.")
@click.option("--min-cosine", type=float, help="To the bundle's outputs, where none was measured.")
@click.option("--seconds", type=float, help="How long it may take.  [default: 120]")
@click.option("--limit", "limit_s", type=float, help="Seconds one may take to load.  [default: 60]")
@click.option("--torch/--no-torch", default=True, help="Time PyTorch beside them.  [default: yes]")
@click.option("--trust", is_flag=True, help="Let the factory's Python file run.")
@click.option("--show", is_flag=True, help="Show the stored choice, and measure nothing.")
@json_option
def tune(
    bundles: tuple[Path, ...],
    shapes: tuple[str, ...],
    backends: tuple[str, ...],
    threads: tuple[int, ...],
    torch: bool,
    trust: bool,
    show: bool,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Find the fastest way to run a bundle here that is still right.

    Tries backends, precisions and thread counts, and the bundles made from BUNDLE within an
    accuracy budget, each in a process of its own. What is chosen is what --backend auto runs, on
    this machine and with these versions. Without BUNDLE: the newest of the current folder.
    """
    from .tuning.choices import stored_choice
    from .tuning.shapes import shape_of
    from .tuning.table import show_tuning
    from .tuning.tuner import TuningPlan, tune_bundle

    given = {name: value for name, value in limits.items() if value is not None}
    found, problems = [], []
    for opened in [chosen_bundle(path) for path in dict.fromkeys(bundles)] or [chosen_bundle(None)]:
        if show:
            tuning = stored_choice(opened)
        else:
            plan = TuningPlan(
                shapes=tuple(shape_of(text, opened.manifest.signature) for text in shapes),
                backends=tuple(dict.fromkeys(backends)),
                threads=threads,
                torch=torch,
                trust=trust,
                **given,  # type: ignore[arg-type]
            )
            with progress() as shown:
                tuning, problem = tune_bundle(opened, plan, progress=shown)
            problems += [problem] if problem else []
        found.append(tuning)
        if not as_json:
            show_tuning(console(), tuning)
    if as_json:
        emit_json([encode(tuning) for tuning in found])
    if problems:
        raise problems[0]


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--eval", "data", type=DATA, required=True, help="Samples, with labels or without.")
@click.option("--metric", default="auto", show_default=True, help="What to measure.")
@click.option("--reference", type=FOLDER, help="A bundle to compare with, e.g. the parent.")
@click.option("--samples", type=click.IntRange(1), help="Most samples, drawn by --seed.")
@click.option("--seed", default=0, help="Of which samples are taken, and of the interval.")
@click.option("--task", default="", help="Of translations: as of tfx generate --translate.")
@click.option("--source", default="", help="Of translations: code of the language to read.")
@click.option("--target", default="", help="Of translations: code of the language to write in.")
@BACKEND
@DEVICE
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@PRECISION
@click.option("--batch", type=click.IntRange(1), help="Most samples in one run of the model.")
@click.option("--trust", is_flag=True, help="Let the factory's file or a foreign engine run.")
@json_option
def evaluate(
    bundle: Path | None,
    data: Path,
    metric: str,
    reference: Path | None,
    samples: int | None,
    seed: int,
    task: str,
    source: str,
    target: str,
    backend: str,
    device: str,
    threads: int | None,
    precision: str | None,
    batch: int | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Measure a bundle's accuracy on labelled data, or beside another.

    Reads TSV or CSV with a header (sentence, or sentence1 and sentence2; label or score), JSONL
    with such fields, text, CoNLL (.conll), SQuAD 1.1 (.json), npz with arrays named as the
    model's inputs, and labels, a list of WAV files (audio; text or label), texts and their
    translations (source and target), or a folder of images: one for each class. With --reference
    the difference is measured on the same samples; without labels, how far the outputs agree.
    Without BUNDLE: the newest of the current folder.
    """
    import numpy as np

    from .accuracy.datasets import read_dataset
    from .accuracy.evaluation import compare_evaluations, show_evaluation
    from .accuracy.evaluation import evaluate as measured
    from .opening import open_session
    from .session import Session

    wishes = {"task": task, "source": source, "target": target}
    dataset = read_dataset(data, limit=samples, seed=seed)
    opened = chosen_bundle(bundle, verify=True)
    with contextlib.ExitStack() as stack:

        def session_of(source: Bundle | Path) -> Session:
            return stack.enter_context(
                open_session(
                    source,
                    backend=backend,
                    device=device,
                    threads=threads,
                    precision=precision or "",
                    trust=trust,
                )
            )

        session = session_of(opened)
        other = session_of(reference) if reference else None
        shown = stack.enter_context(progress())
        shown.step(f"evaluating with {session.report.facts}", len(dataset))
        found = measured(
            session,
            dataset,
            metric,
            reference=other,
            max_rows=batch,
            wishes=wishes,
            seed=seed,
            on_progress=shown.advance,
        )
        theirs = difference = None
        if other is not None and not found.reference:
            shown.step("evaluating the reference", len(dataset))
            theirs = measured(
                other,
                dataset,
                found.metric,
                max_rows=batch,
                wishes=wishes,
                seed=seed,
                on_progress=shown.advance,
            )
            difference = compare_evaluations(theirs, found, np.random.default_rng(seed))
    if as_json:
        document = {"bundle": str(opened.path), "evaluation": found.to_dict()}
        if theirs is not None and difference is not None:
            document |= {"reference": theirs.to_dict(), "difference": encode(difference)}
        emit_json(document)
    else:
        show_evaluation(console(), found, theirs, difference)


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--graph/--no-graph", default=True, help="Also read the graph.  [default: yes]")
@click.option("--fusion", is_flag=True, help="List each attention alone: fused, or why not.")
@json_option
def inspect(bundle: Path | None, graph: bool, fusion: bool, as_json: bool) -> None:
    """Show a bundle: signature, graph, proof, files."""
    from .inspection import fusion_of, graph_facts, show_bundle, show_fusion, show_graph

    if fusion and not graph:
        raise click.UsageError("--fusion reads the graph, --no-graph excludes it")
    opened = chosen_bundle(bundle)
    if fusion:
        patterns = fusion_of(opened)
        if as_json:
            document = {"bundle": str(opened.path), "digest": opened.digest}
            emit_json(document | {"fusion": encode(patterns)})
        else:
            show_fusion(console(), patterns)
        return
    facts = graph_facts(opened) if graph and opened.manifest.engine is None else None
    if as_json:
        document = {"bundle": str(opened.path), "digest": opened.digest}
        document |= opened.manifest.to_dict()
        emit_json(document | ({"graph": facts} if facts else {}))
        return
    out = console()
    show_bundle(out, opened)
    if facts:
        show_graph(out, facts)
    out.print("  files")
    for entry in opened.manifest.files:
        out.print(f"    {entry.sha256[:12]}  {entry.size_bytes:>12,} bytes  {entry.path}")


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@BACKEND
@DEVICE
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@PRECISION
@click.option("--trust", is_flag=True, help="Let the factory's file or a foreign engine run.")
@json_option
def check(
    bundle: Path | None,
    backend: str,
    device: str,
    threads: int | None,
    precision: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Check a bundle again: digests, and parity with PyTorch.

    The bundle carries feeds and what PyTorch gave for them; they are run again on the backend.
    With --backend torch the source is loaded again and must still give the same.
    """
    from .inspection import show_parity
    from .proof import check_bundle

    opened = chosen_bundle(bundle, verify=True)
    report = check_bundle(
        opened,
        backend=backend,
        device=device,
        threads=threads,
        precision=precision or "",
        trust=trust,
    )
    if as_json:
        emit_json(
            {"bundle": str(opened.path), "digest": opened.digest, "passed": report.passed}
            | _without_infinities(encode(report))
        )
    else:
        out = console()
        files = len(opened.manifest.files)
        out.print(f"{opened.path}: sha256 of {files} files is right", markup=False)
        show_parity(out, report)
    if not report.passed:
        raise ParityError(f"{opened.path} differs from PyTorch by more than its tolerance")


def _without_infinities(document: Any) -> Any:
    """Errors that have no size, of outputs of another shape or with NaN, are null in JSON."""
    if isinstance(document, dict):
        return {name: _without_infinities(value) for name, value in document.items()}
    if isinstance(document, list):
        return [_without_infinities(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


@click.command
@json_option
def doctor(as_json: bool) -> None:
    """Show backends, devices and versions, and what is missing."""
    from .doctor import diagnose, show_diagnosis

    found = diagnose()
    if as_json:
        emit_json(encode(found) | {"works": found.works})
    else:
        show_diagnosis(console(), found)
