"""Random feeds that fit a signature: what parity proofs and benchmarks run on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from .dtypes import DType
from .errors import FeedError, listing
from .signature import Dim, Signature, TensorSpec

Padding = Literal["none", "right", "left", "both"]

MASK, TYPES = "attention_mask", "token_type_ids"
MASKS = (MASK, "encoder_attention_mask")

# Numbers of places or tokens, each once and ascending, in a graph with a cache.
COUNTED = ("cache_position", "logits_to_keep")

# Size of the axes of a feed that something is tried on.
TRIED = 8


def random_feed(
    signature: Signature,
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    *,
    padding: Padding = "none",
) -> dict[str, np.ndarray]:
    """Draw a feed of given sizes.

    Integers are uniform in their ``ValueRange``, floats standard normal. ``attention_mask`` is
    1 for tokens and 0 for padding, as is ``encoder_attention_mask``; row 0 is full, and every row
    keeps a token, or of a sound as many samples as the model takes: fewer have no frame.
    The ids under padding are random too: a model must not look at them.

    Args:
        signature: What the feed must fit.
        sizes: Axis name to size, for every axis of the inputs.
        rng: Source of all values.
        padding: Where rows other than the first are padded; "both" alternates by row.

    Raises:
        FeedError: If an axis has no size, or one outside its range.
    """
    if padding not in get_args(Padding):
        raise FeedError(f"padding is {padding!r}, expected one of {', '.join(get_args(Padding))}")
    axes = {axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)}
    problems = [f"axis {axis!r}: no size given" for axis in sorted(axes - sizes.keys())]
    problems += [
        f"axis {axis!r}: size {sizes[axis]}, outside {signature.ranges[axis]}"
        for axis in sorted(axes & sizes.keys() & signature.ranges.keys())
        if sizes[axis] not in signature.ranges[axis]
    ]
    if problems:
        limits = [f"{axis} {signature.ranges.get(axis, 'of any size')}" for axis in sorted(axes)]
        raise FeedError(
            listing("no feed of these sizes:", problems),
            hint=f"Give each axis a size in its range: {', '.join(limits)}.",
        )
    least: dict[Dim, int] = {
        axis: signature.ranges[axis].min
        for spec in signature.inputs
        if spec.dtype.is_floating
        for axis in spec.shape
        if isinstance(axis, str) and axis in signature.ranges
    }
    return {spec.name: _array(spec, sizes, least, rng, padding) for spec in signature.inputs}


def trial_feed(signature: Signature) -> dict[str, np.ndarray]:
    """A small feed, always the same, to see whether two models give the same numbers."""
    ranges = signature.ranges
    sizes = {
        axis: ranges[axis].nearest(TRIED) if axis in ranges else TRIED for axis in signature.axes
    }
    return random_feed(signature, sizes, np.random.default_rng(0), padding="right")


def _array(
    spec: TensorSpec,
    sizes: Mapping[str, int],
    least: Mapping[Dim, int],
    rng: np.random.Generator,
    padding: Padding,
) -> np.ndarray:
    shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape)
    if spec.name in MASKS and len(shape) == 2 and not spec.dtype.is_floating:
        return _mask(shape, least.get(spec.shape[1], 1), rng, padding).astype(spec.dtype.numpy)
    if spec.name in COUNTED and len(shape) == 1 and not spec.dtype.is_floating:
        return np.arange(shape[0]).astype(spec.dtype.numpy)
    if spec.name == TYPES and len(shape) == 2:
        return _token_types(shape, spec)
    if spec.dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if spec.dtype.is_floating:
        return rng.normal(size=shape).astype(spec.dtype.numpy)
    # Without a stated range only 0 and 1 are sure to be admitted by any table they index.
    low, high = (spec.values.min, spec.values.max) if spec.values else (0, 1)
    return rng.integers(low, high, shape, endpoint=True).astype(spec.dtype.numpy)


def _mask(
    shape: tuple[int, ...], least: int, rng: np.random.Generator, padding: Padding
) -> np.ndarray:
    batch, sequence = shape  # [batch, sequence]
    mask = np.ones(shape, np.int64)
    if padding == "none" or sequence <= least:
        return mask
    for row in range(1, batch):
        tokens = int(rng.integers(least, sequence))
        side = ("right", "left")[row % 2] if padding == "both" else padding
        if side == "right":
            mask[row, tokens:] = 0
        else:
            mask[row, :-tokens] = 0
    return mask


def _token_types(shape: tuple[int, ...], spec: TensorSpec) -> np.ndarray:
    """Zeros, then ones from the middle on: a pair of texts."""
    types = np.zeros(shape, spec.dtype.numpy)
    if spec.values is None or spec.values.max >= 1:
        types[:, shape[1] // 2 :] = 1
    return types
