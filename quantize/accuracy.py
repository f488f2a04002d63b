"""A bundle beside its parent on the same samples: what lowering its precision cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np

from tfx.bundle import Bundle
from tfx.quantization import Accuracy
from tfx.runtime.accuracy.evaluation import (
    Evaluation,
    compare_evaluations,
    evaluate,
    record,
)
from tfx.runtime.accuracy.fitting import metric_for
from tfx.runtime.accuracy.metrics import Direction, Needs, find_metric
from tfx.runtime.accuracy.samples import Dataset
from tfx.runtime.opening import open_session


class Judge:
    """Measures bundles on one dataset, each beside the same parent.

    What the parent says is kept: it runs once, however many bundles are measured.

    Attributes:
        metric: Its name in ``tfx.runtime.accuracy.metrics.METRICS``.
        dataset: The samples.
    """

    def __init__(self, parent: Bundle, dataset: Dataset, metric: str, *, seed: int) -> None:
        """Run the parent.

        Args:
            parent: The float32 bundle.
            dataset: The samples; labels where the metric needs them.
            metric: A name, or "auto" for what fits the data.
            seed: Of the bootstrap.

        Raises:
            DataError: If the metric does not fit the data.
            BundleError: If the parent's weights are random.
        """
        chosen = (
            metric_for(parent, dataset, reference=True) if metric == "auto" else find_metric(metric)
        )
        self.metric, self.dataset, self._seed = chosen.name, dataset, seed
        with open_session(parent, backend="onnxruntime", verify=False) as session:
            compares = chosen.needs is Needs.REFERENCE
            self._said = record(session, dataset, chosen.name) if compares else None
            self._parent = evaluate(session, dataset, chosen.name, reference=self._said, seed=seed)

    @classmethod
    def without_labels(cls, parent: Bundle, dataset: Dataset, *, seed: int) -> Self:
        """A judge of how far a bundle is from its parent, whatever the labels say."""
        return cls(parent, replace(dataset, labels=None), "auto", seed=seed)

    @property
    def compares(self) -> bool:
        """Whether the metric compares with the parent, and needs no labels."""
        return self._said is not None

    @property
    def parent_rows(self) -> np.ndarray:
        """What each sample adds when the parent answers; ``float64[samples, numbers]``."""
        return self._parent.rows

    def rows(self, bundle: Bundle) -> np.ndarray:
        """What each sample adds when a bundle answers; ``float64[samples, numbers]``.

        Raises:
            NotFiniteError: If the bundle gives NaN or infinity.
        """
        return self._evaluated(bundle).rows

    def drop_of(self, rows: np.ndarray) -> float:
        """How much worse the metric of rows is than the parent's."""
        metric = find_metric(self.metric)
        change = float(metric.value(rows)) - self._parent.value
        return change if metric.direction is Direction.LOWER else -change

    def measure(self, bundle: Bundle) -> Accuracy:
        """The metric of a bundle, and how much worse it is than the parent's.

        Raises:
            NotFiniteError: If the bundle gives NaN or infinity.
        """
        found = self._evaluated(bundle)
        rng = np.random.default_rng(self._seed)
        # Adding zero makes -0 what it is called.
        drop, low, high = (end + 0.0 for end in compare_evaluations(self._parent, found, rng).drop)
        return Accuracy(
            metric=found.metric,
            value=found.value,
            parent=self._parent.value,
            drop=drop,
            drop_low=low,
            drop_high=high,
            samples=found.samples,
            data=found.data,
            backend=found.backend,
        )

    def _evaluated(self, bundle: Bundle) -> Evaluation:
        with open_session(bundle, backend="onnxruntime", verify=False) as session:
            return evaluate(
                session, self.dataset, self.metric, reference=self._said, seed=self._seed
            )
