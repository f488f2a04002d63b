"""Quantizing with the files a user names: what calibrates, and what accuracy is measured on."""

from __future__ import annotations

from pathlib import Path

from tfx.bundle import Bundle, is_bundle, open_bundle
from tfx.console import Progress
from tfx.errors import DataError, RecipeError
from tfx.quantization import QuantizeRecipe
from tfx.runtime.datasets import Dataset, DatasetKind, read_dataset

from .calibration import CalibrationData, calibration_feeds, calibration_texts
from .integers import Prepared, prepare_again
from .pipeline import load_graph, proof_data, quantize_bundle
from .statistics import FILE_NAME, load_statistics

RANDOM = "random"

# Rows of arrays that are run at once.
ROWS = 8


def quantize_with_files(
    parent: Bundle,
    output: Path | None,
    recipe: QuantizeRecipe,
    *,
    calibration: str | None,
    evaluation: Path | None,
    force: bool,
    steps: Progress,
) -> Bundle:
    """Read the data, quantize, and measure; as ``tfx quantize`` does.

    Args:
        parent: A float32 bundle.
        output: Where the new one goes; None for the default.
        recipe: What to do.
        calibration: A file; a bundle quantized before, whose ranges are taken; "random"; or
            None.
        evaluation: A file; None for what calibration left over.
        force: Replace a bundle that is there.
        steps: Shows progress.

    Raises:
        DataError: If a file cannot be used.
        TfxError: As ``quantize_bundle``.
    """
    data, prepared, _ = _calibration(parent, recipe, calibration)

    def on_pass(what: str, done: int, total: int) -> None:
        if done == 1:
            steps.step(f"calibrating: {what}", total)
        steps.advance()

    return quantize_bundle(
        parent,
        output,
        recipe=recipe,
        data=data,
        prepared=prepared,
        force=force,
        on_step=steps.step,
        on_pass=on_pass,
    )


def _calibration(
    parent: Bundle, recipe: QuantizeRecipe, source: str | None
) -> tuple[CalibrationData | None, Prepared | None, Dataset | None]:
    """Calibration data or ranges, and samples that neither used."""
    if source is None:
        return None, None, None
    if source == RANDOM:
        return _random_data(parent), None, None
    path = Path(source)
    if is_bundle(path):
        return None, _prepared_from(parent, open_bundle(path)), None
    if not path.is_file():
        raise DataError(
            f"no such calibration file: {source}",
            hint="Name a file of real inputs, a bundle quantized before, or the word random.",
        )
    dataset = read_dataset(path)
    used, rest = dataset, None
    if len(dataset) > recipe.samples:
        used, rest = dataset.split(recipe.samples, seed=recipe.seed)
    return _data_of(parent, used, recipe), None, rest


def _data_of(parent: Bundle, dataset: Dataset, recipe: QuantizeRecipe) -> CalibrationData:
    if dataset.kind is DatasetKind.FEEDS:
        names = [spec.name for spec in parent.manifest.signature.inputs]
        arrays = {name: array for name, array in dataset.arrays.items() if name in names}
        feeds = [
            {name: array[start : start + ROWS] for name, array in arrays.items()}
            for start in range(0, len(dataset), ROWS)
        ]
        return calibration_feeds(parent, feeds, name=dataset.name)
    if dataset.kind is DatasetKind.IMAGES:
        raise DataError(
            f"{dataset.name} holds images, which the bundle does not turn into inputs",
            hint="Save the inputs of the model by name in an npz file.",
        )
    return calibration_texts(parent, dataset.texts, name=dataset.name, tokens=recipe.tokens)


def _random_data(parent: Bundle) -> CalibrationData:
    return proof_data(parent, name=RANDOM).warned(
        "random calibration data: the ranges fit no real input, for latency work only"
    )


def _prepared_from(parent: Bundle, child: Bundle) -> Prepared:
    known = child.manifest.parent
    if known is None or known.digest != parent.digest:
        raise RecipeError(
            f"{child.path} was not made from {parent.path}",
            hint="Calibrate with a file, or with a bundle quantized from the same parent.",
        )
    return prepare_again(load_graph(parent), load_statistics(child.path / FILE_NAME))
