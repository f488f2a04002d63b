"""What a caller gives as an array: NumPy's own, or another library's tensor, shared by DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfx.errors import FeedError

from .backend import RunFacts
from .device_arrays import device_array


def shared_array(name: str, value: Any, facts: RunFacts, gpu: int | None) -> Any:
    """A value as the array it shares its memory with; as it is where it is no tensor.

    Args:
        name: Of the input.
        value: Anything; a signature's ``bind`` says what is wrong with what is no array.
        facts: What the session runs on.
        gpu: Number of the GPU it runs on; None for the CPU.

    Returns:
        An array of NumPy, or a ``DeviceArray`` on that GPU.

    Raises:
        FeedError: If it is a tensor that cannot be shared, or on another device.
    """
    if isinstance(value, np.ndarray) or (array := device_array(value, name)) is None:
        return host_array(name, value)
    if gpu is None:
        raise FeedError(
            f"{name}: got a tensor on cuda:{array.device}, "
            f"and {facts.backend} runs on {facts.device} here",
            hint="Copy it to the CPU first, or open the session with device='cuda:0'.",
        )
    if array.device != gpu:
        raise FeedError(
            f"{name}: got a tensor on cuda:{array.device}, expected one on cuda:{gpu}",
            hint="Copy it there first.",
        )
    return array


def host_array(name: str, value: Any) -> Any:
    """The same for what is in the memory of the CPU.

    Raises:
        FeedError: If it speaks DLPack and does not let itself be shared.
    """
    # bind() tells the caller about what is neither an array nor DLPack.
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        return value
    try:
        return np.from_dlpack(value)
    # Each library refuses in its own words: on another device, needing gradients, bfloat16.
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise FeedError(
            f"{name}: got a {type(value).__name__} that is not shared as an array: {error}",
            hint="Convert it to a NumPy array first.",
        ) from error
