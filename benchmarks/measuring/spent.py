"""What a run's time was spent on: shares of operators, and of the kinds that they are of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Kinds of operators by the names engines give them, first that fits; the others are "rest". PyTorch
# compiled, and OpenVINO's "Subgraph", are of several operators: their name lists them, or is rest.
REST = "rest"
KINDS = {
    "attention": re.compile(r"attention|scaled_?dot_?product|scaledattn|sdpa"),
    "matrix products": re.compile(
        r"matmul|gemm|fullyconnected|innerproduct|einsum|(?<!quantize)linear|addmm|(^|::)b?mm$"
        r"|conv(olution|transpose|integer|2d|1d|3d|_)?$|mkldnn_convolution"
    ),
    "normalization": re.compile(r"norm|^mvn$"),
    "activations": re.compile(r"gelu|relu|silu|swish|mish|elu$|sigmoid|tanh|erf$|softmax"),
    "moved and converted": re.compile(
        r"quantizelinear|fakequantize|^cast$|convert|reorder|transpose|reshape|copy_?$|::to$"
        r"|::_to_copy|concat|^cat$|::cat$|slice|split|gather|embedding|index_select|expand|pad$"
    ),
}


@dataclass(frozen=True, slots=True)
class Share:
    """Time of one operator or layer.

    Attributes:
        name: Of it.
        ms: Of one run.
        share: Of all that was counted; 0 to 1.
        nodes: Of the graph; of PyTorch, layers that have the operator.
    """

    name: str
    ms: float
    share: float
    nodes: int


def kind_of(op: str) -> str:
    """The kind of an operator by its name in an engine: a key of ``KINDS``, or ``REST``."""
    name = op.lower()
    return next((kind for kind, pattern in KINDS.items() if pattern.search(name)), REST)


def kinds_of(ops: Iterable[Share]) -> tuple[Share, ...]:
    """Time by kind of operator, in the order of ``KINDS``, ``REST`` last."""
    found: dict[str, Share] = {}
    for one in ops:
        kind = kind_of(one.name)
        before = found.get(kind, Share(kind, 0.0, 0.0, 0))
        found[kind] = Share(
            kind, before.ms + one.ms, before.share + one.share, before.nodes + one.nodes
        )
    return tuple(found[kind] for kind in (*KINDS, REST) if kind in found)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a row's time went to.

    Attributes:
        ops: By operator, as the engine calls them, most first.
        runs: How many were counted.
        reason: Why there is nothing; "".
    """

    ops: tuple[Share, ...] = ()
    runs: int = 0
    reason: str = ""

    @property
    def kinds(self) -> tuple[Share, ...]:
        """By kind of operator, in their order."""
        return kinds_of(self.ops)
