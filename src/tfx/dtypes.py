"""One element type, with the name every library gives it."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from .errors import SignatureError


class DType(StrEnum):
    """Element type of a tensor; the value is the name NumPy and PyTorch share.

    The 8-bit floats, bfloat16 and int4 have no NumPy type of their own: ``numpy`` takes
    them from ``ml_dtypes``, which every ONNX install brings along.
    """

    BOOL = "bool"
    UINT8 = "uint8"
    INT8 = "int8"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    FLOAT8_E4M3 = "float8_e4m3fn"
    INT4 = "int4"

    @property
    def numpy(self) -> np.dtype:
        """The NumPy dtype, from ``ml_dtypes`` where NumPy has none."""
        return _NUMPY[self] if self in _NUMPY else _ml_dtype(self.value)

    @property
    def onnx(self) -> int:
        """The ``TensorProto.DataType`` code (onnx.proto3)."""
        return _ONNX[self]

    @property
    def is_floating(self) -> bool:
        """Whether values can be NaN or infinite."""
        return self.value.startswith(("float", "bfloat"))

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize

    @classmethod
    def parse(cls, name: object) -> DType:
        """Return the type called ``name``: a NumPy dtype, "int64", or "torch.int64".

        Raises:
            SignatureError: If there is no such type.
        """
        text = str(name).removeprefix("torch.")
        try:
            return cls(text)
        except ValueError:
            raise SignatureError(
                f"unsupported dtype {text!r}", hint=f"Use one of: {', '.join(cls)}."
            ) from None

    @classmethod
    def from_onnx(cls, code: int) -> DType:
        """Return the type with this ``TensorProto.DataType`` code.

        Raises:
            SignatureError: If the code is none of ours.
        """
        for dtype, known in _ONNX.items():
            if known == code:
                return dtype
        raise SignatureError(
            f"unsupported ONNX data type code {code}",
            hint="Convert the tensor to a type that tfx.dtypes names.",
        )


_NUMPY = {
    DType.BOOL: np.dtype(np.bool_),
    DType.UINT8: np.dtype(np.uint8),
    DType.INT8: np.dtype(np.int8),
    DType.INT32: np.dtype(np.int32),
    DType.INT64: np.dtype(np.int64),
    DType.FLOAT16: np.dtype(np.float16),
    DType.FLOAT32: np.dtype(np.float32),
    DType.FLOAT64: np.dtype(np.float64),
}

# onnx.proto3, enum TensorProto.DataType
_ONNX = {
    DType.FLOAT32: 1,
    DType.UINT8: 2,
    DType.INT8: 3,
    DType.INT32: 6,
    DType.INT64: 7,
    DType.BOOL: 9,
    DType.FLOAT16: 10,
    DType.FLOAT64: 11,
    DType.BFLOAT16: 16,
    DType.FLOAT8_E4M3: 17,
    DType.INT4: 22,
}


def _ml_dtype(name: str) -> np.dtype:
    from .extras import need

    dtype: np.dtype = np.dtype(getattr(need("ml_dtypes"), name))
    return dtype
