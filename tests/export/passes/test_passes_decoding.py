"""Queries scaled in front of attention: the same numbers, and a product that copies no keys."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from support.graphs import graph_of, operators, run_ort, run_reference

from tfx.export.passes.decoding import scale_queries

FOUR = "float[2, 4, 1, 16] q, float[2, 2, 7, 16] k, float[2, 2, 7, 16] v, float[2, 1, 1, 7] mask"
THREE = "float[2, 1, 64] q, float[2, 7, 32] k, float[2, 7, 32] v, float[2, 1, 1, 7] mask"
SIZES = {
    FOUR: ((2, 4, 1, 16), (2, 2, 7, 16), "float[2, 4, 1, 16] y"),
    THREE: ((2, 1, 64), (2, 7, 32), "float[2, 1, 64] y"),
}


def model_of(inputs, attributes):
    return graph_of(
        f"g ({inputs}) => ({SIZES[inputs][2]}) {{ y = Attention <{attributes}> (q, k, v, mask) }}"
    )


@pytest.mark.parametrize(
    "attributes",
    ["scale = 0.3", "softcap = 2.0", "scale = 0.3, softcap = 2.0"],
)
@pytest.mark.parametrize("inputs", [FOUR, THREE], ids=["four axes", "flat heads"])
def test_the_numbers_stay(inputs, attributes, rng):
    heads = ", q_num_heads = 4, kv_num_heads = 2" if inputs == THREE else ""
    model = model_of(inputs, attributes + heads)
    queries, keys, _ = SIZES[inputs]
    shapes = {"q": queries, "k": keys, "v": keys, "mask": (2, 1, 1, 7)}
    feed = {name: rng.normal(size=size).astype(np.float32) for name, size in shapes.items()}
    (before,) = run_reference(model, feed)

    assert scale_queries(model) == 1

    assert operators(model) == ["Mul", "Attention"]
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    assert attention.attributes.get_float("scale") == 1
    check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run_reference(model, feed)[0], before, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run_ort(model, feed)[0], before, rtol=1e-5, atol=1e-5)


def test_what_is_not_scaled_stays_as_it_is():
    model = model_of(FOUR, "scale = 1.0")
    assert scale_queries(model) == 0
    assert operators(model) == ["Attention"]


def test_heads_of_no_known_size_stay_as_they_are():
    open_size = FOUR.replace("16", "size")
    model = graph_of(
        f"g ({open_size}) => (float[2, 4, 1, size] y) {{ y = Attention (q, k, v, mask) }}"
    )
    assert scale_queries(model) == 0
