"""What each group costs when it alone is lowered, and in which order groups are best kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import DataError
from tfx.runtime.accuracy.observations import NotFiniteError
from tfx.runtime.backend import RunOptions, get_backend
from tfx.signature import Feed

from .accuracy import Judge
from .lowering import Lowering

# Feeds of the calibration data whose outputs are compared.
FEEDS = 8

# Samples of it that a metric is measured on. Of MiniLM's least cosine 64 give nearly the same
# order; but what is worst is rare: texts of one to three words.
SAMPLES = 256

# What a group costs whose outputs are no numbers: more than any other.
NO_NUMBERS = 1e9


class Ruler(Protocol):
    """Measures how far a bundle is from its parent, sample by sample."""

    @property
    def name(self) -> str:
        """What it measures."""
        ...

    def rows(self, bundle: Bundle) -> np.ndarray | None:
        """What each sample adds, ``float64[samples, numbers]``; None if it gives no numbers."""
        ...

    def origin(self) -> np.ndarray:
        """The parent's own rows."""
        ...

    def loss(self, rows: np.ndarray) -> float:
        """How much worse than the parent rows are: 0 for its own, and more the further away."""
        ...


class OutputRuler:
    """The distance of the outputs from the parent's, as a share of their root mean square."""

    name = "outputs"

    def __init__(self, lowering: Lowering, options: RunOptions) -> None:
        """Run the parent.

        Raises:
            DataError: If there is no calibration data.
        """
        self._feeds = some_feeds(lowering)
        self._options = options
        self._expected = self._outputs(lowering.parent)
        self._power = sum(float((b * b).sum()) for outputs in self._expected for b in outputs)

    def rows(self, bundle: Bundle) -> np.ndarray | None:
        """Squared distance of each feed's outputs, as a share of what all of them have."""
        moved = [
            [sum(float(((a - b) ** 2).sum()) for a, b in zip(found, expected, strict=True))]
            for found, expected in zip(self._outputs(bundle), self._expected, strict=True)
        ]
        rows = np.array(moved) / self._power if self._power else np.full((len(moved), 1), np.nan)
        return rows if np.isfinite(rows).all() else None

    def origin(self) -> np.ndarray:
        """Zeros."""
        return np.zeros((len(self._feeds), 1))

    def loss(self, rows: np.ndarray) -> float:
        """The distance of all feeds together."""
        return float(np.sqrt(max(rows.sum(), 0.0)))

    def _outputs(self, bundle: Bundle) -> list[list[np.ndarray]]:
        """Of each feed, every output that is of floats."""
        executable = get_backend("onnxruntime").load(bundle, self._options)
        try:
            found = [executable.run(feed) for feed in self._feeds]
        finally:
            executable.close()
        names = [spec.name for spec in bundle.manifest.signature.outputs if spec.dtype.is_floating]
        return [
            [_meaningful(outputs[name], feed).astype(np.float64) for name in names]
            for outputs, feed in zip(found, self._feeds, strict=True)
        ]


class MetricRuler:
    """A metric that compares with the parent, on calibration data."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.name = judge.metric

    def rows(self, bundle: Bundle) -> np.ndarray | None:
        """As the metric has them."""
        try:
            return self._judge.rows(bundle)
        except NotFiniteError:
            return None

    def origin(self) -> np.ndarray:
        """What the parent adds, compared with itself."""
        return self._judge.parent_rows

    def loss(self, rows: np.ndarray) -> float:
        """The drop of the metric."""
        return self._judge.drop_of(rows)

    def lost(self, bundle: Bundle) -> float:
        """The same of a bundle; ``NO_NUMBERS`` if it gives none."""
        rows = self.rows(bundle)
        return NO_NUMBERS if rows is None else self.loss(rows)


def order_of(ruler: Ruler, changes: Mapping[str, np.ndarray | None]) -> list[str]:
    """Groups in the order in which they are best kept, if what they cost adds up.

    The first is the one without which least is lost by all others together, and so on: of a
    metric that the worst sample decides it is not the group that is worst alone, but the one that
    the worst sample of all together suffers from. What gives no numbers comes first.

    Args:
        ruler: What measured.
        changes: Of each group, the rows of the bundle in which it alone is lowered, less the
            parent's; ``float64[samples, numbers]``, or None for no numbers.
    """
    order = [group for group, change in changes.items() if change is None]
    rest = {group: change for group, change in changes.items() if change is not None}
    origin = ruler.origin()
    left = origin + sum(rest.values())
    alone = {group: ruler.loss(origin + change) for group, change in rest.items()}
    while rest:
        without = {group: ruler.loss(left - change) for group, change in rest.items()}
        chosen = min(rest, key=lambda group: (without[group], -alone[group]))
        left = left - rest.pop(chosen)
        order.append(chosen)
    return order


def some_feeds(lowering: Lowering) -> Sequence[Feed]:
    """A few feeds of the calibration data, from the first to the last.

    Raises:
        DataError: If there is none.
    """
    if lowering.data is None:
        raise DataError(
            "a budget needs data to find out which groups are sensitive",
            hint="Give a file of real inputs: --calibrate FILE.",
        )
    feeds = list(lowering.data)
    chosen = np.unique(np.linspace(0, len(feeds) - 1, FEEDS).round().astype(int))
    return [feeds[index] for index in chosen]


def _meaningful(array: np.ndarray, feed: Feed) -> np.ndarray:
    mask = feed.get("attention_mask")
    if mask is None or array.ndim < 2 or array.shape[:2] != mask.shape:
        return array
    kept: np.ndarray = array[mask != 0]
    return kept
