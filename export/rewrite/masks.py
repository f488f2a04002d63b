"""What is added to scores, or replaces them, as one mask of an ``Attention`` node."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, known_size


@dataclass(frozen=True, slots=True)
class Term:
    """Something added to the scores before the softmax.

    Attributes:
        value: What is added, or the condition of a ``Where``.
        scale: Factor on ``value``: of a Mul or Div between it and the softmax.
        fill: For a condition: what replaces the scores; None for an addition.
        keep: For a condition: the value of it that keeps the scores.
        lifted: Whether it was added before a Reshape split ``[batch * heads]``.
    """

    value: ir.Value
    scale: float = 1.0
    fill: float | None = None
    keep: bool = True
    lifted: bool = False


class Masks:
    """Masks of a graph; layers that share one share what is made of it.

    They are built in front of the ``Softmax`` of the first layer that needs them.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def of(
        self,
        build: Builder,
        terms: Sequence[Term],
        query: ir.Value,
        keys_t: ir.Value,
        heads: int,
    ) -> ir.Value | None:
        """All terms in one.

        Args:
            build: Where it goes.
            terms: The last first, as found on the way up from the softmax.
            query: ``[batch, heads, queries, head_dim]``, ``[batch * heads, ...]`` or
                ``[batch, ...]``.
            keys_t: The same with ``head_dim, keys`` at the end.
            heads: Number of them if ``query`` is ``[batch * heads, ...]``, else 0.

        Returns:
            ``[batch, heads, queries, keys]``, or what broadcasts to it over all axes but the
            last; None without terms.
        """
        total = None
        rank = len(query.shape or ())
        for term in reversed(terms):  # in the order they happen: a Where replaces what is there
            key: tuple[object, ...] = (total, term, heads, rank, query.dtype)
            if key not in self._made:
                self._made[key] = _with_term(build, total, term, query, heads)
            total = self._made[key]
        if total is None:
            return None
        assert keys_t.shape is not None
        key = (total, known_size(keys_t.shape[-1]) or keys_t)
        if key not in self._made:
            self._made[key] = _with_keys(build, total, keys_t)
        return self._made[key]


def _with_term(
    build: Builder, total: ir.Value | None, term: Term, query: ir.Value, heads: int
) -> ir.Value:
    value = _aligned(build, term, query, heads)
    if term.fill is None:
        if term.scale != 1.0:
            assert value.dtype is not None
            value = build("Mul", [value, build.constant(term.scale, value.dtype)])
        if total is None:
            return value
        output = build("Add", [total, value])
    else:
        dtype = query.dtype
        assert dtype is not None
        # Scores that are all replaced by one finite number weigh all keys the same. The lowest
        # number, or half of it, keeps that: a sum with it is that number again. The lowest stays
        # itself, for a mask that adds it once more takes such keys out. `raise_masks` has the
        # rest of what ONNX Runtime needs.
        lowest = float(np.finfo(dtype.numpy()).min)
        number = term.fill if np.isinf(term.fill) or term.fill == lowest else lowest / 2
        fill = build.constant(number, dtype)
        kept = total if total is not None else build.constant(0.0, dtype)
        output = build("Where", [value, kept, fill] if term.keep else [value, fill, kept])
    output.shape = _broadcast(value, total)
    return output


def _aligned(build: Builder, term: Term, query: ir.Value, heads: int) -> ir.Value:
    """What a term adds or asks, with a heads axis if it has one for the batch."""
    value = term.value
    if value.shape is None or len(value.shape) != 3:
        return value
    if heads and term.lifted and value.shape[0] != 1:
        return split_batch(build, value, heads)
    if (heads and term.lifted) or (not heads and len(query.shape or ()) == 3):
        return with_heads_axis(build, value)
    return value


def _with_keys(build: Builder, mask: ir.Value, keys_t: ir.Value) -> ir.Value:
    """The mask with an axis for queries and all keys: ONNX Runtime (1.31) asks for both."""
    assert keys_t.shape is not None
    if mask.shape is None:
        return mask
    if (missing := 2 - len(mask.shape)) > 0:
        sizes = [*[1] * missing, *mask.shape]
        mask = build("Unsqueeze", [mask, build.constant(list(range(missing)))])
        mask.shape = ir.Shape(sizes)
    if mask.shape[-1] != 1 or keys_t.shape[-1] == 1:
        return mask
    return build.expanded(mask, -1, keys_t, len(keys_t.shape) - 1)


def _broadcast(value: ir.Value, other: ir.Value | None) -> ir.Shape | None:
    """The shape of two values together."""
    if other is None or other.shape is None or value.shape is None:
        return value.shape if other is None else None
    sizes: list[int | str | None] = []
    for pair in itertools.zip_longest(reversed(value.shape), reversed(other.shape), fillvalue=1):
        one, two = (known_size(size) for size in pair)
        if one == two or two == 1:
            sizes.append(one)
        elif one == 1 or isinstance(two, int):
            sizes.append(two)
        else:
            sizes.append(one if isinstance(one, int) else None)
    return ir.Shape(sizes[::-1])


def split_batch(build: Builder, value: ir.Value, heads: int) -> ir.Value:
    """``[batch * heads, n, m]`` to ``[batch, heads, n, m]``; undoes a merge if it can."""
    node = value.producer()
    whole = node.inputs[0] if node is not None and node.op_type == "Reshape" else None
    if (
        whole is not None
        and whole.shape is not None
        and value.shape is not None
        and len(whole.shape) == 4
        and whole.shape[1] == heads
        and same_tail(whole, value)
    ):
        return whole
    # 0 keeps the size of the input's axis at that place: n and m stay what they are.
    apart = with_heads_axis(build, value)
    output = build("Reshape", [apart, build.constant([-1, heads, 0, 0])])
    if value.shape is not None:
        output.shape = ir.Shape([None, heads, *value.shape[1:]])
    return output


def with_heads_axis(build: Builder, value: ir.Value) -> ir.Value:
    """``[batch, n, m]`` to ``[batch, 1, n, m]``."""
    output = build("Unsqueeze", [value, build.constant([1])])
    if value.shape is not None:
        output.shape = ir.Shape([value.shape[0], 1, *value.shape[1:]])
    return output


def same_tail(left: ir.Value, right: ir.Value) -> bool:
    """Whether two values of known rank have the same last two sizes."""
    assert left.shape is not None
    assert right.shape is not None
    return same_sizes(left.shape[-2:], right.shape[-2:])


def same_sizes(left: Sequence[int | ir.SymbolicDim], right: Sequence[int | ir.SymbolicDim]) -> bool:
    """Whether sizes are known to be the same; two that are not known are not."""
    sizes = [known_size(size) for size in left]
    return None not in sizes and sizes == [known_size(size) for size in right]
