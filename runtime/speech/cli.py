"""``tfx transcribe``: WAV files in, what is said out."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tfx.codec import encode
from tfx.console import DATA, FOLDER, Progress, chosen_bundle, emit_json, json_option, progress
from tfx.errors import DataError, FeedError

from ..options import PRECISION, THREADS
from ..records import json_line
from .dictation import Task
from .transcript import Transcript

SUFFIX = ".wav"


@click.command
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=DATA)
@click.option("--bundle", type=FOLDER, help="The decoder, its encoder beside it; or with CTC.")
@click.option("--language", help="Code of what is spoken, e.g. en; default: found out.")
@click.option("--task", type=click.Choice(list(Task)), help="Or translate into English.")
@click.option("--timestamps", is_flag=True, help="A line for each part, with its seconds.")
@click.option("--max-new-tokens", type=int, help="Most tokens of a window; default: all there is.")
@click.option("--fallback", is_flag=True, help="Draw a text that went wrong again, ever freer.")
@click.option("--backend", default="", help="What to run it on; default: the first there is.")
@THREADS
@PRECISION
@click.option("--jsonl", "as_jsonl", is_flag=True, help="A line of JSON for each file, at once.")
@json_option
def transcribe(
    files: tuple[Path, ...],
    bundle: Path | None,
    language: str | None,
    task: str | None,
    timestamps: bool,
    max_new_tokens: int | None,
    fallback: bool,
    backend: str,
    threads: int | None,
    precision: str,
    as_jsonl: bool,
    as_json: bool,
) -> None:
    """Write down what is said in WAV files: Whisper, or CTC.

    FILE may be a folder: its WAV files by name. A line for each file; with --timestamps one for
    each part of it. With --json one document: for each file its text, language and parts; with
    --jsonl a line for each as soon as it is done. A file that cannot be read is said, the others
    go on, and the exit code is 1. Without --bundle: the newest of the current folder.
    """
    from ..opening import open_session
    from ..verification import verified
    from .fallback import Fallback
    from .scribe import check_transcription
    from .wav import read_wav
    from .wishes import Wishes

    if as_jsonl and as_json:
        raise click.UsageError("--jsonl is not for --json")
    paths = wav_files(files)
    opened = verified(chosen_bundle(bundle))
    wishes = Wishes(
        language=language,
        task=task or Task.TRANSCRIBE,
        timestamps=timestamps,
        max_new_tokens=max_new_tokens,
        fallback=Fallback() if fallback else None,
    )
    check_transcription(opened, wishes)  # once, not for each file
    found: list[dict[str, Any]] = []
    failed, seconds = 0, 0.0
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(
            open_session(
                opened, backend=backend, threads=threads, precision=precision, verify=False
            )
        )
        # A live line and the text would write over each other on a terminal.
        live = as_json or not sys.stdout.isatty()
        shown = stack.enter_context(progress()) if live else Progress()
        shown.step(f"listening with {session.report.facts}", len(paths))
        started = time.perf_counter()
        for file in paths:
            try:
                sound = read_wav(file)
                answer = session.transcribe(
                    sound.samples,
                    language=wishes.language,
                    task=wishes.task,
                    timestamps=wishes.timestamps,
                    max_new_tokens=wishes.max_new_tokens,
                    fallback=wishes.fallback,
                    sampling_rate=sound.rate,
                )
            except (DataError, FeedError) as error:
                if len(paths) == 1:
                    raise
                failed += 1
                found.append({"audio": str(file), "error": str(error)})
                click.echo(f"error: {_named(file, error)}", err=True)
            else:
                seconds += sound.seconds
                found.append({"audio": str(file), **encode(answer)})
                if not (as_json or as_jsonl):
                    click.echo("\n".join(_lines(answer, timestamps=timestamps)))
            if as_jsonl:
                click.echo(json_line(found[-1]), nl=False)
            shown.advance(1)
        duration_s = time.perf_counter() - started
    if as_json:
        emit_json({"bundle": str(opened.path), "transcripts": found})
    click.echo(f"{seconds:.1f} s of sound in {duration_s:.1f} s", err=True)
    if failed:
        raise DataError(
            f"{failed} of {len(paths)} files could not be written down",
            hint="See above what is wrong with each.",
        )


def wav_files(paths: Sequence[Path]) -> list[Path]:
    """The files of a list; of a folder its WAV files, by name.

    Raises:
        DataError: If a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() == SUFFIX)
        if not inside:
            raise DataError(f"{path} has no WAV files", hint="Name a folder with files in it.")
        found += inside
    return found


def _named(file: Path, error: Exception) -> str:
    """What is wrong, with the file it is wrong with."""
    said = str(error)
    return said if str(file) in said else f"{file}: {said}"


def _lines(answer: Transcript, *, timestamps: bool) -> list[str]:
    if not timestamps:
        return [answer.text]
    return [f"{one.start_s:8.2f} {one.end_s:8.2f}  {one.text}" for one in answer.segments]
