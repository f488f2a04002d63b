"""Which nodes of a graph must stay in float32 when the rest becomes float16 or bfloat16."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfx.dtypes import DType
from tfx.errors import QuantizeError
from tfx.extras import need

from .forms import can_be_lower, has_floats, is_constant, is_float, opset_of, schema_of

# How far beyond what calibration saw an activation may reach: data of another kind has
# outliers twice as large before one bit of float16's exponent is used up.
MARGIN = 2.0

# A constant that stands for a threshold or an epsilon is off by less than this, or stays.
CONSTANT_ERROR = 0.01

# Scales of quantized numbers: inputs whose every number must be right.
SCALES = frozenset((("QuantizeLinear", 1), ("DequantizeLinear", 1)))

# A constant of up to so many numbers may be kept in two types; a larger one is stored once.
SMALL = 1024

# They add or multiply along an axis: partial results reach further than inputs and outputs
# show, and a sum of float16 numbers loses those below 2**-11 of it.
SUMS = frozenset(
    (
        *("CumSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare", "AveragePool", "GlobalAveragePool"),
        *("LpNormalization", "MeanVarianceNormalization"),
    )
)

# Their output may be much larger than their input.
GROWING = frozenset(("Exp", "Pow"))

# They move numbers and compute none.
MOVERS = frozenset(
    (
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"),
        *("Pad", "Reshape", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
        *("Unsqueeze", "Where", "Trilu"),
    )
)

COMPARISONS = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"))

# What stands between a sum and the numbers it is taken of: epsilons, roots, reciprocals.
POINTWISE = COMPARISONS | frozenset(
    (
        *("Add", "Clip", "Div", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal"),
        *("Sqrt", "Sub"),
    )
)

# They tell one position from the next, which float16 does up to 2048 and bfloat16 up to 256.
POSITIONAL = COMPARISONS | frozenset(("Ceil", "Cos", "CumSum", "Floor", "Mod", "Round", "Sin"))

# What a mask is made with, and the input it ends in.
MASKING = MOVERS | frozenset(("Add", "Cast", "Clip", "Max", "Min", "Mul", "Neg", "Sub"))
MASKED = {"Attention": 3, "Softmax": 0, "LogSoftmax": 0}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a type of floats can hold.

    Attributes:
        dtype: float16 or bfloat16.
        largest: Its largest finite number.
    """

    dtype: DType
    largest: float

    @classmethod
    def of(cls, dtype: DType) -> Limits:
        """The limits of ``dtype``.

        Raises:
            QuantizeError: If it is not one of the two.
        """
        if dtype not in (DType.FLOAT16, DType.BFLOAT16):
            raise QuantizeError(f"cannot lower floats to {dtype}, expected float16 or bfloat16")
        return cls(dtype, float(need("ml_dtypes").finfo(dtype.numpy).max))

    @property
    def allowed(self) -> float:
        """Largest calibrated magnitude that leaves the margin."""
        return self.largest / MARGIN

    @property
    def masking(self) -> float:
        """What stands for a number too large to hold, in a mask.

        Half of the largest: two masks and a score add up to a finite number, so that a row
        that masks everything gives no NaN; and ONNX Runtime takes the lowest number itself for
        minus infinity.
        """
        return self.largest / 2

    def __str__(self) -> str:
        return f"{self.dtype} ends at {self.largest:.1e}"


def find_kept(
    model: ir.Model,
    limits: Limits,
    ranges: Mapping[str, float] | None,
    keep: Collection[str],
    masks: Collection[ir.Value],
) -> dict[ir.Node, str]:
    """The nodes of the main graph that stay in float32, each with the reason.

    Args:
        model: With a type for each value; constants are initializers.
        limits: Of the type that the rest becomes.
        ranges: Value name to its largest magnitude in calibration; None if there was none.
        keep: Names of nodes, or modules: those whose scope begins with one.
        masks: Values of ``mask_values``, exempt from their ranges.
    """
    finder = _Finder(model, limits, ranges, keep, masks)
    finder.add_positions()
    for node in model.graph:
        if has_floats(node) and (reason := finder.own_reason(node)):
            finder.reasons.setdefault(node, reason)
    finder.add_statistics()
    finder.add_masks()
    finder.add_integers()
    finder.add_movers()
    return {node: finder.reasons[node] for node in model.graph if node in finder.reasons}


def mask_values(graph: ir.Graph, limits: Limits) -> set[ir.Value]:
    """Values that hold numbers whose only meaning is "masked".

    Constants beyond what is allowed, or floats from outside, that reach the mask of an
    ``Attention`` or a softmax by operators that a mask is made with; all values on the way; and
    constants that those are compared with.
    """
    upstream: set[ir.Value] = set()
    stack = [
        value
        for node in graph.all_nodes()
        if node.op_type in MASKED and not node.domain and len(node.inputs) > MASKED[node.op_type]
        if (value := node.inputs[MASKED[node.op_type]]) is not None
    ]
    while stack:
        value = stack.pop()
        if value in upstream or not is_float(value):
            continue
        upstream.add(value)
        node = value.producer()
        if node is not None and node.op_type in MASKING and not node.domain:
            stack += [given for given in node.inputs if given is not None]
    masks = {
        value
        for value in upstream
        if value.is_graph_input()
        or (is_constant(value) and _largest(value, finite=False) > limits.allowed)
    }
    stack = list(masks)
    while stack:
        for user in stack.pop().consumers():
            if user.op_type in COMPARISONS and not user.domain:
                masks.update(value for value in user.inputs if value and is_constant(value))
            if user.op_type not in MASKING or user.domain:
                continue
            for output in user.outputs:
                if output in upstream and output not in masks:
                    masks.add(output)
                    stack.append(output)
    return masks


class _Finder:
    """Gathers reasons; each ``add`` looks at those found before it."""

    def __init__(
        self,
        model: ir.Model,
        limits: Limits,
        ranges: Mapping[str, float] | None,
        keep: Collection[str],
        masks: Collection[ir.Value],
    ) -> None:
        self.graph, self.limits, self.masks = model.graph, limits, masks
        self.ranges, self.keep = ranges, keep
        self.reasons: dict[ir.Node, str] = {}
        # Masked values that hold numbers beyond the type besides.
        self.scores: set[ir.Value] = set()

    def own_reason(self, node: ir.Node) -> str:
        """Why a node stays whatever its neighbours do, or ""."""
        scope = node.metadata_props.get("scope", "")
        if any(f"{scope}.".startswith(f"{one}.") or node.name == one for one in self.keep):
            return "asked for"
        if any(
            attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attr in node.attributes.values()
        ):
            return "holds a graph of its own"
        return (
            self._form_reason(node)
            or self._weight_reason(node)
            or self._range_reason(node)
            or self._growth_reason(node)
        )

    def add_statistics(self) -> None:
        """What is computed from a sum, up to where it meets the numbers it was taken of.

        So a normalization that is spelled out is one stretch of float32.
        """
        statistics: set[ir.Value] = set()
        for node in self.graph:
            if node.domain:
                continue
            if node.op_type in SUMS:
                statistics.update(filter(is_float, node.outputs))
                continue
            given = list(_computed(node))
            found = [value for value in given if value in statistics]
            if not found:
                continue
            numbers = [value for value in _constants(node) if _size(value) != 1]
            if node.op_type in POINTWISE | MOVERS and len(found) == len(given) and not numbers:
                statistics.update(filter(is_float, node.outputs))
                self._add(node, "continues a sum that is taken in float32")
            elif node.op_type in ("Div", "Mul", "Sub"):
                self._add(node, "uses a sum that is taken in float32")

    def add_positions(self) -> None:
        """What computes with numbers that come from integers alone, where each counts."""
        integers: set[ir.Value] = set()
        neutral: set[ir.Value] = set()
        for node in self.graph:
            given = [value for value in node.inputs if value is not None and is_float(value)]
            outputs = [value for value in node.outputs if is_float(value)]
            unknown = [
                one for one in given if not is_constant(one) and one not in neutral | integers
            ]
            if unknown or node.domain:
                continue
            if any(one in integers for one in given) or (
                not given and node.op_type in ("Cast", "Range")
            ):
                integers.update(outputs)
            elif node.op_type in MOVERS or node.op_type == "ConstantOfShape":
                neutral.update(outputs)
        exact = f"up to {2 ** _bits(self.limits.dtype)}"
        stack = [node for node in self.graph if self._is_positional(node, integers)]
        while stack:
            node = stack.pop()
            self._add(node, f"counts, or tells positions apart; {self.limits.dtype} does {exact}")
            for value in node.inputs:
                producer = None if value is None else value.producer()
                if value in integers and producer is not None and producer not in self.reasons:
                    stack.append(producer)

    def add_masks(self) -> None:
        """The masks of scores that stay: what masks the others is too small for them."""
        stack = [node for node in self.reasons if any(v in self.masks for v in node.inputs)]
        while stack:
            for value in stack.pop().inputs:
                producer = value.producer() if value in self.masks and value else None
                if producer is not None and producer not in self.reasons:
                    self._add(producer, "makes the mask of scores in float32")
                    stack.append(producer)

    def add_integers(self) -> None:
        """Casts from other types, where somebody reads them in float32."""
        for node in self.graph:
            if node.op_type != "Cast" or is_float(node.inputs[0]) or not has_floats(node):
                continue
            if any(user in self.reasons for user in node.outputs[0].consumers()):
                self._add(node, "gives integers to nodes in float32")

    def add_movers(self) -> None:
        """What only moves numbers from float32 to float32, to spare two casts."""
        seen: set[ir.Node] = set()
        for start in self.graph:
            if start in seen or not self._moves(start):
                continue
            group, stack, ends = set(), [start], True
            while stack:
                node = stack.pop()
                if node in group:
                    continue
                group.add(node)
                for other in _neighbours(node):
                    if other is None or other in self.reasons:
                        continue
                    if self._moves(other):
                        stack.append(other)
                    else:
                        ends = False
            seen |= group
            if ends:
                for node in group:
                    self._add(node, "moves values between nodes in float32")

    def _add(self, node: ir.Node, reason: str) -> None:
        self.reasons.setdefault(node, reason)

    def _moves(self, node: ir.Node) -> bool:
        return (
            node.op_type in MOVERS
            and not node.domain
            and node not in self.reasons
            and has_floats(node)
            and not any(_size(value) > SMALL for value in _constants(node))
        )

    def _form_reason(self, node: ir.Node) -> str:
        dtype = self.limits.dtype
        places = [(value, index, False) for index, value in enumerate(node.inputs)]
        places += [(value, index, True) for index, value in enumerate(node.outputs)]
        if any(
            can_be_lower(node, index, dtype, output=output)
            for value, index, output in places
            if is_float(value)
        ):
            return ""
        if schema_of(node.op_type, node.domain, opset_of(node)) is None:
            return f"{node.domain}::{node.op_type} is not an operator of the standard"
        return f"{node.op_type} has no {dtype} form in opset {opset_of(node)}"

    def _weight_reason(self, node: ir.Node) -> str:
        for index, value in enumerate(node.inputs):
            if value is None or not is_float(value) or not is_constant(value):
                continue
            if value in self.masks or not can_be_lower(node, index, self.limits.dtype):
                continue
            largest = _largest(value, finite=False)
            if math.isnan(largest):
                return f"weight {value.name} holds NaN"
            if (largest := _largest(value, finite=True)) > self.limits.largest:
                return f"weight {value.name} reaches {largest:.1e}, {self.limits}"
            if (_size(value) == 1 or (node.op_type, index) in SCALES) and largest:
                number, rounded = _worst_rounded(value, self.limits.dtype)
                if abs(rounded / number - 1) > CONSTANT_ERROR:
                    return (
                        f"constant {value.name} is {number:.2e}, "
                        f"{self.limits.dtype} rounds it to {rounded:.2e}"
                    )
        return ""

    def _range_reason(self, node: ir.Node) -> str:
        for word, values in (("output", node.outputs), ("input", node.inputs)):
            for value in values:
                if value is None or not is_float(value) or is_constant(value):
                    continue
                if value in self.scores:
                    self.scores.update(one for one in node.outputs if one in self.masks)
                    return f"{word} {value.name} has scores in float32 and their mask"
                if value in self.masks:
                    continue
                reach = (self.ranges or {}).get(str(value.name), 0.0)
                if not reach <= self.limits.allowed:  # also NaN
                    self.scores.update(one for one in node.outputs if one in self.masks)
                    beyond = "" if reach > self.limits.largest else f", with a margin of {MARGIN:g}"
                    return f"{word} {value.name} reaches {reach:.1e}, {self.limits}{beyond}"
        return ""

    def _growth_reason(self, node: ir.Node) -> str:
        if node.domain or not is_float(node.outputs[0]):
            return ""
        if node.op_type in SUMS:
            bits = _bits(self.limits.dtype)
            return f"{node.op_type} adds up many numbers, {self.limits.dtype} has {bits} bits"
        is_square = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
        if node.op_type not in GROWING and not is_square:
            return ""
        if any(user.op_type in SUMS for user in node.outputs[0].consumers()):
            return "its sum is taken in float32"
        if self.limits.dtype is DType.FLOAT16 and str(node.outputs[0].name) not in (
            self.ranges or {}
        ):
            return f"{node.op_type} may grow without end and was not calibrated, {self.limits}"
        return ""

    def _is_positional(self, node: ir.Node, integers: Collection[ir.Value]) -> bool:
        if not any(value in integers and value not in self.masks for value in node.inputs):
            return False
        if node.op_type == "Cast":
            output = node.outputs[0].dtype
            return output is not None and output.is_integer()
        return node.op_type in POSITIONAL and not node.domain


def _computed(node: ir.Node) -> Iterator[ir.Value]:
    for value in node.inputs:
        if value is not None and is_float(value) and not is_constant(value):
            yield value


def _constants(node: ir.Node) -> Iterator[ir.Value]:
    for value in node.inputs:
        if value is not None and is_float(value) and is_constant(value):
            yield value


def _neighbours(node: ir.Node) -> Iterable[ir.Node | None]:
    """Nodes that give a node its floats or read them; None for the borders of the graph."""
    for value in node.inputs:
        if value is not None and is_float(value):
            yield value.producer()
    for value in node.outputs:
        if is_float(value):
            yield from value.consumers()


def _bits(dtype: DType) -> int:
    """Of the mantissa, with the one that is not stored."""
    return int(need("ml_dtypes").finfo(dtype.numpy).nmant) + 1


def _size(value: ir.Value) -> int:
    assert value.const_value is not None
    return int(value.const_value.size)


def _worst_rounded(value: ir.Value, dtype: DType) -> tuple[float, float]:
    """The number of a constant that a type rounds most, by its share, and what becomes of it."""
    assert value.const_value is not None
    array = value.const_value.numpy().astype(np.float64).reshape(-1)
    array = array[array != 0]
    with np.errstate(under="ignore"):
        rounded = array.astype(dtype.numpy).astype(np.float64)
    worst = int(np.argmax(np.abs(rounded / array - 1)))
    return abs(float(array[worst])), abs(float(rounded[worst]))


def _magnitudes(tensor: ir.TensorProtocol) -> tuple[float, float]:
    array = tensor.numpy()
    if not array.size:
        return 0.0, 0.0
    largest = max(float(array.max()), -float(array.min()))
    if math.isfinite(largest):
        return largest, largest
    finite = array[np.isfinite(array)]
    return largest, float(np.abs(finite).max()) if finite.size else 0.0


def _largest(value: ir.Value, *, finite: bool) -> float:
    """Largest magnitude of a constant; NaN counts unless only finite ones do."""
    assert value.const_value is not None
    return _magnitudes(value.const_value)[finite]
