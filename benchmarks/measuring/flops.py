"""How many floating-point operations a bundle's matrix products take, counted in its graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import BundleError
from tfx.extras import need

# An initializer of more elements is a weight: shape inference needs its shape and not its numbers.
LARGEST_CONSTANT = 1024

# They multiply too, and by how much stands in no attribute or in another graph.
UNCOUNTED = frozenset(
    ("Einsum", "LSTM", "GRU", "RNN", "ConvTranspose", "DeformConv", "Loop", "Scan", "If")
)

Sizes = Sequence[int]


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of one run: a multiplication and an addition are two.

    Norms, activations and softmax are not in it: nothing is gained by counting what a matrix unit
    does not do.

    Attributes:
        by_op: Operator to its operations, of ``MatMul``, ``Gemm``, ``Attention``, ``Conv`` and
            their integer forms.
    """

    by_op: Mapping[str, int]

    @property
    def total(self) -> int:
        """Of all operators."""
        return sum(self.by_op.values())


def flops_of(bundle: Bundle, sizes: Mapping[str, int]) -> Flops:
    """Count what a bundle's portable graph multiplies at one shape.

    Padding counts, as it is multiplied too; a causal mask or a padding mask saves nothing.

    Args:
        bundle: Its graph is read, not its weights.
        sizes: Axis name to size, e.g. ``{"batch": 8, "sequence": 128}``.

    Raises:
        BundleError: If it has no graph, a size is missing, or a product's shape is not known.
    """
    if bundle.manifest.engine is not None:
        raise BundleError(
            f"{bundle.name} holds an engine, and operations are counted in a graph",
            hint="Name the bundle it was built from.",
        )
    model = need("onnx").load(bundle.model, load_external_data=False)
    return flops_of_graph(model, sizes, bundle.name, bundle.path)


def flops_of_graph(
    model: Any, sizes: Mapping[str, int], name: str = "the graph", folder: Path = Path()
) -> Flops:
    """Count what an ONNX model multiplies; see ``flops_of``.

    Args:
        model: ``onnx.ModelProto``; it is changed.
        sizes: Axis name to size.
        name: For errors.
        folder: Has the files that small constants may be in.

    Raises:
        BundleError: If a size is missing, or a product's shape is not known.
    """
    onnx = need("onnx")
    if model.functions:
        model = need("onnx.inliner").inline_local_functions(model)
    _drop_weights(model.graph, folder)
    _bind(model.graph, sizes, name)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    # What it cannot compute itself, such as the end of a Slice, is computed here; then it knows
    # more shapes, of which more can be computed.
    while _fold(model):
        _forget(model.graph)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    known = _shapes(model.graph)
    counted: Counter[str] = Counter()
    problems = []
    for node in model.graph.node:
        if node.op_type in UNCOUNTED or node.domain not in ("", "ai.onnx"):
            problems.append(f"{node.op_type} of {node.name or node.output[0]} is not counted")
            continue
        if (count := COUNTERS.get(node.op_type)) is None:
            continue
        try:
            counted[node.op_type] += 2 * count(node, known)
        except KeyError as error:
            problems.append(f"the shape of {error.args[0]} is not known")
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise BundleError(f"{name} cannot be counted: {'; '.join(problems[:3])}{more}")
    return Flops(dict(counted))


def _drop_weights(graph: Any, folder: Path) -> None:
    """Make inputs of the weights: serialized with its weights, a model is slow to infer."""
    helper = need("onnx.helper")
    own = {one.name for one in graph.input}
    external = need("onnx.external_data_helper")
    small = [one for one in graph.initializer if math.prod(one.dims) <= LARGEST_CONSTANT]
    for one in small:
        if external.uses_external_data(one):
            external.load_external_data_for_tensor(one, str(folder))
            one.data_location = need("onnx").TensorProto.DEFAULT
            del one.external_data[:]
    for one in graph.initializer:
        if math.prod(one.dims) > LARGEST_CONSTANT and one.name not in own:
            value = helper.make_tensor_value_info(one.name, one.data_type, list(one.dims))
            graph.input.append(value)
    kept = [type(one).FromString(one.SerializeToString()) for one in small]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _bind(graph: Any, sizes: Mapping[str, int], name: str) -> None:
    """Give every symbolic axis of the inputs its size, and forget what was inferred without."""
    missing: dict[str, None] = {}
    for value in graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]  # dim_param goes: it is one of the two
            elif not axis.HasField("dim_value"):
                missing[axis.dim_param or f"an axis of {value.name}"] = None
    if missing:
        raise BundleError(
            f"{name} has axes without a size: {', '.join(missing)}",
            hint="Give each of them a size.",
        )
    _forget(graph)


def _forget(graph: Any) -> None:
    """Drop the shapes that were inferred."""
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _fold(model: Any) -> int:
    """Make constants of the nodes that compute one: of shapes, or of constants; how many."""
    graph = model.graph
    to_array, from_array = need("onnx.numpy_helper").to_array, need("onnx.numpy_helper").from_array
    constants = {one.name: to_array(one) for one in graph.initializer}
    outputs = {value.name for value in graph.output}
    known = _shapes(graph)
    left, folded = [], 0
    for node in graph.node:
        value = None
        if len(node.output) == 1 and node.output[0] not in outputs:
            value = _value_of(node, model.opset_import, constants, known)
        if value is None:
            left.append(node)
            continue
        folded += 1
        constants[node.output[0]] = value
        graph.initializer.append(from_array(value, node.output[0]))
    kept = [type(node).FromString(node.SerializeToString()) for node in left]
    del graph.node[:]
    graph.node.extend(kept)
    return folded


def _value_of(
    node: Any, opsets: Any, constants: Mapping[str, np.ndarray], known: Mapping[str, Sizes]
) -> np.ndarray | None:
    if node.op_type == "Shape" and node.input[0] in known:
        found = {one.name: one.i for one in node.attribute}
        return np.array(known[node.input[0]][found.get("start", 0) : found.get("end")], np.int64)
    if not node.input or any(name not in constants for name in node.input):
        return None
    if node.domain or any(one.HasField("g") for one in node.attribute):
        return None
    onnx = need("onnx")
    unknown = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "one", [unknown(name) for name in set(node.input)], [unknown(node.output[0])]
    )
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    evaluator = need("onnx.reference").ReferenceEvaluator(model)
    (value,) = evaluator.run(None, {name: constants[name] for name in node.input})
    # What is larger is no size of anything, and would be serialized again and again.
    return np.asarray(value) if np.size(value) <= LARGEST_CONSTANT else None


def _shapes(graph: Any) -> dict[str, Sizes]:
    """Shapes of the values whose every axis is known."""
    shapes: dict[str, Sizes] = {one.name: list(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim):
            shapes[value.name] = [axis.dim_value for axis in kind.shape.dim]
    return shapes


def _product(node: Any, known: Mapping[str, Sizes], left: int = 0) -> int:
    """Multiply-adds of ``[..., m, k] @ [..., k, n]``."""
    return math.prod(known[node.output[0]]) * known[node.input[left]][-1]


def _gemm(node: Any, known: Mapping[str, Sizes]) -> int:
    inner = 0 if _attribute(node, "transA") else 1
    return math.prod(known[node.output[0]]) * known[node.input[0]][inner]


def _attention(node: Any, known: Mapping[str, Sizes]) -> int:
    """Multiply-adds of ``(Q @ K^T) @ V``; inputs ``[batch, heads, length, size]`` or 3-D."""
    queries, keys, values = (known[name] for name in node.input[:3])
    length = keys[-2]
    if len(node.input) > 4 and node.input[4]:
        length += known[node.input[4]][-2]  # the past's
    if len(queries) == 4:
        heads, key_size, value_size = queries[1], queries[-1], values[-1]
    else:
        heads = _attribute(node, "q_num_heads")
        key_size = queries[-1] // heads
        value_size = values[-1] // _attribute(node, "kv_num_heads")
    return queries[0] * heads * queries[-2] * length * (key_size + value_size)


def _convolution(node: Any, known: Mapping[str, Sizes], weight: int = 1) -> int:
    """Each output is a sum over ``[channels / groups, *kernel]``."""
    return math.prod(known[node.output[0]]) * math.prod(known[node.input[weight]][1:])


def _attribute(node: Any, name: str) -> int:
    found: Iterable[int] = (one.i for one in node.attribute if one.name == name)
    return next(iter(found), 0)


COUNTERS: Mapping[str, Callable[[Any, Mapping[str, Sizes]], int]] = {
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Gemm": _gemm,
    "Attention": _attention,
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": lambda node, known: _convolution(node, known, weight=3),
}
