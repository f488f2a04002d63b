"""Tensors in a GPU's memory, taken and given by DLPack: no copy, and no framework needed."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfx.dtypes import DType
from tfx.errors import FeedError

# DLDeviceType of dlpack.h.
CUDA = 2

# DLDataType of dlpack.h: code and bits.
_TYPES = {
    DType.BOOL: (6, 8),
    DType.UINT8: (1, 8),
    DType.INT8: (0, 8),
    DType.INT32: (0, 32),
    DType.INT64: (0, 64),
    DType.FLOAT16: (2, 16),
    DType.BFLOAT16: (4, 16),
    DType.FLOAT32: (2, 32),
    DType.FLOAT64: (2, 64),
    DType.FLOAT8_E4M3: (10, 8),
}

# PyCapsule keeps a pointer to its name.
_NAME = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_python = ctypes.pythonapi
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", _python))
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)
# In a destructor the capsule is gone already for Python: only its address may be touched.
_is_valid_at = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _python)
)
_pointer_at = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)

# What others hold a pointer to, by its address, until they call its deleter.
_lent: dict[int, tuple[Any, ...]] = {}


class DeviceArray:
    """A tensor in a GPU's memory; what a session takes and gives there. Speaks DLPack.

    Attributes:
        address: Of its first element, on the GPU.
        dtype: Element type.
        shape: Sizes; its elements lie in order, the last axis fastest.
        device: Index of the GPU, as in "cuda:0".
    """

    def __init__(
        self, address: int, dtype: DType, shape: tuple[int, ...], device: int, owner: object
    ) -> None:
        self.address = address
        self.dtype = dtype
        self.shape = shape
        self.device = device
        self._owner = owner
        self._producer: Any = None

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}[{', '.join(map(str, self.shape))}] on cuda:{self.device})"

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def outline(self, value: int = 0) -> np.ndarray:
        """A NumPy array of this type and shape that holds ``value`` and no memory."""
        return np.broadcast_to(np.array(value, self.dtype.numpy), self.shape)

    def wait_on(self, stream: int) -> None:
        """Let a stream wait until whoever made the tensor is done with it."""
        if self._producer is not None:
            self._producer.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A capsule of the tensor.

        Args:
            stream: Waits for whoever makes the tensor; None for the default one, -1 for none.
            max_version: Of DLPack; what is given is older than any.
            dl_device: Where the tensor must be; None for where it is.
            copy: Whether it must be a copy, which is refused.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"{self!r} is shared where it is, and not copied")
        if stream != -1:
            self.wait_on(1 if stream is None else stream)
        return _lend(self)


def device_array(value: Any, name: str) -> DeviceArray | None:
    """A tensor of another library as a ``DeviceArray`` of the same memory.

    Args:
        value: Anything.
        name: Of the input, for messages.

    Returns:
        None for what is not in a GPU's memory.

    Raises:
        FeedError: As by ``array_of_tensor``.
    """
    if isinstance(value, DeviceArray):
        return value
    if not hasattr(value, "__dlpack_device__") or value.__dlpack_device__()[0] != CUDA:
        return None
    return array_of_tensor(value, name)


def array_of_tensor(value: Any, name: str) -> DeviceArray:
    """A tensor that speaks DLPack as a ``DeviceArray`` of the same memory.

    Args:
        value: The tensor; it lives as long as the array.
        name: Of the input or output, for messages.

    Raises:
        FeedError: If its elements do not lie in order, or it cannot be shared.
    """
    try:
        capsule = value.__dlpack__(stream=-1)
    # Each library refuses in its own words: needing gradients, on another device.
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise FeedError(
            f"{name}: got a {type(value).__name__} that is not shared: {error}",
            hint="Detach it, on the device that is current.",
        ) from error
    # The capsule is not consumed: when it goes, it gives the tensor back by itself.
    tensor = _Managed.from_address(_pointer_of(capsule, _NAME)).tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    wanted = _strides_of(shape)
    # The stride of an axis of size 1 means nothing.
    if tensor.strides and any(
        size > 1 and tensor.strides[axis] != wanted[axis] for axis, size in enumerate(shape)
    ):
        raise FeedError(
            f"{name}: its elements do not lie in order, the last axis fastest",
            hint="Make it contiguous first.",
        )
    code = (tensor.dtype.code, tensor.dtype.bits)
    known = [dtype for dtype, found in _TYPES.items() if found == code]
    if not known or tensor.dtype.lanes != 1:
        raise FeedError(
            f"{name}: got elements of DLPack's type {code[0]} with {code[1]} bits",
            hint="Convert it to the input's dtype first.",
        )
    address = (tensor.data or 0) + tensor.byte_offset
    array = DeviceArray(address, known[0], shape, tensor.device.index, capsule)
    array._producer = value
    return array


def outlines_of(feed: Mapping[str, Any], lowest: Mapping[str, int]) -> dict[str, Any]:
    """The feed as a signature checks it: values on a GPU are not looked at.

    Args:
        feed: Arrays, of NumPy or on a GPU.
        lowest: Input name to a value that is admitted.
    """
    return {
        name: value.outline(lowest.get(name, 0)) if isinstance(value, DeviceArray) else value
        for name, value in feed.items()
    }


def _strides_of(shape: tuple[int, ...]) -> list[int]:
    """In elements, of a tensor whose elements lie in order."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _lend(array: DeviceArray) -> object:
    count = len(array.shape)
    shape = (ctypes.c_int64 * count)(*array.shape)
    strides = (ctypes.c_int64 * count)(*_strides_of(array.shape))
    pointer = ctypes.POINTER(ctypes.c_int64)
    managed = _Managed(
        _Tensor(
            array.address,
            _Device(*array.__dlpack_device__()),
            count,
            _Type(*_TYPES[array.dtype], 1),
            ctypes.cast(shape, pointer),
            ctypes.cast(strides, pointer),
            0,
        ),
        None,
        _DELETER,
    )
    place = ctypes.addressof(managed)
    _lent[place] = (managed, shape, strides, array)
    return _new_capsule(place, _NAME, ctypes.cast(_DESTRUCTOR, ctypes.c_void_p))


def _give_back(place: int) -> None:  # from any thread
    _lent.pop(place, None)


def _destroy(capsule: int) -> None:
    """Of a capsule that nobody consumed; the consumer of another one calls the deleter."""
    if _is_valid_at(capsule, _NAME):
        _lent.pop(_pointer_at(capsule, _NAME), None)


# C calls these; they must live as long as a capsule may.
_DELETER, _DESTRUCTOR = _Deleter(_give_back), _Destructor(_destroy)
