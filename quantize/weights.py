"""Scales and integer values of weights."""

from __future__ import annotations

import numpy as np

from tfx.dtypes import DType
from tfx.errors import QuantizeError

# Largest finite float8 e4m3fn (Micikevicius et al. 2022, arXiv:2209.05433, table 1).
E4M3_MAX = 448.0

# A rounded scale that is further off than this has left the type's range.
CLOSE = 2.0**-8


def quantize_symmetric(
    weight: np.ndarray,
    *,
    axis: int | None = None,
    bits: int = 8,
    scale_dtype: DType = DType.FLOAT32,
) -> tuple[np.ndarray, np.ndarray]:
    """Round ``weight`` to signed integers, with zero point 0.

    ``q = clip(round(weight / scale), -qmax, qmax)``, ``scale = max(|weight|) / qmax``,
    ``qmax = 2**(bits-1) - 1``. The lowest integer (-128) stays unused so that the range is
    symmetric (Wu et al. 2020, arXiv:2004.09602, section 3.1). TensorRT takes no other zero
    point than 0.

    Args:
        weight: float array of any shape, e.g. ``[in_features, out_features]``.
        axis: Axis that keeps its own scale ("per channel"); None for one scale
            ("per tensor").
        bits: 2 to 8.
        scale_dtype: Type that holds every scale exactly: float32, or a shorter one.

    Returns:
        ``q``, int8, shaped like ``weight``; and ``scale``, float32, of shape
        ``[weight.shape[axis]]``, or ``[]`` when ``axis`` is None. A channel of zeros gets
        scale 1.

    Raises:
        QuantizeError: If ``bits`` is out of range or ``weight`` has a NaN or infinity.
    """
    if not 2 <= bits <= 8:
        raise QuantizeError(f"bits is {bits}, expected 2 to 8")
    qmax = 2 ** (bits - 1) - 1
    scale = _scale(weight, axis, qmax, scale_dtype)
    q = np.clip(np.rint(weight / scale), -qmax, qmax).astype(np.int8)
    return q, scale.reshape(-1) if axis is not None else scale.reshape(())


def quantize_e4m3(
    weight: np.ndarray, *, axis: int | None = None, scale_dtype: DType = DType.FLOAT32
) -> tuple[np.ndarray, np.ndarray]:
    """Round ``weight`` to 8-bit floats with 4 exponent and 3 mantissa bits.

    ``q = e4m3(weight / scale)``, ``scale = max(|weight|) / 448``.

    Args:
        weight: float array of any shape.
        axis: Axis that keeps its own scale; None for one scale.
        scale_dtype: As of ``quantize_symmetric``.

    Returns:
        ``q``, float8_e4m3fn, shaped like ``weight``; and ``scale``, float32, as of
        ``quantize_symmetric``.

    Raises:
        QuantizeError: If ``weight`` has a NaN or infinity.
    """
    scale = _scale(weight, axis, E4M3_MAX, scale_dtype)
    # Rounding may carry the largest value past the end, where e4m3fn has only NaN.
    scaled = np.clip(weight / scale, -E4M3_MAX, E4M3_MAX)
    q = scaled.astype(DType.FLOAT8_E4M3.numpy)
    return q, scale.reshape(-1) if axis is not None else scale.reshape(())


def _scale(weight: np.ndarray, axis: int | None, largest: float, dtype: DType) -> np.ndarray:
    if not np.isfinite(weight).all():
        raise QuantizeError("weight has a NaN or infinity", hint="Check the checkpoint.")
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    amax = np.abs(weight).max(axis=others, keepdims=True, initial=0.0)
    scale = amax.astype(np.float32) / np.float32(largest)
    with np.errstate(under="ignore", over="ignore"):
        held = scale.astype(dtype.numpy).astype(np.float32)
    # What float16 has not digits enough for keeps its own: it stays in float32.
    scale = np.where(np.abs(held - scale) <= scale * CLOSE, held, scale)
    # A channel of denormals would get a scale of zero.
    usable: np.ndarray = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
    return usable
