"""The GPUs of this machine, and memory and streams on them, by cuda-bindings."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

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
