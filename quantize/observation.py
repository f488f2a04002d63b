"""Feeds run through a graph, and what its activations were."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tfx.errors import QuantizeError, listing
from tfx.extras import need
from tfx.runtime.cpus import usable_cpus
from tfx.signature import Feed

from .calibration import CalibrationData
from .linear import Product
from .observers import Extremes, Histogram


class Observation:
    """The graph with some of its values as outputs too, ready to be fed.

    A context manager: what it wrote aside is gone when it ends.
    """

    def __init__(self, model: ir.Model, values: Sequence[ir.Value]) -> None:
        """Take note of what to observe; nothing is run yet.

        Args:
            model: Not changed; a copy is written aside.
            values: Of its main graph.
        """
        self._model = model
        self._names = [str(value.name) for value in dict.fromkeys(values)]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._session: Any = None

    def __enter__(self) -> Observation:
        """Write and load the graph."""
        self._folder = tempfile.TemporaryDirectory(prefix="tfx-calibration-")
        try:
            self._session = self._load(Path(self._folder.name) / "observed.onnx")
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Free it."""
        self._session = None
        if self._folder is not None:
            self._folder.cleanup()

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """The observed values of one feed, without what was computed for padding.

        Returns:
            Value name to ``float32[..., channels]``; ``[tokens, channels]`` for a value with
            something per token.
        """
        arrays = self._session.run(self._names, dict(feed))
        return {
            name: _without_padding(array, feed.get("attention_mask"))
            for name, array in zip(self._names, arrays, strict=True)
        }

    def _load(self, path: Path) -> Any:
        graph = self._model.graph
        before = list(graph.outputs)
        values = {str(value.name): value for value in _values(graph)}
        try:
            for name in self._names:
                if not any(output is values[name] for output in graph.outputs):
                    graph.outputs.append(values[name])
            ir.save(self._model, path, external_data=f"{path.name}.data")
        finally:
            graph.outputs.clear()  # del would leave values that think they are outputs
            graph.outputs.extend(before)
        ort = need("onnxruntime")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = usable_cpus()
        settings.log_severity_level = 4
        try:
            return ort.InferenceSession(
                str(path), sess_options=settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its pybind exceptions share no public base
            raise QuantizeError(
                f"onnxruntime cannot run the graph to calibrate: {error}"
            ) from error


def see_extremes(
    model: ir.Model,
    values: Mapping[ir.Value, int],
    data: CalibrationData,
    *,
    seed: int,
    ignored: Mapping[str, np.ndarray] | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Extremes]:
    """First look: extremes and sampled rows of each value.

    Args:
        model: The float graph.
        values: What to look at, to its axis of channels.
        data: The feeds.
        seed: Of the rows that are drawn.
        ignored: Value name to channels that are not looked at.
        on_batch: Called with how many batches are done.

    Returns:
        Value name to what was seen.

    Raises:
        QuantizeError: If an activation had NaN or infinities, or nothing was seen.
    """
    rng = np.random.default_rng(seed)
    found = {str(value.name): Extremes() for value in values}
    axes = {str(value.name): axis for value, axis in values.items()}
    with Observation(model, list(values)) as observation:
        for done, feed in enumerate(data, 1):
            for name, array in observation.run(feed).items():
                rows = _rows(array, axes[name])
                found[name].see(_looked_at(rows, ignored, name), rng)
            on_batch(done)
    broken = [f"{name}: {one.bad} values" for name, one in found.items() if one.bad]
    if broken:
        raise QuantizeError(
            listing("activations are NaN or infinite on the calibration data:", broken[:10]),
            hint="Look at the data and at the model's own outputs on it: tfx predict.",
        )
    if unseen := [name for name, one in found.items() if not one.seen]:
        raise QuantizeError(
            listing("calibration data is all padding, nothing was seen of:", unseen[:10]),
            hint="Look at the attention_mask of the data.",
        )
    return found


def see_histograms(
    model: ir.Model,
    values: Mapping[ir.Value, float],
    data: CalibrationData,
    *,
    ignored: Mapping[str, np.ndarray] | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Histogram]:
    """Second look: how often each magnitude occurs.

    Args:
        model: The float graph.
        values: What to look at, to its largest magnitude.
        data: The feeds.
        ignored: Value name to channels, of the last axis, that are not looked at.
        on_batch: Called with how many batches are done.
    """
    found = {str(value.name): Histogram(amax) for value, amax in values.items()}
    with Observation(model, list(values)) as observation:
        for done, feed in enumerate(data, 1):
            for name, array in observation.run(feed).items():
                found[name].see(_looked_at(array, ignored, name))
            on_batch(done)
    return found


def _looked_at(
    array: np.ndarray, ignored: Mapping[str, np.ndarray] | None, name: str
) -> np.ndarray:
    channels = (ignored or {}).get(name)
    return array if channels is None else np.delete(array, channels, axis=-1)


def _rows(array: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(array, axis, -1) if array.ndim > 1 else array.reshape(1, -1)
    return np.ascontiguousarray(moved, dtype=np.float32).reshape(-1, moved.shape[-1])


def _without_padding(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    # What a model makes of padding is nobody's output, and may be far from all it makes else.
    if mask is None:
        return array
    if array.ndim == 2 and len(array) == mask.size:  # GPT-2 multiplies tokens of all rows at once
        mask = mask.reshape(-1)
    elif array.ndim != 3 or array.shape[:2] != mask.shape:
        return array
    kept: np.ndarray = array[mask != 0]
    return kept


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def see_hessians(
    model: ir.Model, products: Sequence[Product], data: CalibrationData
) -> dict[str, np.ndarray]:
    """``X.T @ X`` of what each weight is multiplied with, mean over the rows of X.

    Frantar et al. 2022, arXiv:2210.17323, equation 1: the error of a layer's output is a
    quadratic form of the weights' errors in this matrix.

    Args:
        model: The float graph.
        products: Whose activations to look at.
        data: The feeds.

    Returns:
        Weight name to ``float32[channels, channels]``.
    """
    values = list(dict.fromkeys(product.data for product in products))
    sums: dict[str, np.ndarray] = {}
    rows: dict[str, int] = {}
    with Observation(model, values) as observation:
        for feed in data:
            for name, array in observation.run(feed).items():
                matrix = _rows(array, -1)
                product = matrix.T @ matrix
                sums[name] = product + sums[name] if name in sums else product
                rows[name] = rows.get(name, 0) + len(matrix)
    for name, total in sums.items():
        total /= max(1, rows[name])
    # One array for all that read one activation: lower_weights_int4 looks for that.
    return {str(one.weight.name): sums[str(one.data.name)] for one in products}


def see_magnitudes(model: ir.Model, data: CalibrationData) -> dict[str, float]:
    """Largest magnitude of every float32 value of the graph, padding included.

    It is taken inside the graph, so that nothing but one number a value leaves it.

    Args:
        model: The float graph; not changed.
        data: The feeds.

    Returns:
        Value name to largest magnitude; NaN counts as infinite.
    """
    probe = model.clone()
    graph = probe.graph
    names: list[str] = []
    for node in list(graph):
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT or not value.name:
                continue
            magnitude = ir.node("Abs", [value])
            largest = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0})
            output = largest.outputs[0]
            output.name = f"tfx_magnitude_{len(names)}"
            output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            names.append(str(value.name))
            graph.insert_after(node, [magnitude, largest])
            graph.outputs.append(output)
    found = dict.fromkeys(names, 0.0)
    outputs = [value for value in graph.outputs if str(value.name).startswith("tfx_magnitude_")]
    with Observation(probe, outputs) as observation:
        for feed in data:
            for index, number in enumerate(observation.run(feed).values()):
                largest_seen = float(number) if np.isfinite(number) else np.inf
                found[names[index]] = max(found[names[index]], largest_seen)
    return found
