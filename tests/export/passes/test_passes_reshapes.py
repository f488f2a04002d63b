import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import graph_of, operators, run_ort

from tfx.export.passes.cleanup import simplify
from tfx.export.passes.reshapes import settle_reshapes

SPLIT = (
    "g (float[b, n, 8] x) => (float[b, n, 2, 4] y) <int64[2] last = {2, 4}> {"
    " sizes = Shape<end = 2>(x) target = Concat<axis = 0>(sizes, last)"
    " y = Reshape<allowzero = 1>(x, target) }"
)


def shaped(text, sizes=None):
    """A graph whose output has the shape that tracing knows and ONNX does not infer."""
    model = graph_of(text)
    if sizes is not None:
        model.graph.outputs[0].shape = ir.Shape(sizes)
    return model


def target_of(model):
    (node,) = (node for node in model.graph if node.op_type == "Reshape")
    constant = node.inputs[1].const_value
    return None if constant is None else constant.numpy().tolist()


@pytest.mark.parametrize(
    ("given", "sizes", "target"),
    [
        ("b, n, 8", ["b", "n", 2, 4], [0, 0, 2, 4]),
        ("b, n, 8", [None, "n", 2, 4], [-1, 0, 2, 4]),
        ("b, n, 8", ["b*n", 8], [-1, 8]),
        ("b, n, 8", ["b", "n*2", 4], [0, -1, 4]),
        ("b, n, 8", ["n", "b", 8], None),
        ("b, n, 8", [None, None, 8], None),
        ("6, 8", [2, 3, 8], [2, 3, 8]),
    ],
)
def test_targets(given, sizes, target):
    text = f"g (float[{given}] x, int64[r] t) => (float[] y) {{ y = Reshape(x, t) }}"
    model = shaped(text, sizes)
    assert settle_reshapes(model) == (target is not None)
    assert target_of(model) == target


def test_it_fires_and_keeps_the_numbers(rng):
    model = shaped(SPLIT, ["b", "n", 2, 4])
    feeds = [{"x": rng.normal(size=(b, n, 8)).astype(np.float32)} for b, n in ((3, 5), (1, 1))]
    expected = [run_ort(model, feed)[0] for feed in feeds]
    simplify(model)
    assert operators(model) == ["Reshape"]
    assert target_of(model) == [0, 0, 2, 4]
    for feed, one in zip(feeds, expected, strict=True):
        np.testing.assert_array_equal(run_ort(model, feed)[0], one)


def test_a_constant_target_stays():
    text = "g (float[b, n, 8] x) => (y) <int64[2] t = {-1, 8}> { y = Reshape(x, t) }"
    model = graph_of(text)
    assert settle_reshapes(model) == 0
    assert target_of(model) == [-1, 8]


def test_an_empty_axis_is_not_taken_for_the_inputs():
    text = "g (float[b, 0, 8] x, int64[r] t) => (float[] y) { y = Reshape(x, t) }"
    model = shaped(text, ["b", 0, 8])
    assert settle_reshapes(model) == 0


@pytest.mark.parametrize("place", ["input", "output"])
def test_an_unknown_rank_stays(place):
    text = "g (float[b, n, 8] x, int64[r] t) => (float[] y) { y = Reshape(x, t) }"
    model = shaped(text, ["b", "n", 2, 4])
    value = model.graph.inputs[0] if place == "input" else model.graph.outputs[0]
    value.shape = None
    assert settle_reshapes(model) == 0
    assert target_of(model) is None
