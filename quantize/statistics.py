"""What calibration found, as a file of the bundle: another form needs no data again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from tfx.errors import BundleError
from tfx.quantization import RangeMethod

from .observers import BINS, Extremes, Histogram, choose_amax

FILE_NAME = "calibration.npz"


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """What is known of one activation, after smoothing if it was smoothed.

    Attributes:
        low: Smallest value.
        high: Largest value.
        average: Moving average of the batches' largest magnitudes.
        counts: Histogram of magnitudes over ``[0, max(|low|, |high|)]``, ``int64[BINS]``.
        smoothing: What the activation was divided by, ``float32[channels]``; empty for nothing.
        outliers: Channels that are multiplied apart, ``int64[few]``; not in the above.
    """

    low: float
    high: float
    average: float
    counts: np.ndarray
    smoothing: np.ndarray
    outliers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of(
        cls,
        extremes: Extremes,
        histogram: Histogram,
        smoothing: np.ndarray | None,
        outliers: np.ndarray | None = None,
    ) -> Self:
        """Put together what the looks gave."""
        scale = np.empty(0, np.float32) if smoothing is None else smoothing
        few = np.empty(0, np.int64) if outliers is None else outliers
        return cls(extremes.low, extremes.high, extremes.average, histogram.counts, scale, few)

    def amax(self, method: RangeMethod, percentile: float) -> float:
        """The magnitude that becomes the largest number, by a method."""
        extremes = Extremes(low=self.low, high=self.high, average=self.average, seen=1)
        return choose_amax(extremes, Histogram(extremes.amax, self.counts), method, percentile)


def store_statistics(path: Path, found: Mapping[str, ActivationStatistics]) -> None:
    """Write statistics by activation to an npz file."""
    arrays: dict[str, np.ndarray] = {}
    for name, one in found.items():
        arrays[f"{name}/range"] = np.array([one.low, one.high, one.average])
        arrays[f"{name}/counts"] = one.counts
        arrays[f"{name}/smoothing"] = one.smoothing
        arrays[f"{name}/outliers"] = one.outliers
    np.savez_compressed(path, allow_pickle=False, **arrays)


def load_statistics(path: Path) -> dict[str, ActivationStatistics]:
    """Read what ``store_statistics`` wrote.

    Raises:
        BundleError: If the file is missing or damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        found = {}
        for key in (name for name in arrays if name.endswith("/range")):
            name = key.removesuffix("/range")
            low, high, average = (float(number) for number in arrays[key])
            counts = arrays[f"{name}/counts"]
            if counts.shape != (BINS,):
                raise ValueError(f"histogram of {name} has shape {list(counts.shape)}")
            found[name] = ActivationStatistics(
                low,
                high,
                average,
                counts,
                arrays[f"{name}/smoothing"],
                # Bundles of before there were any have none.
                arrays.get(f"{name}/outliers", np.empty(0, np.int64)),
            )
    except FileNotFoundError as error:
        raise BundleError(
            f"{path.parent} carries no calibration: it has no {path.name}",
            hint="Calibrate with a file of real inputs.",
        ) from error
    # zipfile, zlib and numpy raise many kinds on a damaged file.
    except Exception as error:
        raise BundleError(f"{path} is damaged: {error}", hint="Quantize it again.") from error
    return found
