"""PyTorch: the model a bundle was made from, run as the reference, or rounded to bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BackendError, SourceError
from tfx.extras import need, version_of
from tfx.recipe import SourceKind
from tfx.signature import Feed

from ..backend import (
    PRECISIONS,
    Executable,
    RunFacts,
    RunOptions,
    precision_refused,
    session_closed,
)
from ..cpus import read_cpu
from ..modules import Call, load_module, named_outputs, run_module, weights_digest

if TYPE_CHECKING:
    import torch


# Of /proc/cpuinfo, on x86 and on Arm.
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


class TorchEager:
    """Backend "torch"."""

    def missing(self) -> str:
        """Why this machine cannot use PyTorch, or ""."""
        try:
            need("torch")
        except BackendError as error:
            return f"{error} ({error.hint})"
        return ""

    def load(self, bundle: Bundle, options: RunOptions) -> Executable:
        """Load the bundle's source again and check that its weights are the same.

        Raises:
            BackendError: If the source cannot be loaded here, needs trust it was not
                given, or is not the code or the weights that the bundle was made from; or this
                CPU does not multiply in the precision.
        """
        module, precision = load_source(bundle, options)
        facts = RunFacts(
            backend="torch",
            version=version_of("torch") or "",
            engine="eager",
            device="cpu",
            precision=precision,
            threads=options.threads,
        )
        return TorchExecutable(module, bundle, facts)


def load_source(
    bundle: Bundle, options: RunOptions, *, compiled: bool = False
) -> tuple[Call, DType]:
    """The PyTorch model a bundle was made from, ready to be called, and what it computes in.

    Float32 unless the options say otherwise, whatever the bundle's own precision is: this is
    what the bundle was made from. In bfloat16 the module itself is cast, its outputs come back
    as float32: MiniLM 1x128 takes 109 ms of CPU time so and 237 ms under autocast.

    Args:
        bundle: Says which source.
        options: Precision, and whether its code may run.
        compiled: Compile the module. What does not compile as one graph, or more shapes than
            PyTorch makes graphs for, is an error then, and no part that runs eagerly.

    Raises:
        BackendError: As ``TorchEager.load``.
    """
    source = bundle.manifest.source.found_from(bundle.path.resolve().parent)
    if options.device != "cpu":
        raise BackendError(
            f"torch runs on cpu here, not on {options.device!r}", hint="Use device='cpu'."
        )
    asked = PRECISIONS.get(options.precision, DType.FLOAT32)
    able = [DType.FLOAT32]
    if BFLOAT16_FLAGS & read_cpu().flags:  # elsewhere PyTorch does it with float32, and slowly
        able.append(DType.BFLOAT16)
    if asked not in able:
        raise precision_refused("torch", asked, able)
    if source.kind is SourceKind.MODULE:
        raise BackendError(
            f"{bundle.name} was exported from a module in memory, which cannot be loaded again",
            hint="Export it from file.py:factory to be able to.",
        )
    if source.kind is SourceKind.FACTORY and not options.trust:
        raise BackendError(
            f"the torch reference of {bundle.name} runs Python code of {source.location}",
            hint="Use --trust (trust=True) if you trust that code.",
        )
    if source.kind is SourceKind.FACTORY and not source.file_digest:
        raise BackendError(
            f"{bundle.name} does not say which file {source.location} was: it has no sha256",
            hint="Export it again.",
        )
    try:
        module = load_module(source)
    except SourceError as error:
        raise BackendError(
            f"the source of {bundle.name} cannot be loaded: {error}", hint=error.hint
        ) from error
    if (found := weights_digest(module)) != source.digest:
        raise BackendError(
            f"{source} holds other weights now: sha256 {found[:12]}, "
            f"the bundle was made from {source.digest[:12]}",
            hint="Export it again.",
        )
    torch = need("torch")
    if asked is DType.BFLOAT16:
        module = module.to(torch.bfloat16)
    called = torch.compile(module, fullgraph=True) if compiled else module
    return (called, asked) if asked is DType.FLOAT32 else (_rounded(called), asked)


def _rounded(module: Call) -> Call:
    """A module of bfloat16, called with float32 and giving it."""
    import torch

    def call(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = module(
            **{
                name: tensor.bfloat16() if tensor.dtype is torch.float32 else tensor
                for name, tensor in inputs.items()
            }
        )
        return {
            name: tensor.float() if tensor.dtype is torch.bfloat16 else tensor
            for name, tensor in named_outputs(outputs).items()
        }

    return call


class TorchExecutable:
    """A model in eval mode, called with the feed's names.

    Attributes:
        facts: What really runs.
    """

    def __init__(self, module: Call, bundle: Bundle, facts: RunFacts) -> None:
        self.facts = facts
        self._module: Call | None = module
        self._names = [spec.name for spec in bundle.manifest.signature.outputs]

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the module once; only the outputs of the bundle's signature are returned."""
        module = self._module  # its own reference: close() may come while it runs
        if module is None:
            raise session_closed()
        try:
            outputs = run_module(module, feed, threads=self.facts.threads)
        except Exception as error:  # anything a model's own code raises
            raise BackendError(f"torch failed: {error}") from error
        return {name: outputs[name] for name in self._names}

    def close(self) -> None:
        """Drop the module."""
        self._module = None
