"""What calibration found, written and read again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfx.errors import BundleError
from tfx.quantization import RangeMethod
from tfx.quantize.observers import BINS, Extremes, Histogram, choose_amax
from tfx.quantize.statistics import (
    FILE_NAME,
    ActivationStatistics,
    load_statistics,
    store_statistics,
)

values = arrays(np.float32, (5, 3), elements=st.floats(-1e6, 1e6, width=32))


def looked_at(array):
    extremes = Extremes()
    extremes.see(array, np.random.default_rng(0))
    histogram = Histogram(extremes.amax)
    histogram.see(array)
    return extremes, histogram


def stored(path, rng):
    """Statistics of two activations, one of them smoothed; as they were before."""
    found = {
        "layer.0/x:0": ActivationStatistics.of(*looked_at(rng.normal(size=(9, 4))), None),
        "linear_3": ActivationStatistics.of(
            *looked_at(rng.normal(size=(9, 4))), np.array([1, 2, 3, 4], np.float32)
        ),
    }
    store_statistics(path, found)
    return found


def test_all_of_it_comes_back(rng, tmp_path):
    before = stored(tmp_path / FILE_NAME, rng)
    after = load_statistics(tmp_path / FILE_NAME)
    assert list(after) == list(before)
    for name, one in before.items():
        other = after[name]
        assert (other.low, other.high, other.average) == (one.low, one.high, one.average)
        assert np.array_equal(other.counts, one.counts)
        assert np.array_equal(other.smoothing, one.smoothing)
    assert after["layer.0/x:0"].smoothing.shape == (0,)
    assert after["linear_3"].smoothing.dtype == np.float32


def test_the_same_statistics_are_the_same_bytes(rng, tmp_path):
    found = stored(tmp_path / "one.npz", rng)
    store_statistics(tmp_path / "two.npz", found)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@given(values, st.sampled_from(RangeMethod))
@settings(max_examples=30, deadline=None)
def test_ranges_are_those_of_the_looks(array, method):
    looks = looked_at(array)
    statistics = ActivationStatistics.of(*looks, None)
    assert statistics.amax(method, 99.0) == choose_amax(*looks, method, 99.0)


def test_another_method_without_data(rng, tmp_path):
    stored(tmp_path / FILE_NAME, rng)
    one = load_statistics(tmp_path / FILE_NAME)["linear_3"]
    assert one.amax(RangeMethod.PERCENTILE, 60) < one.amax(RangeMethod.MINMAX, 60)


def cut_it(path):
    path.write_bytes(path.read_bytes()[:-200])


def change_a_byte(path):
    data = bytearray(path.read_bytes())
    data[150] ^= 0xFF
    path.write_bytes(data)


def write_text(path):
    path.write_text("low,high\n")


def leave_a_part_out(path):
    np.savez(path, **{"x/range": np.zeros(3)})


def shorten_a_histogram(path):
    np.savez(
        path,
        **{"x/range": np.zeros(3), "x/counts": np.zeros(BINS - 1), "x/smoothing": np.zeros(0)},
    )


def put_a_pickle_in(path):
    np.savez(path, **{"x/range": np.array([{}], object)})


def test_a_bundle_without_calibration(tmp_path):
    with pytest.raises(BundleError) as caught:
        load_statistics(tmp_path / "minilm-fp16" / FILE_NAME)
    assert str(caught.value) == (
        f"{tmp_path / 'minilm-fp16'} carries no calibration: it has no {FILE_NAME}"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_it, ""),
        (change_a_byte, ""),
        (write_text, ""),
        (leave_a_part_out, "x/counts"),
        (shorten_a_histogram, f"histogram of x has shape \\[{BINS - 1}\\]"),
        (put_a_pickle_in, "allow_pickle=False"),
    ],
)
def test_a_damaged_file(damage, message, rng, tmp_path):
    path = tmp_path / FILE_NAME
    stored(path, rng)
    damage(path)
    with pytest.raises(BundleError, match=f"is damaged: .*{message}") as caught:
        load_statistics(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert caught.value.hint == "Quantize it again."
