"""What calibration keeps of an activation, and the ranges it chooses."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tfx.quantization import RangeMethod
from tfx.quantize.observers import (
    BINS,
    NEWEST,
    SAMPLE_ROWS,
    SHARES,
    Extremes,
    Histogram,
    choose_amax,
    scale_of,
)
from tfx.quantize.weights import E4M3_MAX

batches = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32),
)


def looks_at(values, *, batch=64):
    """Both looks at an array, a batch of rows at a time."""
    rng = np.random.default_rng(0)
    extremes = Extremes()
    for start in range(0, len(values), batch):
        extremes.see(values[start : start + batch], rng)
    histogram = Histogram(extremes.amax)
    for start in range(0, len(values), batch):
        histogram.see(values[start : start + batch])
    return extremes, histogram


def int8_error(values, amax):
    step = amax / 127
    return np.square(np.clip(np.rint(values / step), -127, 127) * step - values).mean()


def with_outliers(rng):
    values = rng.normal(size=(2000, 8)).astype(np.float32)
    values[::500, 3] = [30, -40, 35, 38]
    return values


@given(batches, st.permutations(range(6)))
def test_streaming_sees_what_the_whole_holds_in_any_order(values, order):
    extremes, histogram = looks_at(values, batch=1)
    whole, counted = looks_at(values, batch=len(values))
    order = [row for row in order if row < len(values)]
    shuffled, recounted = looks_at(values[order], batch=2)
    for one in (extremes, whole, shuffled):
        assert (one.low, one.high) == (values.min(), values.max())
        assert one.amax == np.abs(values).max()
        assert np.array_equal(one.channels, np.abs(values).max(axis=0))
        assert one.seen == len(values)
        assert one.bad == 0
    assert np.array_equal(histogram.counts, counted.counts)
    assert np.array_equal(histogram.counts, recounted.counts)


@given(batches)
def test_a_histogram_counts_every_value_in_its_bin(values):
    _, histogram = looks_at(values)
    amax = np.abs(values).max()
    if amax == 0:
        assert not histogram.counts.any()
        return
    wanted, edges = np.histogram(np.abs(values) / amax, bins=BINS, range=(0, 1))
    assert histogram.counts.sum() == values.size
    # Rounding may move a value that lies on an edge to the next bin.
    assert (
        np.abs(np.cumsum(histogram.counts) - np.cumsum(wanted)).max()
        <= np.isclose(np.abs(values).reshape(-1, 1) / amax, edges, rtol=0, atol=1e-6)
        .any(axis=1)
        .sum()
    )


def test_what_is_larger_than_the_first_look_falls_into_the_last_bin():
    histogram = Histogram(1.0)
    histogram.see(np.array([[0.0, -1.0, 1.5, 1e30, -3e38]], np.float32))
    assert histogram.counts[0] == 1
    assert histogram.counts[-1] == 4


def test_denormals_are_counted():
    values = np.array([[1e-40, 5e-41]], np.float32)
    _, histogram = looks_at(values)
    assert histogram.counts[-1] == 1
    assert histogram.counts.sum() == 2


def test_the_average_follows_the_largest_of_each_batch():
    rng, extremes = np.random.default_rng(0), Extremes()
    for largest in (2, -4, 1):
        extremes.see(np.array([[largest, 0.5]], np.float32), rng)
    assert extremes.average == pytest.approx(
        (2 * (1 - NEWEST) + 4 * NEWEST) * (1 - NEWEST) + 1 * NEWEST
    )


def test_bad_values_are_counted_and_change_nothing():
    rng, extremes = np.random.default_rng(0), Extremes()
    extremes.see(np.array([[1, np.nan], [np.inf, -2]], np.float32), rng)
    assert extremes.bad == 2
    assert (extremes.low, extremes.high) == (-2, 1)
    assert extremes.channels.tolist() == [1, 2]


def test_no_rows_are_nothing_seen():
    rng, extremes = np.random.default_rng(0), Extremes()
    extremes.see(np.empty((0, 4), np.float32), rng)
    assert (extremes.seen, extremes.amax, extremes.rows) == (0, 0.0, None)


@pytest.mark.parametrize("batch", [1, 7, SAMPLE_ROWS])
def test_few_rows_are_all_kept(batch):
    values = np.arange(2 * SAMPLE_ROWS, dtype=np.float32).reshape(SAMPLE_ROWS, 2)
    extremes, _ = looks_at(values, batch=batch)
    assert np.array_equal(extremes.rows, values)


@pytest.mark.parametrize("batch", [100, 1000])
def test_rows_are_drawn_evenly(batch):
    """Each tenth of what passed is in the sample as often as any other."""
    passed, draws = 2000, 60
    values = np.arange(passed, dtype=np.float32).reshape(-1, 1)
    rng = np.random.default_rng(20261121)
    counts = np.zeros(10)
    for _ in range(draws):
        extremes = Extremes()
        for start in range(0, passed, batch):
            extremes.see(values[start : start + batch], rng)
        rows = extremes.rows[:, 0].astype(int)
        assert len(set(rows)) == SAMPLE_ROWS
        counts += np.bincount(rows * 10 // passed, minlength=10)
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_a_sample_is_not_a_view_of_a_batch():
    values = np.ones((4, 2), np.float32)
    extremes = Extremes()
    extremes.see(values, np.random.default_rng(0))
    values[:] = 9
    assert np.all(extremes.rows == 1)


@given(batches, st.sampled_from(RangeMethod), st.floats(50.1, 100))
@settings(max_examples=60, deadline=None)
def test_every_method_stays_within_what_was_seen(values, method, percentile):
    extremes, histogram = looks_at(values, batch=2)
    amax = choose_amax(extremes, histogram, method, percentile)
    largest = float(np.abs(values).max())
    if largest == 0:
        assert amax == 0
    else:
        assert 0 < amax <= largest


@pytest.mark.parametrize("method", RangeMethod)
def test_zeros_have_no_range_and_a_step_of_one(method):
    amax = choose_amax(*looks_at(np.zeros((5, 3), np.float32)), method)
    assert amax == 0
    assert scale_of(amax) == 1


@pytest.mark.parametrize("method", RangeMethod)
def test_a_constant_is_its_own_range(method):
    values = np.full((64, 3), -2.5, np.float32)
    assert choose_amax(*looks_at(values), method) == pytest.approx(2.5, rel=1e-6)


def test_minmax_takes_the_largest(rng):
    values = with_outliers(rng)
    assert choose_amax(*looks_at(values), RangeMethod.MINMAX) == 40


def test_the_moving_average_forgets_one_batch(rng):
    values = with_outliers(rng)
    extremes, histogram = looks_at(values, batch=100)
    amax = choose_amax(extremes, histogram, RangeMethod.MOVING_AVERAGE)
    assert amax == pytest.approx(extremes.average)
    assert amax < 40


@pytest.mark.parametrize("percentile", [75, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("kind", ["normal", "uniform", "outliers"])
def test_a_percentile_is_that_of_the_magnitudes_within_a_bin(kind, percentile, rng):
    values = {
        "normal": lambda: rng.normal(size=(3000, 8)),
        "uniform": lambda: rng.uniform(-1, 1, size=(3000, 8)),
        "outliers": lambda: with_outliers(rng),
    }[kind]().astype(np.float32)
    amax = choose_amax(*looks_at(values), RangeMethod.PERCENTILE, percentile)
    wanted = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    assert abs(amax - wanted) <= 1.001 * np.abs(values).max() / BINS


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "outliers"])
def test_mse_is_close_to_the_best_there_is(kind, rng):
    values = {
        "normal": lambda: rng.normal(size=(3000, 8)),
        "laplace": lambda: rng.laplace(size=(3000, 8)),
        "uniform": lambda: rng.uniform(-1, 1, size=(3000, 8)),
        "outliers": lambda: with_outliers(rng),
    }[kind]().astype(np.float32)
    chosen = choose_amax(*looks_at(values), RangeMethod.MSE)
    best = min(int8_error(values, np.abs(values).max() * share) for share in SHARES)
    assert int8_error(values, chosen) <= 1.05 * best


def test_mse_cuts_what_few_values_need(rng):
    values = rng.normal(size=(4000, 8)).astype(np.float32)
    values[0, 0] = 12
    # Least of (12 - amax)**2 / n + (amax / 127)**2 / 12, within a share and a bin.
    wanted = 12 / (1 + values.size / (12 * 127**2))
    assert choose_amax(*looks_at(values), RangeMethod.MSE) == pytest.approx(wanted, abs=0.2)
    uniform = rng.uniform(-1, 1, size=(4000, 8)).astype(np.float32)
    assert choose_amax(*looks_at(uniform), RangeMethod.MSE) > 0.98


def test_entropy_cuts_outliers_and_not_a_range_that_is_used(rng):
    extremes, histogram = looks_at(with_outliers(rng))
    amax = choose_amax(extremes, histogram, RangeMethod.ENTROPY)
    assert amax < 0.5 * extremes.amax
    assert amax > 2  # most of the gaussian
    uniform = rng.uniform(-1, 1, size=(8000, 8)).astype(np.float32)
    assert choose_amax(*looks_at(uniform), RangeMethod.ENTROPY) > 0.9


def test_a_scale_is_a_step():
    assert scale_of(12.7) == np.float32(0.1)
    assert scale_of(E4M3_MAX, e4m3=True) == 1
    assert scale_of(1e-45) == 1
    assert scale_of(0.0, e4m3=True) == 1
