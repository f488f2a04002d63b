"""The method that chooses ranges, where none is asked for: the outputs decide."""

import dataclasses

import numpy as np
import pytest

from tfx.dtypes import DType
from tfx.quantization import QuantizeRecipe, RangeMethod
from tfx.quantize import ranges
from tfx.quantize.calibration import calibration_texts
from tfx.quantize.lowering import prepare_lowering
from tfx.quantize.pipeline import quantize_bundle, write_draft
from tfx.quantize.ranges import FEEDS, TRIED, output_error, with_range_method

INT8 = QuantizeRecipe(DType.INT8)


@pytest.fixture(scope="module")
def data(classifier, samples):
    return calibration_texts(classifier, samples, name="data.txt")


@pytest.fixture(scope="module")
def lowering(classifier, data):
    return prepare_lowering(classifier, INT8, data)


def recipe_with(lowering, **changes):
    return dataclasses.replace(lowering, recipe=dataclasses.replace(INT8, **changes))


def refuse(*_):
    raise AssertionError("nothing is to be tried")


@pytest.mark.parametrize("best", range(len(TRIED)))
def test_the_least_error_is_taken(lowering, best, monkeypatch):
    seen = []

    def outputs(bundle, feeds):
        seen.append(len(feeds))
        rows = np.ones((2, 3), np.float32)
        if bundle is lowering.parent:
            return [{"logits": rows}]
        return [{"logits": rows + (0 if bundle == TRIED[best] else 0.1)}]

    monkeypatch.setattr(ranges, "_outputs", outputs)
    found = with_range_method(
        lowering, lambda one, *_: (one.recipe.method, one.recipe.percentile)
    ).recipe
    assert (found.method, found.percentile) == TRIED[best]
    assert dataclasses.replace(found, method=None, percentile=INT8.percentile) == INT8
    assert set(seen) == {min(FEEDS, len(lowering.data))}


@pytest.mark.parametrize("best", range(len(TRIED)))
def test_a_metric_decides_where_there_is_one(lowering, best):
    def written(one, *_):
        return one.recipe.method, one.recipe.percentile

    found = with_range_method(lowering, written, lambda bundle: bundle != TRIED[best]).recipe
    assert (found.method, found.percentile) == TRIED[best]


def test_clipping_what_the_outputs_need_loses(lowering):
    """A histogram of mostly small values, of which the few large ones count."""

    def narrow(one):
        counts = np.zeros_like(one.counts)
        counts[0], counts[-1] = 10**9, 1
        return dataclasses.replace(one, counts=counts)

    prepared = lowering.prepared
    statistics = {name: narrow(one) for name, one in prepared.statistics.items()}
    planted = dataclasses.replace(prepared, statistics=statistics)
    found = with_range_method(dataclasses.replace(lowering, prepared=planted), write_draft)
    assert found.recipe.method is RangeMethod.MINMAX


def test_what_is_asked_for_is_not_tried(lowering):
    asked = recipe_with(lowering, method=RangeMethod.ENTROPY)
    assert with_range_method(asked, refuse) is asked


def test_without_ranges_there_is_nothing_to_try(classifier):
    dynamic = prepare_lowering(classifier, QuantizeRecipe(DType.INT8, dynamic=True))
    assert with_range_method(dynamic, refuse) is dynamic


def test_the_bundle_names_the_method_and_it_gives_the_same_again(classifier, data, tmp_path):
    made = quantize_bundle(classifier, tmp_path / "a", recipe=INT8, data=data)
    recipe = made.manifest.quantization.recipe
    assert (recipe.method, recipe.percentile) in TRIED
    again = quantize_bundle(classifier, tmp_path / "b", recipe=recipe, data=data)
    assert again.model.read_bytes() == made.model.read_bytes()


def test_each_row_counts_beside_itself():
    exact = [{"y": np.array([[100.0, 0.0], [1.0, 0.0]], np.float32), "n": np.array([3])}]
    found = [{"y": np.array([[110.0, 0.0], [1.0, 0.3]], np.float32), "n": np.array([4])}]
    assert output_error(exact, found) == pytest.approx((0.01 + 0.09) / 2)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_loses(wrong):
    exact = [{"y": np.ones((1, 2), np.float32)}]
    assert output_error(exact, [{"y": np.array([[1, wrong]], np.float32)}]) == np.inf


def test_rows_of_zeros_and_no_rows():
    zeros = [{"y": np.zeros((2, 2), np.float32)}]
    assert output_error(zeros, zeros) == 0
    assert output_error([{"n": np.array([1])}], [{"n": np.array([2])}]) == 0
