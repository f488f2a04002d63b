"""Commands that run a bundle or look at it: arguments in, one call, its report out."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from tfx.codec import encode
from tfx.console import (
    FILE,
    FOLDER,
    Progress,
    chosen_bundle,
    console,
    emit_json,
    json_option,
    progress,
)
from tfx.errors import BackendError, ParityError

from .options import BACKEND, DEVICE, PRECISION, THREADS, TRUST

if TYPE_CHECKING:
    from tfx.bundle import Bundle

    from .records import FileFormat
    from .session_report import SessionReport

INPUT = click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True)
OUTPUT = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
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
@THREADS
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
@TRUST
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
    batch: int | None,
    long: str,
    **run: Any,
) -> None:
    """Run a bundle on text, JSONL, npz or WAV files.

    Reads one text a line; or JSONL, each line a string or an object with "text" (and
    "text_pair") whose other fields are repeated in the output; or npz with arrays named as the
    model's inputs. Writes one JSON object a line in the same order, or npz, which is held in
    memory until it is whole. Without BUNDLE: the newest of the current folder.
    """
    from .opening import open_session
    from .predictions import predict_sounds, predict_stream
    from .verification import verified

    path, kind = _input_of(texts, sounds, source, input_format)
    file, as_arrays = _output_of(target, output_format, force=force)
    opened = verified(chosen_bundle(bundle))
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(open_session(opened, verify=False, **run))
        reading: Sequence[str] | BinaryIO = texts
        if path is not None:
            reading = stack.enter_context(path.open("rb"))
        elif not (texts or sounds):
            reading = sys.stdin.buffer
        into = stack.enter_context(_opened(file, force=force))
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
    if session.report.texts:
        click.echo(_summary(session.report, duration_s), err=True)


def _input_of(
    texts: Sequence[str], sounds: Sequence[Path], source: Path | None, input_format: str | None
) -> tuple[Path | None, FileFormat]:
    """The file to read, None for stdin or what the options hold, and what is in it."""
    from .records import FileFormat, format_of

    if texts and (source or input_format):
        raise click.UsageError("--text excludes --input and --input-format")
    if sounds and (texts or source or input_format):
        raise click.UsageError("--audio excludes --text, --input and --input-format")
    if not (texts or sounds or source) and sys.stdin.isatty():
        raise click.UsageError("nothing to read: give --text, --audio or --input, or pipe text in")
    path = None if source in (None, STDIO) else source
    if input_format:
        return path, FileFormat(input_format)
    kind = format_of(path) if path else FileFormat.TEXT
    if kind is None:
        raise click.UsageError(f"what {path} holds is not clear from its name: give --input-format")
    return path, kind


def _output_of(
    target: Path | None, output_format: str | None, *, force: bool
) -> tuple[Path | None, bool]:
    """The file to write, None for stdout, and whether arrays go there."""
    from .records import FileFormat, format_of, refuse_taken

    file = None if target in (None, STDIO) else target
    if output_format is None and file is not None and format_of(file) is FileFormat.NPZ:
        output_format = "npz"
    as_arrays = output_format == "npz"
    if file is not None:
        refuse_taken(file, force=force)
    elif as_arrays and sys.stdout.isatty():
        raise click.UsageError("npz is not for a terminal: give --output FILE")
    return file, as_arrays


def _opened(file: Path | None, *, force: bool) -> contextlib.AbstractContextManager[BinaryIO]:
    from .records import write_file, write_stdout

    return write_file(file, force=force) if file else write_stdout(sys.stdout.buffer)


def _summary(report: SessionReport, duration_s: float) -> str:
    texts = "1 text" if report.texts == 1 else f"{report.texts:,} texts"
    said = f"{texts} in {duration_s:.1f} s"
    if report.truncated:
        said += f", {report.truncated:,} of them longer than the model takes, and cut"
    if report.windowed:
        said += f", {report.windowed:,} longer than the model takes, and read in windows"
    return said


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--graph/--no-graph", default=True, help="Also read the graph.  [default: yes]")
@click.option("--fusion", is_flag=True, help="List each attention alone: fused, or why not.")
@json_option
def inspect(bundle: Path | None, graph: bool, fusion: bool, as_json: bool) -> None:
    """Show a bundle: signature, graph, proof, files."""
    from .inspection import fusion_of, show_bundle, show_fusion, show_graph

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
    facts = _graph_facts(opened) if graph and opened.manifest.engine is None else None
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


def _graph_facts(bundle: Bundle) -> dict[str, Any] | None:
    """What is in the graph; None, and why on stderr, where only what runs bundles is installed."""
    from .inspection import graph_facts

    try:
        return graph_facts(bundle)
    except BackendError as error:
        click.echo(f"graph left out, as by --no-graph: {error.with_hint}", err=True)
        return None


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@BACKEND
@DEVICE
@THREADS
@PRECISION
@TRUST
@json_option
def check(bundle: Path | None, as_json: bool, **run: Any) -> None:
    """Check a bundle again: digests, and parity with PyTorch.

    The bundle carries feeds and what PyTorch gave for them; they are run again on the backend.
    With --backend torch the source is loaded again and must still give the same.
    """
    from .inspection import show_parity
    from .parity import check_bundle

    opened = chosen_bundle(bundle, verify=True)
    report = check_bundle(opened, **run)
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
        raise ParityError(
            f"{opened.path} differs from PyTorch by more than its tolerance",
            hint="Export it again, or name another backend.",
        )


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
