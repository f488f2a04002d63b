"""Texts of many lengths to batches that waste little padding, and back into their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def cut_batches(
    lengths: Sequence[int], *, max_rows: int, max_tokens: int, equal: bool = False
) -> Iterator[list[int]]:
    """Group indices of similar length, longest first.

    The longest go first so that a run that does not fit in memory fails at once.

    Args:
        lengths: Tokens of each text.
        max_rows: Most texts in a batch.
        max_tokens: Most tokens in a batch, padding included; a single text may have more.
        equal: Only put texts of the same length together: for a model without an
            ``attention_mask``, which would take padding for text.

    Yields:
        Indices into ``lengths``; every index comes exactly once.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}, expected 1 or more")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])  # stable
    batch: list[int] = []
    for index in order:
        longest = lengths[batch[0]] if batch else 0
        full = len(batch) == max_rows or (len(batch) + 1) * longest > max_tokens
        if batch and (full or (equal and lengths[index] != longest)):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def even_slices(rows: int, max_rows: int) -> Iterator[slice]:
    """Cut ``rows`` into as few parts of at most ``max_rows`` as possible, sizes within one.

    Even parts rather than full ones and a rest: no part falls below a smallest batch that
    half of ``max_rows`` is above.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}, expected 1 or more")
    parts = -(-rows // max_rows)
    start = 0
    for part in range(parts):
        stop = start + rows // parts + (part < rows % parts)
        yield slice(start, stop)
        start = stop
