"""The form of a graph for ONNX Runtime: other operators, the same numbers."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from support.graphs import fill_constants, graph_of, operators, run_ort

from tfx.quantize.linear import find_lookups, find_products
from tfx.quantize.qdq import quantize_activations, quantize_tables, quantize_weights
from tfx.quantize.targets import lower_for_ort_cpu

WEIGHTS = "float[32, 48] w, float[48] b, float[48, 32] u"
INPUTS = ("x", "i")
CLOSE = {"rtol": 0, "atol": 1e-5}


def quantized(text, rng, *, amax=4.0, dynamic=False):
    """A graph of text with every product and table in int8."""
    model = fill_constants(graph_of(f"g ({text} }}"), rng, inputs=INPUTS)
    products = find_products(model)
    quantize_weights(model.graph, products)
    if not dynamic:
        ranges = {str(product.data.name): amax for product in products}
        quantize_activations(model.graph, products, ranges)
    quantize_tables(model.graph, find_lookups(model))
    return model


def both(model, feed):
    """Outputs before and after lowering, and how many nodes were rewritten."""
    before = run_ort(model, feed)
    count = lower_for_ort_cpu(model)
    check_model(ir.to_proto(model))
    return before, run_ort(model, feed), count


def microsoft(model):
    return [node for node in model.graph if node.domain == "com.microsoft"]


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("{ y = MatMul(x, w)", 5),
        ("{ h = MatMul(x, w)\n y = Add(h, b)", 7),
        ("{ h = MatMul(x, w)\n y = Add(b, h)", 7),
        ("{ h = MatMul(x, w)\n k = Add(h, b)\n y = Relu(k)", 7),
    ],
    ids=["no bias", "bias", "bias first", "in the middle"],
)
def test_a_product_is_one_kernel(body, inputs, rng):
    model = quantized(
        f"float[n, 32] x, float[32, 48] w, float[48] b) => (float[n, 48] y) {body}", rng
    )
    x = 2 * rng.normal(size=(9, 32)).astype(np.float32)
    (before,), (after,), count = both(model, {"x": x})
    assert count == 1
    assert operators(model)[:2] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert "DequantizeLinear" not in operators(model)
    (node,) = microsoft(model)
    assert len([value for value in node.inputs if value is not None]) == inputs - (inputs == 7)
    assert [output.name for output in model.graph.outputs] == ["y"]
    np.testing.assert_allclose(after, before, **CLOSE)


def test_activations_are_unsigned_around_128(rng):
    """Signed by signed has no fast kernel on x86."""
    model = quantized(
        "float[n, 32] x, float[32, 48] w) => (float[n, 48] y) { y = MatMul(x, w)", rng
    )
    # Beyond the range on both sides too.
    x = np.linspace(-9, 9, 32 * 32, dtype=np.float32).reshape(32, 32)
    (before,), (after,), _ = both(model, {"x": x})
    quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    assert quantize.inputs[2].const_value.numpy() == 128
    assert quantize.inputs[2].const_value.numpy().dtype == np.uint8
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-4)


def test_products_of_one_activation_share_its_integers(rng):
    model = quantized(
        "float[n, 32] x, float[32, 48] w, float[32, 48] v, float[48] b) "
        "=> (float[n, 48] y, float[n, 48] z) { y = MatMul(x, w)\n h = MatMul(x, v)\n z = Add(h, b)",
        rng,
    )
    before, after, count = both(model, {"x": rng.normal(size=(4, 32)).astype(np.float32)})
    assert count == 2
    assert operators(model).count("QuantizeLinear") == 1
    for wanted, got in zip(before, after, strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE)


def test_a_chain_of_layers(rng):
    model = quantized(
        f"float[a, n, 32] x, {WEIGHTS}) => (float[a, n, 32] y) "
        "{ h = MatMul(x, w)\n k = Add(h, b)\n r = Relu(k)\n m = MatMul(r, u)\n y = Add(m, x)",
        rng,
    )
    feed = {"x": rng.normal(size=(2, 5, 32)).astype(np.float32)}
    (before,), (after,), count = both(model, feed)
    assert count == 2
    assert operators(model).count("MatMulIntegerToFloat") == 2
    assert operators(model)[-1] == "Add"
    # A rounding that falls on an edge may go the other way: half a step of one value in 48.
    step = 4 / 127
    weight = model.graph.initializers["u_scale"].const_value.numpy().max() * 127
    assert np.abs(after - before).max() <= step * weight


def test_ranges_found_at_run_time(rng):
    model = quantized(
        f"float[n, 32] x, {WEIGHTS}) => (float[n, 48] y, float[n, 48] z) "
        "{ h = MatMul(x, w)\n y = Add(h, b)\n z = MatMul(x, w)",
        rng,
        dynamic=True,
    )
    x = rng.normal(size=(6, 32)).astype(np.float32)
    (before, _), (after, _), count = both(model, {"x": x})
    assert count == 2
    assert operators(model).count("DynamicQuantizeLinear") == 1
    assert "DequantizeLinear" not in operators(model)
    # x in 255 steps, by the definition of DynamicQuantizeLinear.
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    given = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    c = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    wanted = given @ (c["w_quantized"] * c["w_scale"]) + c["b"]
    np.testing.assert_allclose(after, wanted, rtol=1e-5, atol=1e-4)
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()


@pytest.mark.parametrize("shape", ["[n]", "[a, n]", "[a, n, m]"])
def test_rows_are_scaled_after_they_are_looked_up(shape, rng):
    output = shape.replace("]", ", 16]")
    model = quantized(
        f"int64{shape} i, float[64, 16] t) => (float{output} y) {{ y = Gather(t, i)", rng
    )
    ids = {"[n]": [3, 63, 0], "[a, n]": [[1, 2], [3, 3]], "[a, n, m]": [[[7]]]}[shape]
    (before,), (after,), count = both(model, {"i": np.array(ids)})
    assert count == 1
    assert operators(model) == ["Gather", "Cast", "Gather", "Unsqueeze", "Mul"]
    assert [output.name for output in model.graph.outputs] == ["y"]
    assert np.array_equal(after, before)


MISSES = {
    "two activations": "float[n, 32] x) => (float[n, n] y) { t = Transpose(x)\n y = MatMul(x, t)",
    "a table of floats": "int64[n] i, float[8, 4] t) => (float[n, 4] y) { y = Gather(t, i)",
    "floats": "float[n, 32] x, float[32, 4] w) => (float[n, 4] y) { y = MatMul(x, w)",
}


@pytest.mark.parametrize("text", MISSES.values(), ids=MISSES)
def test_nothing_to_rewrite(text, rng):
    model = quantized(text, rng)
    nodes = operators(model)
    assert lower_for_ort_cpu(model) == 0
    assert operators(model) == nodes


@pytest.mark.parametrize(
    "text",
    [
        "float[1, 48] c) => (float[n, 48] y) { h = MatMul(x, w)\n y = Add(h, c)",
        "float[1] c) => (float[n, 48] y) { h = MatMul(x, w)\n y = Add(h, c)",
        "float[48] c) => (float[n, 48] y) { h = MatMul(x, w)\n y = Mul(h, c)",
        "float[48] c) => (float[n, 48] y, float[n, 48] h) { h = MatMul(x, w)\n y = Add(h, c)",
        "float[48] c) => (float[n, 48] y, float[n, 48] z) "
        "{ h = MatMul(x, w)\n y = Add(h, c)\n z = Relu(h)",
        "float[48] c) => (float[n, 48] y) { h = MatMul(x, w)\n d = Abs(c)\n y = Add(h, d)",
        "float[48] c) => (float[n, 48] y) { h = MatMul(x, w)\n y = Add(h, h)",
    ],
    ids=[
        "a row",
        "one number",
        "no sum",
        "an output of the graph",
        "a second user",
        "not constant",
        "with itself",
    ],
)
def test_what_is_no_bias_is_added_after(text, rng):
    model = quantized(f"float[n, 32] x, float[32, 48] w, {text}", rng)
    names = [output.name for output in model.graph.outputs]
    before, after, count = both(model, {"x": rng.normal(size=(4, 32)).astype(np.float32)})
    assert count == 1
    (node,) = microsoft(model)
    assert node.inputs[-1] is None
    assert [output.name for output in model.graph.outputs] == names
    for wanted, got in zip(before, after, strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scale_along_another_axis_is_left_alone(axis, rng):
    """A table that is multiplied, and a weight that is looked up in."""
    op, names = (("MatMul", "x, t"), ("Gather", "t, i"))[axis]
    given = ("float[n, 32] x", "int64[n] i")[axis]
    model = graph_of(
        f"g ({given}, int8[32, 32] q, float[32] s) => (float[n, 32] y) "
        f"{{ t = DequantizeLinear <axis = {axis}> (q, s)\n y = {op}({names}) }}"
    )
    for name, dtype in (("q", np.int8), ("s", np.float32)):
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        shape = tuple(int(size) for size in value.shape)
        value.const_value = ir.tensor(rng.integers(1, 100, shape).astype(dtype), name=name)
        model.graph.register_initializer(value)
    assert lower_for_ort_cpu(model) == 0


def test_the_form_reads_the_weights_of_the_portable_graph(rng, tmp_path):
    text = (
        f"float[n, 32] x, {WEIGHTS}) => (float[n, 32] y) "
        "{ h = MatMul(x, w)\n k = Add(h, b)\n y = MatMul(k, u)"
    )
    ir.save(quantized(text, rng), tmp_path / "model.onnx", external_data="model.onnx.data")
    saved = ir.load(tmp_path / "model.onnx")
    assert lower_for_ort_cpu(saved) == 2
    ir.save(saved, tmp_path / "form.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "form.onnx", "model.onnx", "model.onnx.data"
    ]  # fmt: skip
    form = ir.load(tmp_path / "form.onnx")
    for name in ("w_quantized", "u_quantized"):
        tensor = form.graph.initializers[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.location == "model.onnx.data"
