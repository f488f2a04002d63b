"""Two sets of outputs to error statistics, judged by one table of tolerances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tfx.dtypes import DType
from tfx.errors import BundleError
from tfx.report import OutputError


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far outputs of a precision may be from float32 PyTorch.

    Attributes:
        scaled_error: Largest ``scaled_error`` allowed.
        reason: Why this much and no more.
    """

    scaled_error: float
    reason: str


# The one table of tolerances.
TOLERANCES: dict[DType, Tolerance] = {
    DType.FLOAT32: Tolerance(
        1e-4,
        "two orders of summation of the same float32 products differ by about sqrt(K) * 2**-24 per "
        "matrix product, 2e-6 for K = 1024; up to 48 layers of residual additions let it grow to "
        "1e-5..5e-5, while a wrong mask, scale or epsilon shows at 1e-3 and above",
    ),
    DType.FLOAT16: Tolerance(
        2.5e-2,
        "an operand has 11 bits, three more than bfloat16's: an eighth of its tolerance; 5e-3 on "
        "MiniLM and 2e-2 on a tiny cross-encoder of random weights were seen in PyTorch",
    ),
    DType.BFLOAT16: Tolerance(
        2e-1,
        "an operand has 8 bits: PyTorch and OpenVINO give 2e-2 to 3e-2 on MiniLM, and up to 1.7e-1 "
        "on tiny models of random weights, whose attention makes small errors large; this "
        "tells what is wrong, at the size of the output itself, from what is rounded, and not "
        "whether a task bears it",
    ),
    DType.INT8: Tolerance(
        1.0,
        "a step is 1/127 of the range that real text set, and random tokens leave it: 0.15 to 0.2 "
        "of the largest output on real feeds, 0.6 to 0.8 on random ones were seen of MiniLM. What "
        "has nothing to do with the reference differs by 1 to 2, and NaN by more. What int8 costs "
        "is measured on data, and stands in the manifest as accuracy",
    ),
    DType.FLOAT8_E4M3: Tolerance(
        1.0, "3 bits of mantissa: the relative step of an 8-bit float is 1/16; see int8"
    ),
    DType.INT4: Tolerance(
        1.0, "weights alone are rounded, to 15 levels a block; see int8 for what is left to catch"
    ),
}


def tolerance_of(*precisions: DType) -> float:
    """Largest scaled error of outputs that went through all of these precisions: the loosest.

    Raises:
        BundleError: If there is no tolerance for one of them.
    """
    if unknown := [precision for precision in precisions if precision not in TOLERANCES]:
        raise BundleError(
            f"there is no tolerance to judge by: got precision {unknown[0]}, expected "
            f"{' or '.join(TOLERANCES)}",
            hint="Choose a bundle, or a precision to run it in, of another type.",
        )
    return max(TOLERANCES[precision].scaled_error for precision in precisions)


# Below this an output is judged as if it were this large: values of order 1 inside the model
# leave rounding of 1e-7 to 1e-6 on everything, however small, which says nothing of a fault.
SMALLEST_MAGNITUDE = 1e-2


def scaled_error(reference: np.ndarray, actual: np.ndarray) -> float:
    """Largest absolute difference, over the reference's largest magnitude.

    ``max|a - r| / max(SMALLEST_MAGNITUDE, max|r|)``: an output is judged by its own size, a
    probability over a vocabulary (1e-5) like a logit of 50. Infinities that agree count as
    equal; a NaN or infinity on one side alone gives infinity.
    """
    difference, magnitude = _difference(reference, actual)
    return difference / max(SMALLEST_MAGNITUDE, magnitude)


def compare_outputs(
    reference: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]
) -> tuple[OutputError, ...]:
    """Compare outputs of one feed, name by name, in the reference's order.

    A missing output, another shape, or a NaN or infinity on one side alone gives infinite
    errors and cosine -1: the comparison never passes by accident.
    """
    return tuple(_output_error(name, reference[name], actual.get(name)) for name in reference)


def merge_errors(errors: Iterable[tuple[OutputError, ...]]) -> tuple[OutputError, ...]:
    """The worst of several feeds, per output."""
    worst: dict[str, OutputError] = {}
    for feed_errors in errors:
        for error in feed_errors:
            seen = worst.get(error.name, error)
            worst[error.name] = OutputError(
                error.name,
                max(seen.max_abs, error.max_abs),
                max(seen.max_rel, error.max_rel),
                min(seen.min_cosine, error.min_cosine),
            )
    return tuple(worst.values())


def _output_error(name: str, reference: np.ndarray, actual: np.ndarray | None) -> OutputError:
    if actual is None or actual.shape != reference.shape:
        return OutputError(name, np.inf, np.inf, -1.0)
    difference, magnitude = _difference(reference, actual)
    if not np.isfinite(difference):
        return OutputError(name, np.inf, np.inf, -1.0)
    relative = difference / magnitude if magnitude else (np.inf if difference else 0.0)
    return OutputError(name, difference, float(relative), _min_cosine(reference, actual))


def _difference(reference: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, and largest finite magnitude of the reference."""
    if reference.shape != actual.shape:
        return np.inf, 0.0
    if reference.size == 0:
        return 0.0, 0.0
    left, right = reference.astype(np.float64), actual.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    finite = np.isfinite(left)
    magnitude = float(np.abs(left[finite]).max()) if finite.any() else 0.0
    with np.errstate(invalid="ignore"):  # inf - inf, where they agree
        difference = np.where(same, 0.0, np.abs(left - right))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max()), magnitude


def _min_cosine(reference: np.ndarray, actual: np.ndarray) -> float:
    """Smallest cosine of two vectors along the last axis; two zero vectors count as equal."""
    if reference.ndim == 0 or reference.size == 0:
        return 1.0 if np.array_equal(reference, actual) else -1.0
    left = np.nan_to_num(reference.astype(np.float64)).reshape(-1, reference.shape[-1])
    right = np.nan_to_num(actual.astype(np.float64)).reshape(left.shape)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    cosines = np.einsum("ij,ij->i", left, right) / np.where(norms > 0, norms, 1.0)
    return float(np.clip(np.where(both_zero, 1.0, cosines), -1.0, 1.0).min())
