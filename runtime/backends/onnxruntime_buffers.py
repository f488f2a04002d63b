"""A graph of ONNX Runtime on a GPU: bound buffers, and CUDA graphs of runs that come again."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from tfx.errors import BackendError
from tfx.signature import Feed, Signature, TensorSpec

from ..backend import RunFacts, session_closed
from ..cuda import Buffer, Memory, call
from ..device_arrays import DeviceArray

# Shapes whose run is kept as a CUDA graph; each has buffers of its own.
MAX_GRAPHS = 16

# The entry of a run's options that names its CUDA graph, and what stands for none.
GRAPH_ID, NO_GRAPH = "gpu_graph_id", "-1"

MixedFeed = Mapping[str, np.ndarray | DeviceArray]


@dataclass(slots=True)
class _Bound:
    """Buffers, what binds them, and the CUDA graph that reads and writes them.

    Attributes:
        buffers: By tensor name.
        options: Of its runs; they name the graph.
        binding: None until it is bound, and for buffers that are bound anew for each run.
    """

    buffers: dict[str, Buffer]
    options: Any
    binding: Any = None


@dataclass(slots=True)
class _State:
    """What is freed when it is closed."""

    session: Any
    scratch: _Bound
    graphs: dict[Any, _Bound] = field(default_factory=dict)
    seen: set[Any] = field(default_factory=set)


class GpuOnnxExecutable:
    """A graph loaded by ONNX Runtime on a GPU. One run at a time: it has one stream.

    The first run of a shape uses buffers that all shapes share. A shape that comes again gets
    buffers of its own, and its run is kept as a CUDA graph.

    Attributes:
        facts: What really runs.
        gpu: Index of the GPU.
    """

    def __init__(
        self,
        ort: ModuleType,
        cuda: ModuleType,
        session: Any,
        stream: Any,
        signature: Signature,
        facts: RunFacts,
        *,
        gpu: int,
        capture: bool,
    ) -> None:
        self.facts = facts
        self.gpu = gpu
        self._ort, self._cuda = ort, cuda
        self._stream = stream
        self._signature = signature
        self._capture = capture
        self._lock = threading.Lock()
        self._state: _State | None = _State(session, self._bound(NO_GRAPH))

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the graph once; outputs by name.

        Raises:
            BackendError: If it is closed, or ONNX Runtime or the driver fails.
        """
        return self.run_on_gpu(feed, keep=False)  # type: ignore[return-value]

    def run_on_gpu(self, feed: MixedFeed, *, keep: bool) -> dict[str, np.ndarray | DeviceArray]:
        """Run the graph once on arrays that may be on the GPU, as ``GpuExecutable`` says."""
        with self._lock:
            if (state := self._state) is None:
                raise session_closed()
            call(self._cuda.cudaSetDevice, self.gpu)  # a thread starts with device 0
            shapes = self._output_shapes(feed)
            bound = self._choose(state, feed, shapes)
            if bound is state.scratch:
                self._bind(state.session, bound, feed, shapes, in_place=True)
                self._fill(bound, feed, in_place=True)
            else:
                if bound.binding is None:
                    self._bind(state.session, bound, feed, shapes, in_place=False)
                self._fill(bound, feed, in_place=False)
            try:
                state.session.run_with_iobinding(bound.binding, bound.options)
            except Exception as error:  # its pybind exceptions share no public base
                raise BackendError(f"onnxruntime failed: {error}") from error
            return self._collect(bound, shapes, keep=keep)

    def close(self) -> None:
        """Free session, buffers and stream, once no run needs them."""
        with self._lock:
            if (state := self._state) is None:
                return
            self._state = None
            every = [state.scratch, *state.graphs.values()]
            for bound in every:
                bound.binding = None
            state.session = None  # before the stream that it runs on
            for bound in every:
                for buffer in bound.buffers.values():
                    buffer.free()
            call(self._cuda.cudaStreamDestroy, self._stream)

    def _bound(self, graph: str) -> _Bound:
        options = self._ort.RunOptions()
        options.add_run_config_entry(GRAPH_ID, graph)
        specs = (*self._signature.inputs, *self._signature.outputs)
        return _Bound({spec.name: Buffer(self._cuda) for spec in specs}, options)

    def _output_shapes(self, feed: MixedFeed) -> list[tuple[int, ...] | None]:
        """Of every output; None for one whose sizes no input has."""
        sizes: dict[Any, int] = {}
        for spec in self._signature.inputs:
            sizes |= zip(spec.shape, feed[spec.name].shape, strict=True)
        return [
            tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
            if all(isinstance(axis, int) or axis in sizes for axis in spec.shape)
            else None
            for spec in self._signature.outputs
        ]

    def _choose(
        self, state: _State, feed: MixedFeed, shapes: list[tuple[int, ...] | None]
    ) -> _Bound:
        """The buffers of a run."""
        key = tuple(feed[spec.name].shape for spec in self._signature.inputs)
        if key in state.graphs:
            return state.graphs[key]
        if not self._capture or None in shapes or len(state.graphs) >= MAX_GRAPHS:
            return state.scratch
        if key not in state.seen:
            if len(state.seen) > 64 * MAX_GRAPHS:  # shapes that never come again
                state.seen.clear()
            state.seen.add(key)
            return state.scratch
        state.graphs[key] = self._bound(str(len(state.graphs) + 1))
        return state.graphs[key]

    def _bind(
        self,
        session: Any,
        bound: _Bound,
        feed: MixedFeed,
        shapes: list[tuple[int, ...] | None],
        *,
        in_place: bool,
    ) -> None:
        """Tell ONNX Runtime where inputs and outputs are; ``in_place``: wherever an input is."""
        binding = session.io_binding()
        for spec in self._signature.inputs:
            array, buffer = feed[spec.name], bound.buffers[spec.name]
            if in_place and isinstance(array, DeviceArray):
                address = array.address
            else:
                buffer.reserve(_size_bytes(spec, array.shape))
                address = buffer.device
            binding.bind_input(
                spec.name, "cuda", self.gpu, spec.dtype.onnx, list(array.shape), address
            )
        for spec, shape in zip(self._signature.outputs, shapes, strict=True):
            if shape is None:
                binding.bind_output(spec.name, "cuda", self.gpu)
                continue
            buffer = bound.buffers[spec.name]
            buffer.reserve(max(_size_bytes(spec, shape), 1))
            binding.bind_output(
                spec.name, "cuda", self.gpu, spec.dtype.onnx, list(shape), buffer.device
            )
        bound.binding = binding

    def _fill(self, bound: _Bound, feed: MixedFeed, *, in_place: bool) -> None:
        """Bring the inputs to where they are bound."""
        for spec in self._signature.inputs:
            array, buffer = feed[spec.name], bound.buffers[spec.name]
            if isinstance(array, DeviceArray):
                array.wait_on(int(self._stream))
                if not in_place:
                    buffer.move(buffer.device, array.address, array.size_bytes, self._stream)
            else:
                buffer.array(array.dtype, array.shape)[...] = array
                buffer.upload(array.nbytes, self._stream)

    def _collect(
        self, bound: _Bound, shapes: list[tuple[int, ...] | None], *, keep: bool
    ) -> dict[str, np.ndarray | DeviceArray]:
        """The outputs, in memory of their own."""
        cuda = self._cuda
        values = bound.binding.get_outputs() if None in shapes else []
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        kept: dict[str, np.ndarray | DeviceArray] = {}
        copied: list[tuple[TensorSpec, tuple[int, ...]]] = []
        for index, (spec, known) in enumerate(zip(self._signature.outputs, shapes, strict=True)):
            buffer = bound.buffers[spec.name]
            shape = known if known is not None else tuple(values[index].shape())
            source = buffer.device if known is not None else values[index].data_ptr()
            size = _size_bytes(spec, shape)
            if keep:
                memory = Memory(cuda, size, self._stream)
                if size:
                    buffer.move(memory.address, source, size, self._stream)
                kept[spec.name] = DeviceArray(memory.address, spec.dtype, shape, self.gpu, memory)
                continue
            if known is None:
                buffer.reserve(max(size, 1))
            if size:
                call(cuda.cudaMemcpyAsync, buffer.host, source, size, kind, self._stream)
            copied.append((spec, shape))
        call(cuda.cudaStreamSynchronize, self._stream)
        if keep:
            return kept
        return {
            spec.name: bound.buffers[spec.name].array(spec.dtype.numpy, shape).copy()
            for spec, shape in copied
        }


def _size_bytes(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * spec.dtype.itemsize
