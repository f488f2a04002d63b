"""Outlier channels: which are multiplied apart, and that the graph's numbers stay."""

import numpy as np
import pytest
from onnx.checker import check_model
from onnx_ir import to_proto
from support.graphs import fill_constants, graph_of, operators, run_ort

from tfx.dtypes import DType
from tfx.quantization import CalibrationFacts, QuantizeRecipe
from tfx.quantize.calibration import CalibrationData
from tfx.quantize.integers import lower, prepare, prepare_again
from tfx.quantize.linear import find_products
from tfx.quantize.outliers import MOST, choose_outliers, split_outliers, without_channels
from tfx.quantize.statistics import load_statistics, store_statistics
from tfx.quantize.targets import lower_for_ort_cpu
from tfx.runtime.compare import scaled_error

CHANNELS, OUTPUTS = 256, 16
INT8 = QuantizeRecipe(DType.INT8)
EXACT = {"rtol": 0, "atol": 1e-3}


def rows_of(rng, *, outliers=(), by=100.0, every=16):
    """Rows of which every so many reaches far in some channels, as first tokens do."""
    rows = rng.normal(size=(128, CHANNELS)).astype(np.float32)
    for channel in outliers:
        rows[::every, channel] = by
    return rows


def chosen(rows, rng):
    weights = [rng.normal(size=(CHANNELS, OUTPUTS)).astype(np.float32) for _ in range(2)]
    return choose_outliers(rows, np.abs(rows).max(axis=0), weights).tolist()


@pytest.mark.parametrize("outliers", [[7], [200, 3]])
def test_channels_far_beyond_the_others(outliers, rng):
    assert chosen(rows_of(rng, outliers=outliers), rng) == sorted(outliers)


@pytest.mark.parametrize("by", [0.0, 6.0])
def test_channels_that_are_alike(by, rng):
    assert chosen(rows_of(rng, outliers=[7], by=by), rng) == []


def test_more_than_few_channels_are_left_to_smoothing(rng):
    share = CHANNELS // 128
    assert share < MOST
    assert chosen(rows_of(rng, outliers=range(share + 1)), rng) == []


def test_an_activation_that_is_zero(rng):
    assert chosen(np.zeros((8, CHANNELS), np.float32), rng) == []


def graph(rng, body):
    return fill_constants(
        graph_of(
            f"g (float[b, s, {CHANNELS}] x, float[{CHANNELS}, {OUTPUTS}] w, float[{OUTPUTS}] c, "
            f"float[{CHANNELS}, {OUTPUTS}] v) => (float[b, s, {OUTPUTS}] y, "
            f"float[b, s, {OUTPUTS}] z) {{ h = Relu(x)\n {body} }}"
        ),
        rng,
    )


BODIES = {
    "no bias": "y = MatMul(h, w)\n z = MatMul(h, v)",
    "bias": "k = MatMul(h, w)\n y = Add(k, c)\n z = MatMul(h, v)",
    "read twice": "k = MatMul(h, w)\n y = Add(k, c)\n z = Neg(k)\n q = MatMul(h, v)",
    "in the middle": "k = MatMul(h, w)\n m = Add(c, k)\n y = Tanh(m)\n q = MatMul(h, v)\n"
    " z = Neg(q)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_numbers_stay(body, rng):
    model = graph(rng, body)
    feed = {"x": 9 * rng.normal(size=(2, 3, CHANNELS)).astype(np.float32)}
    before = run_ort(model, feed)
    products = find_products(model)
    channels = np.array([3, 200])
    split_outliers(model.graph, products[0].data, products, channels)
    check_model(to_proto(model), full_check=True)
    assert [output.name for output in model.graph.outputs] == ["y", "z"]
    for wanted, got in zip(before, run_ort(model, feed), strict=True):
        np.testing.assert_allclose(got, wanted, **EXACT)
    # The rows that are multiplied apart are no products of integers, and zeros in the others.
    again = find_products(model)
    assert [product.node for product in again] == [product.node for product in products]
    for product in again:
        assert not product.weight.const_value.numpy()[channels].any()


def test_zeros_go_where_asked(rng):
    array = rng.normal(size=(4, 5))
    assert without_channels(array, np.empty(0, np.int64), 0) is array
    changed = without_channels(array, np.array([2]), 1)
    assert not changed[:, 2].any()
    assert np.array_equal(np.delete(changed, 2, 1), np.delete(array, 2, 1))


def data_of(rng, channel=7):
    feeds = [{"x": rows_of(rng, outliers=[channel])[None]} for _ in range(2)]
    facts = CalibrationFacts("data.npz", "0" * 64, 256, 256 * CHANNELS)
    return CalibrationData(facts, tuple(lambda feed=feed: dict(feed) for feed in feeds))


def test_int8_is_nearer_and_one_kernel_has_the_bias(rng, tmp_path):
    original, data = graph(rng, BODIES["bias"]), data_of(rng)
    prepared = prepare(original.clone(), INT8, data)
    (statistics,) = prepared.statistics.values()
    assert statistics.outliers.tolist() == [7]
    assert statistics.high < 10  # of the others
    plain = prepare(original.clone(), QuantizeRecipe(DType.INT8, smooth=0), data)
    (feed, _) = data
    wanted = run_ort(original, feed)[0]
    models = [lower(one, INT8).model for one in (prepared, plain)]
    usual = np.arange(128) % 16 != 0  # rows without the outlier
    apart, together = (
        scaled_error(wanted[:, usual], run_ort(one, feed)[0][:, usual]) for one in models
    )
    assert apart < 0.2 * together
    before = run_ort(models[0], feed)[0]
    assert lower_for_ort_cpu(models[0]) == 2
    assert operators(models[0]).count("MatMulIntegerToFloat") == 2
    assert operators(models[0]).count("Add") == 2  # none of the bias
    assert scaled_error(before, run_ort(models[0], feed)[0]) < 1e-3

    store_statistics(tmp_path / "calibration.npz", prepared.statistics)
    again = prepare_again(original.clone(), load_statistics(tmp_path / "calibration.npz"))
    one, two = (to_proto(lower(known, INT8).model) for known in (prepared, again))
    assert one.SerializeToString() == two.SerializeToString()


def test_no_smoothing_means_no_splitting_either(rng):
    prepared = prepare(
        graph(rng, BODIES["bias"]), QuantizeRecipe(DType.INT8, smooth=0), data_of(rng)
    )
    assert not next(iter(prepared.statistics.values())).outliers.size
