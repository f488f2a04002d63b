import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from support.graphs import graph_of, run_ort, run_reference

from tfx.export.passes.pooling import keep_padding

POOL = "kernel_shape = [3, 3], strides = [2, 2]"


def pool(attributes: str = POOL, first: str = "Pad(x, pads, zero)", op: str = "MaxPool"):
    return graph_of(
        "g (float[1, 1, 6, 6] x) => (float[1, 1, n, m] y) "
        "<int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, float zero = {0}> "
        f"{{ a = {first} y = {op}<{attributes}>(a) }}"
    )


def negative(rng):
    return {"x": -1 - rng.random((1, 1, 6, 6), dtype=np.float32)}


def test_what_it_is_for_still_stands(rng):
    """ONNX Runtime pads with minus infinity; once it does not, the pass can go."""
    model, feed = pool(), negative(rng)
    (expected,) = run_reference(model, feed)
    assert expected[0, 0, 0, 0] == 0
    assert run_ort(model, feed)[0][0, 0, 0, 0] < 0


@pytest.mark.parametrize("attributes", [POOL, f'{POOL}, pads = [0, 0, 0, 0], auto_pad = "NOTSET"'])
def test_fires_and_keeps_the_numbers(attributes, rng):
    model, feed = pool(attributes), negative(rng)
    (expected,) = run_reference(model, feed)

    assert keep_padding(model) == 1

    check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(run_reference(model, feed)[0], expected)
    np.testing.assert_array_equal(run_ort(model, feed)[0], expected)


@pytest.mark.parametrize(
    "model",
    [
        pool(first="Relu(x)"),
        pool(op="AveragePool"),
        pool(f"{POOL}, ceil_mode = 1"),
        pool(f"{POOL}, pads = [1, 1, 1, 1]"),
        pool(f'{POOL}, auto_pad = "SAME_UPPER"'),
    ],
    ids=["no padding before", "average", "partial windows", "padding of its own", "automatic"],
)
def test_others_are_left_alone(model):
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert keep_padding(model) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
