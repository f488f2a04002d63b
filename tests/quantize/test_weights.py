"""Weights as integers and as 8-bit floats: how far off, and with which scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tfx.errors import QuantizeError
from tfx.quantize.weights import E4M3_MAX, quantize_e4m3, quantize_symmetric

# Zeros, denormals and outliers included.
matrices = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32),
)
axes = st.sampled_from([None, 0, 1])


def spread(scale, axis):
    """A scale per channel, in the shape that multiplies a matrix."""
    return scale if axis is None else np.expand_dims(scale, 1 - axis)


@given(matrices, axes, st.integers(2, 8))
def test_rounding_is_off_by_at_most_half_a_step(weight, axis, bits):
    q, scale = quantize_symmetric(weight, axis=axis, bits=bits)
    step = spread(scale, axis)
    assert np.all(np.abs(q * step - weight) <= step * 0.501)
    assert np.abs(q.astype(int)).max() <= 2 ** (bits - 1) - 1


@given(matrices, axes)
def test_each_channel_has_the_scale_of_its_largest_weight(weight, axis):
    q, scale = quantize_symmetric(weight, axis=axis)
    amax = np.abs(weight).max(axis=None if axis is None else 1 - axis)
    assert scale.dtype == np.float32
    assert q.dtype == np.int8
    assert scale.shape == amax.shape
    usable = amax > 127 * np.finfo(np.float32).tiny
    np.testing.assert_allclose(scale[usable], amax[usable] / 127, rtol=1e-6)
    assert np.all(scale[~usable] == 1)
    assert np.all(np.abs(q.astype(int)).max(axis=None if axis is None else 1 - axis)[usable] == 127)


def test_more_channels_than_one_axis(rng):
    weight = rng.normal(size=(3, 4, 5)).astype(np.float32)
    _, scale = quantize_symmetric(weight, axis=1)
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=(0, 2)) / 127, rtol=1e-6)


@given(matrices, st.sampled_from([0, 1]))
def test_the_sign_and_the_order_of_channels_do_not_matter(weight, axis):
    q, scale = quantize_symmetric(weight, axis=axis)
    negative, same = quantize_symmetric(-weight, axis=axis)
    assert np.array_equal(negative, -q)
    assert np.array_equal(same, scale)
    flipped, reversed_scale = quantize_symmetric(np.flip(weight, axis), axis=axis)
    assert np.array_equal(flipped, np.flip(q, axis))
    assert np.array_equal(reversed_scale, scale[::-1])


@pytest.mark.parametrize("quantize", [quantize_symmetric, quantize_e4m3])
def test_zeros_stay_zeros(quantize):
    weight = np.zeros((4, 3), np.float32)
    weight[:, 1] = [0, 1, 2, -4]
    q, scale = quantize(weight, axis=1)
    assert scale[[0, 2]].tolist() == [1, 1]
    assert not q[:, [0, 2]].astype(np.float32).any()
    np.testing.assert_allclose(q[:, 1].astype(np.float32) * scale[1], weight[:, 1], atol=0.02)


@given(matrices, axes)
def test_an_8_bit_float_keeps_four_significant_bits(weight, axis):
    q, scale = quantize_e4m3(weight, axis=axis)
    assert q.dtype.name == "float8_e4m3fn"
    step = spread(scale, axis)
    values = q.astype(np.float32)
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= E4M3_MAX
    # Half of the last of 3 mantissa bits; below 2**-6, half of 2**-9.
    allowed = np.maximum(np.abs(weight) * 2.0**-4, step * 2.0**-10) * 1.001
    assert np.all(np.abs(values * step - weight) <= allowed)


@pytest.mark.parametrize("quantize", [quantize_symmetric, quantize_e4m3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number(quantize, bad):
    with pytest.raises(QuantizeError) as caught:
        quantize(np.array([[1, bad]], np.float32))
    assert str(caught.value) == "weight has a NaN or infinity"
    assert caught.value.hint == "Check the checkpoint."


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_do_not_fit(bits):
    with pytest.raises(QuantizeError, match=f"^bits is {bits}, expected 2 to 8$"):
        quantize_symmetric(np.ones((2, 2), np.float32), bits=bits)
