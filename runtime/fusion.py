"""The attentions of a graph: which are one node, of what kind, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# Why export left a Softmax as it is: an entry of the node's metadata.
NOT_FUSED = "not_fused"
UNRECORDED = "no reason was recorded"
IN_SUBGRAPH = "it lies in a subgraph, where nothing is fused"
WRITTEN_OUT = "its softmax is written out as Exp and ReduceSum"


@dataclass(frozen=True, slots=True)
class AttentionPattern:
    """A softmax attention of a graph, or what looks like one.

    Attributes:
        node: Name of the ``Attention``, or of the node that is its softmax.
        scope: Dotted name of the submodule it comes from; "" where that is not known.
        fused: Whether it is one ``Attention``.
        traits: What the graph tells of a fused one: "self" or "cross", "causal", "masked",
            "biased", "2 key heads for 4", "soft cap 30".
        reason: Why it is not fused; "" if it is.
    """

    node: str
    scope: str
    fused: bool
    traits: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        status = "fused    " if self.fused else "not fused"
        what = ", ".join(self.traits) or "no mask" if self.fused else self.reason
        return f"{status}  {self.scope or 'the model'} ({self.node}): {what}"


def attention_patterns(model: Any) -> tuple[AttentionPattern, ...]:
    """Every ``Attention`` and every softmax of a graph, in its order.

    Every ``Softmax`` is listed, also one that is no attention at all: the reason says so.

    Args:
        model: An ``onnx_ir.Model``; not changed.
    """
    found = []
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        name, scope = node.name or node.op_type, node.metadata_props.get("scope", "")
        if node.op_type == "Attention":
            found.append(AttentionPattern(name, scope, True, tuple(_traits(node)), ""))
        elif node.op_type == "Softmax":
            reason = IN_SUBGRAPH if node.graph is not model.graph else UNRECORDED
            reason = node.metadata_props.get(NOT_FUSED, reason)
            found.append(AttentionPattern(name, scope, False, (), reason))
        elif _is_written_out(node):
            found.append(AttentionPattern(name, scope, False, (), WRITTEN_OUT))
    return tuple(found)


def _is_written_out(node: Any) -> bool:
    """Whether a node is ``Exp(x) / ReduceSum(Exp(x))``."""
    if node.op_type != "Div":
        return False
    powers, total = (_producer(value) for value in node.inputs)
    return (
        powers is not None
        and total is not None
        and (powers.op_type, total.op_type) == ("Exp", "ReduceSum")
        and bool(total.inputs[0] is powers.outputs[0])
    )


def _traits(node: Any) -> Iterator[str]:
    query, keys = node.inputs[:2]
    if kind := _self_or_cross(query, keys):
        yield kind
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    seen = _Mask(mask) if mask is not None else None
    if node.attributes.get_int("is_causal", 0) or (seen and seen.causal):
        yield "causal"
    if seen and (seen.masked or not (seen.causal or seen.biased)):
        yield "masked"
    if seen and seen.biased:
        yield "biased"
    heads, key_heads = _heads(node, "q_num_heads", query), _heads(node, "kv_num_heads", keys)
    if heads and key_heads and heads != key_heads:
        yield f"{key_heads} key heads for {heads}"
    if softcap := node.attributes.get_float("softcap", 0.0):
        yield f"soft cap {softcap:g}"


def _heads(node: Any, attribute: str, value: Any) -> int:
    """Number of heads; 0 where it is not known."""
    size = value.shape[1] if value.shape is not None and len(value.shape) == 4 else 0
    return node.attributes.get_int(attribute, 0) or (size if isinstance(size, int) else 0)


def _self_or_cross(query: Any, keys: Any) -> str:
    """Whether queries and keys are projected from the same values; "" where it is not clear."""
    ours, theirs = _sources(query), _sources(keys)
    if ours and ours == theirs:
        return "self"
    return "cross" if ours and theirs and not ours & theirs else ""


def _sources(value: Any) -> set[Any]:
    """What the projections above a value project; the graph's inputs where there is none."""
    projected, inputs = set(), set()

    def above(one: Any) -> Iterable[Any]:
        node = one.producer()
        if node is None:
            if one.is_graph_input():
                inputs.add(one)
            return ()
        given = [other for other in node.inputs if other is not None]
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            computed = [other for other in given[:2] if not _is_weight(other)]
            if len(computed) == 1:
                projected.add(computed[0])
                return ()
        return given if node.op_type not in ("Shape", "Size") else ()

    _walk(value, above)
    return projected or inputs


class _Mask:
    """What a mask is made of.

    Attributes:
        causal: A comparison of the positions of keys and queries, or a triangle.
        masked: It depends on what an input of the model holds, not only on its sizes.
        biased: It holds or is made from weights.
    """

    def __init__(self, mask: Any) -> None:
        self.causal = self.masked = self.biased = False
        _walk(mask, self._above)

    def _above(self, value: Any) -> Iterable[Any]:
        node = value.producer()
        if node is None:
            self.masked |= value.is_graph_input()
            if value.const_value is not None and value.const_value.size > 1:
                self.biased |= value.dtype.is_floating_point()
                self.causal |= _is_triangle(value)
            return ()
        if node.op_type == "Trilu" or _compares_positions(node):
            self.causal = True
        if node.op_type in ("Shape", "Size"):
            return ()
        if node.op_type in ("Gather", "GatherElements", "GatherND"):
            # What is looked up makes the mask; where is a matter of positions.
            return [node.inputs[0]] if _is_weight(node.inputs[0]) else node.inputs
        return [one for one in node.inputs if one is not None]


def _compares_positions(node: Any) -> bool:
    """Whether a node is ``key position <= query position``, a row against a column."""
    if node.op_type == "LessOrEqual":
        keys, queries = node.inputs
    elif node.op_type == "GreaterOrEqual":
        queries, keys = node.inputs
    else:
        return False
    if keys.shape is None or queries.shape is None or len(queries.shape) < 2 or not keys.shape:
        return False
    is_row = len(keys.shape) < 2 or keys.shape[-2] == 1
    is_column = queries.shape[-1] == 1 and queries.shape[-2] != 1
    return bool(is_row and is_column and keys.shape[-1] != 1)


def _is_triangle(value: Any) -> bool:
    """Whether a constant is a square of booleans, true up to the diagonal or above it alone."""
    sizes = value.const_value.shape.numpy()
    if value.dtype.name != "BOOL" or len(sizes) < 2 or sizes[-1] != sizes[-2] or sizes[-1] < 2:
        return False
    square = value.const_value.numpy().reshape(-1, sizes[-1], sizes[-1])[0]
    above = [(square[row, : row + 1], square[row, row + 1 :]) for row in range(sizes[-1])]
    return any(
        all((left == seen).all() and (right != seen).all() for left, right in above)
        for seen in (True, False)
    )


def _is_weight(value: Any) -> bool:
    """Whether a value depends on no input of the model."""
    dependent = False

    def above(one: Any) -> Iterable[Any]:
        nonlocal dependent
        node = one.producer()
        dependent |= one.is_graph_input()
        return () if node is None else [other for other in node.inputs if other is not None]

    _walk(value, above)
    return not dependent


def _walk(value: Any, above: Callable[[Any], Iterable[Any]]) -> None:
    """Visit a value and, once each, what ``above`` gives for what is visited."""
    seen, stack = set(), [value]
    while stack:
        one = stack.pop()
        if one not in seen:
            seen.add(one)
            stack += above(one)


def _producer(value: Any) -> Any:
    return value.producer() if value is not None else None
