"""Shapes that a bundle is tuned for: as they are typed, by default, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping

from tfx.errors import FeedError
from tfx.signature import BATCH, SEQUENCE, Signature

from ..generation.decoder import is_generator
from .texts import NEW, default_texts, text_label, text_sizes

# Batch and length of what is measured unless a caller names others: one text, and a batch.
DEFAULT_SHAPES = ((1, 128), (16, 128))


def shape_of(text: str, signature: Signature) -> dict[str, int]:
    """Read a shape: ``16x128`` is batch x length, ``batch=16,sequence=128`` names any axes.

    Axes that are not named have the size they are tuned for. Of a bundle with a cache it is
    ``1x128+64``: batch x prompt + new tokens.

    Raises:
        FeedError: If it is neither, or names an axis that the model has not.
    """
    if is_generator(signature):
        return text_sizes(text, signature)
    sizes = {axis: _tuned_for(signature, axis) for axis in signature.axes}
    hint = f"Give BATCHxLENGTH, or sizes of: {', '.join(sizes) or 'nothing, the shape is fixed'}."
    try:
        if "=" in text:
            pairs = [part.split("=") for part in text.split(",")]
            asked = {name.strip(): int(size) for name, size in pairs}
        else:
            batch, length = map(int, text.split("x"))
            asked = {
                axis: batch if axis == BATCH else length
                for axis in sizes
                if axis == BATCH or SEQUENCE in axis
            }
    except ValueError as error:
        raise FeedError(f"shape is {text!r}, expected one like 16x128", hint=hint) from error
    if unknown := sorted(asked.keys() - sizes.keys()):
        raise FeedError(f"shape {text!r}: no axis called {', '.join(unknown)}", hint=hint)
    return sizes | asked


def default_shapes(signature: Signature) -> tuple[dict[str, int], ...]:
    """One text and a batch of them, as near as the signature admits."""
    if is_generator(signature):
        return default_texts(signature)
    found = []
    for batch, length in DEFAULT_SHAPES:
        sizes = {}
        for axis in signature.axes:
            wanted = batch if axis == BATCH else length if SEQUENCE in axis else None
            limits = signature.ranges.get(axis)
            if wanted is None:
                wanted = _tuned_for(signature, axis)
            sizes[axis] = limits.nearest(wanted) if limits else wanted
        if sizes not in found:
            found.append(sizes)
    return tuple(found)


def label_of(sizes: Mapping[str, int]) -> str:
    """What a shape is called: ``16x128`` where it has a batch and one length, else all sizes."""
    if NEW in sizes:
        return text_label(sizes)
    if list(sizes) == [BATCH, SEQUENCE]:
        return f"{sizes[BATCH]}x{sizes[SEQUENCE]}"
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items()) or "fixed shape"


def _tuned_for(signature: Signature, axis: str) -> int:
    limits = signature.ranges.get(axis)
    return limits.opt if limits else 1
