import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from tfx.dtypes import DType
from tfx.errors import BundleError
from tfx.report import OutputError
from tfx.runtime.compare import (
    TOLERANCES,
    compare_outputs,
    merge_errors,
    scaled_error,
    tolerance_of,
)


def array(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("reference", "actual", "error"),
    [
        (array(0.5, 0.25), array(0.5, 0.25), 0.0),
        (array(0.5, 0.25), array(0.5, 0.75), 1.0),  # relative to the largest
        (array(50, 1), array(50, 2), 1 / 50),
        (array(0, 0), array(0, 0.125), 12.5),  # as if the largest were 0.01
        (array(1e-3, 0), array(1e-3, 1e-4), 1e-2),
        (array(-4, 1), array(4, 1), 2.0),
        (array(np.inf, 1), array(np.inf, 1), 0.0),
        (array(-np.inf, 2), array(-np.inf, 3), 0.5),
        (array(np.nan, 1), array(np.nan, 1), 0.0),
        (array(np.inf, 1), array(-np.inf, 1), np.inf),
        (array(np.nan, 1), array(0, 1), np.inf),
        (array(0, 1), array(np.nan, 1), np.inf),
        (array(0, 1), array(np.inf, 1), np.inf),
        (array(np.inf, 1), array(3.4e38, 1), np.inf),
        (array(), array(), 0.0),
        (array(1, 2), array(1, 2, 3), np.inf),
        (np.float32(2), np.float32(3), 0.5),
    ],
)
def test_scaled_error(reference, actual, error):
    assert scaled_error(np.asarray(reference), np.asarray(actual)) == pytest.approx(error)


def test_integers_do_not_wrap_around():
    assert scaled_error(np.array([0], np.uint8), np.array([1], np.uint8)) == 100
    assert scaled_error(np.array([1], np.uint8), np.array([2], np.uint8)) == 1
    assert scaled_error(np.array([True]), np.array([False])) == 1


finite = nps.arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32))


@given(finite, finite)
def test_error_is_zero_exactly_where_arrays_are_equal(left, right):
    assert (scaled_error(left, right) == 0) == np.array_equal(left, right)
    assert scaled_error(left, left) == 0
    assert np.isfinite(scaled_error(left, right))


@given(finite, st.integers(0, 11), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_non_finite_on_one_side_is_infinite(reference, place, value):
    actual = reference.copy()
    actual.reshape(-1)[place] = value
    assert scaled_error(reference, actual) == np.inf
    assert scaled_error(actual, reference) == np.inf


def test_errors_of_one_output():
    (error,) = compare_outputs({"y": array(3, 4)}, {"y": array(3, 5)})
    assert error.name == "y"
    assert error.max_abs == 1
    assert error.max_rel == pytest.approx(1 / 4)
    assert error.min_cosine == pytest.approx((9 + 20) / (5 * np.sqrt(34)))


def test_cosine_is_that_of_the_worst_row():
    reference = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    actual = np.array([[2, 0], [0, -1], [0, 0]], np.float32)
    (error,) = compare_outputs({"y": reference}, {"y": actual})
    assert error.min_cosine == -1
    (error,) = compare_outputs({"y": reference[::2]}, {"y": actual[::2]})
    assert error.min_cosine == 1


@pytest.mark.parametrize(
    "actual",
    [{}, {"other": array(1, 2)}, {"y": array(1, 2, 3)}, {"y": array(np.nan, 2)}],
    ids=["missing", "misnamed", "another shape", "NaN"],
)
def test_outputs_that_cannot_be_compared_never_pass(actual):
    assert compare_outputs({"y": array(1, 2)}, actual) == (OutputError("y", np.inf, np.inf, -1.0),)


def test_zero_reference():
    (same,) = compare_outputs({"y": array(0, 0)}, {"y": array(0, 0)})
    assert same == OutputError("y", 0.0, 0.0, 1.0)
    (other,) = compare_outputs({"y": array(0, 0)}, {"y": array(0, 1)})
    assert (other.max_abs, other.max_rel) == (1.0, np.inf)


@pytest.mark.parametrize(
    ("scale", "other", "cosine"), [(1e-3, [3, 4], 1), (1e-3, [0, 0], 0), (0, [3, 4], 0)]
)
def test_cosine_of_small_vectors_and_of_zeros_on_one_side(scale, other, cosine):
    reference = np.array([[3, 4]], np.float32) * np.float32(scale)
    actual = np.array([other], np.float32)
    (error,) = compare_outputs({"y": reference}, {"y": actual})
    assert error.min_cosine == pytest.approx(cosine)


@pytest.mark.parametrize(("value", "cosine"), [(2.0, 1.0), (3.0, -1.0)])
def test_scalar_outputs(value, cosine):
    (error,) = compare_outputs({"y": np.float32(2)[()]}, {"y": np.asarray(value, np.float32)})
    assert error.min_cosine == cosine


def test_worst_of_several_feeds():
    feeds = [
        (OutputError("a", 1.0, 0.1, 0.9), OutputError("b", 5.0, 0.5, 0.99)),
        (OutputError("a", 2.0, 0.05, 0.8), OutputError("b", 4.0, 0.6, 1.0)),
    ]
    assert merge_errors(feeds) == (
        OutputError("a", 2.0, 0.1, 0.8),
        OutputError("b", 5.0, 0.6, 0.99),
    )
    assert merge_errors([]) == ()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_tolerance_has_a_reason(dtype):
    tolerance = TOLERANCES[dtype]
    assert 0 < tolerance.scaled_error <= 1
    assert len(tolerance.reason.split()) > 10


def test_tolerance_of_float32():
    assert TOLERANCES[DType.FLOAT32].scaled_error == 1e-4


def test_what_went_through_two_precisions_is_judged_by_the_lower():
    assert tolerance_of(DType.FLOAT32) == 1e-4
    assert tolerance_of(DType.FLOAT32, DType.BFLOAT16) == tolerance_of(DType.BFLOAT16)
    assert tolerance_of(DType.FLOAT16, DType.FLOAT32) == tolerance_of(DType.FLOAT16)
    assert tolerance_of(DType.FLOAT32) < tolerance_of(DType.FLOAT16) < tolerance_of(DType.BFLOAT16)
    with pytest.raises(BundleError, match="got precision float64, expected float32 or") as caught:
        tolerance_of(DType.FLOAT32, DType.FLOAT64)
    assert caught.value.hint.startswith("Choose a bundle")


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-3, 1, 100])
def test_wrong_outputs_are_found_whatever_their_size(size, rng):
    reference = size * rng.normal(size=(4, 8))
    allowed = TOLERANCES[DType.FLOAT32].scaled_error
    assert scaled_error(reference, 2 * reference) > allowed
    assert scaled_error(reference, np.zeros_like(reference)) > allowed
    assert scaled_error(reference, reference * (1 + 1e-6)) < allowed
