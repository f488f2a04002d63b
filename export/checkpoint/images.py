"""A checkpoint's image processor to what a bundle says about images, checked against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfx.errors import BackendError, DataError, SourceError
from tfx.extras import need
from tfx.processing import ImagePreparation, Resample
from tfx.runtime.images import prepared_images
from tfx.signature import Signature

INPUT = "pixel_values"
FILES = ("preprocessor_config.json", "processor_config.json")

# Pillow's numbers of its filters.
RESAMPLES = {
    0: Resample.NEAREST,
    1: Resample.LANCZOS,
    2: Resample.BILINEAR,
    3: Resample.BICUBIC,
    4: Resample.BOX,
}

# Height and width of the random images that are tried: smaller and larger than models take, and
# longer in either direction.
TRIED = ((32, 32), (300, 480), (481, 320))

# How far apart numbers may be on average, in levels of 256. Another filter, or a crop that is one
# pixel off, is several levels from it.
LEVELS = 1.0


def read_images(folder: Path, signature: Signature, notes: list[str]) -> ImagePreparation | None:
    """Read how images become the input of a checkpoint's model.

    What was read is tried on random images beside transformers' own processor: where the two
    differ, nothing is carried, and a note says so.

    Args:
        folder: A checkpoint in the Hugging Face layout.
        signature: Of the graph.
        notes: A sentence is added where images cannot be carried over.

    Raises:
        SourceError: If the processor's file is damaged.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    if INPUT not in specs or not any((folder / name).is_file() for name in FILES):
        return None
    arrays = "predict and evaluate take arrays, not images"
    try:
        need("PIL")
    except BackendError:
        notes.append(f"its image processor needs Pillow, which is not installed: {arrays}")
        return None
    transformers = need("transformers")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, backend="pil"
        )
    # What a damaged file raises depends on which processor it is for.
    except Exception as error:
        raise SourceError(
            f"cannot load the image processor of {folder}: {error}",
            hint="Copy or download its files again.",
        ) from error
    said = _preparation(processor)
    name = type(processor).__name__.removesuffix("Pil")
    if said is None or not _agrees(said, processor, specs[INPUT].shape):
        notes.append(f"{name} does more than is known here: {arrays}")
        return None
    return said


def _preparation(processor: Any) -> ImagePreparation | None:
    """What the processor's settings say in the way most of them mean it; None if nothing does."""
    resize = _size(processor, "size") if getattr(processor, "do_resize", False) else ()
    crop = _size(processor, "crop_size") if getattr(processor, "do_center_crop", False) else ()
    resample = RESAMPLES.get(int(getattr(processor, "resample", None) or 0))
    if resize is None or crop is None or len(crop) == 1 or resample is None:
        return None
    normalizes = getattr(processor, "do_normalize", False)
    return ImagePreparation(
        INPUT,
        resize,
        resample,
        crop,
        float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 1.0,
        tuple(map(float, processor.image_mean)) if normalizes else (),
        tuple(map(float, processor.image_std)) if normalizes else (),
    )


def _size(processor: Any, field: str) -> tuple[int, ...] | None:
    size = getattr(processor, field, None)
    sides = {name: getattr(size, name, None) for name in ("height", "width", "shortest_edge")}
    longest = getattr(size, "longest_edge", None)
    if sides["height"] and sides["width"]:
        return int(sides["height"]), int(sides["width"])
    return (int(sides["shortest_edge"]),) if sides["shortest_edge"] and not longest else None


def _agrees(said: ImagePreparation, processor: Any, shape: tuple[int | str, ...]) -> bool:
    """Whether both make the same of random images, and what the model takes."""
    rng = np.random.default_rng(0)
    level = abs(said.scale) / min(said.std or (1.0,))
    for height, width in TRIED:
        # Large patches: in noise a filter has nothing to keep.
        small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = small.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
        try:
            ours = prepared_images(image[None], said)
            theirs = np.asarray(processor(images=[image], return_tensors="np")[INPUT])
        except (DataError, ValueError, TypeError, KeyError):
            return False
        fits = all(
            isinstance(want, str) or have == want
            for have, want in zip(ours.shape[1:], shape[1:], strict=False)
        )
        if ours.shape != theirs.shape or len(shape) != ours.ndim or not fits:
            return False
        if np.abs(ours - theirs).mean() > LEVELS * level:
            return False
    return True
