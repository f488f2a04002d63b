"""Calibration data: texts, arrays or images as feeds, with the facts the manifest keeps."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import DataError, FeedError
from tfx.quantization import CalibrationFacts
from tfx.runtime.generation.kv_cache import whole_feed
from tfx.runtime.images import image_feed
from tfx.runtime.text.tokenizer import Encoded, Text, Tokenizer
from tfx.signature import BATCH, Feed

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
