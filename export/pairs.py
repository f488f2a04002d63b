"""The decoder of a pair that generates: feeds to compare it on, and what PyTorch says to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.feeds import Padding, random_feed
from tfx.recipe import DECODER
from tfx.runtime.generation.kv_cache import (
    ENCODER_MASK,
    ENCODER_SEQUENCE,
    is_cross,
    restricted,
)
from tfx.runtime.proof import Case
from tfx.runtime.pytorch.modules import run_module
from tfx.runtime.pytorch.pairs import cross_of
from tfx.runtime.pytorch.parts import part_of
from tfx.signature import BATCH, SEQUENCE, Feed, Signature

from .proof import BATCH_IS_SINGLE, PADDED_IS_UNPADDED, Reference, reference

if TYPE_CHECKING:
    import torch

# Batch, target, input and padding of the input. The last is longer than what is read one by one.
SHAPES: tuple[tuple[int, int, int, Padding], ...] = (
    (1, 1, 1, "none"),
    (1, 8, 5, "none"),
    (3, 7, 13, "right"),
    (3, 7, 13, "left"),
    (8, 33, 40, "both"),
    (2, 100, 64, "right"),
)

# Different states of an input of one length (Whisper's 1500 frames): more would not make the
# comparison better, and repeated they take no room in the file of the proof.
KINDS = 16

STATES = "encoder_hidden_states"


def decoder_reference(
    decoder: torch.nn.Module, signature: Signature, rng: np.random.Generator, threads: int
) -> Reference:
    """What PyTorch's model gives for states of an encoder and whole targets, without a cache.

    The states are noise, under the padding too, where a model must not look.

    Args:
        decoder: ``pair_part_of`` made it.
        signature: Of what whole targets are run through (``text_signature``).
        rng: Of states, targets and padding.
        threads: CPU threads.
    """
    model: Any = decoder.model
    whole = part_of(model, DECODER)
    cases = _cases(signature, model.get_encoder().config.hidden_size, rng)
    # M2M counts positions by what is no padding, and a target that goes on has none.
    pad = getattr(model.config, "pad_token_id", None) or 0
    for case in cases:
        ids = case.feed["input_ids"]
        ids[ids == pad] = (pad + 1) % model.config.vocab_size
    known = reference(lambda feed: run_module(whole, feed, threads=threads), signature, cases)
    return dataclasses.replace(known, cases=tuple(_crossed(model, case) for case in cases))


def _cases(signature: Signature, width: int, rng: np.random.Generator) -> list[Case]:
    """Feeds for the model without a cache: states where the decoder takes cross keys."""
    frames = next(spec.shape[2] for spec in signature.inputs if is_cross(spec))
    fixed = frames if isinstance(frames, int) else 0
    own = restricted(signature, [spec for spec in signature.inputs if not is_cross(spec)])
    masked = any(spec.name == ENCODER_MASK for spec in own.inputs)
    cases: list[Case] = []
    seen = set()
    for batch, target, source, padding in SHAPES:
        # A row of one length is large (Whisper), and its length cannot be mistaken.
        wanted = {BATCH: min(2, batch) if fixed else batch, SEQUENCE: target}
        wanted |= {} if fixed else {ENCODER_SEQUENCE: source}
        sizes = {
            axis: min(size, signature.ranges[axis].max) if axis in signature.ranges else size
            for axis, size in wanted.items()
        }
        length = fixed or sizes[ENCODER_SEQUENCE]
        if not masked or length == 1:
            padding = "none"
        if (key := (*sizes.values(), padding)) in seen:
            continue
        seen.add(key)
        feed = random_feed(own, sizes, rng, padding=padding)
        kinds = min(length, KINDS) if fixed else length
        states = rng.normal(size=(sizes[BATCH], kinds, width)).astype(np.float32)
        feed[STATES] = np.ascontiguousarray(states[:, np.arange(length) * kinds // length])
        label = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        whole = len(cases)
        cases.append(Case(label + (f", padded {padding}" if padding != "none" else ""), feed))
        if 1 < sizes[BATCH] <= 3:
            cases += _rows_alone(feed, padding, whole)
    return cases


def _rows_alone(feed: Feed, padding: Padding, whole: int) -> Iterator[Case]:
    """Each row of a batch as a feed of its own, the padding of its input cut off."""
    for row in range(len(feed[STATES])):
        alone = {name: array[row : row + 1] for name, array in feed.items()}
        claim = BATCH_IS_SINGLE
        if padding != "none" and not (mask := alone[ENCODER_MASK][0]).all():
            kept = np.flatnonzero(mask)
            for name in (ENCODER_MASK, STATES):
                alone[name] = alone[name][:, kept[0] : kept[-1] + 1]
            claim = PADDED_IS_UNPADDED[padding]
        alone = {name: np.ascontiguousarray(array) for name, array in alone.items()}
        yield Case(f"row {row} of case {whole + 1} alone", alone, whole, row, 0, claim)


def _crossed(model: Any, case: Case) -> Case:
    """The same feed for the decoder: keys and values where the model takes states."""
    feed = dict(case.feed)
    states = feed.pop(STATES)
    cross = run_module(lambda states: cross_of(model, states), {"states": states})
    return dataclasses.replace(case, feed={**feed, **cross})
