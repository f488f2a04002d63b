"""Which method chooses activation ranges: a few are tried, and the outputs or a metric decide.

A percentile that suits short texts clips what one token of a long text carries, and no histogram
tells what is lost with it (docs/decisions/0009).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tfx.bundle import Bundle
from tfx.quantization import PERCENTILE, RangeMethod
from tfx.runtime.opening import open_session
from tfx.signature import Feed

from .integers import Lowered
from .lowering import Lowering, proof_data

# What is tried, with the percentile it takes; of equal ones the first is taken.
TRIED = (
    (RangeMethod.PERCENTILE, PERCENTILE),
    (RangeMethod.PERCENTILE, 99.999),
    (RangeMethod.MINMAX, PERCENTILE),
)

# Feeds that they are tried on, from the shortest to the longest.
FEEDS = 16

Write = Callable[[Lowering, Lowered, Path], Bundle]


def with_range_method(
    lowering: Lowering, write: Write, lost: Callable[[Bundle], float] | None = None
) -> Lowering:
    """A lowering whose recipe names the method that loses least.

    Args:
        lowering: Where its ranges are those of an earlier bundle of the same precision, that
            one's method is taken.
        write: Writes a graph into a folder, as a bundle that can be opened.
        lost: What a bundle loses, e.g. of the metric that has a budget: which method is best for
            most texts may be wrong for the worst. None for the error of the outputs.

    Returns:
        The same with ``method`` and ``percentile`` of its recipe set; as it is where the recipe
        names one already, or there are no ranges to choose.
    """
    recipe, prepared = lowering.recipe, lowering.prepared
    if recipe.method is not None or prepared is None or not prepared.statistics:
        return lowering
    if lowering.data is None and prepared.origin is not None:
        known = prepared.origin.manifest.quantization
        if known and known.recipe.method and known.recipe.precision is recipe.precision:
            return _with(lowering, known.recipe.method, known.recipe.percentile)
    lost = lost or _error_of_outputs(lowering)
    tried = [_with(lowering, *one) for one in TRIED]
    losses = []
    for one in tried:
        with tempfile.TemporaryDirectory(prefix="tfx-") as folder:
            losses.append(lost(write(one, one.lower(), Path(folder))))
    return tried[int(np.argmin(losses))]


def _error_of_outputs(lowering: Lowering) -> Callable[[Bundle], float]:
    """What ``output_error`` says of a bundle beside the parent, on some feeds."""
    origin = lowering.prepared.origin if lowering.prepared is not None else None
    data = lowering.data or proof_data(origin or lowering.parent)
    # Made again where they are chosen: all feeds at once may not fit into memory.
    order = np.argsort([_size(feed) for feed in data], kind="stable")
    places = np.unique(np.linspace(0, len(data) - 1, FEEDS).round().astype(int))
    chosen = [data.batches[index]() for index in order[places]]
    exact = _outputs(lowering.parent, chosen)
    return lambda bundle: output_error(exact, _outputs(bundle, chosen))


def output_error(
    exact: Sequence[dict[str, np.ndarray]], found: Sequence[dict[str, np.ndarray]]
) -> float:
    """Mean squared error of each row of the float outputs, beside the row's own squares.

    A row is what lies along the last axis: a token's vector, or a sample's logits. Relative to
    itself: the few tokens of large vectors would outweigh all others.
    """
    total, rows = 0.0, 0
    for wanted, given in zip(exact, found, strict=True):
        for name, values in wanted.items():
            if values.dtype.kind != "f" or not values.size or not values.ndim:
                continue
            width = values.shape[-1]
            right = values.reshape(-1, width).astype(np.float64)
            wrong = given[name].reshape(-1, width).astype(np.float64) - right
            power = np.maximum((right * right).sum(axis=1), np.finfo(np.float32).tiny)
            error = np.nan_to_num((wrong * wrong).sum(axis=1) / power, nan=np.inf, posinf=np.inf)
            total += float(error.sum())
            rows += len(right)
    return total / rows if rows else 0.0


def _with(lowering: Lowering, method: RangeMethod, percentile: float) -> Lowering:
    recipe = dataclasses.replace(lowering.recipe, method=method, percentile=percentile)
    return dataclasses.replace(lowering, recipe=recipe)


def _size(feed: Feed) -> int:
    return int(next(iter(feed.values())).size)


def _outputs(bundle: Bundle, feeds: Sequence[Feed]) -> list[dict[str, np.ndarray]]:
    with open_session(bundle, backend="onnxruntime", verify=False) as session:
        return [session.predict(dict(feed)) for feed in feeds]
