"""Calibration: real feeds run through the graph, and what its activations were."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tfx.bundle import Bundle
from tfx.errors import DataError, FeedError, QuantizeError, listing
from tfx.extras import need
from tfx.quantization import CalibrationFacts
from tfx.runtime.cpus import usable_cpus
from tfx.runtime.generation.kv_cache import whole_feed
from tfx.runtime.images import image_feed
from tfx.runtime.text.tokenizer import Encoded, Text, Tokenizer
from tfx.signature import BATCH, Feed

from .linear import Product
from .observers import Extremes, Histogram

# Tokens, padding included, of one run: every observed activation of it is held at once.
BATCH_TOKENS = 1024

# Rows of arrays that are run at once.
ROWS = 8

# Fewer samples than this are said to be few: the range of an activation has not settled.
FEW_SAMPLES = 32


@dataclass(frozen=True)
class CalibrationData:
    """Feeds to calibrate with; finite, and the same each time they are gone through.

    Attributes:
        facts: Name, digest and size, for the manifest.
        batches: Functions that make each feed anew: texts are padded when they are needed.
    """

    facts: CalibrationFacts
    batches: tuple[Callable[[], Feed], ...]

    def __len__(self) -> int:
        """Batches in it."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Feed]:
        """The feeds, from the first."""
        return (make() for make in self.batches)

    def warned(self, warning: str) -> CalibrationData:
        """The same data, with one more thing that a reader must know of it."""
        facts = replace(self.facts, warnings=(*self.facts.warnings, warning))
        return replace(self, facts=facts)


def calibration_texts(
    bundle: Bundle, texts: Sequence[Text], *, name: str, tokens: int = 0
) -> CalibrationData:
    """Calibrate with texts, through the bundle's own tokenizer.

    Args:
        bundle: Has the tokenizer.
        texts: Texts, or pairs of texts; an empty one is left out.
        name: Of where they come from, for the manifest.
        tokens: Cut texts to so many tokens; 0 for the model's limit.

    Raises:
        FeedError: If the bundle takes no text, or a text cannot be read.
        DataError: If no text is left.
    """
    tokenizer = Tokenizer(_cutting_at(bundle, tokens) if tokens else bundle)
    kept = [text for text in texts if (text.strip() if isinstance(text, str) else any(text))]
    if not kept:
        raise DataError(f"{name} has no text to calibrate with", hint="Name a file with texts.")
    encoded = tokenizer.encode(kept)
    digest = hashlib.sha256()
    for one in encoded:
        digest.update(one.ids.tobytes() + b"/" + one.types.tobytes())
    # Equal lengths side by side: padding is computed and then not looked at.
    encoded.sort(key=lambda one: len(one.ids))
    rows: list[list[Encoded]] = []
    most = tokenizer.max_rows or len(encoded)
    for one in encoded:
        full = not rows or (
            (len(rows[-1]) + 1) * len(one.ids) > BATCH_TOKENS
            or len(rows[-1]) >= most
            or (not tokenizer.has_mask and len(rows[-1][0].ids) != len(one.ids))
        )
        if full:
            rows.append([])
        rows[-1].append(one)
    warnings = _warnings(len(encoded), distinct=len({one.ids.tobytes() for one in encoded}))
    facts = CalibrationFacts(
        name,
        digest.hexdigest(),
        len(encoded),
        sum(len(one.ids) for one in encoded),
        warnings,
    )

    def maker(batch: list[Encoded]) -> Callable[[], Feed]:
        return lambda: whole_feed(bundle.manifest.signature, tokenizer.batch(batch).feed)

    return CalibrationData(facts, tuple(maker(batch) for batch in rows))


def calibration_feeds(bundle: Bundle, feeds: Sequence[Feed], *, name: str) -> CalibrationData:
    """Calibrate with arrays.

    Args:
        bundle: Its signature must fit every feed.
        feeds: Input name to array.
        name: Of where they come from, for the manifest.

    Raises:
        FeedError: If a feed does not fit.
        DataError: If there is none.
    """
    if not feeds:
        raise DataError(f"{name} has nothing to calibrate with", hint="Name a file with samples.")
    signature = bundle.manifest.signature
    digest = hashlib.sha256()
    count = 0
    for feed in feeds:
        try:
            signature.bind(feed, check_finite=True)
        except FeedError as error:
            raise FeedError(f"{name}: {error}", hint=error.hint) from error
        for key in sorted(feed):
            digest.update(key.encode() + str(feed[key].shape).encode() + feed[key].tobytes())
        count += next(iter(feed.values())).size
    rows = sum(_row_count(feed) for feed in feeds)
    warnings = _warnings(rows, distinct=_distinct_rows(feeds))
    facts = CalibrationFacts(name, digest.hexdigest(), rows, count, warnings)
    return CalibrationData(facts, tuple(functools.partial(dict, feed) for feed in feeds))


def calibration_images(bundle: Bundle, images: np.ndarray, *, name: str) -> CalibrationData:
    """Calibrate with images, through the bundle's own preparation.

    Args:
        bundle: Says how images become its input.
        images: As ``image_feed`` takes them.
        name: Of where they come from, for the manifest.

    Raises:
        DataError: If the bundle does not say it, or the images are too small.
        FeedError: If what becomes of them does not fit the signature.
    """
    rows = rows_at_once(bundle)
    parts = [images[start : start + rows] for start in range(0, len(images), rows)]
    bundle.manifest.signature.bind(image_feed(bundle, parts[0]))
    digest = hashlib.sha256(str(images.shape).encode())
    for image in images:
        # Bytes alone do not tell images of several sizes apart.
        digest.update((str(image.shape).encode() if images.ndim == 1 else b"") + image.tobytes())
    distinct = {(image.shape, hashlib.sha256(image.tobytes()).digest()) for image in images}
    warnings = _warnings(len(images), distinct=len(distinct))
    facts = CalibrationFacts(name, digest.hexdigest(), len(images), 0, warnings)
    # Made when they are needed: prepared images are many times as large.
    return CalibrationData(
        facts, tuple(functools.partial(image_feed, bundle, part) for part in parts)
    )


def rows_at_once(bundle: Bundle) -> int:
    """Rows of arrays to run at a time."""
    signature = bundle.manifest.signature
    axis = signature.inputs[0].shape[:1]
    if axis and isinstance(axis[0], int):
        return axis[0]
    return min(ROWS, signature.ranges[BATCH].max) if BATCH in signature.ranges else ROWS


def _warnings(samples: int, distinct: int) -> tuple[str, ...]:
    found = []
    if samples < FEW_SAMPLES:
        found.append(
            f"{samples} calibration sample{'s' if samples > 1 else ''}: "
            f"{FEW_SAMPLES} or more are needed for ranges to settle"
        )
    if distinct == 1 and samples > 1:
        found.append(f"all {samples} calibration samples are the same")
    return tuple(found)


def _distinct_rows(feeds: Sequence[Feed]) -> int:
    """How many different rows there are, along the first axis of all inputs."""
    found = set()
    for feed in feeds:
        for row in range(_row_count(feed)):
            parts = (
                array[row] if array.ndim and len(array) > row else array
                for _, array in sorted(feed.items())
            )
            found.add(hashlib.sha256(b"/".join(part.tobytes() for part in parts)).digest())
    return len(found)


def _row_count(feed: Feed) -> int:
    shape = next(iter(feed.values())).shape
    return shape[0] if shape else 1


def _cutting_at(bundle: Bundle, tokens: int) -> Bundle:
    """The same bundle, whose tokenizer cuts texts to so many tokens; special ones stay."""
    processing = bundle.manifest.processing
    if processing.tokenization is None:
        return bundle  # the tokenizer says so itself
    length = min(tokens, processing.tokenization.max_length)
    cutting = replace(processing, tokenization=replace(processing.tokenization, max_length=length))
    return replace(bundle, manifest=replace(bundle.manifest, processing=cutting))


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
