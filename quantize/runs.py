"""Quantizing with the files a user names: what calibrates, and what accuracy is measured on."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tfx.bundle import Bundle, is_bundle, open_bundle
from tfx.console import Progress
from tfx.errors import BackendError, DataError, RecipeError
from tfx.quantization import QuantizeRecipe
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.accuracy.fitting import WITH_REFERENCE
from tfx.runtime.accuracy.heads import Head, head_of
from tfx.runtime.accuracy.metrics import check_drop
from tfx.runtime.accuracy.samples import IMAGES, Dataset, DatasetKind
from tfx.runtime.text.tokenizer import Text

from .accuracy import Judge
from .calibration import (
    CalibrationData,
    calibration_feeds,
    calibration_images,
    calibration_texts,
    rows_at_once,
)
from .integers import Prepared, prepare_again
from .lowering import Lowering, load_graph, proof_data
from .pipeline import default_path, quantize_bundle, require_parent
from .plot import FILE_NAME as PLOT_FILE
from .plot import plot_search
from .search import FILE_NAME as SEARCH_FILE
from .search import Trial, find_kept
from .sensitivity import SAMPLES, MetricRuler
from .statistics import FILE_NAME, load_statistics

# As typed after --calibrate, and after --metric.
RANDOM, AUTO = "random", "auto"

# Samples that calibration left over, on which the bundle is compared with its parent.
LEFT_OVER = 256


@dataclass(frozen=True, slots=True)
class _Basis:
    """What ranges are set by.

    Attributes:
        data: Feeds to calibrate with; None where there are none, or ranges already.
        prepared: The graph, calibrated before.
        used: The samples that ``data`` is made of.
        rest: Those of the same file that it left over.
    """

    data: CalibrationData | None = None
    prepared: Prepared | None = None
    used: Dataset | None = None
    rest: Dataset | None = None


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
    require_parent(parent)
    if recipe.metric != AUTO:
        _check_budget(recipe, recipe.metric)
    basis = _basis(parent, recipe, calibration)
    judges = _judges(parent, recipe, basis, evaluation, steps)
    if recipe.metric == AUTO and judges:
        _check_budget(recipe, judges[0].metric)
    target = output or default_path(parent, recipe)
    state = target.with_name(f"{target.name}.{SEARCH_FILE}")
    lost = search = None
    if recipe.max_drop is not None:
        ranking = _ranking(judges[0], parent, basis.used, recipe)
        lost = MetricRuler(ranking).lost if ranking is not None else None
        search = _search(judges[0], ranking, recipe.max_drop, state, steps)
    made = quantize_bundle(
        parent,
        target,
        recipe=recipe,
        data=basis.data,
        prepared=basis.prepared,
        lost=lost,
        search=search,
        accuracy=lambda bundle: tuple(judge.measure(bundle) for judge in judges),
        force=force,
        on_step=steps.step,
        on_pass=functools.partial(_show_pass, steps),
    )
    state.unlink(missing_ok=True)  # only now: a search that was stopped goes on from it
    return made


def _check_budget(recipe: QuantizeRecipe, metric: str) -> None:
    if recipe.max_drop is not None:
        check_drop(metric, recipe.max_drop)


def _show_pass(steps: Progress, what: str, done: int, total: int) -> None:
    if done == 1:
        steps.step(f"calibrating: {what}", total)
    steps.advance()


def _search(
    judge: Judge, ranking: Judge | None, budget: float, state: Path, steps: Progress
) -> Callable[[Lowering, Path], Collection[str]]:
    """What finds the groups to keep, and leaves its report and a picture in the new bundle."""

    def search(lowering: Lowering, folder: Path) -> Collection[str]:
        keep, report = find_kept(
            lowering,
            judge,
            budget,
            state,
            ranking=ranking,
            on_step=steps.step,
            on_trial=lambda trial, groups: steps.say(_trial_line(trial, groups)),
        )
        shutil.copyfile(state, folder / SEARCH_FILE)
        parent = lowering.parent
        graph = [parent.model, *parent.path.glob(f"{parent.manifest.model}.data")]
        try:
            size = sum(path.stat().st_size for path in graph)
            plot_search(report, size, folder / PLOT_FILE)
        except BackendError as error:
            steps.say(f"no picture of the search: {error.with_hint}")
        return keep

    return search


def _judges(
    parent: Bundle,
    recipe: QuantizeRecipe,
    basis: _Basis,
    evaluation: Path | None,
    steps: Progress,
) -> list[Judge]:
    """What to measure on: the evaluation data, else what calibration left over."""
    if recipe.max_drop is not None and evaluation is None:
        raise RecipeError(
            "a budget needs data to measure on",
            hint="Give labelled data that calibration does not use: --eval FILE.",
        )
    if evaluation is None:
        if basis.rest is None or parent.manifest.source.random_weights:
            return []
        steps.step("running the parent on data that calibration left over")
        left = basis.rest.sample(LEFT_OVER, seed=recipe.seed)
        return [Judge.without_labels(parent, left, seed=recipe.seed)]
    dataset = read_dataset(evaluation)
    head = head_of(parent, dataset)
    if parent.manifest.encoder is not None and head in (Head.SPEECH, Head.TRANSLATION):
        raise RecipeError(
            f"cannot measure {dataset.kind} while {parent.name} is lowered: it writes with an "
            "encoder, and only a whole bundle has one beside it",
            hint="Leave --eval out, and compare the bundles by tfx evaluate afterwards.",
        )
    if basis.rest is not None and basis.rest.name == dataset.name:
        # The same file for both: the samples that calibration took are left out.
        common = dataset.common(basis.rest)
        if common and common < len(dataset):
            dataset = basis.rest
    steps.step("running the parent on the evaluation data")
    judge = Judge(parent, dataset, recipe.metric, seed=recipe.seed)
    if head not in WITH_REFERENCE:
        return [judge]
    # Beside a metric on labels, how far the outputs moved: it needs fewer samples to show.
    other = Judge.without_labels(parent, dataset, seed=recipe.seed)
    return [judge, other] if other.metric != judge.metric else [judge]


def _ranking(
    judge: Judge, parent: Bundle, used: Dataset | None, recipe: QuantizeRecipe
) -> Judge | None:
    """A judge by the same metric on what calibrated, if no labels decide; else None.

    A metric of labels changes with few samples only: how far the outputs move says more.
    """
    if used is None or not judge.compares:
        return None
    sample = used.sample(SAMPLES, seed=recipe.seed)
    return Judge(parent, sample, judge.metric, seed=recipe.seed)


def _trial_line(trial: Trial, groups: int) -> str:
    one = trial.accuracy
    return (
        f"  {trial.kept} of {groups} groups kept: {one}, "
        f"{trial.size_bytes / 1e6:.1f} MB, {trial.speedup:.2f} times as fast"
    )


def _basis(parent: Bundle, recipe: QuantizeRecipe, source: str | None) -> _Basis:
    if source is None:
        return _Basis()
    if source == RANDOM:
        return _Basis(data=_random_data(parent))
    path = Path(source)
    if is_bundle(path):
        return _Basis(prepared=_prepared_from(parent, open_bundle(path)))
    if not path.exists():
        raise DataError(
            f"no such calibration file: {source}",
            hint="Name a file of real inputs, a bundle quantized before, or the word random.",
        )
    dataset = read_dataset(path)
    used, rest = dataset, None
    if len(dataset) > recipe.samples:
        used, rest = dataset.split(recipe.samples, seed=recipe.seed)
    return _Basis(data=_data_of(parent, used, recipe), used=used, rest=rest)


def _data_of(parent: Bundle, dataset: Dataset, recipe: QuantizeRecipe) -> CalibrationData:
    if dataset.kind is DatasetKind.IMAGES:
        return calibration_images(parent, dataset.arrays[IMAGES], name=dataset.name)
    if dataset.kind is DatasetKind.FEEDS:
        names = [spec.name for spec in parent.manifest.signature.inputs]
        arrays = {name: array for name, array in dataset.arrays.items() if name in names}
        rows = rows_at_once(parent)
        feeds = [
            {name: array[start : start + rows] for name, array in arrays.items()}
            for start in range(0, len(dataset), rows)
        ]
        return calibration_feeds(parent, feeds, name=dataset.name)
    texts: list[Text] = list(dataset.texts)
    if head_of(parent, dataset) is Head.EMBEDDING:
        # Two texts to compare, which an embedding model never reads together.
        texts = [one for text in texts for one in ([text] if isinstance(text, str) else text)]
    return calibration_texts(parent, texts, name=dataset.name, tokens=recipe.tokens)


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
    return prepare_again(load_graph(parent), load_statistics(child.path / FILE_NAME), child)
