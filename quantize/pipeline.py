"""The steps of quantizing: calibrate, lower, write, prove, measure; all of it or nothing."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tfx.bundle import Bundle, Staging, create_bundle, open_bundle
from tfx.dtypes import DType
from tfx.errors import BundleError, ParityError, RecipeError
from tfx.extras import version_of
from tfx.manifest import Manifest, Step
from tfx.quantization import (
    ORT_CPU,
    PRECISIONS,
    Accuracy,
    Quantization,
    QuantizeRecipe,
)
from tfx.report import ParityReport
from tfx.runtime.proof import FILE_NAME as PROOF_FILE
from tfx.runtime.proof import Case, check_bundle, load_cases, store_cases
from tfx.runtime.session import open_session
from tfx.signature import BATCH, Feed

from .calibration import CalibrationData, calibration_feeds, see_magnitudes
from .floats import cpu_variant, lower_floats
from .integers import Lowered, Prepared, lower, prepare
from .statistics import FILE_NAME as STATISTICS_FILE
from .statistics import store_statistics
from .targets import lower_for_ort_cpu

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
VARIANT_FILE = "model.onnxruntime-cpu.onnx"

# Distributions whose version may change what is written.
TOOLS = ("tfx-toolkit", "onnx", "onnx-ir", "onnxruntime")

# What only shortens floats.
HALVES = (DType.FLOAT16, DType.BFLOAT16)

# Feeds of the calibration data that a bundle is judged by, from the shortest to the longest.
PROOF_FEEDS = 8

OnStep = Callable[[str], None]
OnPass = Callable[[str, int, int], None]


def quantize_bundle(
    parent: Bundle,
    path: str | os.PathLike[str] | None = None,
    *,
    recipe: QuantizeRecipe,
    data: CalibrationData | None = None,
    keep: tuple[str, ...] = (),
    accuracy: Callable[[Bundle], tuple[Accuracy, ...]] = lambda _: (),
    prepared: Prepared | None = None,
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
        keep: Groups that a search found must stay in floats, beside those of the recipe.
        accuracy: Measures the bundle before it is put in place.
        prepared: The calibrated graph, if it is there already.
        force: Replace a bundle that is there.
        on_step: Called with a few words as each step begins.
        on_pass: Called as calibration goes on: what, batches done, of how many.

    Returns:
        The new bundle.

    Raises:
        RecipeError: If data is missing, or the parent cannot be lowered so.
        QuantizeError: If the graph cannot be lowered.
        ParityError: If its outputs are too far from PyTorch's.
        BundleError: If ``path`` is taken or cannot be written.
    """
    _require_parent(parent)
    if recipe.needs_calibration and data is None and prepared is None:
        raise RecipeError(
            f"{PRECISIONS[recipe.precision]} needs data to find the ranges of activations with",
            hint="Give a file of real inputs: --calibrate FILE (texts, TSV, JSONL or npz).",
        )
    target = Path(path) if path else default_path(parent, recipe)
    with create_bundle(target, force=force) as staging:
        lowered, prepared = _lowered(parent, recipe, data, keep, prepared, on_step, on_pass)
        on_step("writing the graph")
        variants = _save(lowered.model, recipe, staging.path)
        if prepared is not None and prepared.statistics:
            store_statistics(staging.path / STATISTICS_FILE, prepared.statistics)
        _copy_files(parent, staging.path)
        on_step("comparing with the parent")
        reference = _store_proof(parent, recipe, data, staging.path)
        manifest = _manifest(parent, recipe, data, lowered, prepared, variants, staging)
        draft = Bundle(staging.path, manifest, digest="")
        manifest = dataclasses.replace(manifest, parity=_proven(draft, reference))
        draft = Bundle(staging.path, manifest, digest="")
        on_step("measuring what it costs")
        quantization = manifest.quantization
        assert quantization is not None
        measured = dataclasses.replace(quantization, accuracy=accuracy(draft))
        staging.finish(dataclasses.replace(manifest, quantization=measured))
        on_step("writing the bundle")
    return open_bundle(target, verify=False)


def default_path(parent: Bundle, recipe: QuantizeRecipe) -> Path:
    """The parent's folder with the precision at its end, e.g. "minilm-int8"."""
    word = PRECISIONS[recipe.precision] + ("-dynamic" if recipe.dynamic else "")
    return parent.path.with_name(f"{parent.path.resolve().name}-{word}")


def load_graph(parent: Bundle) -> ir.Model:
    """The parent's graph; weights are read as they are needed.

    Raises:
        BundleError: If it cannot be read.
    """
    try:
        return ir.load(parent.model)
    except Exception as error:  # protobuf's and onnx's errors share no base
        raise BundleError(f"cannot read {parent.model}: {error}") from error


def _require_parent(parent: Bundle) -> None:
    manifest = parent.manifest
    if manifest.step is not Step.EXPORT or manifest.precision is not DType.FLOAT32:
        raise RecipeError(
            f"{parent.path} is {manifest.precision} already, expected a float32 export",
            hint=f"Quantize its parent instead: {manifest.parent.name}."
            if manifest.parent
            else "Name the exported bundle.",
        )


def _lowered(
    parent: Bundle,
    recipe: QuantizeRecipe,
    data: CalibrationData | None,
    keep: tuple[str, ...],
    prepared: Prepared | None,
    on_step: OnStep,
    on_pass: OnPass,
) -> tuple[Lowered, Prepared | None]:
    if recipe.precision in HALVES:
        model = load_graph(parent)
        on_step("looking for what overflows")
        # Without data of the user's own, on the feeds that the parent was proved with.
        ranges = see_magnitudes(model, data or proof_data(parent))
        on_step("lowering the graph")
        kept = lower_floats(model, recipe.precision, ranges, (*recipe.keep, *keep))
        count = sum(1 for _ in model.graph) - len(kept)
        return Lowered(model, count, tuple(kept)), None
    if prepared is None:
        on_step("calibrating" if data else "reading the graph")
        prepared = prepare(load_graph(parent), recipe, data, on_pass)
    on_step("lowering the graph")
    return lower(prepared, recipe, keep), prepared


def proof_data(parent: Bundle, name: str = PROOF_FILE) -> CalibrationData:
    """The feeds a bundle was proved with, as calibration data: padded, and of several shapes.

    Args:
        parent: Carries a proof.
        name: For the manifest.
    """
    signature = parent.manifest.signature
    by_rows = all(spec.shape[:1] == (BATCH,) for spec in signature.inputs)
    lowest = signature.ranges[BATCH].min if BATCH in signature.ranges else 1
    feeds = []
    for case in load_cases(parent.path / PROOF_FILE):
        rows = len(next(iter(case.feed.values()))) if by_rows and lowest == 1 else 0
        # A row at a time: every observed activation of a run is held at once.
        feeds += [
            {key: array[row : row + 1] for key, array in case.feed.items()} for row in range(rows)
        ] or [dict(case.feed)]
    return calibration_feeds(parent, feeds, name=name)


def _save(model: ir.Model, recipe: QuantizeRecipe, folder: Path) -> dict[str, str]:
    """Write the portable graph and the form for ONNX Runtime; both read the same weights."""
    ir.save(model, folder / MODEL_FILE, external_data=WEIGHTS_FILE)
    saved = ir.load(folder / MODEL_FILE)
    if recipe.precision in HALVES:
        ir.save(cpu_variant(saved), folder / VARIANT_FILE)
    elif recipe.precision is DType.INT8 and lower_for_ort_cpu(saved):
        ir.save(saved, folder / VARIANT_FILE)
    else:
        return {}
    return {ORT_CPU: VARIANT_FILE}


def _copy_files(parent: Bundle, folder: Path) -> None:
    """Tokenizer, configuration and proof: all of the parent's files but its graph."""
    graph = {parent.manifest.model, f"{parent.manifest.model}.data"}
    for entry in parent.manifest.files:
        if entry.path not in graph:
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parent.path / entry.path, target)


def _manifest(
    parent: Bundle,
    recipe: QuantizeRecipe,
    data: CalibrationData | None,
    lowered: Lowered,
    prepared: Prepared | None,
    variants: Mapping[str, str],
    staging: Staging,
) -> Manifest:
    facts = dict(parent.manifest.facts)
    facts["nodes"] = sum(1 for _ in lowered.model.graph.all_nodes())
    return dataclasses.replace(
        parent.manifest,
        step=Step.QUANTIZE,
        precision=recipe.precision,
        model=MODEL_FILE,
        source=parent.manifest.source.found_from(parent.path.parent).seen_from(staging.path.parent),
        parity=None,
        tools={tool: version for tool in TOOLS if (version := version_of(tool))},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        facts=facts,
        parent=parent.as_parent(),
        quantization=Quantization(
            recipe,
            calibration=data.facts if data is not None else None,
            smooth=prepared.alpha if prepared is not None else 0.0,
            quantized=lowered.quantized,
            kept=lowered.kept,
        ),
        variants=variants,
    )


def _store_proof(
    parent: Bundle, recipe: QuantizeRecipe, data: CalibrationData | None, folder: Path
) -> str:
    """Write the feeds and outputs that the new bundle is judged by; returns whose outputs.

    A parent's proof is of random tokens. Ranges that real text set do not fit those, so what is
    calibrated is judged on real feeds, by the parent, which was proved against PyTorch.
    """
    parity = parent.manifest.parity
    if data is None or recipe.precision in HALVES:
        return f"stored outputs of {parity.reference if parity else 'PyTorch'}"
    signature = parent.manifest.signature
    rng = np.random.default_rng(recipe.seed)
    feeds = list(data)
    chosen = np.unique(np.linspace(0, len(feeds) - 1, PROOF_FEEDS).round().astype(int))
    cases = [Case(_label(feeds[index]), feeds[index]) for index in chosen]
    with open_session(parent, backend="onnxruntime", verify=False) as session:
        outputs = [session.predict(case.feed) for case in cases]
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
