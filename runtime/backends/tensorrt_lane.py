"""A lane of an engine: an execution context, its stream and buffers, for one run at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from tfx.errors import BackendError, FeedError
from tfx.signature import ShapeRange, Signature, TensorSpec

from ..cuda import Buffer, Memory, call
from ..device_arrays import DeviceArray
from ..engines import errors_of, first_error
from .tensorrt_kernels import Kernels

log = logging.getLogger(__name__)

# Shapes whose run is kept as a CUDA graph; each holds some memory of the device.
MAX_GRAPHS = 16

Profile = Mapping[str, ShapeRange]
MixedFeed = Mapping[str, np.ndarray | DeviceArray]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A deserialized engine and what its lanes share.

    Attributes:
        trt: The library it is of.
        cuda: The CUDA runtime API.
        runtime: ``Runtime`` that deserialized it, and must live as long.
        engine: ``ICudaEngine``.
        device: Index of the GPU.
        signature: What it takes and gives.
        profiles: Sizes of every dynamic axis, one mapping per optimization profile.
        kernels: Of TensorRT-RTX, which compiles them here, and records CUDA graphs by itself; None
            where lanes record them.
    """

    trt: ModuleType
    cuda: ModuleType
    runtime: Any
    engine: Any
    device: int
    signature: Signature
    profiles: tuple[Profile, ...]
    kernels: Kernels | None


def choose_profile(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int:
    """The profile that takes these sizes and is tuned for the nearest.

    Nearest in ratio, over all axes: a batch of 6 is nearer to 8 than to 4.

    Raises:
        FeedError: If none takes them.
    """
    fitting = [
        (sum(abs(math.log(size / profile[axis].opt)) for axis, size in sizes.items()), number)
        for number, profile in enumerate(profiles)
        if all(size in profile[axis] for axis, size in sizes.items())
    ]
    if not fitting:
        asked = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        known = "; ".join(
            ", ".join(f"{axis} {allowed}" for axis, allowed in profile.items())
            for profile in profiles
        )
        raise FeedError(
            f"no profile of the engine takes {asked}, they take {known}",
            hint="Feed other sizes, or build the engine again with --shapes for these.",
        )
    return min(fitting)[1]


class Lane:
    """Runs one feed at a time. Not thread-safe: a lane belongs to one run while it lasts."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        trt, cuda, engine = loaded.trt, loaded.cuda, loaded.engine
        call(cuda.cudaSetDevice, loaded.device)
        self._context = _context(engine, loaded.kernels)
        self._stream: Any = call(cuda.cudaStreamCreate)
        specs = (*loaded.signature.inputs, *loaded.signature.outputs)
        self._buffers = {spec.name: Buffer(cuda) for spec in specs}
        # Shapes that the graph computes with are read by the host.
        self._on_host = {
            spec.name
            for spec in specs
            if engine.get_tensor_location(spec.name) == trt.TensorLocation.HOST
        }
        self._profile = 0
        self._capture = loaded.kernels is None
        # What a recording depends on to a cudaGraphExec_t and the shapes of the outputs.
        self._graphs: dict[Any, tuple[Any, list[tuple[int, ...]]]] = {}
        self._seen: Any = None
        self._allocators: dict[str, Any] = {}

    def run(self, feed: MixedFeed, *, keep: bool = False) -> dict[str, np.ndarray | DeviceArray]:
        """Run the engine once; outputs by name, in memory of their own.

        Arrays on the GPU are read where they are. Outputs that stay there are copied once, within
        the GPU: a recorded run writes to the same memory each time.

        Args:
            feed: Arrays of NumPy, or on the GPU.
            keep: Leave the outputs on the GPU.

        Raises:
            FeedError: If no profile takes the feed's sizes.
            BackendError: If the library or the driver fails.
        """
        loaded = self._loaded
        # A thread starts with device 0.
        call(loaded.cuda.cudaSetDevice, loaded.device)
        arrays = [feed[spec.name] for spec in loaded.signature.inputs]
        key = (keep, *((array.shape, _address_of(array)) for array in arrays))
        if key in self._graphs:
            self._fill(feed)
            graph, shapes = self._graphs[key]
            call(loaded.cuda.cudaGraphLaunch, graph, self._stream)
        else:
            with errors_of(loaded.trt) as errors:
                self._prepare(feed, errors)
                if self._seen == key and self._capture and not self._allocators:
                    shapes = self._record(key, feed, errors)
                else:
                    shapes = self._enqueue(feed, errors, keep=keep)
            self._seen = key
        outputs = list(zip(loaded.signature.outputs, shapes, strict=True))
        kept = {
            spec.name: self._kept(spec, shape)
            for spec, shape in outputs
            if keep and spec.name not in self._on_host
        }
        call(loaded.cuda.cudaStreamSynchronize, self._stream)
        return {
            spec.name: kept.get(spec.name)
            or self._buffers[spec.name].array(spec.dtype.numpy, shape).copy()
            for spec, shape in outputs
        }

    def close(self) -> None:
        """Free context, stream and buffers."""
        cuda = self._loaded.cuda
        self._forget_graphs()
        self._context = None
        for buffer in self._buffers.values():
            buffer.free()
        if self._stream is not None:
            call(cuda.cudaStreamDestroy, self._stream)
            self._stream = None

    def _prepare(self, feed: MixedFeed, errors: list[str]) -> None:
        """Choose the profile, and give every tensor its shape and its memory."""
        loaded, context = self._loaded, self._context
        sizes = {
            axis: size
            for spec in loaded.signature.inputs
            for axis, size in zip(spec.shape, feed[spec.name].shape, strict=True)
            if isinstance(axis, str)
        }
        profile = choose_profile(loaded.profiles, sizes)
        if profile != self._profile:
            if not context.set_optimization_profile_async(profile, self._stream):
                raise _failed("cannot switch to another profile", errors)
            call(loaded.cuda.cudaStreamSynchronize, self._stream)
            self._profile = profile
        for spec in loaded.signature.inputs:
            array = feed[spec.name]
            if (address := _address_of(array)) and spec.name not in self._on_host:
                context.set_tensor_address(spec.name, address)
            else:
                self._reserve(spec.name, _size_bytes(spec, array.shape))
            if not context.set_input_shape(spec.name, array.shape):
                raise _failed(f"refuses {spec.name} of shape {list(array.shape)}", errors)
        self._fill(feed)
        if lacking := context.infer_shapes():
            raise _failed(f"cannot tell the shape of {', '.join(lacking)}", errors)
        for spec in loaded.signature.outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            if -1 in shape:
                self._allocate_later(spec)
            else:
                self._reserve(spec.name, _size_bytes(spec, shape))

    def _reserve(self, name: str, size_bytes: int) -> None:
        buffer = self._buffers[name]
        if buffer.reserve(size_bytes):
            self._forget_graphs()  # they hold the old addresses
        address = buffer.host if name in self._on_host else buffer.device
        self._context.set_tensor_address(name, address)

    def _fill(self, feed: MixedFeed) -> None:
        """Put what is on the host into pinned memory; wait for who makes the rest."""
        cuda = self._loaded.cuda
        for spec in self._loaded.signature.inputs:
            array, buffer = feed[spec.name], self._buffers[spec.name]
            if isinstance(array, np.ndarray):
                buffer.array(array.dtype, array.shape)[...] = array
                continue
            array.wait_on(int(self._stream))
            if spec.name in self._on_host:
                kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
                size = array.size_bytes
                call(cuda.cudaMemcpyAsync, buffer.host, array.address, size, kind, self._stream)
                call(cuda.cudaStreamSynchronize, self._stream)

    def _enqueue(self, feed: MixedFeed, errors: list[str], *, keep: bool) -> list[tuple[int, ...]]:
        """Copy in, run, copy out, in the stream's order; the shapes of the outputs."""
        loaded = self._loaded
        for spec in loaded.signature.inputs:
            array = feed[spec.name]
            if isinstance(array, np.ndarray) and spec.name not in self._on_host:
                self._buffers[spec.name].upload(array.nbytes, self._stream)
        if not self._context.execute_async_v3(int(self._stream)):
            raise _failed("fails to run", errors)
        shapes = []
        for spec in loaded.signature.outputs:
            shapes.append(self._shape(spec))
            if not keep and spec.name not in self._on_host:
                self._buffers[spec.name].download(_size_bytes(spec, shapes[-1]), self._stream)
        return shapes

    def _kept(self, spec: TensorSpec, shape: tuple[int, ...]) -> DeviceArray:
        """A copy of an output, in memory of its own."""
        loaded, size = self._loaded, _size_bytes(spec, shape)
        memory = Memory(loaded.cuda, size, self._stream)
        buffer = self._buffers[spec.name]
        if size:
            buffer.move(memory.address, buffer.device, size, self._stream)
        return DeviceArray(memory.address, spec.dtype, shape, loaded.device, memory)

    def _record(self, key: Any, feed: MixedFeed, errors: list[str]) -> list[tuple[int, ...]]:
        """Keep the run of these shapes as a CUDA graph, and run it.

        The first run of a shape cannot be recorded: the library sets itself up in it.
        """
        cuda = self._loaded.cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cuda.cudaStreamBeginCapture, self._stream, mode)
        try:
            shapes = self._enqueue(feed, errors, keep=key[0])
        except BackendError as error:
            # Engines with loops or sizes that depend on data cannot be recorded.
            log.warning("runs without CUDA graphs: %s", error)
            self._capture = False
            cuda.cudaStreamEndCapture(self._stream)  # fails too, and ends the recording
            return self._enqueue(feed, errors, keep=key[0])
        recorded = call(cuda.cudaStreamEndCapture, self._stream)
        if len(self._graphs) >= MAX_GRAPHS:
            oldest, _ = self._graphs.pop(next(iter(self._graphs)))
            call(cuda.cudaGraphExecDestroy, oldest)
        graph = call(cuda.cudaGraphInstantiate, recorded, 0)
        call(cuda.cudaGraphDestroy, recorded)
        self._graphs[key] = (graph, shapes)
        call(cuda.cudaGraphLaunch, graph, self._stream)
        return shapes

    def _forget_graphs(self) -> None:
        for graph, _ in self._graphs.values():
            call(self._loaded.cuda.cudaGraphExecDestroy, graph)
        self._graphs.clear()

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """The shape of an output; of one that depends on data, only after the run."""
        if (allocator := self._allocators.get(spec.name)) is not None:
            call(self._loaded.cuda.cudaStreamSynchronize, self._stream)
            shape: tuple[int, ...] = allocator.shape
            return shape
        return tuple(self._context.get_tensor_shape(spec.name))

    def _allocate_later(self, spec: TensorSpec) -> None:
        if spec.name in self._allocators:
            return
        buffer = self._buffers[spec.name]
        trt = self._loaded.trt

        class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IOutputAllocator.__init__(self)
                self.shape: tuple[int, ...] = ()

            def reallocate_output_async(
                self, name: str, memory: int, size: int, alignment: int, stream: int
            ) -> int:
                try:
                    buffer.reserve(max(size, 1))
                except BackendError as error:  # nothing may be raised into the library
                    log.warning("no memory for %s: %s", name, error)
                    return 0
                return buffer.device

            def notify_shape(self, name: str, shape: Any) -> None:
                self.shape = tuple(shape)

        self._allocators[spec.name] = Allocator()
        self._context.set_output_allocator(spec.name, self._allocators[spec.name])


def _context(engine: Any, kernels: Kernels | None) -> Any:
    settings = () if kernels is None else (kernels.config,)
    context = engine.create_execution_context(*settings)
    if context is None:
        raise BackendError(
            "the engine gives no execution context",
            hint="Free memory of the GPU, or build the engine for smaller shapes.",
        )
    return context


def _address_of(array: np.ndarray | DeviceArray) -> int:
    """Where it is on the GPU; 0 for an array of the host."""
    return array.address if isinstance(array, DeviceArray) else 0


def _size_bytes(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * spec.dtype.itemsize


def _failed(what: str, errors: list[str]) -> BackendError:
    return BackendError(f"tensorrt {what}: {first_error(errors)}")
