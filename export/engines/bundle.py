"""A bundle with a graph to one with an engine: what ``tfx build`` does."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tfx.bundle import Bundle, create_bundle, open_bundle
from tfx.dtypes import DType
from tfx.errors import BundleError
from tfx.extras import version_of
from tfx.manifest import Manifest, Step
from tfx.quantization import RESTS, Quantization, QuantizeRecipe
from tfx.recipe import EngineBuild, EngineRecipe, Target
from tfx.runtime.engines import MODULES, load_library, remember_engine
from tfx.signature import ShapeRange

from .engine import refuse_lacking, resolve_profiles
from .worker import build_apart

ENGINE_FILE = "model.engine"

# What the default name of an engine bundle says of its library.
SUFFIXES = {Target.TENSORRT: "trt", Target.TENSORRT_RTX: "rtx"}


def build_bundle(
    bundle: Bundle,
    path: str | os.PathLike[str] | None = None,
    recipe: EngineRecipe | None = None,
    *,
    timing_cache: Path | None = None,
    force: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Bundle:
    """Build a TensorRT engine from a bundle's graph, as a bundle of its own.

    The engine runs on the GPUs and the library version that its manifest names, and nowhere
    else. It carries the parent's tokenizer and its feeds with PyTorch's outputs, so that
    ``tfx check`` can prove it where it runs.

    Args:
        bundle: With an ONNX graph; its files are verified first.
        path: Where the new bundle goes; None for a folder named after the bundle and the GPUs.
        recipe: Library, GPUs, profiles, flags; None for the defaults.
        timing_cache: File that keeps the times of kernels from one build to the next.
        force: Replace a bundle that is there.
        on_step: Called with a few words as each step begins.
        on_progress: Called with the share of the build that is done, 0 to 1.

    Raises:
        RecipeError: If the library or the signature cannot do what the recipe asks.
        ExportError: If the library does not take the graph.
        BackendError: If the library is missing, crashes, or finds no engine.
        BundleError: If the bundle is damaged or an engine itself, or ``path`` is taken.
    """
    recipe = recipe or EngineRecipe()
    if bundle.manifest.engine is not None:
        parent = bundle.manifest.parent
        raise BundleError(
            f"{bundle.path} holds an engine, not a graph",
            hint=f"Build from its parent{f' {parent.name}' if parent else ''}.",
        )
    refuse_lacking(recipe, timing_cache=timing_cache is not None)
    load_library(recipe.target)
    resolve_profiles(bundle.manifest.signature, recipe.profiles)
    target = Path(path or name_of(bundle, recipe))
    with create_bundle(target, force=force) as staging:
        on_step("checking the graph's sha256")
        bundle.verify()
        on_step(f"building the engine with {recipe.target}")
        build = build_apart(
            bundle,
            recipe,
            staging.path / ENGINE_FILE,
            timing_cache=timing_cache,
            on_progress=on_progress,
        )
        on_step("writing the bundle")
        _copy_files(bundle, staging.path)
        staging.finish(_manifest(bundle, build, staging.path))
    built = open_bundle(target, verify=False)
    remember_engine(built)
    return built


def name_of(bundle: Bundle, recipe: EngineRecipe) -> str:
    """The default folder of an engine bundle, e.g. "minilm-fp16-rtx-sm89"."""
    return "-".join((bundle.path.resolve().name, SUFFIXES[recipe.target], *recipe.gpus))


def _copy_files(bundle: Bundle, folder: Path) -> None:
    """Everything but the graphs and the weights beside them."""
    graphs = (bundle.manifest.model, *bundle.manifest.variants.values())
    for entry in bundle.manifest.files:
        if any(entry.path == graph or entry.path.startswith(f"{graph}.") for graph in graphs):
            continue
        file = folder / entry.path
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / entry.path, file)


def _manifest(bundle: Bundle, build: EngineBuild, folder: Path) -> Manifest:
    parent = bundle.manifest
    library = MODULES[build.recipe.target]
    return replace(
        parent,
        step=Step.BUILD,
        model=ENGINE_FILE,
        signature=replace(parent.signature, ranges=_hull(build)),
        source=parent.source.moved(bundle.path.parent, folder.parent),
        parity=None,
        tools={
            "tfx-toolkit": version_of("tfx-toolkit") or "",
            library: build.version,
        },
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        files=(),
        notes=(*parent.notes, *_notes(build, parent.precision, parent.quantization)),
        parent=bundle.as_parent(),
        variants={},
        engine=build,
    )


def _hull(build: EngineBuild) -> dict[str, ShapeRange]:
    """The sizes that some profile takes; tuned for the first one's."""
    return {
        axis: ShapeRange(
            min(profile[axis].min for profile in build.profiles),
            first.opt,
            max(profile[axis].max for profile in build.profiles),
        )
        for axis, first in build.profiles[0].items()
    }


def _notes(
    build: EngineBuild, precision: DType, made: Quantization | None = None
) -> tuple[str, ...]:
    notes = []
    if build.spelled_out:
        notes.append(
            f"{build.spelled_out} attentions are spelled out: TensorRT takes no soft cap, nor "
            "queries or keys that two share"
        )
    if build.fused_kernels:
        count, all_ = build.fused_kernels, build.attention
        notes.append(f"fused attention kernels in the engine: {count}, for {all_} attentions")
    elif build.attention and made and _rests_in_float32(made.recipe):
        notes.append(
            "attention is in float32, for which TensorRT has no fused kernel: quantize again with "
            "--rest fp16, or bf16"
        )
    elif build.attention and precision is DType.FLOAT32:
        notes.append(
            "attention is in float32, for which TensorRT has no fused kernel: quantize with --fp16 "
            "or --bf16, and build from that"
        )
    elif build.attention:
        notes.append("TensorRT has no fused kernel for attention of this type and head size")
    return (*notes, "not proved where it was built: run tfx check where it runs")


def _rests_in_float32(recipe: QuantizeRecipe) -> bool:
    """Whether products are lowered, and the floats around them could be and are not."""
    return recipe.precision not in RESTS and recipe.rest is DType.FLOAT32
