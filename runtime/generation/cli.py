"""``tfx generate``: prompts in, text out as it is written."""

from __future__ import annotations

import dataclasses
import io
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tfx.bundle import is_bundle
from tfx.console import FOLDER, chosen_bundle, emit_json, json_option

from ..options import PRECISION, THREADS
from ..records import FileFormat, format_of
from .prompts import Asked, read_prompts, written_line

if TYPE_CHECKING:
    from ..session import Session

INPUT = click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True)
STDIN = Path("-")


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option(
    "-p", "--prompt", "prompts", multiple=True, help="A text; may be given several times."
)
@click.option("--file", "file", type=INPUT, help="Prompts, one a line, or JSONL; - is stdin.")
@click.option(
    "--input-format",
    type=click.Choice(["text", "jsonl"]),
    help="What the file holds; default: what its suffix says, text for stdin.",
)
@click.option("--chat", "messages", multiple=True, help="What a user says, in the chat template.")
@click.option("--max-new-tokens", default=64, show_default=True, help="Most tokens of each text.")
@click.option("--temperature", default=0.0, help="Draw tokens; default: take the likeliest.")
@click.option("--top-p", default=1.0, help="Draw from the likeliest that make up this share.")
@click.option("--top-k", default=0, help="Draw from so many of the likeliest.")
@click.option("--repetition-penalty", default=1.0, help="Above 1: fewer repeated tokens.")
@click.option("--stop", multiple=True, help="A text to stop before; may be given several times.")
@click.option("--seed", default=0, help="Of what is drawn.")
@click.option(
    "--beams", "num_beams", default=1, help="Texts followed at once to find the likeliest."
)
@click.option("--backend", default="", help="What to run it on; default: the first there is.")
@THREADS
@PRECISION
@click.option("--translate", is_flag=True, help="As the encoder-decoder asks for it, with beams.")
@click.option("--task", default="", help="T5: a task it knows, or what to put before each text.")
@click.option("--source", default="", help="M2M, mBART, NLLB: code of the language to read.")
@click.option("--target", default="", help="Code of the language to write in.")
@click.option("--encoder", type=FOLDER, help="Of a decoder; default: the one beside it.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="A line of JSON for each text, at once.")
@json_option
def generate(
    bundle: Path | None,
    prompts: tuple[str, ...],
    file: Path | None,
    input_format: str | None,
    messages: tuple[str, ...],
    backend: str,
    threads: int | None,
    precision: str,
    translate: bool,
    task: str,
    source: str,
    target: str,
    encoder: Path | None,
    as_jsonl: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Let a prompt go on, with a bundle that has a cache.

    An encoder-decoder makes a text from each prompt; BUNDLE may be its name, NAME for NAME-encoder
    and NAME-decoder.

    Writes the text of one prompt as it comes, of several one after another. With --json one
    document: for each prompt text, tokens, and why it is over; with --jsonl, or when the prompts
    are a .jsonl file, a line for each with the prompt's own fields. A line of such a file is a
    string, or an object with "text", "prompt" or "messages", a chat. Without a prompt: stdin.
    Without BUNDLE: the newest of the current folder.
    """
    from ..opening import open_session
    from ..verification import verified

    if as_jsonl and (as_json or translate):
        raise click.UsageError(f"--jsonl is not for {'--json' if as_json else '--translate'}")
    asked, kind = _asked(prompts, file, input_format, messages)
    as_jsonl = as_jsonl or kind is FileFormat.JSONL
    given = [one.prompt for one in asked]
    wishes = {"task": task, "source": source, "target": target}
    if any(wishes.values()) and not translate:
        raise click.UsageError("--task, --source and --target are for --translate")
    opened = verified(chosen_bundle(_decoder_of(bundle)))
    with open_session(
        opened,
        backend=backend,
        threads=threads,
        precision=precision,
        verify=False,
        encoder=encoder or "",
    ) as session:
        if translate:
            _translate(session, given, wishes, options, as_json=as_json)
            return
        if as_json:
            texts = [dataclasses.asdict(one) for one in session.generate(given, **options)]
            emit_json({"bundle": str(opened.path), "texts": texts})
            return
        started = time.perf_counter()
        if as_jsonl or len(given) > 1 or options["num_beams"] > 1:
            where = str(file or "--prompt")
            count = _write_each(session, asked, options, where, as_jsonl=as_jsonl)
        else:
            count = _write_as_it_comes(session, given, options)
        duration_s = time.perf_counter() - started
    click.echo(f"{count} tokens in {duration_s:.1f} s", err=True)


def _asked(
    prompts: Sequence[str], file: Path | None, input_format: str | None, messages: Sequence[str]
) -> tuple[list[Asked], FileFormat | None]:
    """All prompts, and the format of those that were read; None where nothing was."""
    asked = [Asked(prompt, fields={"text": prompt}) for prompt in prompts]
    kind = None
    if file is not None or not (prompts or messages or sys.stdin.isatty()):
        kind = FileFormat(input_format) if input_format else format_of(file or STDIN)
        asked += _read(file, kind or FileFormat.TEXT)
    for message in messages:
        chat = [{"role": "user", "content": message}]
        asked.append(Asked(chat, fields={"messages": chat}))
    if not asked:
        raise click.UsageError("nothing to go on from: give --prompt, --file or --chat")
    return asked, kind


def _read(file: Path | None, kind: FileFormat) -> list[Asked]:
    """Prompts of a file, or of stdin; none of an empty stdin that nobody asked for."""
    if file is not None and file != STDIN:
        with file.open("rb") as opened:
            return read_prompts(opened, str(file), kind)
    stream = io.BytesIO(sys.stdin.buffer.read())
    if file is None and not stream.getvalue().strip():
        return []
    return read_prompts(stream, "stdin", kind)


def _write_each(
    session: Session,
    asked: Sequence[Asked],
    options: Mapping[str, Any],
    where: str,
    *,
    as_jsonl: bool,
) -> int:
    """Write each text as it is done; how many tokens all have."""
    count = 0
    written = session.generate_each([one.prompt for one in asked], **options)
    for prompt, one in zip(asked, written, strict=True):
        click.echo(written_line(prompt, one, where) if as_jsonl else f"{one.text}\n", nl=False)
        count += len(one.ids)
    return count


def _write_as_it_comes(session: Session, given: Sequence[Any], options: Mapping[str, Any]) -> int:
    """Write one text token by token; how many it has."""
    count = 0
    for token in session.stream(given, **options):
        click.echo(token.text, nl=False)
        count += 1
    click.echo()
    return count


def _decoder_of(bundle: Path | None) -> Path | None:
    """The decoder of an encoder-decoder, where its name alone is given."""
    if bundle is None or bundle.exists() or not bundle.name:
        return bundle
    decoder = bundle.with_name(f"{bundle.name}-decoder")
    return decoder if is_bundle(decoder) else bundle


def _translate(
    session: Session,
    given: Sequence[Any],
    wishes: Mapping[str, str],
    options: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    if not all(isinstance(text, str) for text in given):
        raise click.UsageError("--chat is for models that answer, --translate reads texts")
    # What was not asked for is as the model says.
    context = click.get_current_context()
    asked = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    texts = [str(text) for text in given]
    written = session.translate(texts, **wishes, **asked)
    if as_json:
        emit_json({"bundle": str(session.bundle.path), "texts": written})
        return
    for text in written:
        click.echo(text)
