"""A graph's float32 to float16 or bfloat16, but for what such numbers cannot hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from tfx.dtypes import DType
from tfx.errors import QuantizeError
from tfx.quantization import KeptNode

from .forms import can_be_lower, has_floats, is_bound, is_constant, is_float
from .overflow import SMALL, Limits, find_kept, mask_values

LOW_TYPES = {DType.FLOAT16: ir.DataType.FLOAT16, DType.BFLOAT16: ir.DataType.BFLOAT16}

# Attributes that say which type a node gives; no input does.
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def lower_floats(
    model: ir.Model,
    dtype: DType,
    ranges: Mapping[str, float] | None,
    keep: Collection[str] = (),
) -> list[KeptNode]:
    """Make a graph's float32 float16 or bfloat16, weights and activations.

    Inputs and outputs of the graph keep their types. What would overflow, lose an epsilon or
    count positions stays in float32, with one Cast for each value that crosses over. Numbers
    that mean "masked" become half of the type's largest, so that a row that masks everything
    gives no NaN.

    Args:
        model: Of float32, with the type of every value; changed in place.
        dtype: float16 or bfloat16.
        ranges: Value name to the largest magnitude calibration saw; None to check the weights
            alone.
        keep: Groups that stay: names of modules, or of nodes.

    Returns:
        Every node that could compute in ``dtype`` and does not, in the graph's order.

    Raises:
        QuantizeError: If ``dtype`` is another type, the type of a value is not known, or there
            is no float32.
    """
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass

    limits = Limits.of(dtype)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _require_types(model)
    masks = mask_values(model.graph, limits)
    kept = find_kept(model, limits, ranges, keep, masks)
    _Lowering(model.graph, limits, kept, masks).run()
    NameFixPass()(model)
    return [
        KeptNode(str(node.name), node.metadata_props.get("scope", ""), reason)
        for node, reason in kept.items()
    ]


def cpu_variant(model: ir.Model) -> ir.Model:
    """The graph of ``lower_floats`` for engines that compute in float32 alone.

    ONNX Runtime on x86 has few float16 kernels, casts around each of the others on every run,
    and has none for bfloat16. Here the same weights are cast to float32, which it does once,
    when it loads them; everything else is float32.

    Args:
        model: A graph of float16 or bfloat16 inside, with float32 inputs and outputs. Weights
            that lie in a file beside it stay where they are: saved in the same folder, both
            graphs read that file.

    Returns:
        A new graph; ``model`` stays as it is.

    Raises:
        QuantizeError: If an input or output has a type that would change.
    """
    variant = model.clone()
    graph, low = variant.graph, set(LOW_TYPES.values())
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in low:
            raise QuantizeError(
                f"{value.name} is {value.dtype}, expected an interface of float32",
                hint="Lower a graph with lower_floats, which keeps the types of its interface.",
            )
    first = graph.node(0)
    for weight in list(graph.initializers.values()):
        if weight.dtype not in low:
            continue
        assert weight.const_value is not None
        if weight.const_value.size <= SMALL:
            _set_constant(weight, weight.const_value.numpy().astype(np.float32))
            continue
        cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT})
        cast.outputs[0].name = f"{weight.name}_float32"
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        cast.outputs[0].shape = weight.shape
        ir.convenience.replace_all_uses_with(weight, cast.outputs[0])
        cast.replace_input_with(0, weight)
        graph.insert_before(first, cast)
    for node in list(graph.all_nodes()):
        for value in node.outputs:
            if value.dtype in low:
                value.type = ir.TensorType(ir.DataType.FLOAT)
        _set_type_attributes(node, low, ir.DataType.FLOAT)
        if _changes_nothing(node):
            _bypass(node)
    _restore_masks(graph)
    return variant


class _Lowering:
    """Gives each value its type, and casts those that are read in two."""

    def __init__(
        self,
        graph: ir.Graph,
        limits: Limits,
        kept: Collection[ir.Node],
        masks: Collection[ir.Value],
    ) -> None:
        self.graph, self.limits, self.kept, self.masks = graph, limits, kept, masks
        self.low = LOW_TYPES[limits.dtype]

    def run(self) -> None:
        nodes = list(self.graph)
        first = nodes[0] if nodes else None
        given = [value for value in self.graph.inputs if is_float(value)]
        weights = [value for value in self.graph.initializers.values() if is_float(value)]
        outputs = [value for node in nodes for value in node.outputs if is_float(value)]
        # Which uses want the lower type, before any value has changed its own.
        wanted = {value: self._lower_uses(value) for value in (*given, *weights, *outputs)}
        lowered = {
            value
            for node in nodes
            for index, value in enumerate(node.outputs)
            if is_float(value) and self._gives_lower(node, index)
        }
        for node in nodes:
            if node not in self.kept:
                _set_type_attributes(node, {ir.DataType.FLOAT}, self.low)
        for value in given:
            self._cast_uses(value, wanted[value], None)
        for value in weights:
            self._lower_weight(value, wanted[value], first)
        for value in outputs:
            if value in lowered:
                self._lower_output(value, wanted[value])
            else:
                self._cast_uses(value, wanted[value], value.producer())
        for node in nodes:
            if _changes_nothing(node):
                _bypass(node)

    def _lower_uses(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        return [
            (use.node, use.idx)
            for use in value.uses()
            if use.node.graph is self.graph
            and use.node not in self.kept
            and can_be_lower(use.node, use.idx, self.limits.dtype)
        ]

    def _gives_lower(self, node: ir.Node, index: int) -> bool:
        if node in self.kept or not can_be_lower(node, index, self.limits.dtype, output=True):
            return False
        if is_bound(node, index) or node.op_type in ("ConstantOfShape", "DequantizeLinear"):
            return True
        return any(name in node.attributes for name in TYPE_ATTRIBUTES)

    def _lower_weight(
        self, value: ir.Value, lower: list[tuple[ir.Node, int]], first: ir.Node | None
    ) -> None:
        if not lower:
            return
        assert value.const_value is not None
        others = len(value.uses()) > len(lower) or value.is_graph_output()
        if others and value.const_value.size > SMALL:
            self._cast_uses(value, lower, None)
            return
        array = value.const_value.numpy()
        if value in self.masks:
            # Infinities stay: such a row was all NaN before.
            beyond = np.isfinite(array) & (np.abs(array) > self.limits.allowed)
            array = np.where(beyond, np.copysign(self.limits.masking, array), array)
        with np.errstate(under="ignore"):  # tiny weights become zero
            array = array.astype(self.limits.dtype.numpy)
        if not others:
            _set_constant(value, array)
            return
        copy = ir.Value(name=f"{value.name}_{self.limits.dtype}", shape=value.shape)
        _set_constant(copy, array)
        self.graph.register_initializer(copy)
        for node, index in lower:
            node.replace_input_with(index, copy)

    def _lower_output(self, value: ir.Value, lower: list[tuple[ir.Node, int]]) -> None:
        """Give a value the lower type, and a Cast to those who read it in float32."""
        others = [(u.node, u.idx) for u in value.uses() if (u.node, u.idx) not in lower]
        producer = value.producer()
        assert producer is not None
        value.type = ir.TensorType(self.low)
        if not others and not value.is_graph_output():
            return
        cast = self._cast(value, ir.DataType.FLOAT, producer)
        if value.is_graph_output():
            name = value.name
            value.name = f"{name}_{self.limits.dtype}"
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = cast
            cast.name = name
        for node, index in others:
            node.replace_input_with(index, cast)

    def _cast_uses(
        self, value: ir.Value, lower: list[tuple[ir.Node, int]], after: ir.Node | None
    ) -> None:
        """Give those who read a float32 value in the lower type one Cast."""
        if not lower:
            return
        source = value
        if value in self.masks:
            # The lowest float32 would become minus infinity.
            lowest = self._constant(-self.limits.masking)
            source = self._insert("Max", [value, lowest], {}, ir.DataType.FLOAT, value, after)
            after = source.producer()
        cast = self._insert("Cast", [source], {"to": self.low}, self.low, value, after)
        for node, index in lower:
            node.replace_input_with(index, cast)

    def _cast(self, value: ir.Value, dtype: ir.DataType, after: ir.Node) -> ir.Value:
        return self._insert("Cast", [value], {"to": dtype}, dtype, value, after)

    def _insert(
        self,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, ir.DataType],
        dtype: ir.DataType,
        like: ir.Value,
        after: ir.Node | None,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        output = node.outputs[0]
        output.name = f"{like.name}_{op_type.lower()}_{DType.from_onnx(dtype)}"
        output.type, output.shape = ir.TensorType(dtype), like.shape
        if after is None:
            self.graph.insert_before(self.graph.node(0), node)
        else:
            node.metadata_props.update(after.metadata_props)
            self.graph.insert_after(after, node)
        return output

    def _constant(self, number: float) -> ir.Value:
        name = f"lowest_{self.limits.dtype}"
        if name not in self.graph.initializers:
            value = ir.Value(name=name, shape=ir.Shape([]))
            _set_constant(value, np.array(number, np.float32))
            self.graph.register_initializer(value)
        return self.graph.initializers[name]


def _set_constant(value: ir.Value, array: np.ndarray) -> None:
    tensor = ir.tensor(array, name=value.name)
    value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)


def _set_type_attributes(node: ir.Node, old: Collection[ir.DataType], new: ir.DataType) -> None:
    for name in TYPE_ATTRIBUTES:
        if name in node.attributes and node.attributes.get_int(name) in old:
            node.attributes[name] = ir.AttrInt64(name, int(new))
    if node.op_type == "ConstantOfShape":
        tensor = node.attributes["value"].as_tensor() if "value" in node.attributes else None
        if tensor is None:
            tensor = ir.tensor(np.zeros(1, np.float32))
        if tensor.dtype in old:
            array = tensor.numpy().astype(new.numpy())
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))


def _restore_masks(graph: ir.Graph) -> None:
    """Let masks be as large as float32 has them: a quarter, to be added twice.

    A score added to -32752 is still there in float32: a row that masks everything would be an
    average by its scores, and not the even one of float32's own masks.
    """
    largest = np.finfo(np.float32).max / 4
    for limits in map(Limits.of, LOW_TYPES):
        below = dataclasses.replace(limits, largest=limits.masking)
        for value in mask_values(graph, below):
            if not is_constant(value):
                continue
            assert value.const_value is not None
            array = value.const_value.numpy()
            masked = np.abs(array) == limits.masking
            if masked.any():
                _set_constant(value, np.where(masked, np.copysign(largest, array), array))


def _changes_nothing(node: ir.Node) -> bool:
    """Whether a node casts to the type there is."""
    source = node.inputs[0] if node.op_type == "Cast" and not node.domain else None
    return source is not None and source.dtype == node.outputs[0].dtype


def _bypass(node: ir.Node) -> None:
    """Take out a Cast that changes nothing any more."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    if not output.is_graph_output():
        ir.convenience.replace_all_uses_with(output, source)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        return
    producer = source.producer()
    if producer is None or source.is_graph_output():
        return  # an input or output given back: the Cast stands for an Identity
    name = output.name
    ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    source.name = name


def _require_types(model: ir.Model) -> None:
    unknown = [
        str(value.name)
        for node in model.graph.all_nodes()
        for value in node.outputs
        if value.dtype is None and value.name and (value.uses() or value.is_graph_output())
    ]
    if unknown:
        raise QuantizeError(
            f"the type of {len(unknown)} values is not known, e.g. {unknown[0]}",
            hint="Infer the graph's shapes first.",
        )
    if not any(has_floats(node) for node in model.graph):
        raise QuantizeError("the graph has no float32 to lower", hint="Name a float32 bundle.")
