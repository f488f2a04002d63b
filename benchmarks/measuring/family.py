"""What belongs together in a benchmark: bundles of one PyTorch model, and what judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tfx.bundle import Bundle
from tfx.errors import BundleError, TfxError
from tfx.runtime.backend import BACKENDS, GPU_BACKENDS, RunOptions, find_backend, float_type
from tfx.runtime.compare import tolerance_of
from tfx.runtime.generation.decoder import is_generator
from tfx.runtime.generation.kv_cache import text_signature

from .generation import COMPILED
from .scenario import Scenario
from .workload import Way

REFERENCE = Way("torch")
# They run a bundle's source and not its graph.
OF_SOURCE = (REFERENCE.backend, COMPILED)
# It runs engines; the others run graphs.
ENGINES = "tensorrt"


def is_reference(way: Way) -> bool:
    """Whether a row's outputs are what the others' are compared with: PyTorch in float32."""
    return way.backend == REFERENCE.backend and way.precision in ("", "fp32")


def same_model(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles come from one PyTorch model and get the same feeds."""
    left, right = one.manifest, other.manifest
    # A cache in half the bits is still of one model.
    inputs = [text_signature(about.signature).inputs for about in (left, right)]
    # Each says where its source is from its own folder.
    source = right.source.moved(other.path.parent, one.path.parent)
    return left.source == source and inputs[0] == inputs[1]


def pairs_of(
    bundles: Sequence[Bundle], ways: Sequence[Way], damaged: Mapping[Path, str]
) -> list[tuple[Bundle, Way]]:
    """What the rows of a shape are: PyTorch runs a source, so once for all bundles made from it.

    TensorRT runs engines and the others graphs: a way that is not for a bundle is left out, unless
    no other is asked for.

    Args:
        bundles: Those to measure.
        ways: How to run each.
        damaged: Why a bundle must not be run, by its path; "" if it may.
    """
    pairs: list[tuple[Bundle, Way]] = []
    for bundle in bundles:
        fitting = [way for way in ways if _suits(bundle, way)]
        for way in fitting or ways:
            again = way.backend in OF_SOURCE and any(
                other == way and not damaged[one.path] and same_model(one, bundle)
                for one, other in pairs
            )
            if not again:
                pairs.append((bundle, way))
    return pairs


def usual_backends(bundles: Sequence[Bundle], *, writes: bool = False) -> list[str]:
    """What runs unless backends are named: all, but those that need a GPU only where they can.

    Args:
        bundles: Those to measure.
        writes: Whether they generate text: PyTorch does that in one way, transformers' own.
    """
    ways = {name: Way(name) for name in BACKENDS if not writes or name != COMPILED}
    return [
        name
        for name, way in ways.items()
        if name not in GPU_BACKENDS
        or (not find_backend(name).missing() and any(_suits(bundle, way) for bundle in bundles))
        or (name == ENGINES and any(bundle.manifest.engine for bundle in bundles))
    ]


def usual_scenario(bundles: Sequence[Bundle]) -> Scenario:
    """What is measured unless a scenario is named: what bundles with a cache write."""
    writes = all(is_generator(bundle.manifest.signature) for bundle in bundles)
    return Scenario.GENERATION if bundles and writes else Scenario.SINGLE_STREAM


def _suits(bundle: Bundle, way: Way) -> bool:
    """Whether what a way runs is in the bundle: an engine, a graph, or what it was made from."""
    if way.backend in OF_SOURCE:
        return True
    return (way.backend == ENGINES) == (bundle.manifest.engine is not None)


def allowed_error(bundle: Bundle, way: Way) -> float:
    """Largest scaled error of the bundle's precision, or of the one it runs in if that is lower.

    Raises:
        BundleError: If there is no tolerance for it.
    """
    try:
        runs_in = float_type(bundle, RunOptions(precision=way.precision))
        return tolerance_of(bundle.manifest.precision, runs_in)
    except BundleError as error:
        raise BundleError(f"{bundle.name}: {error}", hint=error.hint) from error


def said(error: TfxError) -> str:
    """An error and its hint, as the reason of a row."""
    return error.with_hint


def model_bytes(bundle: Bundle) -> int:
    """Size on disk of what a backend reads: graph and weights, or the engine."""
    name = bundle.manifest.model
    files = [entry for entry in bundle.manifest.files if entry.path.startswith(name)]
    return sum(entry.size_bytes for entry in files)
