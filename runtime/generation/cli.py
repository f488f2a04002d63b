"""``tfx generate``: prompts in, text out as it is written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tfx.bundle import is_bundle
from tfx.console import FILE, FOLDER, chosen_bundle, emit_json, json_option
from tfx.errors import DataError

from ..backend import PRECISIONS

if TYPE_CHECKING:
    from ..session import Session


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option(
    "-p", "--prompt", "prompts", multiple=True, help="A text; may be given several times."
)
@click.option("--file", "file", type=FILE, help="Prompts, one a line; empty ones are left out.")
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
@json_option
def generate(
    bundle: Path | None,
    prompts: tuple[str, ...],
    file: Path | None,
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
    as_json: bool,
) -> None:
    """Let a prompt go on, with a bundle that has a cache.

    An encoder-decoder makes a text from each prompt; BUNDLE may be its name, NAME for NAME-encoder
    and NAME-decoder.

    Writes the text of one prompt as it comes, of several one after another. With --json one
    document: for each prompt text, tokens, and why it is over. Without BUNDLE: the newest of
    the current folder.
    """
    from ..session import open_session

    given: list[str | list[dict[str, str]]] = [*prompts]
    if file is not None:
        given += _lines_of(file)
    given += [[{"role": "user", "content": message}] for message in messages]
    if not given:
        raise click.UsageError("nothing to go on from: give --prompt, --file or --chat")
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
        if as_json or len(given) > 1 or beams > 1:
            found = session.generate(given, **options)
            count = sum(len(one.ids) for one in found)
            if as_json:
                emit_json(
                    {"bundle": str(opened.path), "texts": list(map(dataclasses.asdict, found))}
                )
                return
            for one in found:
                click.echo(one.text)
        else:
            for token in session.stream(given, **options):
                click.echo(token.text, nl=False)
                count += 1
            click.echo()
        duration_s = time.perf_counter() - started
    click.echo(f"{count} tokens in {duration_s:.1f} s", err=True)


def _lines_of(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: byte {error.start}") from error
    if not (found := [line for line in text.splitlines() if line.strip()]):
        raise DataError(f"{file} has no prompts", hint="Write one on each line.")
    return found


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
