"""Backend and Executable: the seam between a bundle and what runs it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.signature import Feed

from .device_arrays import DeviceArray

# What a caller may ask for -> the element type of float matrix products.
PRECISIONS = {"fp32": DType.FLOAT32, "bf16": DType.BFLOAT16, "fp16": DType.FLOAT16}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a caller asks of a backend.

    Attributes:
        device: "cpu" or "cuda:0".
        threads: CPU threads of all runs at once.
        trust: Whether code that the bundle brings may run: a factory's file, an engine that was
            not built here.
        precision: Type of float matrix products, a name in ``PRECISIONS``; "" for that of the
            bundle's manifest. Integer products of a quantized graph stay as they are.
        streams: Runs at once that share the threads.
    """

    device: str = "cpu"
    threads: int = 1
    trust: bool = False
    precision: str = ""
    streams: int = 1

    @property
    def run_threads(self) -> int:
        """CPU threads of one run."""
        return max(1, self.threads // self.streams)

    def __post_init__(self) -> None:
        if self.precision and self.precision not in PRECISIONS:
            raise BackendError(
                f"no precision called {self.precision!r}",
                hint=f"Choose one of: {', '.join(PRECISIONS)}.",
            )


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What really runs, as opposed to what was asked for.

    Attributes:
        backend: Name in ``BACKENDS``.
        version: Of the backend's library.
        engine: The execution provider, device plugin or kernel family.
        device: "cpu" or "cuda:0".
        precision: Element type matrix products are done in.
        threads: CPU threads of one run; 0 where a GPU does the work.
        notes: Anything a reader of a benchmark must know, one sentence each.
        streams: Runs at once that it is set up for; more wait, or slow each other down.
    """

    backend: str
    version: str
    engine: str
    device: str
    precision: str
    threads: int
    notes: tuple[str, ...] = field(default=())
    streams: int = 1

    def __str__(self) -> str:
        return f"{self.backend} {self.version} {self.engine} {self.precision}"


class Executable(Protocol):
    """A model loaded on a device, ready to run. ``run`` may be called from many threads."""

    facts: RunFacts

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the model once on a feed that fits the signature; outputs by name.

        Raises:
            BackendError: If the model fails, or is closed.
        """
        ...

    def close(self) -> None:
        """Free what the model holds, when no run needs it; ``run`` is refused after."""
        ...


@runtime_checkable
class GpuExecutable(Protocol):
    """An ``Executable`` on a GPU, which takes tensors there and may leave its outputs there.

    Attributes:
        gpu: Index of the GPU.
    """

    gpu: int

    def run_on_gpu(
        self, feed: Mapping[str, np.ndarray | DeviceArray], *, keep: bool
    ) -> dict[str, np.ndarray | DeviceArray]:
        """As ``run``.

        Args:
            feed: Arrays of NumPy, or on the GPU; those are not changed.
            keep: Leave the outputs on the GPU, in memory of their own that is ready to be read.
        """
        ...


class Backend(Protocol):
    """A way to run a bundle. Stateless: all state lives in the Executable."""

    def missing(self) -> str:
        """Why this machine cannot use the backend, or "" if it can."""
        ...

    def load(self, bundle: Bundle, options: RunOptions) -> Executable:
        """Load the bundle's model.

        Raises:
            BackendError: If it cannot be loaded as asked; never a silent substitute.
        """
        ...


def session_closed() -> BackendError:
    """What a run after ``close`` raises, or one that lost a race with it."""
    return BackendError("session is closed", hint="Open another with open_session.")


def gpu_index(device: str, backend: str) -> int:
    """The index in "cuda:0"; of "cuda" it is 0.

    Raises:
        BackendError: If it is no GPU.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise BackendError(
            f"{backend} runs on GPUs, not on {device!r}", hint="Use device='cuda:0'."
        )
    return int(index or "0")


# Those that can run a model several times at once, each on its part of the threads.
STREAMED = ("onnxruntime", "openvino")


# Runs at once where nobody says how many. Measured with 2 threads, where 2 runs on one each take 5
# to 20 % less processor time than runs on both; more would only multiply what the runs keep.
MOST_STREAMS = 4


def best_streams(backend: str, device: str, threads: int) -> int:
    """Streams that give most throughput: 1 where a backend has no others."""
    return min(threads, MOST_STREAMS) if backend in STREAMED and device == "cpu" else 1


def check_streams(backend: str, options: RunOptions) -> None:
    """Refuse streams that there are no threads for, or that a backend does not have.

    Raises:
        BackendError: If it does not.
    """
    if options.streams == 1:
        return
    if not 1 <= options.streams <= options.threads:
        raise BackendError(
            f"streams is {options.streams}, expected 1 to {options.threads}, one thread each"
        )
    if backend not in STREAMED or options.device != "cpu":
        raise BackendError(
            f"{backend} on {options.device} runs in one stream here, not in {options.streams}",
            hint=f"Use streams=1, or backend {' or '.join(map(repr, STREAMED))} on the CPU.",
        )


def require_graph(bundle: Bundle, backend: str) -> None:
    """Refuse a bundle that holds an engine instead of a graph.

    Raises:
        BackendError: If it does.
    """
    if (engine := bundle.manifest.engine) is not None:
        raise BackendError(
            f"{backend} runs graphs, and {bundle.path} holds an engine: {engine}",
            hint="Use backend='tensorrt', or the parent bundle.",
        )


def float_type(bundle: Bundle, options: RunOptions) -> DType:
    """The element type a backend must do float matrix products in.

    What the options ask for; else the manifest's, which for 8 bits and fewer is that of the
    products that a quantized graph leaves alone.
    """
    if options.precision:
        return PRECISIONS[options.precision]
    own, how = bundle.manifest.precision, bundle.manifest.quantization
    if own in PRECISIONS.values():
        return own
    return how.recipe.rest if how is not None else DType.FLOAT32


def precision_refused(backend: str, asked: DType, able: Iterable[DType]) -> BackendError:
    """What a backend raises that cannot compute in the type asked for."""
    able = list(able)
    names = " or ".join(repr(name) for name, dtype in PRECISIONS.items() if dtype in able)
    return BackendError(
        f"{backend} multiplies matrices in {' or '.join(able)} here, not in {asked}",
        hint=f"Use precision={names}, or another backend.",
    )


# What a backend's facts say of kernels that trade exactness for time where weights have 4 bits.
ROUNDED = (
    "rounds what 4-bit weights are multiplied with to 8 bits; precision='fp32' leaves it floats"
)


def rounds_activations(bundle: Bundle, options: RunOptions) -> bool:
    """Whether kernels for 4-bit weights may round what they are multiplied with to 8 bits.

    They do by default, in groups of 32, each with a scale. Who asks for float32 by name gets it.
    """
    floats = PRECISIONS.get(options.precision)
    return bundle.manifest.precision is DType.INT4 and floats is not DType.FLOAT32


# name -> "module:attribute"; imported only when asked for, so `import tfx` stays light.
BACKENDS: dict[str, str] = {
    "torch": "tfx.runtime.backends.torch_eager:TorchEager",
    "torch-compiled": "tfx.runtime.backends.torch_compiled:TorchCompiled",
    "onnxruntime": "tfx.runtime.backends.onnxruntime:OnnxRuntime",
    "onnxruntime-tensorrt": "tfx.runtime.backends.onnxruntime_gpu:OnnxRuntimeTensorRt",
    "openvino": "tfx.runtime.backends.openvino:OpenVino",
    "tensorrt": "tfx.runtime.backends.tensorrt:TensorRt",
}


# Those that run a bundle's own graph: what runs unless a backend is named, in order.
GRAPH_BACKENDS = ("onnxruntime", "openvino")

# Those that run on GPUs alone.
GPU_BACKENDS = ("onnxruntime-tensorrt", "tensorrt")

# In place of a name: what ``tfx tune`` chose.
AUTO = "auto"


def find_backend(name: str) -> Backend:
    """Return the backend called ``name``, whether or not it works here.

    Raises:
        BackendError: If there is no such backend.
    """
    if name not in BACKENDS:
        raise BackendError(
            f"no backend called {name!r}", hint=f"Choose one of: {', '.join(BACKENDS)}."
        )
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def get_backend(name: str) -> Backend:
    """Return the backend called ``name``, checked to work on this machine.

    Raises:
        BackendError: If there is no such backend, or this machine cannot run it.
    """
    backend = find_backend(name)
    if reason := backend.missing():
        raise BackendError(
            f"backend {name!r} cannot run here: {reason}",
            hint="See what is missing with: tfx doctor",
        )
    return backend


def first_available() -> str:
    """The first of ``GRAPH_BACKENDS`` that this machine has.

    Raises:
        BackendError: If it has none; says why of each.
    """
    reasons = []
    for name in GRAPH_BACKENDS:
        if not (reason := find_backend(name).missing()):
            return name
        reasons.append(f"{name}: {reason}")
    raise BackendError(
        f"no backend can run here: {'; '.join(reasons)}",
        hint="Run: pip install 'tfx-toolkit[cpu]'",
    )
