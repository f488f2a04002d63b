"""The GPUs of this machine, and memory and streams on them, by cuda-bindings."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from tfx.errors import BackendError
from tfx.extras import need


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU.

    Attributes:
        index: As in "cuda:0".
        name: E.g. "NVIDIA L4".
        capability: Its compute capability, e.g. "sm89".
        driver: Newest CUDA version its driver speaks, e.g. "12.8".
    """

    index: int
    name: str
    capability: str
    driver: str


def cuda_runtime() -> ModuleType:
    """The CUDA runtime API.

    Raises:
        BackendError: If cuda-bindings is not installed.
    """
    return need("cuda.bindings.runtime")


def call(function: Any, *arguments: Any) -> Any:
    """Call a function of the runtime API and return what it gives beside its error code.

    Returns:
        None, the one value, or a tuple of them.

    Raises:
        BackendError: If it fails.
    """
    error, *values = function(*arguments)
    if int(error):
        raise BackendError(f"{function.__name__} failed: {getattr(error, 'name', error)}")
    if len(values) > 1:
        return tuple(values)
    return values[0] if values else None


def count_devices() -> int:
    """How many GPUs there are.

    Raises:
        BackendError: If there is no driver, or it is older than the runtime needs.
    """
    count: int = call(cuda_runtime().cudaGetDeviceCount)
    return count


def missing_gpu() -> str:
    """Why nothing can run on a GPU here, with what to do about it, or ""."""
    try:
        count = count_devices()
    except BackendError as error:
        hint = error.hint or "Install an NVIDIA driver, or use a machine that has one."
        return f"{error} ({hint})"
    return "" if count else "the NVIDIA driver finds no GPU"


def describe_device(index: int) -> Device:
    """Ask the driver what a GPU is.

    Raises:
        BackendError: If there is no such GPU, or no driver.
    """
    cuda = cuda_runtime()
    properties = call(cuda.cudaGetDeviceProperties, index)
    name = properties.name
    version = call(cuda.cudaDriverGetVersion)
    return Device(
        index,
        (name.decode() if isinstance(name, bytes) else name).rstrip("\0"),
        f"sm{properties.major}{properties.minor}",
        f"{version // 1000}.{version % 1000 // 10}",
    )


class Memory:
    """Memory on the GPU for whoever holds it, given back when nobody does.

    Attributes:
        address: On the GPU.
    """

    def __init__(self, cuda: ModuleType, size_bytes: int, stream: Any) -> None:
        self._cuda = cuda
        self.address = 0
        # From the driver's pool: no wait for the device.
        self.address = int(call(cuda.cudaMallocAsync, max(size_bytes, 1), stream))

    def __del__(self) -> None:
        # Waits for the device: who held it may have work on a stream of its own that reads it.
        if self.address:
            self._cuda.cudaFree(self.address)


class Buffer:
    """Memory on the GPU, and as much of the host's that the GPU reads and writes by itself.

    It grows to what is asked for and never shrinks: shapes come back, and each allocation waits
    for the whole device.

    Attributes:
        device: Address on the GPU; 0 before the first ``reserve``.
        host: Address of the pinned memory.
        size_bytes: Of each.
    """

    def __init__(self, cuda: ModuleType) -> None:
        self._cuda = cuda
        self.device = 0
        self.host = 0
        self.size_bytes = 0

    def reserve(self, size_bytes: int) -> bool:
        """Make room; whether the addresses are new.

        Raises:
            BackendError: If there is not so much memory.
        """
        if size_bytes <= self.size_bytes:
            return False
        self.free()
        self.device = int(call(self._cuda.cudaMalloc, size_bytes))
        self.host = int(call(self._cuda.cudaMallocHost, size_bytes))
        self.size_bytes = size_bytes
        return True

    def array(self, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """The pinned memory as an array; valid until the next ``reserve`` or ``free``."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        assert size <= self.size_bytes
        memory = (ctypes.c_uint8 * size).from_address(self.host)
        return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def upload(self, size_bytes: int, stream: Any) -> None:
        """Begin to copy the first bytes from the host to the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cuda.cudaMemcpyAsync, self.device, self.host, size_bytes, kind, stream)

    def download(self, size_bytes: int, stream: Any) -> None:
        """Begin to copy the first bytes from the GPU to the host."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cuda.cudaMemcpyAsync, self.host, self.device, size_bytes, kind, stream)

    def move(self, target: int, source: int, size_bytes: int, stream: Any) -> None:
        """Begin to copy from one address on the GPU to another."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        call(self._cuda.cudaMemcpyAsync, target, source, size_bytes, kind, stream)

    def free(self) -> None:
        """Give the memory back; may be called twice."""
        if self.device:
            call(self._cuda.cudaFree, self.device)
        if self.host:
            call(self._cuda.cudaFreeHost, self.host)
        self.device = self.host = self.size_bytes = 0
