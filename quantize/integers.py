"""Static and dynamic 8-bit: calibrate once, then lower any choice of groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import QuantizeError, RecipeError, listing
from tfx.quantization import KeptNode, QuantizeRecipe, RangeMethod

from .calibration import CalibrationData
from .int4 import lower_weights_int4, why_whole
from .linear import (
    SMALLEST_WEIGHT,
    Product,
    array_of,
    find_lookups,
    find_products,
    groups_of,
    shared_data,
    split_gemms,
)
from .observation import see_extremes, see_histograms
from .observers import Extremes
from .outliers import choose_outliers, split_outliers, without_channels
from .qdq import quantize_activations, quantize_tables, quantize_weights
from .shift import SHIFTED, Shift, choose_shift, shift_activations
from .smooth import ALPHAS, SMOOTHED, WORTH, Smoothing, apply_smoothing, can_fold, choose_smoothing
from .statistics import ActivationStatistics

# Relative squared error of the products below which smoothing is not tried where it would cost
# a multiplication per element: it is lost in the error of the others.
SMALL_ERROR = 1e-3


@dataclass(frozen=True)
class Prepared:
    """A float graph ready to be lowered, as often as wanted.

    Attributes:
        model: The graph, smoothed; ``lower`` works on a copy.
        statistics: Name of each activation to what calibration found; empty for dynamic ranges.
        smoothings: Name of each smoothed activation to how.
        origin: The bundle that the statistics were found for; None for this one.
    """

    model: ir.Model
    statistics: Mapping[str, ActivationStatistics] = field(default_factory=dict)
    smoothings: Mapping[str, Smoothing] = field(default_factory=dict)
    origin: Bundle | None = None

    @property
    def groups(self) -> list[str]:
        """Names of what can be kept in higher precision."""
        return groups_of(find_products(self.model), find_lookups(self.model))

    @property
    def alpha(self) -> float:
        """Median alpha of the smoothed activations; 0 for none."""
        if self.origin is not None and self.origin.manifest.quantization is not None:
            return self.origin.manifest.quantization.smooth
        alphas = [one.alpha for one in self.smoothings.values()]
        return float(np.median(alphas)) if alphas else 0.0


@dataclass(frozen=True)
class Lowered:
    """A graph in lower precision.

    Attributes:
        model: The graph.
        quantized: Nodes in it that compute or read in the lower precision.
        kept: Nodes that could, and do not.
    """

    model: ir.Model
    quantized: int
    kept: tuple[KeptNode, ...]


def prepare(
    model: ir.Model,
    recipe: QuantizeRecipe,
    data: CalibrationData | None,
    on_pass: Callable[[str, int, int], None] = lambda *_: None,
) -> Prepared:
    """Find ranges, and smooth where it pays.

    Args:
        model: The float graph; changed in place.
        recipe: Method, smoothing.
        data: Feeds; None for dynamic ranges.
        on_pass: Called with what is done, and how many batches of how many.

    Raises:
        QuantizeError: If activations are NaN, or nothing can be quantized.
    """
    split_gemms(model)
    values = {product.data: -1 for product in find_products(model)}
    if not values and not find_lookups(model):
        raise QuantizeError(
            "the graph has nothing to quantize: no MatMul, Gemm or Gather with "
            f"{SMALLEST_WEIGHT} constant weights or more",
            hint="Lower it to 16-bit floats instead: --fp16 or --bf16.",
        )
    if data is None or recipe.dynamic or recipe.precision is DType.INT4 or not values:
        return Prepared(model)

    def looking(what: str) -> Callable[[int], None]:
        return lambda done: on_pass(what, done, len(data))

    extremes = see_extremes(
        model, values, data, seed=recipe.seed, on_batch=looking("activation ranges")
    )
    smoothings: dict[str, Smoothing] = {}
    outliers: dict[str, np.ndarray] = {}
    if recipe.precision is DType.INT8 and recipe.smooth != 0:
        smoothings, outliers = _smooth(model, extremes, recipe.smooth)
    if smoothings or outliers:
        values = {product.data: -1 for product in find_products(model)}
        extremes = see_extremes(
            model,
            values,
            data,
            seed=recipe.seed,
            ignored=outliers,
            on_batch=looking("smoothed ranges"),
        )
    histograms = see_histograms(
        model,
        {value: extremes[str(value.name)].amax for value in values},
        data,
        ignored=outliers,
        on_batch=looking("histograms"),
    )
    statistics = {}
    for name, histogram in histograms.items():
        scale = smoothings[name].scale if name in smoothings else None
        statistics[name] = ActivationStatistics.of(
            extremes[name], histogram, scale, outliers.get(name)
        )
    return Prepared(model, statistics, smoothings)


def _smooth(
    model: ir.Model, extremes: Mapping[str, Extremes], asked: float | None
) -> tuple[dict[str, Smoothing], dict[str, np.ndarray]]:
    """Smooth the activations for which it pays, and split off the channels that stand out.

    Args:
        model: Changed in place.
        extremes: Of each activation that a product reads.
        asked: Alpha of all; None to search one for each.

    Returns:
        By name of the activation that products read now: how it was smoothed, and its channels
        that were split off.
    """
    alphas, worth = (ALPHAS, WORTH) if asked is None else ((asked,), 1.0)
    smoothings, outliers = {}, {}
    for value, products in list(shared_data(find_products(model))):
        one = extremes[str(value.name)]
        if one.rows is None or one.channels is None or not one.amax:
            continue
        weights = [array_of(product.weight) for product in products]
        few = choose_outliers(one.rows, one.channels, weights)
        smoothing = choose_smoothing(
            without_channels(one.rows, few, 1),
            without_channels(one.channels, few, 0),
            [without_channels(weight, few, 0) for weight in weights],
            alphas,
            worth=worth,
        )
        pays = asked is not None or can_fold(value, products) or smoothing.plain > SMALL_ERROR
        if smoothing.alpha and pays:
            smoothed = apply_smoothing(model.graph, value, products, smoothing.scale)
            smoothings[str(smoothed.name)] = smoothing
        if len(few):
            (smoothed, products), *_ = _reading(model, products)
            split_outliers(model.graph, smoothed, products, few)
            outliers[str(smoothed.name)] = few
    return smoothings, outliers


def prepare_again(
    model: ir.Model,
    statistics: Mapping[str, ActivationStatistics],
    origin: Bundle | None = None,
) -> Prepared:
    """Prepare a graph with what an earlier calibration of it found.

    Args:
        model: The same float graph; changed in place.
        statistics: As ``load_statistics`` gave them.
        origin: The bundle that carries them.

    Raises:
        RecipeError: If they are of another graph.
    """
    split_gemms(model)
    for value, products in list(shared_data(find_products(model))):
        for name in (str(value.name), f"{value.name}{SMOOTHED}"):
            known = statistics.get(name)
            if known is not None and len(known.smoothing):
                apply_smoothing(model.graph, value, products, known.smoothing)
            if known is not None and len(known.outliers):
                (smoothed, split), *_ = _reading(model, products)
                split_outliers(model.graph, smoothed, split, known.outliers)
    names = {str(product.data.name) for product in find_products(model)}
    if missing := sorted(names - statistics.keys()):
        raise RecipeError(
            listing("calibration is of another graph, it lacks:", missing[:10]),
            hint="Calibrate with a file.",
        )
    return Prepared(model, statistics, origin=origin)


def _reading(
    model: ir.Model, products: Sequence[Product]
) -> Iterator[tuple[ir.Value, list[Product]]]:
    """Products as they are after a change, by the activation they read."""
    nodes = {product.node for product in products}
    return shared_data([one for one in find_products(model) if one.node in nodes])


def lower(
    prepared: Prepared,
    recipe: QuantizeRecipe,
    keep: Collection[str] = (),
    hessians: Mapping[str, np.ndarray] | None = None,
) -> Lowered:
    """Lower all groups but those kept.

    Args:
        prepared: Not changed.
        recipe: Precision, method (the percentile where none is named); its ``keep`` is added to
            ``keep``.
        keep: Groups to leave in floats.
        hessians: For GPTQ: see ``lower_weights_int4``.

    Raises:
        RecipeError: If a group is not one of the graph's.
    """
    model = prepared.model.clone()
    products, lookups = find_products(model), find_lookups(model)
    kept_groups = {*keep, *recipe.keep}
    known = groups_of(products, lookups)
    if unknown := sorted(kept_groups - set(known)):
        raise RecipeError(
            listing("there is no such group to keep:", unknown),
            hint="See the groups with: tfx quantize --list-groups",
        )
    whole = {one.node: _why_whole(one, recipe) for one in products}
    chosen = [one for one in products if one.group not in kept_groups and not whole[one.node]]
    # No engine reads rows of 8-bit floats; rows of 4 bits would cost what 8 do.
    has_tables = recipe.precision is not DType.FLOAT8_E4M3
    tables = [one for one in lookups if has_tables and one.group not in kept_groups]
    if recipe.precision is DType.INT4:
        names = {str(one.weight.name) for one in chosen}
        lower_weights_int4(model, recipe, names, hessians)
    else:
        quantize_weights(model.graph, chosen, recipe.precision, recipe.rest)
    if recipe.precision is not DType.INT4 and not recipe.dynamic:
        amax = {
            name: one.amax(recipe.method or RangeMethod.PERCENTILE, recipe.percentile)
            for name, one in prepared.statistics.items()
        }
        shifts = _shifts(prepared, recipe, amax)
        chosen = shift_activations(model.graph, chosen, shifts)
        amax |= {f"{name}{SHIFTED}": one.amax for name, one in shifts.items()}
        quantize_activations(model.graph, chosen, amax, recipe.precision)
    quantize_tables(model.graph, tables, rest=recipe.rest)
    nodes = [(one.node, one.group) for one in lookups] + [(one.node, one.group) for one in products]
    kept = []
    for node, group in nodes:
        reason = "kept as asked" if group in recipe.keep else "kept for accuracy"
        if group in kept_groups or (reason := whole.get(node, "")):
            kept.append(KeptNode(str(node.name), group, reason))
    return Lowered(model, len(chosen) + len(tables), tuple(kept))


def _why_whole(product: Product, recipe: QuantizeRecipe) -> str:
    """Why a product keeps its floats whatever is asked for, or ""."""
    if recipe.precision is not DType.INT4 or product.weight.shape is None:
        return ""
    problem = why_whole(int(product.weight.shape[0]))
    return f"its weight {problem}" if problem else ""


def _shifts(
    prepared: Prepared, recipe: QuantizeRecipe, amax: Mapping[str, float]
) -> dict[str, Shift]:
    """Of the activations that are better off with one.

    8-bit floats are as close on either side of zero; a difference in bfloat16 has no more
    digits than the integers it becomes.
    """
    if recipe.precision is not DType.INT8 or recipe.rest is DType.BFLOAT16:
        return {}
    found = {
        name: choose_shift(one.low, one.high, amax[name])
        for name, one in prepared.statistics.items()
    }
    return {name: shift for name, shift in found.items() if shift is not None}
