"""PyTorch: the model a bundle was made from, as the reference, or rounded to 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
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
from ..device_arrays import DeviceArray, array_of_tensor
from ..pytorch.gpu import run_on_gpu, torch_device
from ..pytorch.modules import Call, load_module, run_module, weights_digest
from ..pytorch.names import named_outputs

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
            return error.with_hint
        return ""

    def load(self, bundle: Bundle, options: RunOptions) -> Executable:
        """Load the bundle's source again and check that its weights are the same.

        Raises:
            BackendError: If the source cannot be loaded here, needs trust it was not
                given, or is not the code or the weights that the bundle was made from; or this
                CPU does not multiply in the precision.
        """
        module, precision, device = load_source(bundle, options)
        return executable_of(module, bundle, device, facts_of("torch", "eager", options, precision))


def facts_of(
    backend: str, engine: str, options: RunOptions, precision: DType, notes: tuple[str, ...] = ()
) -> RunFacts:
    """What a PyTorch model on the device of ``options`` really does."""
    on_gpu = options.device != "cpu"
    if on_gpu and precision is DType.FLOAT32:
        notes = (*notes, "TF32 is off")
    return RunFacts(
        backend=backend,
        version=version_of("torch") or "",
        engine=engine,
        device="cuda:0" if options.device == "cuda" else options.device,
        precision=precision,
        threads=0 if on_gpu else options.threads,
        notes=notes,
    )


def executable_of(
    module: Call, bundle: Bundle, device: torch.device, facts: RunFacts
) -> Executable:
    """A loaded model, on a CPU or a GPU as ``facts`` say."""
    if facts.device == "cpu":
        return TorchExecutable(module, bundle, facts)
    return TorchGpuExecutable(module, bundle, facts, device)


def load_source(
    bundle: Bundle, options: RunOptions, *, compiled: bool = False
) -> tuple[Call, DType, torch.device]:
    """The PyTorch model a bundle was made from, what it computes in, and where.

    Float32 unless the options say otherwise, whatever the bundle's own precision is: this is
    what the bundle was made from. In 16 bits the module itself is cast, its outputs come back
    as float32: MiniLM 1x128 takes 109 ms of CPU time in bfloat16 so and 237 ms under autocast.

    Args:
        bundle: Says which source.
        options: Precision, and whether its code may run.
        compiled: Compile the module. What does not compile as one graph, or more shapes than
            PyTorch makes graphs for, is an error then, and no part that runs eagerly.

    Raises:
        BackendError: As ``TorchEager.load``.
    """
    source = bundle.manifest.source.found_from(bundle.path.resolve().parent)
    device = torch_device(options.device)
    asked = PRECISIONS.get(options.precision, DType.FLOAT32)
    able = [DType.FLOAT32]
    if options.device != "cpu":
        able += [DType.FLOAT16, DType.BFLOAT16]
    elif BFLOAT16_FLAGS & read_cpu().flags:  # elsewhere PyTorch does it with float32, and slowly
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
    low = None if asked is DType.FLOAT32 else getattr(torch, asked)
    module = module.to(device=device, dtype=low)
    called = torch.compile(module, fullgraph=True) if compiled else module
    return (called if low is None else Rounded(called, low)), asked, device


class Rounded:
    """A module of 16-bit floats, called with float32 and giving it.

    Attributes:
        module: It.
    """

    def __init__(self, module: Call, low: torch.dtype) -> None:
        self.module = module
        self._low = low

    def __call__(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Round the inputs, and give floats back as float32."""
        import torch

        outputs = self.module(
            **{
                name: tensor.to(self._low) if tensor.dtype is torch.float32 else tensor
                for name, tensor in inputs.items()
            }
        )
        return {
            name: tensor.float() if tensor.dtype is self._low else tensor
            for name, tensor in named_outputs(outputs).items()
        }


class TorchExecutable:
    """A model in eval mode, called with the feed's names.

    Attributes:
        facts: What really runs.
    """

    def __init__(self, module: Call, bundle: Bundle, facts: RunFacts) -> None:
        self.facts = facts
        self._module: Call | None = module
        self._names = [spec.name for spec in bundle.manifest.signature.outputs]

    @property
    def module(self) -> Call:
        """The PyTorch module itself.

        Raises:
            BackendError: If it is closed.
        """
        if self._module is None:
            raise session_closed()
        return self._module.module if isinstance(self._module, Rounded) else self._module

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


class TorchGpuExecutable(TorchExecutable):
    """A model in eval mode on a GPU.

    Attributes:
        facts: What really runs.
        gpu: Index of the GPU.
    """

    def __init__(self, module: Call, bundle: Bundle, facts: RunFacts, device: torch.device) -> None:
        super().__init__(module, bundle, facts)
        self.gpu = int(facts.device.partition(":")[2])
        self._device = device

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the module once; only the outputs of the bundle's signature are returned."""
        return self.run_on_gpu(feed, keep=False)  # type: ignore[return-value]

    def run_on_gpu(
        self, feed: Mapping[str, np.ndarray | DeviceArray], *, keep: bool
    ) -> dict[str, np.ndarray | DeviceArray]:
        """Run the module once on arrays that may be on the GPU, as ``GpuExecutable`` says."""
        module = self._module
        if module is None:
            raise session_closed()
        try:
            tensors = run_on_gpu(module, feed, self._device)
            if not keep:
                return {name: tensors[name].cpu().numpy() for name in self._names}
            kept = {name: tensors[name].contiguous() for name in self._names}
        except Exception as error:  # anything a model's own code raises
            raise BackendError(f"torch failed: {error}") from error
        return {name: array_of_tensor(tensor, name) for name, tensor in kept.items()}
