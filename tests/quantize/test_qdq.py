"""Where Q and DQ are placed, and that the graph computes what they say."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from support.graphs import fill_constants, graph_of, operators, run_ort, run_reference

from tfx.dtypes import DType
from tfx.errors import QuantizeError
from tfx.quantize.linear import find_lookups, find_products
from tfx.quantize.observers import scale_of
from tfx.quantize.qdq import quantize_activations, quantize_tables, quantize_weights
from tfx.quantize.weights import quantize_e4m3, quantize_symmetric

PRECISIONS = [DType.INT8, DType.FLOAT8_E4M3]


def layer(rng):
    """Two products of one activation, each with a bias, and one of their sum."""
    return fill_constants(
        graph_of(
            "g (float[n, 32] x, float[32, 48] w, float[48] b, float[32, 48] v, float[48, 32] u) "
            "=> (float[n, 32] y) { h = MatMul(x, w)\n hb = Add(h, b)\n k = MatMul(x, v)\n"
            "s = Add(hb, k)\n y = MatMul(s, u) }"
        ),
        rng,
    )


def constants_of(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def rounded(values, amax, dtype):
    """Fake quantization of an activation, in numpy."""
    step = scale_of(amax, e4m3=dtype is DType.FLOAT8_E4M3)
    if dtype is DType.INT8:
        return np.clip(np.rint(values / step), -128, 127).astype(np.float32) * step
    return np.clip(values / step, -448, 448).astype(dtype.numpy).astype(np.float32) * step


def rounded_weight(weight, dtype):
    q, scale = (quantize_symmetric if dtype is DType.INT8 else quantize_e4m3)(weight, axis=1)
    return q.astype(np.float32) * scale


def lowered(model, amax, dtype=DType.INT8):
    products = find_products(model)
    quantize_weights(model.graph, products, dtype)
    quantize_activations(model.graph, products, amax, dtype)
    return model


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_graph_gives_what_rounding_gives(dtype, rng):
    x = rng.normal(size=(7, 32)).astype(np.float32)
    model = layer(rng)
    c = constants_of(model)
    amax = {"x": 2.5, "s": 20.0}
    given = rounded(x, amax["x"], dtype)
    s = given @ rounded_weight(c["w"], dtype) + c["b"] + given @ rounded_weight(c["v"], dtype)
    wanted = rounded(s, amax["s"], dtype) @ rounded_weight(c["u"], dtype)
    lowered(model, amax, dtype)
    check_model(ir.to_proto(model), full_check=True)
    # ONNX Runtime takes 8-bit floats for integers where it fuses: see its backend.
    run = run_ort if dtype is DType.INT8 else run_reference
    (got,) = run(model, {"x": x})
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_an_activation_of_several_products_has_one_pair(rng):
    model = lowered(layer(rng), {"x": 2.5, "s": 20.0})
    assert operators(model).count("QuantizeLinear") == 2
    assert operators(model).count("DequantizeLinear") == 2 + 3
    first, second, third = (node for node in model.graph if node.op_type == "MatMul")
    assert first.inputs[0] is second.inputs[0]
    assert first.inputs[0].name == "x_dequantized"
    assert third.inputs[0].name == "s_dequantized"


def test_engines_need_a_zero_point_of_zero_and_a_scale_per_output(rng):
    model = lowered(layer(rng), {"x": 2.5, "s": 20.0})
    weights = constants_of(layer(np.random.default_rng(20261121)))
    constants = constants_of(model)
    assert constants["zero_point_int8"].item() == 0
    assert constants["zero_point_int8"].dtype == np.int8
    assert constants["x_scale"] == np.float32(2.5 / 127)
    assert constants["w_scale"].shape == (48,)
    np.testing.assert_allclose(constants["w_scale"], np.abs(weights["w"]).max(axis=0) / 127)
    assert constants["w_quantized"].dtype == np.int8
    # What leaves a product is not rounded again, and a bias stays as it is.
    assert np.array_equal(constants["b"], weights["b"])
    assert not {"w", "v", "u"} & constants.keys()
    pairs = [node for node in model.graph if node.op_type.endswith("quantizeLinear")]
    assert all(len(node.inputs) == 2 or node.inputs[2].name == "zero_point_int8" for node in pairs)


def test_8_bit_floats(rng):
    model = lowered(layer(rng), {"x": 448.0, "s": 44.8}, DType.FLOAT8_E4M3)
    constants = constants_of(model)
    assert constants["x_scale"] == 1
    assert constants["s_scale"] == np.float32(0.1)
    assert model.graph.initializers["w_quantized"].dtype == ir.DataType.FLOAT8E4M3FN
    assert model.graph.initializers["zero_point_float8_e4m3fn"].dtype == ir.DataType.FLOAT8E4M3FN


def test_values_have_types_and_shapes_and_nodes_their_module(rng):
    model = layer(rng)
    for node in model.graph:
        node.metadata_props["scope"] = f"of.{node.outputs[0].name}"
    lowered(model, {"x": 2.5, "s": 20.0})
    for node in model.graph:
        assert node.metadata_props["scope"].startswith("of.")
        assert node.outputs[0].type is not None
        assert node.outputs[0].shape is not None
    q = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    assert q.outputs[0].dtype == ir.DataType.INT8
    assert q.outputs[0].shape == ["n", 32]
    assert q.metadata_props["scope"] == "of.h"


def test_tied_weights_are_stored_once(rng):
    model = fill_constants(
        graph_of(
            "g (float[n, 32] x, float[32, 32] w) => (float[n, 32] y) "
            "{ h = MatMul(x, w)\n y = MatMul(h, w) }"
        ),
        rng,
    )
    lowered(model, {"x": 3.0, "h": 20.0})
    assert sorted(model.graph.initializers) == [
        "h_scale", "w_quantized", "w_scale", "x_scale", "zero_point_int8"
    ]  # fmt: skip
    check_model(ir.to_proto(model), full_check=True)


def test_a_product_that_is_kept_reads_the_floats(rng):
    model = layer(rng)
    x = rng.normal(size=(7, 32)).astype(np.float32)
    first, *_ = find_products(model)
    quantize_weights(model.graph, [first])
    quantize_activations(model.graph, [first], {"x": 2.5})
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert [node.inputs[0].name for node in products] == ["x_dequantized", "x", "s"]
    assert {"v", "u"} <= set(model.graph.initializers)
    run_ort(model, {"x": x})


@pytest.mark.parametrize("run", [run_ort, run_reference])
def test_a_table_has_a_scale_per_row(run, rng):
    model = fill_constants(
        graph_of(
            "g (int64[a, b] i, float[64, 16] table) => (float[a, b, 16] y, float[a, b, 16] z) "
            "{ y = Gather(table, i)\n z = Gather(table, i) }"
        ),
        rng,
        inputs=("i",),
    )
    table = constants_of(model)["table"]
    quantize_tables(model.graph, find_lookups(model))
    check_model(ir.to_proto(model), full_check=True)
    assert sorted(model.graph.initializers) == ["table_quantized", "table_scale"]
    q, scale = quantize_symmetric(table, axis=0)
    ids = rng.integers(0, 64, (2, 3))
    for got in run(model, {"i": ids}):
        assert np.array_equal(got, (q * scale[:, None])[ids])


def test_a_weight_that_is_no_number_is_named(rng):
    model = layer(rng)
    broken = constants_of(model)["v"].copy()
    broken[3, 4] = np.nan
    model.graph.initializers["v"].const_value = ir.tensor(broken, name="v")
    with pytest.raises(QuantizeError) as caught:
        quantize_weights(model.graph, find_products(model))
    assert str(caught.value) == "v: weight has a NaN or infinity"
    assert caught.value.hint == "Check the checkpoint."
