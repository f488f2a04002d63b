"""Feeds run through a graph and looked at: what is left out, and what is left behind."""

import gc
import tempfile
import weakref

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import fill_constants, graph_of

from tfx.errors import QuantizeError
from tfx.quantization import CalibrationFacts
from tfx.quantize.calibration import CalibrationData
from tfx.quantize.linear import find_products
from tfx.quantize.observation import (
    Observation,
    see_extremes,
    see_hessians,
    see_histograms,
    see_magnitudes,
)

FACTS = CalibrationFacts("data.tsv", "0" * 64, 4, 16)


def data_of(*feeds):
    return CalibrationData(FACTS, tuple(lambda feed=feed: dict(feed) for feed in feeds))


def masked_layer(rng, *, shape="[b, s, 32]", reshape=""):
    """Tokens times a weight, of batches with a mask."""
    model = fill_constants(
        graph_of(
            f"g (float[b, s, 32] x, int64[b, s] attention_mask, float[32, 48] w, float[32] k) "
            f"=> (float y) {{ {reshape or 'h = Mul(x, k)'}\n y = MatMul(h, w) }}"
        ),
        rng,
        inputs=("x", "attention_mask"),
    )
    return model, {find_products(model)[0].data: -1}


def padded_feed(rng, padding):
    """Three rows of 2, 5 and 4 tokens, with something where the padding is."""
    mask = np.array([[1, 1, 0, 0, 0], [1] * 5, [0, 1, 1, 1, 1]])
    x = rng.normal(size=(3, 5, 32)).astype(np.float32)
    x[mask == 0] = padding
    return {"x": x, "attention_mask": mask}


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("padding", [np.nan, 1e30])
def test_padding_is_not_looked_at(padding, rng):
    model, values = masked_layer(rng)
    feed = padded_feed(rng, padding)
    k = model.graph.initializers["k"].const_value.numpy()
    wanted = (feed["x"] * k)[feed["attention_mask"] == 1]
    extremes = see_extremes(model, values, data_of(feed), seed=0)["h"]
    assert (extremes.low, extremes.high) == (wanted.min(), wanted.max())
    assert extremes.seen == 11
    assert sorted(extremes.rows[:, 0]) == sorted(wanted[:, 0])
    amax = dict.fromkeys(values, extremes.amax)
    assert see_histograms(model, amax, data_of(feed))["h"].counts.sum() == 11 * 32


def test_tokens_of_all_rows_on_one_axis(rng):
    """GPT-2's products have ``[batch * sequence, channels]``."""
    reshape = "t = Constant <value_ints = [-1, 32]> ()\n f = Reshape(x, t)\n h = Mul(f, k)"
    model, values = masked_layer(rng, reshape=reshape)
    extremes = see_extremes(model, values, data_of(padded_feed(rng, 1e30)), seed=0)["h"]
    assert extremes.seen == 11
    assert extremes.amax < 100


def test_a_value_of_no_tokens_is_looked_at_whole(rng):
    """One row a text, as a pooler has."""
    reshape = (
        "t = Constant <value_ints = [1]> ()\nf = ReduceMean <keepdims = 0> (x, t)\n h = Mul(f, k)"
    )
    model, values = masked_layer(rng, reshape=reshape)
    assert see_extremes(model, values, data_of(padded_feed(rng, 0)), seed=0)["h"].seen == 3


def test_an_input_of_the_graph_is_looked_at(rng):
    model = fill_constants(
        graph_of("g (float[b, 32] x, float[32, 48] w) => (float[b, 48] y) { y = MatMul(x, w) }"),
        rng,
    )
    feed = {"x": rng.normal(size=(6, 32)).astype(np.float32)}
    (value,) = (product.data for product in find_products(model))
    assert see_extremes(model, {value: -1}, data_of(feed), seed=0)["x"].amax == abs(feed["x"]).max()


def test_activations_that_are_no_numbers_are_named(rng):
    model, values = masked_layer(rng)
    feed = padded_feed(rng, 0)
    feed["x"][1, 2, :3] = [np.nan, np.inf, -np.inf]
    with pytest.raises(QuantizeError) as caught:
        see_extremes(model, values, data_of(feed), seed=0)
    assert str(caught.value) == (
        "activations are NaN or infinite on the calibration data: h: 3 values"
    )
    assert caught.value.hint.startswith("Look at the data")


def test_data_that_is_all_padding(rng):
    model, values = masked_layer(rng)
    feed = padded_feed(rng, 0)
    feed["attention_mask"][:] = 0
    with pytest.raises(QuantizeError) as caught:
        see_extremes(model, values, data_of(feed), seed=0)
    assert str(caught.value) == "calibration data is all padding, nothing was seen of: h"
    assert caught.value.hint == "Look at the attention_mask of the data."


def test_progress_and_order(rng):
    model, values = masked_layer(rng)
    feeds = [padded_feed(rng, 0) for _ in range(3)]
    done = []
    forward = see_extremes(model, values, data_of(*feeds), seed=0, on_batch=done.append)["h"]
    assert done == [1, 2, 3]
    backward = see_extremes(model, values, data_of(*feeds[::-1]), seed=0)["h"]
    assert (forward.low, forward.high) == (backward.low, backward.high)
    amax = dict.fromkeys(values, forward.amax)
    counts = [
        see_histograms(model, amax, data_of(*order), on_batch=done.append)["h"].counts
        for order in (feeds, feeds[::-1])
    ]
    assert done == [1, 2, 3] * 3
    assert np.array_equal(*counts)


def test_one_batch_is_held_at_a_time(rng, monkeypatch):
    model, values = masked_layer(rng)
    held, alive = [], []
    run = Observation.run

    def counted(self, feed):
        gc.collect()
        alive.append(sum(reference() is not None for reference in held))
        found = run(self, feed)
        held.extend(weakref.ref(array) for array in found.values())
        return found

    monkeypatch.setattr(Observation, "run", counted)
    data = data_of(*(padded_feed(rng, 0) for _ in range(20)))
    extremes = see_extremes(model, values, data, seed=0)["h"]
    see_histograms(model, dict.fromkeys(values, extremes.amax), data)
    assert len(held) == 40
    assert max(alive) <= 1


def test_the_graph_is_as_it_was(rng):
    model, values = masked_layer(rng)
    before = ir.to_proto(model).SerializeToString()
    data = data_of(padded_feed(rng, 0))
    see_extremes(model, values, data, seed=0)
    see_magnitudes(model, data)
    see_hessians(model, find_products(model), data)
    assert ir.to_proto(model).SerializeToString() == before
    # Smoothing does not fold into what gives an output of the graph.
    assert not any(value.is_graph_output() for value in values)


def test_nothing_is_left_behind(rng, temporary):
    model, values = masked_layer(rng)
    see_extremes(model, values, data_of(padded_feed(rng, 0)), seed=0)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_nothing_is_left_behind_by_an_error(error, rng, temporary):
    model, values = masked_layer(rng)

    def stop(_):
        assert len(list(temporary.iterdir())) == 1
        raise error

    with pytest.raises(error):
        see_extremes(model, values, data_of(padded_feed(rng, 0)), seed=0, on_batch=stop)
    assert list(temporary.iterdir()) == []


def test_a_graph_that_does_not_load(rng, temporary):
    model, values = masked_layer(rng)
    model.graph.node(0).op_type = "Unheard"
    with pytest.raises(QuantizeError, match=r"^onnxruntime cannot run the graph to calibrate: "):
        see_extremes(model, values, data_of(padded_feed(rng, 0)), seed=0)
    assert list(temporary.iterdir()) == []


def test_magnitudes_of_every_value(rng):
    model, _ = masked_layer(rng)
    feed = padded_feed(rng, 3.0)
    k, w = (model.graph.initializers[name].const_value.numpy() for name in "kw")
    found = see_magnitudes(model, data_of(feed, {**feed, "x": 0 * feed["x"]}))
    assert found["h"] == abs(feed["x"] * k).max()
    assert found["y"] == pytest.approx(abs((feed["x"] * k) @ w).max(), rel=1e-5)
    feed["x"][0, 0, 0] = np.nan
    assert see_magnitudes(model, data_of(feed))["h"] == np.inf


def test_products_of_activations(rng):
    model, _ = masked_layer(rng)
    feed = padded_feed(rng, 1e3)
    k = model.graph.initializers["k"].const_value.numpy()
    rows = (feed["x"] * k)[feed["attention_mask"] == 1].astype(float)
    found = see_hessians(model, find_products(model), data_of(feed, feed))
    np.testing.assert_allclose(found["w"], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
