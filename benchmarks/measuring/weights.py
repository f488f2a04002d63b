"""How many bytes of weights a run reads, counted in a bundle's graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BundleError
from tfx.extras import need

# ONNX's name of an element type that has fewer bits than a byte to its bits.
NARROW = {"INT4": 4, "UINT4": 4}
FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
# What a weight passes through on its way to the node that uses it.
UNPACKING = ("DequantizeLinear", "Cast", "Transpose", "Reshape")


@dataclass(frozen=True, slots=True)
class Weights:
    """What each run reads: all weights but tables that rows are gathered from.

    Attributes:
        elements: Of each element type, by ONNX's name of it.
    """

    elements: Mapping[str, int]

    def bytes_in(self, precision: str, *, of_source: bool = False) -> int:
        """Bytes of a run.

        Args:
            precision: Type it multiplies in; floats are read in it, where it is one of floats.
            of_source: Whether PyTorch runs what the graph was made from: then all are floats.
        """
        bits = {DType.FLOAT16.value: 16, DType.BFLOAT16.value: 16, DType.FLOAT32.value: 32}
        floats = bits.get(precision, 32)
        total = 0
        for name, count in self.elements.items():
            total += count * (floats if of_source or name in FLOATS else NARROW.get(name, 8))
        return total // 8


def weights_of(bundle: Bundle) -> Weights:
    """Count the weights of a bundle's graph.

    Raises:
        BundleError: If it holds an engine.
    """
    if bundle.manifest.engine is not None:
        raise BundleError(
            f"{bundle.name} holds an engine, and weights are counted in a graph",
            hint="Name the bundle it was built from.",
        )
    return weights_of_graph(need("onnx").load(bundle.model, load_external_data=False).graph)


def weights_of_graph(graph: Any) -> Weights:
    """Count the weights of an ONNX graph; integers of 32 bits and more are sizes and indices."""
    users: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            users.setdefault(name, []).append((node, place))
    type_name = need("onnx").TensorProto.DataType.Name
    found: Counter[str] = Counter()
    for one in graph.initializer:
        name = type_name(one.data_type)
        sized = name in FLOATS or name in NARROW or "8" in name
        if sized and not _is_table(one.name, users):
            found[name] += math.prod(one.dims)
    return Weights(dict(found))


def _is_table(name: str, users: Mapping[str, list[tuple[Any, int]]]) -> bool:
    """Whether a weight is only ever gathered from, a few rows at a time."""
    for node, place in users.get(name, []):
        if node.op_type == "Gather" and place == 0:
            continue
        if node.op_type in UNPACKING and place == 0:
            if all(_is_table(output, users) for output in node.output if output):
                continue
            return False
        return False
    return True
