"""A float32 bundle ready to be lowered to one precision, as often as wanted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BundleError
from tfx.quantization import ORT_CPU, QuantizeRecipe, WeightMethod
from tfx.runtime.generation.kv_cache import text_signature, whole_feed
from tfx.runtime.proof import PROOF_FILE, load_cases
from tfx.signature import BATCH

from .calibration import CalibrationData, calibration_feeds
from .floats import cpu_variant, lower_floats
from .integers import Lowered, Prepared, lower, prepare
from .linear import find_products, scope_of
from .observation import see_hessians, see_magnitudes
from .statistics import FILE_NAME as STATISTICS_FILE
from .statistics import store_statistics
from .targets import lower_for_ort_cpu

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
VARIANT_FILE = "model.onnxruntime-cpu.onnx"

# What only shortens floats.
HALVES = (DType.FLOAT16, DType.BFLOAT16)

OnStep = Callable[[str], None]
OnPass = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Lowering:
    """What was found out about a bundle, from which any choice of groups can be lowered.

    Attributes:
        parent: The float32 bundle.
        recipe: Precision and methods.
        data: Feeds that calibrated it; None for none.
        prepared: The calibrated graph; None for 16-bit floats.
        ranges: Value name to largest magnitude, where 16-bit floats are asked for.
        hessians: Weight name to ``X.T @ X``, for GPTQ.
    """

    parent: Bundle
    recipe: QuantizeRecipe
    data: CalibrationData | None
    prepared: Prepared | None
    ranges: Mapping[str, float]
    hessians: Mapping[str, np.ndarray]

    @property
    def groups(self) -> list[str]:
        """What can be kept in float32, in the graph's order."""
        if self.prepared is not None:
            return self.prepared.groups
        scopes = (scope_of(node) for node in load_graph(self.parent).graph)
        return list(dict.fromkeys(scope for scope in scopes if scope))

    def lower(self, keep: Collection[str] = ()) -> Lowered:
        """The graph with all groups lowered but ``keep`` and those of the recipe.

        Raises:
            RecipeError: If a group is not one of the graph's.
            QuantizeError: If a weight cannot be lowered.
        """
        if self.prepared is not None:
            lowered = lower(self.prepared, self.recipe, keep, self.hessians)
            if self.recipe.rest is DType.FLOAT32:
                return lowered
            floats = lower_floats(lowered.model, self.recipe.rest, self.ranges)
            return replace(lowered, kept=(*lowered.kept, *floats))
        model = load_graph(self.parent)
        total = sum(1 for _ in model.graph)
        kept = lower_floats(model, self.recipe.precision, self.ranges, (*self.recipe.keep, *keep))
        return Lowered(model, total - len(kept), tuple(kept))

    def write(self, lowered: Lowered, folder: Path) -> dict[str, str]:
        """Write graph, forms for engines, calibration, and what the parent carries.

        Returns:
            ``Manifest.variants``.
        """
        variants = _save(lowered.model, self.recipe, folder)
        if self.prepared is not None and self.prepared.statistics:
            store_statistics(folder / STATISTICS_FILE, self.prepared.statistics)
        _copy_files(self.parent, folder)
        return variants


def prepare_lowering(
    parent: Bundle,
    recipe: QuantizeRecipe,
    data: CalibrationData | None = None,
    prepared: Prepared | None = None,
    *,
    on_step: OnStep = lambda _: None,
    on_pass: OnPass = lambda *_: None,
) -> Lowering:
    """Calibrate a bundle as its recipe needs.

    Args:
        parent: A float32 bundle.
        recipe: What to do.
        data: Feeds; those of the parent's proof serve for 16-bit floats without any.
        prepared: The calibrated graph, if it is there already.
        on_step: Called with a few words as each step begins.
        on_pass: Called as calibration goes on: what, batches done, of how many.

    Raises:
        QuantizeError: If activations are NaN on the data.
    """
    ranges: Mapping[str, float] = {}
    hessians: Mapping[str, np.ndarray] = {}
    if recipe.precision in HALVES:
        on_step("looking for what overflows")
        ranges = see_magnitudes(load_graph(parent), data or proof_data(parent))
        return Lowering(parent, recipe, data, None, ranges, hessians)
    if prepared is None:
        on_step("calibrating" if data else "reading the graph")
        prepared = prepare(load_graph(parent), recipe, data, on_pass)
    if recipe.weight_method is WeightMethod.GPTQ and data is not None:
        on_step("calibrating: products of activations")
        hessians = see_hessians(prepared.model, find_products(prepared.model), data)
    if recipe.rest is not DType.FLOAT32:
        on_step("looking for what overflows")
        ranges = see_magnitudes(prepared.model, data or proof_data(prepared.origin or parent))
    return Lowering(parent, recipe, data, prepared, ranges, hessians)


def load_graph(parent: Bundle) -> ir.Model:
    """The parent's graph; weights are read as they are needed.

    Raises:
        BundleError: If it cannot be read.
    """
    try:
        return ir.load(parent.model)
    except Exception as error:  # protobuf's and onnx's errors share no base
        raise BundleError(f"cannot read {parent.model}: {error}") from error


def proof_data(parent: Bundle, name: str = PROOF_FILE) -> CalibrationData:
    """The feeds a bundle was proved with, as calibration data: padded, and of several shapes.

    Args:
        parent: Carries a proof.
        name: For the manifest.
    """
    signature = text_signature(parent.manifest.signature)
    by_rows = all(spec.shape[:1] == (BATCH,) for spec in signature.inputs)
    lowest = signature.ranges[BATCH].min if BATCH in signature.ranges else 1
    feeds = []
    for case in load_cases(parent.path / PROOF_FILE):
        rows = len(next(iter(case.feed.values()))) if by_rows and lowest == 1 else 0
        # A row at a time: every observed activation of a run is held at once.
        feeds += [
            {key: array[row : row + 1] for key, array in case.feed.items()} for row in range(rows)
        ] or [dict(case.feed)]
    whole = [whole_feed(parent.manifest.signature, feed) for feed in feeds]
    return calibration_feeds(parent, whole, name=name)


def _save(model: ir.Model, recipe: QuantizeRecipe, folder: Path) -> dict[str, str]:
    """Write the portable graph and the form for ONNX Runtime; both read the same weights."""
    ir.save(model, folder / MODEL_FILE, external_data=WEIGHTS_FILE)
    saved = ir.load(folder / MODEL_FILE)
    in_halves = recipe.precision in HALVES or recipe.rest in HALVES
    if in_halves:
        saved = cpu_variant(saved)
    has_kernels = recipe.precision not in (*HALVES, DType.FLOAT8_E4M3)
    if not (has_kernels and lower_for_ort_cpu(saved)) and not in_halves:
        return {}
    ir.save(saved, folder / VARIANT_FILE)
    return {ORT_CPU: VARIANT_FILE}


def _copy_files(parent: Bundle, folder: Path) -> None:
    """Tokenizer, configuration and proof: all of the parent's files but its graph."""
    graph = {parent.manifest.model, f"{parent.manifest.model}.data"}
    for entry in parent.manifest.files:
        if entry.path not in graph:
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parent.path / entry.path, target)
