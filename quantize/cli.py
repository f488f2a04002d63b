"""``tfx quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tfx.bundle import Bundle
from tfx.console import DATA, FOLDER, chosen_bundle, emit_json, json_option, progress
from tfx.quantization import (
    PERCENTILE,
    PRECISIONS,
    RESTS,
    QuantizeRecipe,
    RangeMethod,
    WeightMethod,
)


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("-o", "--output", type=FOLDER, help="Folder of the new bundle.")
@click.option("--int8", "precision", flag_value="int8", help="8-bit weights and activations.")
@click.option("--fp16", "precision", flag_value="fp16", help="16-bit floats.")
@click.option("--bf16", "precision", flag_value="bf16", help="16-bit floats of float32's range.")
@click.option("--fp8", "precision", flag_value="fp8", help="8-bit floats (e4m3), for TensorRT.")
@click.option("--int4", "precision", flag_value="int4", help="4-bit weights.")
@click.option(
    "--rest",
    type=click.Choice([PRECISIONS.get(one, "fp32") for one in RESTS]),
    default="fp32",
    show_default=True,
    help="Floats around int8, fp8 and int4; fp16 for TensorRT, whose attention is then one kernel.",
)
@click.option("--dynamic", is_flag=True, help="int8 by the range of each run; needs no data.")
@click.option(
    "--calibrate",
    "calibration",
    metavar="FILE",
    help="Real inputs: TSV, CSV, JSONL, text, npz, images; or the word random, for latency work.",
)
@click.option("--eval", "evaluation", type=DATA, help="Data to measure accuracy on.")
@click.option(
    "--max-drop", type=float, help="Largest loss of the metric to allow, in its unit, e.g. 0.01."
)
@click.option("--metric", default="auto", show_default=True, help="Of the accuracy.")
@click.option("--samples", default=512, show_default=True, help="Most calibration samples.")
@click.option("--tokens", default=0, help="Cut calibration texts to so many tokens.")
@click.option(
    "--method",
    type=click.Choice([one.value for one in RangeMethod]),
    help="How the range of an activation is chosen; default: tried on the outputs.",
)
@click.option("--percentile", type=float, help="For that method, which it chooses.")
@click.option("--smooth", type=float, help="SmoothQuant's alpha; 0 for none; default: searched.")
@click.option(
    "--weights",
    "weight_method",
    type=click.Choice([one.value for one in WeightMethod]),
    default=WeightMethod.RTN.value,
    show_default=True,
    help="How 4-bit weights are chosen.",
)
@click.option("--block-size", default=32, show_default=True, help="4-bit weights with one scale.")
@click.option("--keep", multiple=True, metavar="GROUP", help="Leave a group as it is; repeat.")
@click.option("--list-groups", is_flag=True, help="Show what can be kept, and stop.")
@click.option("--seed", default=0, help="Of which samples are taken.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@json_option
def quantize(
    bundle: Path | None,
    output: Path | None,
    precision: str | None,
    calibration: str | None,
    evaluation: Path | None,
    list_groups: bool,
    force: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Write a bundle of lower precision, with calibration and proof.

    BUNDLE is a float32 export; by default the newest of this folder.
    """
    if list_groups:
        _show_groups(chosen_bundle(bundle), as_json)
        return
    if precision is None:
        words = ", ".join(f"--{word}" for word in PRECISIONS.values())
        raise click.UsageError(f"say which precision: {words}")
    recipe = _recipe_of(precision, **choices)

    from tfx.runtime.inspection import tell_bundles

    from .runs import quantize_with_files

    parent = chosen_bundle(bundle)
    with progress() as steps:
        made = quantize_with_files(
            parent,
            output,
            recipe,
            calibration=calibration,
            evaluation=evaluation,
            force=force,
            steps=steps,
        )
    tell_bundles([made], as_json=as_json)


def _recipe_of(
    precision: str,
    *,
    rest: str,
    method: str | None,
    percentile: float | None,
    weight_method: str,
    **fields: Any,
) -> QuantizeRecipe:
    """The recipe that options ask for; ``fields`` are its own as they are."""
    if percentile is not None and method is None:
        method = RangeMethod.PERCENTILE.value
    return QuantizeRecipe(
        next(dtype for dtype, word in PRECISIONS.items() if word == precision),
        rest=next(one for one in RESTS if PRECISIONS.get(one, "fp32") == rest),
        method=RangeMethod(method) if method else None,
        percentile=PERCENTILE if percentile is None else percentile,
        weight_method=WeightMethod(weight_method),
        **fields,
    )


def _show_groups(bundle: Bundle, as_json: bool) -> None:
    from .linear import find_lookups, find_products, groups_of, split_gemms
    from .lowering import load_graph

    model = load_graph(bundle)
    split_gemms(model)
    groups = groups_of(find_products(model), find_lookups(model))
    if as_json:
        emit_json(groups)
        return
    for group in groups:
        click.echo(group)
