"""The steps of quantizing: calibrate, lower, write, prove, measure; all of it or nothing."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from tfx.bundle import Bundle, create_bundle, open_bundle
from tfx.dtypes import DType
from tfx.errors import ParityError, QuantizeError, RecipeError, listing
from tfx.extras import version_of
from tfx.manifest import Manifest, Step
from tfx.quantization import (
    PRECISIONS,
    Accuracy,
    CalibrationFacts,
    Quantization,
    QuantizeRecipe,
)
from tfx.report import ParityReport
from tfx.runtime.generation.kv_cache import text_signature, whole_feed
from tfx.runtime.opening import open_session
from tfx.runtime.parity import check_bundle
from tfx.runtime.proof import PROOF_FILE, Case, store_cases
from tfx.signature import Feed

from .calibration import CalibrationData
from .integers import Lowered, Prepared
from .lowering import HALVES, MODEL_FILE, Lowering, OnPass, OnStep, prepare_lowering
from .ranges import with_range_method

# Distributions whose version may change what is written.
TOOLS = ("tfx-toolkit", "onnx", "onnx-ir", "onnxruntime")

# Feeds of the calibration data that a bundle is judged by, from the shortest to the longest.
PROOF_FEEDS = 8


def quantize_bundle(
    parent: Bundle,
    path: str | os.PathLike[str] | None = None,
    *,
    recipe: QuantizeRecipe,
    data: CalibrationData | None = None,
    prepared: Prepared | None = None,
    lost: Callable[[Bundle], float] | None = None,
    search: Callable[[Lowering, Path], Collection[str]] | None = None,
    accuracy: Callable[[Bundle], tuple[Accuracy, ...]] = lambda _: (),
    force: bool = False,
    on_step: OnStep = lambda _: None,
    on_pass: OnPass = lambda *_: None,
) -> Bundle:
    """Write a bundle of lower precision beside its parent.

    Args:
        parent: A float32 bundle.
        path: Where the bundle goes; None for the parent's name and the precision.
        recipe: What to do.
        data: Feeds to calibrate with, where the recipe needs them.
        prepared: The calibrated graph, if it is there already.
        lost: What a bundle loses, by which the method for ranges is chosen where the recipe names
            none; None for the error of the outputs.
        search: Finds the groups that must stay in floats, beside those of the recipe; may write
            files into the folder it is given, which is the new bundle's.
        accuracy: Measures the bundle before it is put in place.
        force: Replace a bundle that is there.
        on_step: Called with a few words as each step begins.
        on_pass: Called as calibration goes on: what, batches done, of how many.

    Returns:
        The new bundle.

    Raises:
        RecipeError: If data is missing, or the parent cannot be lowered so.
        QuantizeError: If the graph cannot be lowered.
        ParityError: If its outputs are too far from the parent's.
        BundleError: If ``path`` is taken or cannot be written.
    """
    require_parent(parent)
    if recipe.needs_calibration and data is None and prepared is None:
        raise RecipeError(
            f"{PRECISIONS[recipe.precision]} needs data to find the ranges of activations with",
            hint="Give a file of real inputs: --calibrate FILE (texts, TSV, JSONL or npz).",
        )
    target = Path(path) if path else default_path(parent, recipe)
    with create_bundle(target, force=force) as staging:
        lowering = prepare_lowering(
            parent, recipe, data, prepared, on_step=on_step, on_pass=on_pass
        )
        if recipe.method is None and recipe.needs_calibration:
            on_step("choosing how ranges are found")
            lowering = with_range_method(lowering, write_draft, lost)
        keep = search(lowering, staging.path) if search is not None else ()
        on_step("lowering the graph")
        lowered = _lowered(lowering, keep)
        on_step("writing the graph")
        draft = write_draft(lowering, lowered, staging.path)
        on_step("comparing with the parent")
        reference = _store_proof(lowering, staging.path)
        parity = _proven(draft, reference)
        on_step("measuring what it costs")
        assert draft.manifest.quantization is not None
        quantization = dataclasses.replace(draft.manifest.quantization, accuracy=accuracy(draft))
        on_step("writing the bundle")
        staging.finish(
            dataclasses.replace(draft.manifest, parity=parity, quantization=quantization)
        )
    return open_bundle(target, verify=False)


def _lowered(lowering: Lowering, keep: Collection[str]) -> Lowered:
    lowered = lowering.lower(keep)
    if lowered.quantized:
        return lowered
    parent, precision = lowering.parent, lowering.recipe.precision
    if keep:
        raise QuantizeError(
            f"nothing of {parent.name} would be {precision}: every group costs too much",
            hint="Allow a larger --max-drop.",
        )
    reasons = dict.fromkeys(one.reason for one in lowered.kept)
    raise QuantizeError(
        listing(f"nothing of {parent.name} would be {precision}:", reasons),
        hint="Keep fewer groups, or ask for another precision.",
    )


def write_draft(lowering: Lowering, lowered: Lowered, folder: Path) -> Bundle:
    """Write a lowered graph and its company; the bundle opens in a session, and is not proved."""
    variants = lowering.write(lowered, folder)
    return Bundle(folder, _manifest(lowering, lowered, variants, folder), digest="")


def default_path(parent: Bundle, recipe: QuantizeRecipe) -> Path:
    """The parent's folder with the precision at its end, e.g. "minilm-int8"."""
    word = PRECISIONS[recipe.precision] + ("-dynamic" if recipe.dynamic else "")
    if recipe.rest is not DType.FLOAT32:
        word += f"-{PRECISIONS[recipe.rest]}"
    return parent.path.with_name(f"{parent.path.resolve().name}-{word}")


def require_parent(parent: Bundle) -> None:
    """Refuse a bundle that is not a float32 export.

    Raises:
        RecipeError: If it is not.
    """
    manifest = parent.manifest
    if manifest.step is not Step.EXPORT or manifest.precision is not DType.FLOAT32:
        what = "an engine" if manifest.step is Step.BUILD else f"{manifest.precision} already"
        raise RecipeError(
            f"{parent.path} is {what}, expected a float32 export",
            hint=f"Quantize its parent instead: {manifest.parent.name}."
            if manifest.parent
            else "Name the exported bundle.",
        )


def _manifest(
    lowering: Lowering, lowered: Lowered, variants: Mapping[str, str], folder: Path
) -> Manifest:
    parent, recipe = lowering.parent, lowering.recipe
    prepared = lowering.prepared
    facts = dict(parent.manifest.facts)
    facts["nodes"] = sum(1 for _ in lowered.model.graph.all_nodes())
    return dataclasses.replace(
        parent.manifest,
        step=Step.QUANTIZE,
        precision=recipe.precision,
        model=MODEL_FILE,
        source=parent.manifest.source.moved(parent.path.parent, folder.parent),
        parity=None,
        tools={tool: version for tool in TOOLS if (version := version_of(tool))},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        facts=facts,
        parent=parent.as_parent(),
        quantization=Quantization(
            recipe,
            calibration=_calibration_facts(lowering),
            smooth=prepared.alpha if prepared is not None else 0.0,
            quantized=lowered.quantized,
            kept=lowered.kept,
        ),
        variants=variants,
    )


def _calibration_facts(lowering: Lowering) -> CalibrationFacts | None:
    if lowering.data is not None:
        return lowering.data.facts
    origin = lowering.prepared.origin if lowering.prepared is not None else None
    known = origin.manifest.quantization if origin is not None else None
    return known.calibration if known is not None else None


def _store_proof(lowering: Lowering, folder: Path) -> str:
    """Write the feeds and outputs that the new bundle is judged by; returns whose outputs.

    A parent's proof is of random tokens. Ranges that real text set do not fit those, so what is
    calibrated is judged on real feeds, by the parent, which was proved against PyTorch.
    """
    parent, recipe, data = lowering.parent, lowering.recipe, lowering.data
    parity = parent.manifest.parity
    origin = lowering.prepared.origin if lowering.prepared is not None else None
    if data is None and origin is not None and origin.manifest.parity is not None:
        # Feeds of the data that it was calibrated with, and this parent's outputs.
        shutil.copyfile(origin.path / PROOF_FILE, folder / PROOF_FILE)
        return origin.manifest.parity.reference
    if data is None or recipe.precision in HALVES:
        return f"stored outputs of {parity.reference if parity else 'PyTorch'}"
    own = parent.manifest.signature
    signature = text_signature(own)  # of a graph with a cache whole texts are compared
    rng = np.random.default_rng(recipe.seed)
    feeds = [{spec.name: feed[spec.name] for spec in signature.inputs} for feed in data]
    chosen = np.unique(np.linspace(0, len(feeds) - 1, PROOF_FEEDS).round().astype(int))
    cases = [Case(_label(feeds[index]), feeds[index]) for index in chosen]
    with open_session(parent, backend="onnxruntime", verify=False) as session:
        given = [session.predict(whole_feed(own, case.feed)) for case in cases]
    outputs = [{spec.name: one[spec.name] for spec in signature.outputs} for one in given]
    store_cases(folder / PROOF_FILE, signature, cases, outputs, rng)
    return f"{parent.name} float32, on feeds of {data.facts.name}"


def _label(feed: Feed) -> str:
    rows = " ".join(str(size) for size in next(iter(feed.values())).shape)
    return f"calibration feed {rows.replace(' ', 'x')}"


def _proven(draft: Bundle, reference: str) -> ParityReport:
    parity = dataclasses.replace(check_bundle(draft, backend="onnxruntime"), reference=reference)
    for check in parity.checks:
        if not check.passed:
            raise ParityError(
                f"{check.name}: error {check.error:.1e}, allowed {check.tolerance:.0e} for "
                f"{draft.manifest.precision}",
                hint="Keep more in float32 with --keep, or set a budget with --max-drop.",
            )
    return parity
