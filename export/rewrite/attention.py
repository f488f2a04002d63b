"""Spelled-out attention, MatMul-Softmax-MatMul, to the standard ``Attention`` operator."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from tfx.runtime.fusion import NOT_FUSED

from ..graph import Builder, is_computed, scalar
from .masks import Masks, Term, same_sizes, same_tail, split_batch, with_heads_axis


class NotAttentionError(Exception):
    """Why a Softmax is not attention that can be fused, in a few words."""


@dataclass(slots=True)
class Match:
    """One attention, as found around its Softmax.

    ``softmax(scale * query @ keys_t + terms) @ value``, with ``query`` of shape
    ``[batch, heads, queries, head_dim]``, ``keys_t`` ``[batch, heads, head_dim, keys]`` and
    ``value`` ``[batch, heads, keys, value_dim]``; or without the heads axis.
    """

    softmax: ir.Node
    query: ir.Value
    keys_t: ir.Value
    value: ir.Value
    output: ir.Value
    scale: float
    terms: list[Term] = field(default_factory=list)
    heads: int = 0  # static number of heads where [batch * heads] is to be split; else 0
    softcap: float = 0.0  # softcap * tanh(scores / softcap), before the terms; 0 for none


def fuse_attention(model: ir.Model) -> tuple[int, dict[str, int]]:
    """Replace every spelled-out attention by ``Attention`` (ONNX, opset 23).

    Scores may be scaled anywhere (the queries, the keys, their product), masked by
    ``Where`` and biased by additions in any order, with 4-D heads, 3-D ``[batch * heads]`` or
    no heads at all. What masks and biases do goes into ``attn_mask``. A Softmax that stays
    gets the reason as node metadata ``not_fused``.

    Args:
        model: A traced graph with shapes; changed in place.

    Returns:
        How many were fused, and how many were not by reason.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    _unexpand_fills(model)
    # What nothing reads is no use of scores or weights: an Einsum that became a MatMul.
    RemoveUnusedNodesPass()(model)
    fused = 0
    reasons: dict[str, int] = {}
    masks = Masks()
    for node in list(model.graph):
        if node.op_type != "Softmax" or node.domain:
            continue
        try:
            match = match_attention(node)
        except NotAttentionError as reason:
            node.metadata_props[NOT_FUSED] = str(reason)
            reasons[str(reason)] = reasons.get(str(reason), 0) + 1
            continue
        _replace(model.graph, match, masks)
        fused += 1
    return fused, reasons


def _unexpand_fills(model: ir.Model) -> None:
    """``torch.where`` with a Python number repeats it to the size of the scores: no need to."""
    for node in model.graph:
        if node.op_type != "Where" or node.domain:
            continue
        for index, other in ((1, 2), (2, 1)):
            expand = _input(node, index).producer()
            shape = _input(node, other).shape
            if expand is None or expand.op_type != "Expand" or shape is None:
                continue
            fill = _input(expand, 0)
            if scalar(fill) is not None and not fill.shape and shape == node.outputs[0].shape:
                node.replace_input_with(index, fill)


def match_attention(softmax: ir.Node) -> Match:
    """Find the attention around ``softmax``.

    Raises:
        NotAttentionError: With the first thing that does not fit.
    """
    scores = _input(softmax, 0)
    if scores.shape is None:
        raise NotAttentionError("the shape of the scores is not known")
    rank = len(scores.shape)
    if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
        raise NotAttentionError("the softmax is not over the last axis")
    found = _scores(scores)
    product, scale = found.product, found.scale
    query, query_scale = _unscaled(_input(product, 0))
    keys_t, keys_scale = _unscaled(_input(product, 1))
    scale *= query_scale * keys_scale
    if not scale > 0:
        raise NotAttentionError(f"the scale is {scale}, Attention takes positive ones")
    for side in (query, keys_t):
        if side.shape is None or len(side.shape) not in (3, 4):
            raise NotAttentionError(f"{_rank(side)} query or keys, expected 3-D or 4-D")
    if len(query.shape or ()) != len(keys_t.shape or ()):
        raise NotAttentionError("query and keys differ in rank")
    value, output = _weighted_sum(softmax, len(query.shape or ()))
    match = Match(
        softmax, query, keys_t, value, output, scale, found.terms, found.heads, found.softcap
    )
    _require_own_batch(match)
    return match


@dataclass(slots=True)
class _Scores:
    """What lies between the product of queries and keys and the softmax."""

    product: ir.Node
    scale: float
    terms: list[Term]
    heads: int
    softcap: float


def _scores(value: ir.Value) -> _Scores:
    """Walk from the softmax up to the product of queries and keys."""
    scale, heads, softcap = 1.0, 0, 0.0
    terms: list[Term] = []
    while True:
        node = value.producer()
        if node is None or node.domain:
            raise NotAttentionError("no product of queries and keys above the softmax")
        _require_single_use(value)
        before = len(terms)
        match node.op_type:
            case "MatMul":
                return _Scores(node, scale, terms, heads, softcap)
            case "Mul" | "Div" if (factor := _factor(node)) is not None:
                value, by = factor
                scale *= by
            case "Cast" if _input(node, 0).dtype == value.dtype:
                value = _input(node, 0)
            case "Identity":
                value = _input(node, 0)
            case "Tanh" if not softcap and scale > 0:
                # cap * tanh(x / cap): the division comes next and leaves scale at 1 again.
                softcap = scale
                value = _input(node, 0)
            case "Add":
                left, right = _input(node, 0), _input(node, 1)
                inner, outer = (left, right) if _leads_to_product(left) else (right, left)
                if not _leads_to_product(inner):
                    raise NotAttentionError("an Add of two values that are not scores")
                terms.append(Term(outer, scale, lifted=bool(heads)))
                value = inner
            case "Sub" if _leads_to_product(_input(node, 0)):
                terms.append(Term(_input(node, 1), -scale, lifted=bool(heads)))
                value = _input(node, 0)
            case "Where":
                value, term = _masking(node, scale, lifted=bool(heads))
                terms.append(term)
            case "Reshape" if not heads and not terms and _merges_heads(_input(node, 0), value):
                # Undone further up, by the Reshape that split the heads for a 4-D mask.
                value = _input(node, 0)
            case "Reshape" if not heads:
                inner = _input(node, 0)
                heads = _split_heads(inner, value)
                value = inner
            case other:
                raise NotAttentionError(f"a {other} between the product and the softmax")
        if len(terms) == before:
            continue
        if softcap:
            raise NotAttentionError("a mask or bias inside the soft cap")
        if terms[-1].value.shape is None:
            raise NotAttentionError("a mask or bias of unknown shape")
        if _repeats(value, node.outputs[0]):
            raise NotAttentionError("a mask or bias that repeats the scores")


def _repeats(before: ir.Value, after: ir.Value) -> bool:
    """Whether an axis of 1 is no longer 1 after broadcasting."""
    if before.shape is None or after.shape is None:
        return False
    return len(before.shape) != len(after.shape) or any(
        one == 1 and two != 1 for one, two in zip(before.shape, after.shape, strict=True)
    )


def _masking(node: ir.Node, scale: float, *, lifted: bool) -> tuple[ir.Value, Term]:
    condition, yes, no = (_input(node, index) for index in range(3))
    for scores, fill, keep in ((yes, no, True), (no, yes, False)):
        constant = scalar(fill)
        if constant is not None and _leads_to_product(scores):
            if constant * scale > -1e4:
                raise NotAttentionError(f"a Where that fills with {constant}, not with a mask")
            return scores, Term(condition, scale, constant, keep, lifted)
    raise NotAttentionError("a Where that is not a mask of the scores")


def _weighted_sum(softmax: ir.Node, rank: int) -> tuple[ir.Value, ir.Value]:
    """Walk from the softmax down to its product with the values: those, and the product."""
    weights = softmax.outputs[0]
    while True:
        uses = list(weights.uses())
        if weights.is_graph_output():
            raise NotAttentionError("the attention weights are an output of the model")
        guarded = _nan_guard(uses)
        if guarded is not None:
            weights = guarded
            continue
        if len(uses) != 1:
            raise NotAttentionError(f"the attention weights have {len(uses)} uses")
        node, index = uses[0]
        if (
            node.op_type in ("Identity", "Dropout")
            or (node.op_type == "Cast" and node.outputs[0].dtype == weights.dtype)
            or (node.op_type == "Reshape" and _merges_heads(weights, node.outputs[0]))
            or (node.op_type == "Reshape" and _merges_heads(node.outputs[0], weights))
        ):
            weights = node.outputs[0]
        elif node.op_type == "MatMul" and index == 0:
            if len(weights.shape or ()) != rank:
                raise NotAttentionError("weights and queries differ in rank")
            return _input(node, 1), node.outputs[0]
        else:
            raise NotAttentionError(f"a {node.op_type} between the softmax and the values")


def _nan_guard(uses: list[ir.Usage]) -> ir.Value | None:
    """The output of ``Where(IsNaN(w), 0, w)``, which PyTorch writes for rows that mask all."""
    nodes = {use.node.op_type: use.node for use in uses}
    if len(uses) == 2 and nodes.keys() == {"IsNaN", "Where"}:
        guard, where = nodes["IsNaN"].outputs[0], nodes["Where"]
        if _input(where, 0) is guard and scalar(_input(where, 1)) == 0:
            return where.outputs[0]
    return None


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """Queries or keys without the constant factor on them."""
    scale = 1.0
    while (node := value.producer()) is not None:
        if node.op_type in ("Mul", "Div") and (factor := _factor(node)) is not None:
            value, by = factor
            scale *= by
        else:
            break
    return value, scale


def _factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """``x * c``, ``c * x`` or ``x / c`` with a scalar constant, as ``x`` and the factor."""
    left, right = _input(node, 0), _input(node, 1)
    by = _scalar_for(left, right)
    if by is not None and by != 0:
        return left, (1 / by if node.op_type == "Div" else by)
    by = _scalar_for(right, left)
    if by is not None and node.op_type == "Mul":
        return right, by
    return None


def _scalar_for(value: ir.Value, constant: ir.Value) -> float | None:
    """The number in ``constant``, unless its rank would change that of ``value``."""
    if constant.shape is None or value.shape is None or len(constant.shape) > len(value.shape):
        return None
    return scalar(constant)


def _leads_to_product(value: ir.Value, depth: int = 12) -> bool:
    """Whether a chain of scaling, masking, biasing and reshaping starts at a MatMul."""
    node = value.producer()
    if node is None or depth == 0 or node.domain:
        return False
    match node.op_type:
        case "MatMul":
            # Scores are a product of two computed values; a bias may be one with a weight.
            return is_computed(_input(node, 0)) and is_computed(_input(node, 1))
        case "Mul" | "Div":
            factor = _factor(node)
            return factor is not None and _leads_to_product(factor[0], depth - 1)
        case "Add":
            return any(_leads_to_product(_input(node, i), depth - 1) for i in (0, 1))
        case "Sub" | "Cast" | "Identity" | "Reshape" | "Tanh":
            return _leads_to_product(_input(node, 0), depth - 1)
        case "Where":
            return any(_leads_to_product(_input(node, i), depth - 1) for i in (1, 2))
    return False


def _split_heads(before: ir.Value, after: ir.Value) -> int:
    """Heads of a Reshape ``[batch * heads, q, k]`` to ``[batch, heads, q, k]``."""
    if before.shape is None or after.shape is None:
        raise NotAttentionError("a Reshape of unknown shape between product and softmax")
    heads = after.shape[1] if len(after.shape) == 4 else None
    if len(before.shape) != 3 or not isinstance(heads, int) or not same_tail(before, after):
        raise NotAttentionError("a Reshape between the product and the softmax")
    return heads


def _merges_heads(before: ir.Value, after: ir.Value) -> bool:
    return (
        before.shape is not None
        and after.shape is not None
        and len(before.shape) == 4
        and len(after.shape) == 3
        and same_tail(before, after)
    )


def _require_own_batch(match: Match) -> None:
    """Attention does not broadcast queries, keys and values over batch or heads."""
    leading = len(match.query.shape or ()) - 2
    for other in (match.keys_t, match.value):
        if other.shape is None or len(other.shape) != leading + 2:
            raise NotAttentionError(f"{_rank(other)} keys or values")
        assert match.query.shape is not None
        if not same_sizes(other.shape[:leading], match.query.shape[:leading]):
            raise NotAttentionError(
                f"queries {match.query.shape} and keys or values {other.shape} broadcast"
            )


def _require_single_use(value: ir.Value) -> None:
    if len(list(value.uses())) != 1 or value.is_graph_output():
        raise NotAttentionError("the scores are used elsewhere too")


def _replace(graph: ir.Graph, match: Match, masks: Masks) -> None:
    build = Builder(graph, match.softmax)
    query = match.query
    # Two transposes in a row are merged by the cleanup that follows.
    rank = len(match.keys_t.shape or ())
    swap = [*range(rank - 2), rank - 1, rank - 2]
    keys = build("Transpose", [match.keys_t], {"perm": swap})
    flat = rank == 3
    mask = masks.of(build, match.terms, query, match.keys_t, match.heads)
    # Weights and values are multiplied after the softmax: everything is known by then. What
    # layers share stays in front of the softmax, and so of every layer that follows.
    product = match.output.producer()
    assert product is not None
    build.before = product
    value = match.value
    if match.heads:
        query, keys, value = (split_batch(build, one, match.heads) for one in (query, keys, value))
    elif flat:
        query, keys, value = (with_heads_axis(build, one) for one in (query, keys, value))
    inputs = [query, keys, value] + ([mask] if mask is not None else [])
    attributes: dict[str, object] = {"scale": match.scale, "is_causal": 0}
    if match.softcap:
        attributes["softcap"] = match.softcap
    output = build("Attention", inputs, attributes)
    output.type, output.shape = match.output.type, match.output.shape
    scope = match.softmax.metadata_props
    output.producer().metadata_props.update(scope)
    if match.heads:
        output.shape = None
        output = _merged(build, output)
    elif flat:
        output.shape = None
        output = build("Squeeze", [output, build.constant([1])])
    output.type, output.shape = match.output.type, match.output.shape
    build.replace(match.output, output)


def _merged(build: Builder, value: ir.Value) -> ir.Value:
    """``[batch, heads, n, m]`` to ``[batch * heads, n, m]``."""
    apart = build("Reshape", [value, build.constant([-1, 1, 0, 0])])
    return build("Squeeze", [apart, build.constant([1])])


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise NotAttentionError(f"{node.op_type} without its input {index}")
    return value


def _rank(value: ir.Value) -> str:
    return "unknown-rank" if value.shape is None else f"{len(value.shape)}-D"
