"""Arrays of any number of rows through a session, in parts that the model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from tfx.errors import FeedError
from tfx.signature import Signature

from .session import Session
from .text.batching import even_slices


def run_arrays(
    session: Session, feed: Mapping[str, np.ndarray], *, max_rows: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Run a feed in as few parts along the batch axis as the model allows.

    Args:
        session: What runs.
        feed: Input name to array; the batch may be larger than the signature's range.
        max_rows: Most rows in one run; None for the range's largest.

    Yields:
        Output name to array, part by part.

    Raises:
        FeedError: If the feed does not fit, or was cut and an output has no batch axis.
    """
    signature = session.signature
    axis = batch_axis(signature)
    cut = {spec.name for spec in signature.inputs if spec.shape and spec.shape[0] == axis}
    rows = {len(feed[name]) for name in cut if name in feed and feed[name].ndim}
    limit = _most_rows(signature, axis, max_rows)
    if axis is None or len(rows) != 1 or limit is None or (total := rows.pop()) <= limit:
        yield session.predict(feed)
        return
    if whole := [spec.name for spec in signature.outputs if spec.shape[:1] != (axis,)]:
        raise FeedError(
            f"a batch of {total} is run in parts of {limit}, and {', '.join(whole)} "
            "has no batch axis to join them by",
            hint="Split the arrays and run each part by itself.",
        )
    for part in even_slices(total, limit):
        yield session.predict(
            {name: array[part] if name in cut else array for name, array in feed.items()}
        )


def batch_axis(signature: Signature) -> str | None:
    """The dynamic axis that the first input begins with, or None."""
    first = signature.inputs[0].shape[:1]
    return first[0] if first and isinstance(first[0], str) else None


def _most_rows(signature: Signature, axis: str | None, max_rows: int | None) -> int | None:
    sizes = signature.ranges.get(axis) if axis else None
    limits = [limit for limit in (sizes.max if sizes else None, max_rows) if limit is not None]
    return min(limits, default=None)
