"""Images to the input of a model, by what its bundle says; with NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import DataError
from tfx.processing import ImagePreparation, Resample
from tfx.signature import Feed


def image_feed(bundle: Bundle, images: np.ndarray) -> Feed:
    """Make images the feed of a bundle.

    Args:
        bundle: Says how they become its input.
        images: ``uint8[batch, height, width, 3]``; where they differ in size an object array
            ``[batch]`` of ``uint8[height, width, 3]``.

    Raises:
        DataError: If the bundle does not say it, or the images do not fit.
    """
    if problem := image_problem(bundle):
        raise DataError(problem, hint="Give an npz of arrays named as the model's inputs.")
    said = bundle.manifest.processing.images
    assert said is not None  # image_problem looked
    if images.dtype != object:
        return {said.input: prepared_images(images, said)}
    prepared = [prepared_images(one[None], said) for one in images]
    if len(sizes := {one.shape[2:] for one in prepared}) > 1:
        shown = " and ".join(f"{height} x {width}" for height, width in sorted(sizes)[:2])
        raise DataError(
            f"images of several sizes stay so for {bundle.name}: got {shown}",
            hint="Give images of one size.",
        )
    return {said.input: np.concatenate(prepared)}


def image_problem(bundle: Bundle) -> str:
    """Why a bundle cannot be fed with images alone, or ""."""
    said = bundle.manifest.processing.images
    if said is None:
        return f"{bundle.name} does not say how images become arrays"
    others = [spec.name for spec in bundle.manifest.signature.inputs if spec.name != said.input]
    if others:
        return f"{bundle.name} needs {', '.join(others)} beside images"
    return ""


def prepared_images(images: np.ndarray, said: ImagePreparation) -> np.ndarray:
    """Resize, crop, scale and normalize images.

    Args:
        images: ``uint8[batch, height, width, channels]``.
        said: How.

    Returns:
        ``float32[batch, channels, height, width]``.

    Raises:
        DataError: If they are smaller than what is cut out of them.
    """
    if said.resize:
        images = resized(images, _target(images.shape[1:3], said.resize), said.resample)
    if said.crop:
        images = _middle(images, said.crop)
    numbers = images.astype(np.float32) * np.float32(said.scale)
    if said.mean:
        numbers -= np.array(said.mean, np.float32)
    if said.std:
        numbers /= np.array(said.std, np.float32)
    return np.ascontiguousarray(np.moveaxis(numbers, -1, 1))


def resized(images: np.ndarray, size: tuple[int, int], how: Resample) -> np.ndarray:
    """Images of another size, as Pillow's ``resize`` makes them.

    Where they become smaller the filter is widened with it, so that every pixel counts. One
    direction is a level off at most; after both, a filter that overshoots may be further off at
    sharp edges, for Pillow's versions differ in which they take first.

    Args:
        images: ``uint8[batch, height, width, channels]``.
        size: Height and width.
        how: The filter.

    Returns:
        ``uint8[batch, *size, channels]``.
    """
    passes = [(2, size[1]), (1, size[0])]
    passes.sort(key=lambda one: one[1] / images.shape[one[0]])  # less is left for the second
    for axis, length in passes:
        if images.shape[axis] == length:
            continue
        if how is Resample.NEAREST:
            steps = np.full(length, images.shape[axis] / length)
            steps[0] /= 2
            # Added up as Pillow does: halfway between two pixels the last bit decides.
            images = images.take(np.cumsum(steps).astype(int), axis=axis)
            continue
        weights = _weights(images.shape[axis], length, how)
        moved = np.moveaxis(images, axis, -1).astype(np.float32)
        levels = np.clip(np.rint(moved @ weights.T), 0, 255).astype(np.uint8)
        images = np.moveaxis(levels, -1, axis)
    return images


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def _cubic(x: np.ndarray) -> np.ndarray:
    # Keys 1981 with a = -0.5, as Pillow.
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def _box(x: np.ndarray) -> np.ndarray:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


# The filter, and how far it reaches.
FILTERS: dict[Resample, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    Resample.BOX: (_box, 0.5),
    Resample.BILINEAR: (_triangle, 1.0),
    Resample.BICUBIC: (_cubic, 2.0),
    Resample.LANCZOS: (_lanczos, 3.0),
}


def _weights(before: int, after: int, how: Resample) -> np.ndarray:
    """What each pixel of a line adds to each of its new ones, ``float32[after, before]``."""
    function, reach = FILTERS[how]
    ratio = before / after
    wide = max(ratio, 1.0)
    centre = (np.arange(after)[:, None] + 0.5) * ratio
    place = np.arange(before)[None]
    first = np.floor(centre - reach * wide + 0.5)
    last = np.floor(centre + reach * wide + 0.5)
    found = function((place - centre + 0.5) / wide)
    found = np.where((place >= first) & (place < last), found, 0)
    return np.asarray(found / found.sum(axis=1, keepdims=True), np.float32)


def _target(size: tuple[int, ...], asked: tuple[int, ...]) -> tuple[int, int]:
    if len(asked) == 2:
        return asked[0], asked[1]
    height, width = size
    (short,) = asked
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _middle(images: np.ndarray, crop: tuple[int, ...]) -> np.ndarray:
    height, width = images.shape[1:3]
    if height < crop[0] or width < crop[1]:
        raise DataError(
            f"images are {height} x {width} where the middle {crop[0]} x {crop[1]} is cut out",
            hint="Give larger images.",
        )
    top, left = (
        math.floor((have - want) / 2) for have, want in zip((height, width), crop, strict=True)
    )
    middle: np.ndarray = images[:, top : top + crop[0], left : left + crop[1]]
    return middle
