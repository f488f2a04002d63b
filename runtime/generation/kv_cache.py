"""The cache of keys and values as arrays: its shapes, and a whole text run through it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from tfx.bundle import Bundle
from tfx.signature import BATCH, SEQUENCE, Feed, Signature, TensorSpec

# Inputs and outputs of layer n's cache; names that can be a parameter's, for tracing.
PAST = ("past_key_{}", "past_value_{}")
PRESENT = ("present_key_{}", "present_value_{}")

# Of a decoder beside an encoder: what layer n makes of the encoder's states.
CROSS = ("cross_key_{}", "cross_value_{}")

# What the graph takes beside tokens and cache.
MASK, POSITION, KEPT_TOKENS = "attention_mask", "cache_position", "logits_to_keep"

ENCODER_MASK = "encoder_attention_mask"

# Axes: places in the cache, tokens that logits are wanted of, and tokens of an encoder's input.
CAPACITY, KEPT = "capacity", "kept"
ENCODER_SEQUENCE = f"encoder_{SEQUENCE}"

# Tokens of each text that a proof reads one by one, through the cache.
DECODED = 64

Run = Callable[[Feed], Mapping[str, np.ndarray]]


def cache_specs(signature: Signature) -> tuple[TensorSpec, ...]:
    """The inputs of a signature that hold keys and values; empty for a graph without a cache."""
    return tuple(spec for spec in signature.inputs if CAPACITY in spec.shape and spec.name != MASK)


def is_cross(spec: TensorSpec) -> bool:
    """Whether an input holds what a decoder's layer makes of an encoder's states."""
    return spec.name.startswith(("cross_key_", "cross_value_"))


def restricted(signature: Signature, inputs: Iterable[TensorSpec]) -> Signature:
    """A signature with other inputs, and the ranges of the axes that they have."""
    kept = tuple(inputs)
    axes = {axis for spec in kept for axis in spec.shape}
    ranges = {axis: sizes for axis, sizes in signature.ranges.items() if axis in axes}
    return Signature(kept, signature.outputs, ranges)


def present_of(past: str) -> str:
    """Name of the output that gives the input ``past`` back, with new tokens written into it."""
    return past.replace("past_", "present_", 1)


def text_signature(signature: Signature) -> Signature:
    """What a graph with a cache takes and gives when whole texts are run at once.

    ``input_ids`` and ``attention_mask``, ``[batch, sequence]``, in, ``logits``,
    ``[batch, sequence, vocabulary]``, out. A decoder takes no mask of its own, and what is made
    of its encoder's states as before. A signature without a cache stays as it is.
    """
    if not (cache := cache_specs(signature)):
        return signature
    left = {POSITION, KEPT_TOKENS, *(spec.name for spec in cache)}
    inputs = [
        dataclasses.replace(spec, shape=(BATCH, SEQUENCE)) if spec.name == MASK else spec
        for spec in signature.inputs
        if spec.name not in left
    ]
    (logits,) = (spec for spec in signature.outputs if KEPT in spec.shape)
    axes = tuple(SEQUENCE if axis == KEPT else axis for axis in logits.shape)
    whole = dataclasses.replace(signature, outputs=(dataclasses.replace(logits, shape=axes),))
    return restricted(whole, inputs)


def text_view(bundle: Bundle) -> Bundle:
    """A bundle as what whole texts are run through sees it: with its ``text_signature``."""
    signature = text_signature(bundle.manifest.signature)
    manifest = dataclasses.replace(bundle.manifest, signature=signature)
    return dataclasses.replace(bundle, manifest=manifest)


def empty_cache(signature: Signature, batch: int, capacity: int) -> dict[str, np.ndarray]:
    """Zeros for every input that holds keys and values."""
    sizes = {BATCH: batch, CAPACITY: capacity}
    return {
        spec.name: np.zeros(
            [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape],
            spec.dtype.numpy,
        )
        for spec in cache_specs(signature)
    }


def whole_feed(signature: Signature, feed: Feed) -> dict[str, np.ndarray]:
    """A feed of ``text_signature`` as one of ``signature``: all at once, in an empty cache."""
    if not cache_specs(signature):
        return dict(feed)
    batch, sequence = feed["input_ids"].shape
    places = np.arange(sequence, dtype=np.int64)
    return {
        **feed,
        POSITION: places,
        KEPT_TOKENS: places,
        **empty_cache(signature, batch, sequence),
    }


def stepwise(run: Run, signature: Signature, steps: int) -> Run:
    """A run of whole texts that reads the last ``steps`` tokens one by one, through the cache.

    Args:
        run: The graph, which takes feeds of ``signature``.
        signature: With a cache.
        steps: Most tokens read one by one; at least one is read before, and of short texts
            half of them.

    Returns:
        A function from a feed of ``text_signature`` to its logits.
    """

    def run_text(feed: Feed) -> dict[str, np.ndarray]:
        ids = feed["input_ids"]
        others = {name: array for name, array in feed.items() if name != "input_ids"}
        batch, sequence = ids.shape
        start = max(sequence - steps, (sequence + 1) // 2)
        cache = empty_cache(signature, batch, sequence)
        found = []
        for first, last in ((0, start), *((i, i + 1) for i in range(start, sequence))):
            outputs = run(
                {
                    "input_ids": np.ascontiguousarray(ids[:, first:last]),
                    **others,
                    POSITION: np.arange(first, last, dtype=np.int64),
                    KEPT_TOKENS: np.arange(last - first, dtype=np.int64),
                    **cache,
                }
            )
            cache = {name: outputs[present_of(name)] for name in cache}
            found.append(outputs["logits"])
        return {"logits": np.concatenate(found, axis=1)}

    return run_text
