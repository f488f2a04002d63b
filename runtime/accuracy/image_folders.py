"""Folders of images, labelled by a folder for each class or by a file that names them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfx.errors import DataError, listing
from tfx.extras import need

from .samples import IMAGES, LABEL_COLUMNS, Dataset, DatasetKind, Label, typed_labels
from .tables import read_rows

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
# What names each image and its label, and the columns that hold the image's path in the folder.
LABEL_FILES = ("labels.csv", "labels.tsv", "labels.jsonl")
FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")

# Modes of more than 8 bits: converting them to colours cuts off what is brighter.
DEEP = ("I", "F")
SHOWN = 3


def read_image_folder(folder: Path, *, limit: int | None = None, seed: int = 0) -> Dataset:
    """Read a folder of images; all of them are held in memory, as pixels.

    Each class is a folder of its own, or ``LABEL_FILES`` names every image and its label, or there
    are no labels. Hidden files are left alone.

    Args:
        folder: The folder.
        limit: Most samples; drawn with ``seed`` where the folder has more. None for all. Only those
            are opened.
        seed: Of that draw.

    Returns:
        Images in the order of their paths. One array ``images``: ``uint8[samples, height, width,
        3]``, or where they differ in size an object array ``[samples]`` of such without the first
        axis.

    Raises:
        BackendError: If Pillow is not installed.
        DataError: If something in the folder is not what it should be; names it.
    """
    paths, labels = _found(folder)
    if not paths:
        raise DataError(
            f"{folder} holds no image: expected files that end in {', '.join(SUFFIXES)}",
            hint="Give a folder for each class, or images and a file labels.csv.",
        )
    named = np.array([path.relative_to(folder).as_posix() for path in paths])
    columns = (IMAGES,) if labels is None else (IMAGES, "label")
    # Of the names alone, so that what is not drawn is never opened.
    drawn = Dataset(folder.name, DatasetKind.FEEDS, {"file": named}, labels, columns)
    if limit is not None:
        drawn = drawn.sample(limit, seed=seed)
    need("PIL")
    images = [read_image(folder / name) for name in drawn.arrays["file"].tolist()]
    array = _stacked(images)
    return Dataset(folder.name, DatasetKind.IMAGES, {IMAGES: array}, drawn.labels, columns)


def read_image(path: Path) -> np.ndarray:
    """The first picture of a file, upright: ``uint8[height, width, 3]``.

    Raises:
        DataError: If it is damaged, of more than 8 bits a colour, or too large to be meant.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if file.mode.startswith(DEEP):
                raise DataError(
                    f"{path} has pixels of mode {file.mode}, expected 8 bits a colour",
                    hint="Convert it to 8 bits.",
                )
            return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"cannot read the image {path}: {error}",
            hint="Check that the file is whole, or take it out of the folder.",
        ) from error


def _found(folder: Path) -> tuple[list[Path], tuple[Label, ...] | None]:
    """Paths of the images in order, and their labels."""
    files, folders = _children(folder)
    named = [path for path in files if path.name in LABEL_FILES]
    if len(named) > 1:
        names = ", ".join(path.name for path in named)
        raise DataError(f"{folder} has more than one file of labels: {names}", hint="Keep one.")
    if named:
        return _listed(folder, named[0])
    strange = [path for path in files if path.suffix.lower() not in SUFFIXES]
    if folders and len(strange) < len(files):
        raise DataError(
            f"{folder} holds both images and folders, so what an image's class is cannot be told",
            hint="Put each image into the folder of its class, or add a file labels.csv.",
        )
    paths = [] if folders else files
    for one in folders:
        inside, below = _children(one)
        strange += [*below, *(path for path in inside if path.suffix.lower() not in SUFFIXES)]
        paths += inside
    if strange:
        shown = [str(path.relative_to(folder)) for path in strange[:SHOWN]]
        more = [f"and {len(strange) - SHOWN} more"] if len(strange) > SHOWN else []
        raise DataError(
            listing(f"{folder} holds what is no image, by its name:", [*shown, *more]),
            hint="Take it out of the folder.",
        )
    return paths, typed_labels([path.parent.name for path in paths]) if folders else None


def _children(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder, in order of their names; hidden ones left out."""
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from error
    return [path for path in found if not path.is_dir()], [path for path in found if path.is_dir()]


def _listed(folder: Path, table: Path) -> tuple[list[Path], tuple[Label, ...]]:
    """Images that a file names, in its order, and their labels."""
    rows = read_rows(table)
    column = _column(rows[0][1], FILE_COLUMNS, table)
    label = _column(rows[0][1], LABEL_COLUMNS, table)
    root = folder.resolve()
    problems: list[str] = []
    paths: list[Path] = []
    for number, fields in rows:
        name, value = fields.get(column), fields.get(label)
        path = folder / str(name)
        if not isinstance(name, str) or not path.resolve().is_relative_to(root):
            problems.append(f"line {number}: {json.dumps(name)} is no path inside the folder")
        elif not path.is_file():
            problems.append(f"line {number}: there is no file {name}")
        if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
            problems.append(f"line {number}: {label} is {json.dumps(value)}, expected a name")
        paths.append(path)
    if twice := len(paths) - len(set(paths)):
        problems.append(f"{twice} images are named more than once")
    inside = {path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    if extra := sorted(inside - set(paths)):
        problems.append(f"{len(extra)} images have no line, e.g. {extra[0].relative_to(folder)}")
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError(
            listing(f"{table} and its folder do not fit:", [*problems[:SHOWN], *more]),
            hint="Give every image one line with its path and its label.",
        )
    return paths, typed_labels([fields[label] for _, fields in rows])


def _column(fields: Mapping[str, Any], wanted: Sequence[str], table: Path) -> str:
    known = {name.lower(): name for name in fields}
    for name in wanted:
        if name in known:
            return known[name]
    raise DataError(
        f"{table} lacks a column: got {', '.join(map(repr, fields))[:200]}, expected one of "
        f"{', '.join(wanted)}",
        hint="Name the columns file and label.",
    )


def _stacked(images: Sequence[np.ndarray]) -> np.ndarray:
    if len({image.shape for image in images}) == 1:
        return np.stack(images)
    found = np.empty(len(images), object)
    for index, image in enumerate(images):
        found[index] = image
    return found
