"""What belongs together in a benchmark: bundles of one PyTorch model, and what judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tfx.bundle import Bundle
from tfx.errors import BundleError, TfxError
from tfx.runtime.backend import RunOptions, float_type
from tfx.runtime.compare import tolerance_of

from .workload import Way

REFERENCE = Way("torch")
# They run a bundle's source and not its graph.
OF_SOURCE = (REFERENCE.backend, "torch-compiled")


def is_reference(way: Way) -> bool:
    """Whether a row's outputs are what the others' are compared with: PyTorch in float32."""
    return way.backend == REFERENCE.backend and way.precision in ("", "fp32")


def same_model(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles come from one PyTorch model and get the same feeds."""
    left, right = one.manifest, other.manifest
    return left.source == right.source and left.signature.inputs == right.signature.inputs


def pairs_of(
    bundles: Sequence[Bundle], ways: Sequence[Way], damaged: Mapping[Path, str]
) -> list[tuple[Bundle, Way]]:
    """What the rows of a shape are: PyTorch runs a source, so once for all bundles made from it.

    Args:
        bundles: Those to measure.
        ways: How to run each.
        damaged: Why a bundle must not be run, by its path; "" if it may.
    """
    pairs: list[tuple[Bundle, Way]] = []
    for bundle in bundles:
        for way in ways:
            again = way.backend in OF_SOURCE and any(
                other == way and not damaged[one.path] and same_model(one, bundle)
                for one, other in pairs
            )
            if not again:
                pairs.append((bundle, way))
    return pairs


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
    return f"{error} ({error.hint})" if error.hint else str(error)


def model_bytes(bundle: Bundle) -> int:
    """Size on disk of what a backend reads: graph and weights, or the engine."""
    name = bundle.manifest.model
    files = [entry for entry in bundle.manifest.files if entry.path.startswith(name)]
    return sum(entry.size_bytes for entry in files)
