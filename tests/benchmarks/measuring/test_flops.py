import numpy as np
import onnx
import pytest
from onnx import parser
from support.bundles import write_bundle

from tfx.bench.measuring.flops import flops_of, flops_of_graph
from tfx.errors import BundleError

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def count(text, **sizes):
    return flops_of_graph(parser.parse_model(HEADER + text), sizes).by_op


def test_a_product_of_a_symbolic_shape():
    text = "g (float[batch, rows, 5] x, float[5, 7] w) => (float[a, b, c] y) { y = MatMul(x, w) }"
    assert count(text, batch=2, rows=3) == {"MatMul": 2 * (2 * 3 * 5 * 7)}


def test_products_of_two_activations_follow_transposes():
    text = """g (float[n, 4] x) => (float[n, n] y) {
        t = Transpose <perm = [1, 0]> (x)
        y = MatMul(x, t)
    }"""
    assert count(text, n=6) == {"MatMul": 2 * 6 * 4 * 6}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_sums_over_the_axis_that_goes(transposed):
    shape = "[5, n]" if transposed else "[n, 5]"
    text = f"""g (float{shape} x, float[5, 7] w) => (float[a, b] y) {{
        y = Gemm <transA = {transposed}> (x, w)
    }}"""
    assert count(text, n=3) == {"Gemm": 2 * 3 * 5 * 7}


def test_attention_is_two_products():
    text = """g (float[2, 4, q, 8] q0, float[2, 4, k, 8] k0, float[2, 4, k, 6] v0)
        => (float[a, b, c, d] y) { y = Attention(q0, k0, v0) }"""
    assert count(text, q=3, k=5) == {"Attention": 2 * 2 * 4 * 3 * 5 * (8 + 6)}


def test_heads_of_attention_are_cut_from_the_last_axis():
    text = """g (float[2, q, 32] q0, float[2, k, 16] k0, float[2, k, 12] v0)
        => (float[a, b, c] y) { y = Attention <q_num_heads = 4, kv_num_heads = 2> (q0, k0, v0) }"""
    assert count(text, q=3, k=5) == {"Attention": 2 * 2 * 4 * 3 * 5 * (8 + 6)}


def test_attention_reads_the_past_too():
    text = """g (float[1, 2, q, 8] q0, float[1, 2, q, 8] k0, float[1, 2, q, 8] v0,
        float[1, 2, p, 8] pk, float[1, 2, p, 8] pv)
        => (float[a, b, c, d] y, float[e, f, g, h] ok, float[i, j, k, l] ov)
        { y, ok, ov = Attention(q0, k0, v0, , pk, pv) }"""
    assert count(text, q=1, p=9) == {"Attention": 2 * 2 * 1 * 10 * 16}


def test_a_convolution_of_groups():
    text = """g (float[n, 6, 10, 10] x, float[8, 3, 3, 3] w) => (float[a, b, c, d] y) {
        y = Conv <group = 2> (x, w)
    }"""
    assert count(text, n=2) == {"Conv": 2 * (2 * 8 * 8 * 8) * (3 * 3 * 3)}


def test_integer_products_count_as_what_they_stand_for():
    text = """g (uint8[n, 5] x, int8[5, 7] w) => (int32[a, b] y) { y = MatMulInteger(x, w) }"""
    assert count(text, n=3) == {"MatMulInteger": 2 * 3 * 5 * 7}


def test_a_shape_that_is_computed_is_followed():
    text = """g (float[n, s, 6] x, float[3, 7] w) => (float[a, b, c] y)
        <int64[1] two = {2}, int64[1] three = {3}> {
        whole = Shape <start = 0, end = 1> (x)
        rest = Shape <start = 1, end = 2> (x)
        more = Mul(rest, two)
        sizes = Concat <axis = 0> (whole, more, three)
        r = Reshape(x, sizes)
        y = MatMul(r, w)
    }"""
    assert count(text, n=2, s=5) == {"MatMul": 2 * (2 * 10 * 3 * 7)}


def test_a_slice_whose_end_is_computed_is_followed():
    """Positions of a text model: shape inference alone gives up on both axes."""
    text = """g (int64[n, s] ids, float[16, 6] table, float[6, 7] w) => (float[a, b, c] y)
        <int64[1, 16] places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
         int64[1] zero = {0}, int64[1] one = {1}> {
        length = Shape <start = 1, end = 2> (ids)
        own = Slice(places, zero, length, one, one)
        at = Gather(table, own)
        words = Gather(table, ids)
        both = Add(words, at)
        y = MatMul(both, w)
    }"""
    for n in (1, 2):
        assert count(text, n=n, s=5) == {"MatMul": 2 * (n * 5 * 6 * 7)}


def test_weights_are_not_needed_and_constants_are(tmp_path):
    text = """g (float[n, 64] x) => (float[a, b] y) { y = MatMul(x, w) }"""
    model = parser.parse_model(HEADER + text)
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    model.graph.initializer.append(weight)
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    (tmp_path / "w").unlink()
    found = flops_of_graph(onnx.load(tmp_path / "m.onnx", load_external_data=False), {"n": 3})
    assert found.total == 2 * 3 * 64 * 64


def test_small_constants_are_read_from_their_file(tmp_path):
    text = """g (float[n, s, 6] x, float[3, 7] w) => (float[a, b, c] y) {
        r = Reshape(x, sizes)
        y = MatMul(r, w)
    }"""
    model = parser.parse_model(HEADER + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1, 3]), "sizes"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)
    read = onnx.load(path, load_external_data=False)
    assert flops_of_graph(read, {"n": 2, "s": 5}, folder=tmp_path).total == 2 * (2 * 10 * 3 * 7)


def test_every_axis_needs_a_size():
    text = "g (float[batch, 5] x, float[5, 7] w) => (float[a, b] y) { y = MatMul(x, w) }"
    with pytest.raises(BundleError) as raised:
        count(text)
    assert str(raised.value) == "the graph has axes without a size: batch"
    assert raised.value.hint == "Give each of them a size."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "g (float[3, 5] x, float[5, 7] w) => (float[a, b] y)"
            ' { y = Einsum <equation = "ij,jk->ik"> (x, w) }',
            "the graph cannot be counted: Einsum of y is not counted",
        ),
        (
            "g (float[9] x, int64[2] to, float[3, 7] w) => (float[a, b] y)"
            " { r = Reshape(x, to)\n y = MatMul(r, w) }",
            "the graph cannot be counted: the shape of y is not known",
        ),
    ],
)
def test_what_is_not_known_is_no_zero(text, said):
    with pytest.raises(BundleError) as raised:
        count(text)
    assert str(raised.value) == said


def test_a_bundle_is_counted_by_its_graph(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    assert flops_of(bundle, {"batch": 2, "sequence": 8}).total == 0  # it looks up, and multiplies
