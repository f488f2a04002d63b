"""``tfx export``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from tfx.console import FOLDER, console, emit_json, json_option, progress
from tfx.errors import RecipeError
from tfx.recipe import Changes, ExportRecipe

from .changes import heads_from_text, layers_from_text

T = TypeVar("T")


def _dynamic(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    axes = {}
    for value in values:
        name, equals, names = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is not NAME=AXIS,AXIS,...")
        axes[name] = tuple(axis.strip() for axis in names.split(","))
    return axes


def _layers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...]:
    return () if value is None else _read(layers_from_text, value)


def _heads(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[tuple[int, int], ...]:
    return () if value is None else _read(heads_from_text, value)


def _read(read: Callable[[str], T], value: str) -> T:
    try:
        return read(value)
    except RecipeError as error:
        raise click.BadParameter(str(error)) from error


@click.command
@click.argument("model")
@click.option("-o", "--output", type=FOLDER, help="Folder of the bundle; default: MODEL's name.")
@click.option(
    "--task", default="auto", help="Which head; default: the adapter's, or the checkpoint's own."
)
@click.option("--max-batch", default=128, show_default=True, help="Largest batch to admit.")
@click.option("--max-seq", default=0, help="Longest sequence to admit; default: all positions.")
@click.option(
    "--image-size",
    type=(int, int),
    metavar="HEIGHT WIDTH",
    help="Fix the size of images where the model takes any.",
)
@click.option(
    "--dynamic",
    multiple=True,
    metavar="NAME=AXES",
    callback=_dynamic,
    help="Axis names of a factory's input, e.g. x=batch,sequence, with '' for a fixed axis.",
)
@click.option("--adapter", metavar="DIR", help="Merge a PEFT adapter (LoRA, AdaLoRA) first.")
@click.option("--layers", metavar="KEPT", callback=_layers, help="Keep these layers: 0-5 or 0,2,4.")
@click.option(
    "--drop-heads",
    metavar="HEADS",
    callback=_heads,
    help="Take attention heads out, LAYER:HEADS;...: 0:1,3;2:0-2.",
)
@click.option("--attentions", is_flag=True, help="Give attention maps as outputs too.")
@click.option("--random-weights", is_flag=True, help="The architecture, for latency work only.")
@click.option("--seed", default=0, help="Of random weights and of the feeds compared.")
@click.option("--opset", default=23, show_default=True, help="ONNX operator set.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@json_option
def export(
    model: str,
    output: Path | None,
    task: str,
    max_batch: int,
    max_seq: int,
    image_size: tuple[int, int] | None,
    dynamic: dict[str, tuple[str, ...]],
    adapter: str | None,
    layers: tuple[int, ...],
    drop_heads: tuple[tuple[int, int], ...],
    attentions: bool,
    random_weights: bool,
    seed: int,
    opset: int,
    force: bool,
    as_json: bool,
) -> None:
    """Export a PyTorch Transformer to a portable, fused ONNX bundle.

    MODEL is an alias (minilm, bert-base, bert-large, distilbert, roberta-base, vit-base), a
    folder in the Hugging Face layout, a hub id, or file.py:factory, where factory() returns a
    module and example inputs.
    """
    from tfx.runtime.inspection import show_bundle

    from .pipeline import export_bundles

    recipe = ExportRecipe(
        task=task,
        opset=opset,
        max_batch=max_batch,
        max_sequence=max_seq,
        image_size=image_size or (),
        dynamic=dynamic,
        changes=Changes(adapter or "", layers, drop_heads, attentions),
        random_weights=random_weights,
        seed=seed,
    )
    with progress() as steps:
        bundles = export_bundles(model, output, recipe, force=force, on_step=steps.step)
    if as_json:
        documents = [
            {"bundle": str(bundle.path), "digest": bundle.digest} | bundle.manifest.to_dict()
            for bundle in bundles
        ]
        emit_json(documents[0] if len(documents) == 1 else documents)
        return
    for bundle in bundles:
        show_bundle(console(), bundle)
