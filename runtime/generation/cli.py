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

from ..backend import PRECISIONS
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
@click.option("--beams", default=1, help="Texts followed at once to find the likeliest.")
@click.option("--backend", default="", help="What to run it on; default: the first there is.")
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    help="Type of float matrix products; default: the bundle's own.",
)
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
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    repetition_penalty: float,
    stop: tuple[str, ...],
    seed: int,
    beams: int,
    backend: str,
    threads: int | None,
    precision: str | None,
    translate: bool,
    task: str,
    source: str,
    target: str,
    encoder: Path | None,
    as_jsonl: bool,
    as_json: bool,
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

    if as_jsonl and (as_json or translate):
        raise click.UsageError(f"--jsonl is not for {'--json' if as_json else '--translate'}")
    asked = [Asked(prompt, fields={"text": prompt}) for prompt in prompts]
    if file is not None or not (prompts or messages or sys.stdin.isatty()):
        kind = FileFormat(input_format) if input_format else format_of(file or STDIN)
        asked += _read(file, kind or FileFormat.TEXT)
        as_jsonl = as_jsonl or kind is FileFormat.JSONL
    for message in messages:
        chat = [{"role": "user", "content": message}]
        asked.append(Asked(chat, fields={"messages": chat}))
    if not asked:
        raise click.UsageError("nothing to go on from: give --prompt, --file or --chat")
    given = [one.prompt for one in asked]
    options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "stop": stop,
        "seed": seed,
        "num_beams": beams,
    }
    wishes = {"task": task, "source": source, "target": target}
    if any(wishes.values()) and not translate:
        raise click.UsageError("--task, --source and --target are for --translate")
    opened = chosen_bundle(_decoder_of(bundle), verify=True)
    with open_session(
        opened,
        backend=backend,
        threads=threads,
        precision=precision or "",
        verify=False,
        encoder=encoder or "",
    ) as session:
        if translate:
            _translate(session, given, wishes, options, as_json=as_json)
            return
        started = time.perf_counter()
        count = 0
        if as_json:
            found = session.generate(given, **options)
            texts = list(map(dataclasses.asdict, found))
            emit_json({"bundle": str(opened.path), "texts": texts})
            return
        if as_jsonl or len(given) > 1 or beams > 1:
            where = str(file or "--prompt")
            for prompt, one in zip(asked, session.generate_each(given, **options), strict=True):
                line = written_line(prompt, one, where) if as_jsonl else f"{one.text}\n"
                click.echo(line, nl=False)
                count += len(one.ids)
        else:
            for token in session.stream(given, **options):
                click.echo(token.text, nl=False)
                count += 1
            click.echo()
        duration_s = time.perf_counter() - started
    click.echo(f"{count} tokens in {duration_s:.1f} s", err=True)


def _read(file: Path | None, kind: FileFormat) -> list[Asked]:
    """Prompts of a file, or of stdin; none of an empty stdin that nobody asked for."""
    if file is not None and file != STDIN:
        with file.open("rb") as opened:
            return read_prompts(opened, str(file), kind)
    stream = io.BytesIO(sys.stdin.buffer.read())
    if file is None and not stream.getvalue().strip():
        return []
    return read_prompts(stream, "stdin", kind)


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
    names = {"num_beams": "beams"}
    asked = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(names.get(name, name)) is ParameterSource.COMMANDLINE
    }
    texts = [str(text) for text in given]
    written = session.translate(texts, **wishes, **asked)
    if as_json:
        emit_json({"bundle": str(session.bundle.path), "texts": written})
        return
    for text in written:
        click.echo(text)
