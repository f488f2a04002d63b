"""``tfx transcribe``: WAV files in, what is said out."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import click

from tfx.codec import encode
from tfx.console import FILE, FOLDER, Progress, chosen_bundle, emit_json, json_option, progress

from ..backend import PRECISIONS
from .dictation import Task


@click.command
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@click.option("--bundle", type=FOLDER, help="The decoder, its encoder beside it; or with CTC.")
@click.option("--language", help="Code of what is spoken, e.g. en; default: found out.")
@click.option("--task", type=click.Choice(list(Task)), help="Or translate into English.")
@click.option("--timestamps", is_flag=True, help="A line for each part, with its seconds.")
@click.option("--max-new-tokens", type=int, help="Most tokens of a window; default: all there is.")
@click.option("--backend", default="", help="What to run it on; default: the first there is.")
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    help="Type of float matrix products; default: the bundle's own.",
)
@json_option
def transcribe(
    files: tuple[Path, ...],
    bundle: Path | None,
    language: str | None,
    task: str | None,
    timestamps: bool,
    max_new_tokens: int | None,
    backend: str,
    threads: int | None,
    precision: str | None,
    as_json: bool,
) -> None:
    """Write down what is said in WAV files: Whisper, or CTC.

    A line for each file; with --timestamps one for each part of it. With --json one document: for
    each file its text, language and parts. Without --bundle: the newest of the current folder.
    """
    from ..opening import open_session
    from .wav import read_wav

    opened = chosen_bundle(bundle, verify=True)
    found, seconds = [], 0.0
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(
            open_session(
                opened, backend=backend, threads=threads, precision=precision or "", verify=False
            )
        )
        # A live line and the text would write over each other on a terminal.
        live = as_json or not sys.stdout.isatty()
        shown = stack.enter_context(progress()) if live else Progress()
        shown.step(f"listening with {session.report.facts}", len(files))
        started = time.perf_counter()
        for file in files:
            sound = read_wav(file)
            answer = session.transcribe(
                sound.samples,
                language=language,
                task=task or Task.TRANSCRIBE,
                timestamps=timestamps,
                max_new_tokens=max_new_tokens,
                sampling_rate=sound.rate,
            )
            seconds += sound.seconds
            found.append({"audio": str(file), **encode(answer)})
            if not as_json:
                lines = [answer.text]
                if timestamps:
                    lines = [
                        f"{one.start_s:8.2f} {one.end_s:8.2f}  {one.text}"
                        for one in answer.segments
                    ]
                click.echo("\n".join(lines))
            shown.advance(1)
        duration_s = time.perf_counter() - started
    if as_json:
        emit_json({"bundle": str(opened.path), "transcripts": found})
    click.echo(f"{seconds:.1f} s of sound in {duration_s:.1f} s", err=True)
