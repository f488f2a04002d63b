"""The products of a graph that can be quantized, and the groups they are kept in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from .forms import is_constant

# Below this many weights the integers save less than the nodes around them cost.
SMALLEST_WEIGHT = 1024

# Nor does it pay with fewer channels than this: what is multiplied apart stays in floats.
FEWEST_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class Product:
    """A node that multiplies an activation by a constant weight.

    Attributes:
        node: A ``MatMul``.
        data: The activation, ``[..., channels]``.
        weight: The constant, ``[channels, outputs]``.
        group: What it is kept or lowered with.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    group: str

    def bias(self) -> tuple[ir.Node, ir.Value] | None:
        """The ``Add`` of a constant, one number per output channel, right after; or None."""
        users = self.node.outputs[0].uses()
        if len(users) != 1 or self.node.outputs[0].is_graph_output():
            return None
        node = users[0].node
        if node.op_type != "Add":
            return None
        other = node.inputs[1 - users[0].idx]
        if other is None or not is_constant(other) or self.weight.shape is None:
            return None
        wanted = ir.Shape([self.weight.shape[1]])
        return (node, other) if other.shape == wanted else None


@dataclass(frozen=True, slots=True)
class Lookup:
    """A ``Gather`` of rows of a constant table.

    Attributes:
        node: The ``Gather``, along axis 0.
        table: The constant, ``[rows, width]``.
        group: What it is kept or lowered with.
    """

    node: ir.Node
    table: ir.Value
    group: str


def find_products(model: ir.Model) -> list[Product]:
    """Products of the main graph, in its order, with a group each.

    Products of one activation (query, key and value) share its scale, so they share a group:
    the longest path of modules they have in common.
    """
    found: dict[ir.Value, list[Product]] = {}
    order: list[tuple[ir.Value, int]] = []
    for node in model.graph:
        product = _product_of(node)
        if product is not None:
            same = found.setdefault(product.data, [])
            order.append((product.data, len(same)))
            same.append(product)
    groups = {
        data: _common_path([scope_of(one.node) for one in same], same[0].node)
        for data, same in found.items()
    }
    return [replace(found[data][index], group=groups[data]) for data, index in order]


def find_lookups(model: ir.Model) -> list[Lookup]:
    """Tables of floats that rows are looked up in, e.g. token embeddings."""
    found = []
    for node in model.graph:
        if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
            continue
        table = node.inputs[0]
        if table is None or not is_constant(table) or table.shape is None:
            continue
        if len(table.shape) == 2 and _is_large_float(table):
            found.append(Lookup(node, table, scope_of(node) or str(node.name)))
    return found


def scope_of(node: ir.Node) -> str:
    """The path of the module a node comes from, e.g. "encoder.layer.0.output.dense"."""
    return str(node.metadata_props.get("scope", ""))


def split_gemms(model: ir.Model) -> int:
    """Turn each ``Gemm`` with a constant weight into ``MatMul`` and ``Add``.

    A graph then has one kind of product, with weights ``[channels, outputs]``. So has a product
    with a table that is transposed, as the head of a language model whose embeddings are tied.

    Returns:
        How many there were.
    """
    count = 0
    matrices: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in list(model.graph):
        if node.op_type == "MatMul" and not node.domain:
            count += _straighten(model.graph, node, matrices)
            continue
        if node.op_type != "Gemm" or node.domain not in ("", "ai.onnx"):
            continue
        data, weight = node.inputs[0], node.inputs[1]
        attributes = node.attributes
        plain = (
            attributes.get_int("transA", 0) == 0
            and attributes.get_float("alpha", 1.0) == 1.0
            and attributes.get_float("beta", 1.0) == 1.0
        )
        if data is None or weight is None or not plain or not is_constant(weight):
            continue
        if not _is_large_float(weight):
            continue
        transposed = attributes.get_int("transB", 0)
        if (weight, transposed) not in matrices:  # tied weights stay tied
            array = array_of(weight).T if transposed else array_of(weight)
            matrices[weight, transposed] = add_constant(model.graph, f"{weight.name}_matrix", array)
        matrix = matrices[weight, transposed]
        product = ir.node("MatMul", [data, matrix])
        product.metadata_props.update(node.metadata_props)
        result = product.outputs[0]
        result.type = node.outputs[0].type
        result.shape = node.outputs[0].shape
        nodes = [product]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            result.name = f"{node.outputs[0].name}_product"
            add = ir.node("Add", [result, bias])
            add.metadata_props.update(node.metadata_props)
            add.outputs[0].type, add.outputs[0].shape = result.type, result.shape
            nodes.append(add)
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs
        )
        drop_unused(model.graph, weight)
        count += 1
    return count


def _straighten(
    graph: ir.Graph, node: ir.Node, matrices: dict[tuple[ir.Value, int], ir.Value]
) -> bool:
    """Let a product read a constant matrix where it reads a constant that is transposed."""
    turned = node.inputs[1].producer() if node.inputs[1] is not None else None
    if turned is None or turned.op_type != "Transpose" or turned.domain:
        return False
    table = turned.inputs[0]
    if table is None or not is_constant(table) or not _is_large_float(table):
        return False
    if table.shape is None or len(table.shape) != 2:
        return False
    if tuple(turned.attributes.get_ints("perm", (1, 0))) != (1, 0):
        return False
    if (table, 1) not in matrices:
        matrices[table, 1] = add_constant(graph, f"{table.name}_matrix", array_of(table).T)
    node.replace_input_with(1, matrices[table, 1])
    if not turned.outputs[0].uses() and not turned.outputs[0].is_graph_output():
        graph.remove(turned, safe=True)
        drop_unused(graph, table)
    return True


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer, called ``name`` or, if that is taken, ``name`` and a number."""
    unique, number = name, 0
    while unique in graph.initializers:
        number += 1
        unique = f"{name}_{number}"
    # Not ascontiguousarray, which gives a scalar an axis.
    tensor = ir.tensor(np.asarray(array, order="C"), name=unique)
    value = ir.Value(name=unique, const_value=tensor)
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    graph.initializers[unique] = value
    return value


def drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Take an initializer out if nothing reads it any more."""
    if not value.uses() and not value.is_graph_output():
        graph.initializers.pop(str(value.name), None)


def groups_of(products: Sequence[Product], lookups: Sequence[Lookup]) -> list[str]:
    """Every group once, in the graph's order; tables first."""
    return list(dict.fromkeys([*(one.group for one in lookups), *(one.group for one in products)]))


def array_of(value: ir.Value) -> np.ndarray:
    """The numbers of a constant, float32."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), dtype=np.float32)


def _product_of(node: ir.Node) -> Product | None:
    if node.domain not in ("", "ai.onnx") or node.op_type != "MatMul":
        return None
    data, weight = node.inputs
    if data is None or weight is None or is_constant(data) or not is_constant(weight):
        return None
    if weight.shape is None or len(weight.shape) != 2 or not _is_large_float(weight):
        return None
    if weight.const_value.shape[0] < FEWEST_CHANNELS:
        return None
    return Product(node, data, weight, "")


def _is_large_float(value: ir.Value) -> bool:
    constant = value.const_value
    return (
        constant is not None
        and constant.dtype == ir.DataType.FLOAT
        and constant.size >= SMALLEST_WEIGHT
    )


def _common_path(scopes: Sequence[str], node: ir.Node) -> str:
    if len(scopes) == 1:
        return scopes[0] or str(node.name)
    common: list[str] = []
    for names in zip(*(scope.split(".") for scope in scopes), strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common) or scopes[0] or str(node.name)


def shared_data(products: Sequence[Product]) -> Iterator[tuple[ir.Value, list[Product]]]:
    """Each activation once, with the products that read it."""
    found: dict[ir.Value, list[Product]] = {}
    for product in products:
        found.setdefault(product.data, []).append(product)
    yield from found.items()
