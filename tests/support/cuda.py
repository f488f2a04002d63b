"""A stand-in for CUDA's runtime API: memory of the host, streams that work when waited for.

Work is kept until it is waited for, so that a copy that is forgotten, or waited for too early,
shows in the numbers.
"""

import ctypes
import enum
from types import ModuleType, SimpleNamespace

import numpy as np

from tfx.dtypes import DType
from tfx.runtime import cuda as cuda_module
from tfx.runtime.device_arrays import DeviceArray

Error = enum.IntEnum("Error", "cudaSuccess cudaErrorMemoryAllocation cudaErrorNoDevice", start=0)


class FakeCuda:
    """One GPU of ``memory_bytes``; ``calls`` counts every function called."""

    def __init__(self, *, capability=(8, 9), memory_bytes=1 << 30, count=1):
        self.capability, self.memory_bytes, self.count = capability, memory_bytes, count
        self.memory, self.streams, self.graphs, self.capturing = {}, {}, {}, {}
        self.calls, self.device, self.handles = {}, 0, 0
        self.kinds = {}  # of copies: 1 to the GPU, 2 from it, 3 within it
        self.capturable = True

    def module(self) -> ModuleType:
        """``cuda.bindings.runtime``, as far as we use it."""
        module = ModuleType("cuda.bindings.runtime")
        for name in dir(self):
            if name.startswith("cuda"):
                setattr(module, name, self._counted(name, getattr(self, name)))
        module.cudaMemcpyKind = SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        )
        module.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        return module

    def _counted(self, name, function):
        def counted(*arguments):
            self.calls[name] = self.calls.get(name, 0) + 1
            return function(*arguments)

        counted.__name__ = name
        return counted

    def enqueue(self, stream, work):
        """Put work into a stream, or into the graph that it is recording."""
        (self.capturing[stream] if stream in self.capturing else self.streams[stream]).append(work)

    def _handle(self):
        self.handles += 1
        return self.handles

    def _allocate(self, size):
        if size + sum(len(block) for block in self.memory.values()) > self.memory_bytes:
            return Error.cudaErrorMemoryAllocation, 0
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        address = ctypes.addressof(block)
        self.memory[address] = block
        return Error.cudaSuccess, address

    def _free(self, address):
        del self.memory[address]
        return (Error.cudaSuccess,)

    cudaMalloc = cudaMallocHost = _allocate
    cudaFree = cudaFreeHost = _free

    def cudaMallocAsync(self, size, stream):
        return self._allocate(size)

    def cudaGetDeviceCount(self):
        if not self.count:
            return Error.cudaErrorNoDevice, 0
        return Error.cudaSuccess, self.count

    def cudaGetDeviceProperties(self, index):
        if index >= self.count:
            return Error.cudaErrorNoDevice, None
        major, minor = self.capability
        return Error.cudaSuccess, SimpleNamespace(name=b"Fake GPU\0", major=major, minor=minor)

    def cudaDriverGetVersion(self):
        return Error.cudaSuccess, 12080

    def cudaSetDevice(self, index):
        self.device = index
        return (Error.cudaSuccess,)

    def cudaStreamCreate(self):
        stream = self._handle()
        self.streams[stream] = []
        return Error.cudaSuccess, stream

    def cudaStreamDestroy(self, stream):
        del self.streams[stream]
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        assert stream not in self.capturing
        pending, self.streams[stream] = self.streams[stream], []
        for work in pending:
            work()
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert size <= min(len(self.memory[target]), len(self.memory[source]))
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size))
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.capturing[stream] = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        graph = self._handle()
        self.graphs[graph] = self.capturing.pop(stream)
        return Error.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        made = self._handle()
        self.graphs[made] = list(self.graphs[graph])
        return Error.cudaSuccess, made

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (Error.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, stream):
        self.streams[stream] += self.graphs[graph]
        return (Error.cudaSuccess,)


def plant_gpu(monkeypatch, backend, **settings):
    """Make this a machine with one GPU of sm89, for ``backend``, a module, and the rest."""
    cuda = FakeCuda(**settings)
    monkeypatch.setattr(cuda_module, "cuda_runtime", cuda.module)
    monkeypatch.setattr(backend, "cuda_runtime", cuda.module)
    return cuda


def on_gpu(gpu, feed):
    """The feed's arrays in the GPU's memory, and what holds them."""
    found = {}
    for name, array in feed.items():
        error, address = gpu.cudaMalloc(array.nbytes)
        assert not error
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        found[name] = DeviceArray(address, DType.parse(array.dtype), array.shape, 0, None)
    return found


def host(array):
    """What a ``DeviceArray`` in the stand-in's memory holds."""
    return np.frombuffer(
        ctypes.string_at(array.address, array.size_bytes), array.dtype.numpy
    ).reshape(array.shape)
