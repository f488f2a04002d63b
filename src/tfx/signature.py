"""What a model takes and gives: named tensors, dynamic axes and their ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from .dtypes import DType
from .errors import FeedError, SignatureError, listing

# Largest size of an axis that has a smallest one and no limit of its own.
UNBOUNDED = 2**31 - 1

# Shapes of feeds that a session remembers as fitting: more than a service sees, a few hundred kB.
REMEMBERED_SHAPES = 1024

# Axes that have a meaning wherever they occur: samples, and the tokens of each.
BATCH, SEQUENCE = "batch", "sequence"

Feed = Mapping[str, np.ndarray]
Dim = int | str


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Smallest and largest value an integer tensor may hold, both allowed.

    Out of range, a token id reads memory that is not an embedding: backends differ in
    what they do then, so it is refused before any of them sees it.
    """

    min: int
    max: int

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise SignatureError(f"need min <= max, got {self}")

    def __str__(self) -> str:
        return f"{self.min}..{self.max}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor, shown as ``input_ids: int64[batch, sequence]``.

    Attributes:
        name: Tensor name, as the model's framework spells it.
        dtype: Element type.
        shape: A size, or the name of a dynamic axis, per dimension.
        values: Allowed values of an integer input; None for no limit.
    """

    name: str
    dtype: DType
    shape: tuple[Dim, ...]
    values: ValueRange | None = None

    def __post_init__(self) -> None:
        problems = [] if self.name else ["a tensor without a name"]
        problems += [
            f"dimension {i} of {self} is {axis!r}, expected a size of 1 or more, or an axis name"
            for i, axis in enumerate(self.shape)
            if axis == "" or (isinstance(axis, int) and axis < 1)
        ]
        if self.values is not None and (self.dtype.is_floating or self.dtype is DType.BOOL):
            problems.append(f"{self} has a range of values, expected one for integers only")
        if problems:
            raise SignatureError(listing("not a tensor:", problems))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Smallest, tuned and largest size of a dynamic axis; TensorRT's min/opt/max."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise SignatureError(f"need 1 <= min <= opt <= max, got {self}")

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.min <= size <= self.max

    def nearest(self, size: int) -> int:
        """The size in the range that is nearest to ``size``."""
        return min(max(size, self.min), self.max)

    def __str__(self) -> str:
        return f"{self.min} or more" if self.max == UNBOUNDED else f"{self.min}..{self.max}"


@dataclass(frozen=True, slots=True)
class Signature:
    """The contract every backend of a bundle keeps.

    Attributes:
        inputs: What a feed must hold, exactly.
        outputs: What a run returns, in this order.
        ranges: Axis name to the sizes it may take; an axis without one is unbounded.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, ShapeRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [spec.name for spec in (*self.inputs, *self.outputs)]
        problems = [f"{name}: named twice" for name in sorted(set(names)) if names.count(name) > 1]
        if not self.inputs:
            problems.append("no inputs")
        if not self.outputs:
            problems.append("no outputs")
        used = {axis for spec in self.inputs for axis in spec.shape}
        problems += [
            f"axis {axis!r} has a range and no input uses it"
            for axis in self.ranges
            if axis not in used
        ]
        if problems:
            raise SignatureError(listing("not a signature:", problems))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for title, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            yield title
            for spec in specs:
                yield f"  {spec}" + (f"  values {spec.values}" if spec.values else "")
        if self.ranges:
            yield "axes"
            for axis, sizes in self.ranges.items():
                yield f"  {axis}: {str(sizes).replace('..', ' to ')}, tuned for {sizes.opt}"

    @property
    def axes(self) -> tuple[str, ...]:
        """The dynamic axes of the inputs, each once, in their order."""
        axes = (axis for spec in self.inputs for axis in spec.shape if isinstance(axis, str))
        return tuple(dict.fromkeys(axes))

    def bind(self, feed: Feed, *, check_finite: bool = False) -> dict[str, int]:
        """Match arrays to inputs and give each dynamic axis its size.

        Args:
            feed: Input name to array; exactly the names in ``inputs``.
            check_finite: Also refuse NaN and infinities in float inputs.

        Returns:
            Axis name to size, e.g. ``{"batch": 8, "sequence": 128}``.

        Raises:
            FeedError: With one line per problem, not only the first.
        """
        sizes: dict[str, int] = {}
        problems = self._misnamed(feed) if feed.keys() != self._names else []
        for spec in self.inputs:
            if spec.name not in feed:
                continue
            array = feed[spec.name]
            if not isinstance(array, np.ndarray):
                problems.append(f"{spec}: got {type(array).__name__}, not a NumPy array")
                continue
            if type(array) is not np.ndarray and np.ma.isMaskedArray(array):
                problems.append(f"{spec}: got a masked array, whose hidden values would be read")
                continue
            if array.dtype != spec.dtype.numpy or array.ndim != len(spec.shape):
                problems.append(f"{spec}: got {array.dtype}{list(array.shape)}")
                continue
            for i, (axis, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
                if isinstance(axis, int):
                    if size != axis:
                        problems.append(f"{spec}: dimension {i} is {size}, expected {axis}")
                elif size != (expected := sizes.setdefault(axis, size)):
                    problems.append(f"{spec}: axis {axis!r} is {size}, elsewhere {expected}")
            problems += _bad_values(spec, array, check_finite)
        for axis, size in sizes.items():
            if size == 0:
                problems.append(f"axis {axis!r} is empty")
            elif axis in self.ranges and size not in self.ranges[axis]:
                problems.append(f"axis {axis!r} is {size}, outside {self.ranges[axis]}")
        if problems:
            raise FeedError(listing("feed does not fit the signature:", problems))
        return sizes

    def acceptor(self) -> Callable[[Feed], bool]:
        """The quick half of ``bind``: a function that is True only for feeds that fit.

        Where it is False, ``bind`` decides, and says what is wrong. A model just run has
        emptied the caches, so what is touched here counts more than what is computed: shapes
        that fitted once are remembered, types are mostly the same object, and ``argmax`` and
        ``argmin`` find what is out of range because NumPy's reductions pass through far more
        code, and a view as unsigned, which needs one of them only, through more than the other.
        docs/runtime-cost.md has figures, from ``python -m tfx.bench.overhead``.
        """
        plan = [(spec.name, spec.dtype.numpy) for spec in self.inputs]
        bounded = [
            (spec.name, spec.values.min, spec.values.max)
            for spec in self.inputs
            if spec.values is not None
        ]
        count = len(plan)
        ndarray = np.ndarray
        fitted: set[tuple[tuple[int, ...], ...]] = set()

        def accepts(feed: Feed) -> bool:
            if len(feed) != count:
                return False
            shapes = []
            for name, dtype in plan:
                array = feed.get(name)
                if type(array) is not ndarray or (
                    array.dtype is not dtype and array.dtype != dtype
                ):
                    return False
                shapes.append(array.shape)
            key = tuple(shapes)
            if key not in fitted:
                if not self._admits(key):
                    return False
                if len(fitted) < REMEMBERED_SHAPES:
                    fitted.add(key)
            for name, least, largest in bounded:
                array = feed[name]
                if array.item(array.argmax()) > largest or array.item(array.argmin()) < least:
                    return False
            return True

        return accepts

    def _admits(self, shapes: tuple[tuple[int, ...], ...]) -> bool:
        """Whether arrays of these shapes, in the order of ``inputs``, fit."""
        sizes: dict[str, int] = {}
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if len(spec.shape) != len(shape) or 0 in shape:
                return False
            for axis, size in zip(spec.shape, shape, strict=True):
                if size != (axis if isinstance(axis, int) else sizes.setdefault(axis, size)):
                    return False
        return all(sizes[axis] in allowed for axis, allowed in self.ranges.items())

    @property
    def _names(self) -> set[str]:
        return {spec.name for spec in self.inputs}

    def _misnamed(self, feed: Feed) -> list[str]:
        problems = [f"{name}: missing" for name in sorted(self._names - feed.keys())]
        problems += [
            f"{name}: not an input" for name in sorted(map(str, feed.keys() - self._names))
        ]
        return problems


def _bad_values(spec: TensorSpec, array: np.ndarray, check_finite: bool) -> list[str]:
    if array.size == 0:
        return []
    if spec.values is not None:
        low, high = int(array.min()), int(array.max())
        if low < spec.values.min or high > spec.values.max:
            return [f"{spec}: values {low}..{high}, outside {spec.values}"]
    if check_finite and spec.dtype.is_floating and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        return [f"{spec}: {count} values are NaN or infinite"]
    return []
