"""The cache of keys and values as arrays: its shapes, and a whole text run through it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from tfx.bundle import Bundle
from tfx.signature import BATCH, SEQUENCE, Feed, Signature, TensorSpec

# Inputs and outputs of layer n's cache; names that can be a parameter's, for tracing.
PAST = ("past_key_{}", "past_value_{}")
PRESENT = ("present_key_{}", "present_value_{}")

# What the graph takes beside tokens and cache.
MASK, POSITION, KEPT_TOKENS = "attention_mask", "cache_position", "logits_to_keep"

# Axes: places in the cache, and tokens that logits are wanted of.
CAPACITY, KEPT = "capacity", "kept"

# Tokens of each text that a proof reads one by one, through the cache.
DECODED = 64

Run = Callable[[Feed], Mapping[str, np.ndarray]]


def cache_specs(signature: Signature) -> tuple[TensorSpec, ...]:
    """The inputs of a signature that hold keys and values; empty for a graph without a cache."""
    return tuple(spec for spec in signature.inputs if CAPACITY in spec.shape and spec.name != MASK)


def present_of(past: str) -> str:
    """Name of the output that gives the input ``past`` back, with new tokens written into it."""
    return past.replace("past_", "present_", 1)


def text_signature(signature: Signature) -> Signature:
    """What a graph with a cache takes and gives when whole texts are run at once.

    ``input_ids`` and ``attention_mask``, ``[batch, sequence]``, in, ``logits``,
    ``[batch, sequence, vocabulary]``, out. A signature without a cache stays as it is.
    """
    if not cache_specs(signature):
        return signature
    inputs = {spec.name: spec for spec in signature.inputs}
    (logits,) = (spec for spec in signature.outputs if KEPT in spec.shape)
    axes = tuple(SEQUENCE if axis == KEPT else axis for axis in logits.shape)
    return Signature(
        inputs=(
            inputs["input_ids"],
            dataclasses.replace(inputs[MASK], shape=(BATCH, SEQUENCE)),
        ),
        outputs=(dataclasses.replace(logits, shape=axes),),
        ranges={
            axis: sizes for axis, sizes in signature.ranges.items() if axis in (BATCH, SEQUENCE)
        },
    )


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
        ids, mask = feed["input_ids"], feed[MASK]
        batch, sequence = ids.shape
        start = max(sequence - steps, (sequence + 1) // 2)
        cache = empty_cache(signature, batch, sequence)
        found = []
        for first, last in ((0, start), *((i, i + 1) for i in range(start, sequence))):
            outputs = run(
                {
                    "input_ids": np.ascontiguousarray(ids[:, first:last]),
                    MASK: mask,
                    POSITION: np.arange(first, last, dtype=np.int64),
                    KEPT_TOKENS: np.arange(last - first, dtype=np.int64),
                    **cache,
                }
            )
            cache = {name: outputs[present_of(name)] for name in cache}
            found.append(outputs["logits"])
        return {"logits": np.concatenate(found, axis=1)}

    return run_text
