"""``tfx export`` and ``tfx build``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from tfx.console import FOLDER, chosen_bundle, json_option, progress
from tfx.errors import RecipeError
from tfx.recipe import Changes, EngineRecipe, ExportRecipe, Target
from tfx.signature import ShapeRange

from .changes import heads_from_text, layers_from_text
from .engines.profiles import profile_from_text

T = TypeVar("T")

CACHE = click.Path(path_type=Path, dir_okay=False)


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


def _gpus(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(gpu.strip().lower() for gpu in value.split(",")) if value else ()


def _shapes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[dict[str, ShapeRange], ...]:
    return tuple(_read(profile_from_text, value) for value in values)


def _bytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    if value is None:
        return 0
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (value[:-1], value[-1].upper()) if value[-1:].isalpha() else (value, "")
    if not number.isdigit() or unit not in units or int(number) == 0:
        raise click.BadParameter(f"{value!r} is no size, expected bytes, or 512M, or 4G")
    return int(number) * units[unit]


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
@click.option(
    "--cache/--no-cache",
    default=None,
    help="A model that writes text with its cache, to generate with; default: where it can.",
)
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
    cache: bool | None,
    random_weights: bool,
    seed: int,
    opset: int,
    force: bool,
    as_json: bool,
) -> None:
    """Export a PyTorch Transformer to a portable, fused ONNX bundle.

    MODEL is an alias (minilm, bert-base, bert-large, distilbert, roberta-base, gpt2, vit-base),
    a folder in the Hugging Face layout, a hub id, or file.py:factory, where factory() returns a
    module and example inputs.
    """
    from tfx.runtime.inspection import tell_bundles

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
        bundles = export_bundles(
            model, output, recipe, cache=cache, force=force, on_step=steps.step
        )
    tell_bundles(bundles, as_json=as_json)


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("-o", "--output", type=FOLDER, help="Folder; default: BUNDLE-rtx-GPU or BUNDLE-trt.")
@click.option(
    "--target",
    type=click.Choice([name.value for name in Target]),
    default=Target.TENSORRT_RTX.value,
    show_default=True,
    help="The library that builds the engine, and alone can run it.",
)
@click.option(
    "--gpu",
    "gpus",
    metavar="LIST",
    callback=_gpus,
    help="Compute capabilities, e.g. sm80,sm89; default: the GPU here.",
)
@click.option(
    "--shapes",
    "profiles",
    multiple=True,
    metavar="AXES",
    callback=_shapes,
    help="A profile, AXIS=MIN..OPT..MAX,...; may be given several times.",
)
@click.option("--workspace", metavar="SIZE", callback=_bytes, help="Scratch memory, e.g. 2G.")
@click.option("--timing-cache", type=CACHE, help="Keep the times of kernels in this file.")
@click.option("--version-compatible", is_flag=True, help="Run on later versions too.")
@click.option("--hardware-compatible", is_flag=True, help="Run on every GPU from Ampere on.")
@click.option("--refit", is_flag=True, help="Let the weights be replaced.")
@click.option("--strip", is_flag=True, help="Leave the weights in the parent bundle.")
@click.option("--weight-streaming", is_flag=True, help="Let weights stay in the host's memory.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@json_option
def build(
    bundle: Path | None,
    output: Path | None,
    target: str,
    gpus: tuple[str, ...],
    profiles: tuple[dict[str, ShapeRange], ...],
    workspace: int,
    timing_cache: Path | None,
    force: bool,
    as_json: bool,
    **flags: bool,
) -> None:
    """Build a TensorRT engine from a bundle, for named GPUs.

    The precision is that of the bundle: build from one that tfx quantize wrote for int8 or
    float16. TensorRT-RTX builds for GPUs that are not here. Without --shapes one profile serves
    all sizes of the signature; one for each size that matters is faster. Without BUNDLE: the
    newest of the current folder.
    """
    from tfx.runtime.inspection import tell_bundles

    from .engines.bundle import build_bundle

    recipe = EngineRecipe(
        target=Target(target),
        gpus=gpus,
        profiles=profiles,
        workspace_bytes=workspace,
        **flags,
    )
    opened = chosen_bundle(bundle)
    with progress() as steps:
        built = build_bundle(
            opened,
            output,
            recipe,
            timing_cache=timing_cache,
            force=force,
            on_step=lambda step: steps.step(step, 100 if step.startswith("building") else None),
            on_progress=lambda share: steps.reach(int(share * 100)),
        )
    tell_bundles([built], as_json=as_json)
