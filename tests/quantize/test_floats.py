"""Graphs of float16 and bfloat16: the types, the casts, the numbers."""

import collections

import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from support.graphs import graph_of, operators, run_ort, run_reference

from tfx.dtypes import DType
from tfx.errors import QuantizeError
from tfx.quantize.floats import cpu_variant, lower_floats

LOWEST = float(np.finfo(np.float32).min)
LOW = [DType.FLOAT16, DType.BFLOAT16]

# An operand of float16 is off by 2**-11 of itself, of bfloat16 by 2**-8; a few operations each.
ERRORS = {DType.FLOAT16: 4e-3, DType.BFLOAT16: 3e-2}

LINEAR = (
    "g (float[b, 4] x) => (float[b, 2] y) "
    "<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] c = {0.5, -0.5}>"
    "{ p = MatMul(x, w) s = Add(p, c) y = Tanh(s) }"
)


def checked(model, dtype, ranges=None, keep=()):
    """Lower a graph in place; it and its variant must be valid."""
    kept = lower_floats(model, dtype, ranges, keep)
    check_model(ir.to_proto(model), full_check=True)
    check_model(ir.to_proto(cpu_variant(model)), full_check=True)
    return kept


def with_weights(text, **arrays):
    """A graph of which some inputs are weights."""
    model = graph_of(text)
    for value in list(model.graph.inputs):
        if value.name in arrays:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(arrays[value.name], name=value.name)
            model.graph.register_initializer(value)
    return model


def dtypes(model):
    values = [*model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    return {value.name: str(value.dtype).lower() for value in values}


def errors(model, feed, before, dtype):
    """Largest scaled error of each way to run a lowered graph."""
    runs = [run_reference(model, feed), run_ort(cpu_variant(model), feed)]
    if dtype is DType.FLOAT16:
        runs.append(run_ort(model, feed))
    return [
        float(np.abs(np.asarray(one, np.float64) - other).max() / np.abs(other).max())
        for outputs in runs
        for one, other in zip(outputs, before, strict=True)
    ]


@pytest.mark.parametrize("dtype", LOW)
def test_a_graph_is_lower_between_its_borders(dtype, rng):
    model = graph_of(LINEAR)
    feed = {"x": rng.normal(size=(3, 4)).astype(np.float32)}
    before = run_ort(model, feed)

    assert checked(model, dtype) == []

    assert operators(model) == ["Cast", "MatMul", "Add", "Tanh", "Cast"]
    (source,), (output,) = model.graph.inputs, model.graph.outputs
    assert (source.name, source.dtype) == ("x", ir.DataType.FLOAT)
    assert (output.name, output.dtype) == ("y", ir.DataType.FLOAT)
    inside = dtypes(model)
    assert inside.pop("y") == "float"
    assert set(inside.values()) == {str(dtype)}
    assert max(errors(model, feed, before, dtype)) < ERRORS[dtype]


def test_a_value_is_cast_once_for_all_its_readers():
    model = graph_of(
        "g (float[b, 4] x) => (float[b, 4] y, float[b, 4] z) "
        "{ a = Tanh(x) c = Abs(x) y = Add(a, c) z = Neg(x) }"
    )
    checked(model, DType.FLOAT16)
    assert operators(model).count("Cast") == 3  # x, y, z


@pytest.mark.parametrize("dtype", LOW)
def test_casts_to_the_type_there_is_go(dtype):
    model = graph_of(
        "g (float[b, 4] x) => (float[b, 4] y) "
        "{ a = Tanh(x) c = Cast<to = 1>(a) d = Abs(c) y = Cast<to = 1>(d) }"
    )
    checked(model, dtype)
    assert operators(model) == ["Cast", "Tanh", "Abs", "Cast"]
    assert model.graph.outputs[0].name == "y"


def test_an_output_that_is_read_inside():
    model = graph_of(
        "g (float[b, 4] x) => (float[b, 4] y, float[b, 4] z) { y = Tanh(x) z = Abs(y) }"
    )
    checked(model, DType.FLOAT16)
    assert operators(model) == ["Cast", "Tanh", "Cast", "Abs", "Cast"]
    assert model.graph.node(3).inputs[0].dtype == ir.DataType.FLOAT16
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_a_kept_stretch_has_one_cast_in_and_one_out():
    model = graph_of(
        "g (float[b, 4] x) => (float[b, 4] y) <int64[2] s = {4, -1}> {"
        "a = Tanh(x) c = Softplus(a) d = Transpose(c) e = Reshape(d, s) f = Transpose(e)"
        "h = Softplus(f) y = Abs(h) }"
    )
    kept = checked(model, DType.FLOAT16, {"c": 1e5, "h": 1e5})
    assert operators(model) == [
        *("Cast", "Tanh", "Cast", "Softplus", "Transpose", "Reshape", "Transpose", "Softplus"),
        "Abs",  # reads 1e5
    ]
    assert [node.reason for node in kept if "moves" in node.reason] == [
        "moves values between nodes in float32"
    ] * 2


@pytest.mark.parametrize("dtype", LOW)
def test_tied_weights_are_stored_once(dtype, rng):
    """A table that rows are looked up in and that makes the logits."""
    model = with_weights(
        "g (int64[b, s] ids, float[64, 32] table) => (float[b, s, 64] y) "
        "{ h = Gather(table, ids) t = Transpose<perm = [1, 0]>(table) y = MatMul(h, t) }",
        table=rng.normal(size=(64, 32)).astype(np.float32),
    )
    feed = {"ids": rng.integers(0, 64, (2, 5))}
    before = run_ort(model, feed)

    checked(model, dtype)

    assert sum(v.dtype.is_floating_point() for v in model.graph.initializers.values()) == 1
    assert model.graph.initializers["table"].dtype == ir.DataType[dtype.name]
    assert max(errors(model, feed, before, dtype)) < ERRORS[dtype]


def test_a_large_weight_read_in_both_types_is_stored_in_float32():
    model = with_weights(
        "g (int64[b] ids, float[b, 64] x, float[64, 32] table) "
        "=> (float[b, 32] y, float[b, 32] z) { y = Gather(table, ids) z = MatMul(x, table) }",
        table=np.ones((64, 32), np.float32),
    )
    checked(model, DType.FLOAT16, {"z": 1e6})
    assert dtypes(model)["table"] == "float"
    assert operators(model).count("Cast") == 2  # the table, y


def test_a_number_read_in_both_types_is_stored_in_both():
    model = graph_of(
        "g (float[b] x) => (float[b] y, float[b] z) <float one = {1}>"
        "{ y = Add(x, one) z = Mul(x, one) }"
    )
    checked(model, DType.FLOAT16, {"z": 1e6})
    assert {k: v for k, v in dtypes(model).items() if k.startswith("one")} == {
        "one": "float",
        "one_float16": "float16",
    }


@pytest.mark.parametrize("dtype", LOW)
def test_constants_and_shapes_filled_with_floats(dtype, rng):
    model = graph_of(
        "g (float[b, 4] x) => (float[b, 4] y) {"
        "shape = Shape(x) half = Constant<value_float = 0.5>() zeros = ConstantOfShape(shape)"
        "ones = ConstantOfShape<value = float[1] {1}>(shape) flag = Cast<to = 9>(x)"
        "number = Cast<to = 1>(flag) a = Add(zeros, ones) c = Mul(a, half) d = Add(c, number)"
        "y = Mul(d, x) }"
    )
    feed = {"x": rng.normal(size=(3, 4)).astype(np.float32)}
    before = run_ort(model, feed)
    checked(model, dtype)
    assert operators(model).count("Cast") == 4
    assert max(errors(model, feed, before, dtype)) < ERRORS[dtype]


@pytest.mark.parametrize("dtype", LOW)
def test_quantized_products_compute_between_in_the_lower_type(dtype, rng):
    model = with_weights(
        "g (float[b, 16] x, int8[16, 4] w, float[4] t) => (float[b, 4] y) <float s = {0.02},"
        "int8 z = {0}> { a = Tanh(x) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z)"
        "m = DequantizeLinear<axis = 1>(w, t) p = MatMul(d, m) y = Tanh(p) }",
        w=rng.integers(-127, 128, (16, 4)).astype(np.int8),
        t=np.array([1e-3, 2e-3, 1e-3, 5e-3], np.float32),
    )
    feed = {"x": rng.normal(size=(3, 16)).astype(np.float32)}
    before = run_ort(model, feed)
    assert checked(model, dtype) == []
    assert operators(model).count("Cast") == 2
    assert dtypes(model)["q"] == dtypes(model)["w"] == "int8"
    assert {dtypes(model)[name] for name in "stdmp"} == {str(dtype)}
    assert max(errors(model, feed, before, dtype)) < 3 * ERRORS[dtype]  # a step of 0.02 may flip


def test_a_scale_too_small_for_float16_stays():
    model = graph_of(
        "g (float[b, 16] x) => (float[b, 16] y) <float s = {1e-7}, int8 z = {0}> "
        "{ a = Tanh(x) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) y = Tanh(d) }"
    )
    reasons = {node.reason for node in checked(model, DType.FLOAT16)}
    assert reasons == {"constant s is 1.00e-07, float16 rounds it to 1.19e-07"}


def test_integers_stay_integers():
    model = graph_of(
        "g (float[b, 4] x) => (int64[2] y) { a = Tanh(x) y = Shape(a) }",
    )
    checked(model, DType.FLOAT16)
    assert model.graph.outputs[0].dtype == ir.DataType.INT64


def test_float64_stays():
    model = graph_of(
        "g (float[b] x) => (double[b] y) { a = Tanh(x) c = Cast<to = 11>(a) y = Neg(c) }"
    )
    checked(model, DType.FLOAT16)
    assert model.graph.outputs[0].dtype == ir.DataType.DOUBLE


def test_a_graph_inside_a_node_stays_as_it_is(rng):
    model = graph_of(
        "g (bool c, float[b] x) => (float[b] y) { a = Abs(x) d = If (c) <"
        "then_branch = t () => (float[b] p) { p = Neg(a) },"
        "else_branch = e () => (float[b] q) { q = Identity(a) }> y = Tanh(d) }"
    )
    feed = {"c": np.array(True), "x": rng.normal(size=3).astype(np.float32)}
    before = run_ort(model, feed)
    (kept,) = checked(model, DType.FLOAT16)
    assert kept.reason == "holds a graph of its own"
    assert max(errors(model, feed, before, DType.FLOAT16)) < ERRORS[DType.FLOAT16]


# Attention of 2 heads; keep says which keys a query may see.
ATTENTION = (
    "g (float[b, 2, 5, 4] q, float[b, 2, 5, 4] k, float[b, 2, 5, 4] v, {inputs}) "
    "=> (float[b, 2, 5, 4] y) <float zero = {{0}}, float low = {{{low}}}, float unit = {{1}}{more}>"
    "{{ {body} }}"
)


def attention(body, inputs="bool[b, 1, 5, 5] keep", low=LOWEST, more=""):
    return graph_of(ATTENTION.format(body=body, inputs=inputs, low=low, more=more))


def attention_feed(rng):
    feed = {name: rng.normal(size=(3, 2, 5, 4)).astype(np.float32) for name in "qkv"}
    keep = rng.random((3, 1, 5, 5)) < 0.5
    keep[..., 0] = True
    keep[0, 0, 2] = False  # a row that masks every key
    return feed | {"keep": keep}


def rows_seen(feed):
    """Rows that see a key, [batch, heads, queries]."""
    return np.broadcast_to(feed["keep"].any(-1), (3, 2, 5))


MASKS = {
    "where": "mask = Where(keep, zero, low) y = Attention(q, k, v, mask)",
    "multiplied": "f = Cast<to = 1>(keep) o = Sub(unit, f) mask = Mul(o, low) "
    "y = Attention(q, k, v, mask)",
    "added twice": "a = Where(keep, zero, low) mask = Add(a, a) y = Attention(q, k, v, mask)",
    "raised": "a = Where(keep, zero, low) e = Equal(a, low) mask = Where(e, half, a) "
    "y = Attention(q, k, v, mask)",
    "spelled out": "mask = Where(keep, zero, low) t = Transpose<perm = [0, 1, 3, 2]>(k) "
    "s = MatMul(q, t) m = Add(s, mask) p = Softmax<axis = -1>(m) y = MatMul(p, v)",
    "filled": "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) m = Where(keep, s, low) "
    "p = Softmax<axis = -1>(m) y = MatMul(p, v)",
}


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("low", [LOWEST, LOWEST / 2, -1e9], ids=["lowest", "half", "-1e9"])
@pytest.mark.parametrize("kind", MASKS)
def test_masks_mask_and_masked_rows_give_numbers(kind, low, dtype, rng):
    model = attention(MASKS[kind], low=low, more=f", float half = {{{low / 2}}}")
    feed = attention_feed(rng)
    (before,) = run_reference(model, feed)
    # What calibration sees of masks says nothing of overflow.
    masks = dict.fromkeys(("mask", "a", "m"), -low)

    assert checked(model, dtype, masks) == []

    seen = rows_seen(feed)
    scale = np.abs(before[seen]).max()
    variant = run_ort(cpu_variant(model), feed)[0]
    runs = [run_reference(model, feed)[0], variant]
    if dtype is DType.FLOAT16:
        runs.append(run_ort(model, feed)[0])
    for after in runs:
        assert np.isfinite(after).all()
        assert np.abs(after[seen] - before[seen]).max() / scale < ERRORS[dtype]
    if kind == "added twice" and low == LOWEST:
        return  # minus infinity throughout such a row: the parent has nothing to say
    # What computes in float32 averages evenly over a row that masks everything, as the parent.
    even = ~seen
    np.testing.assert_allclose(variant[even], before[even], atol=ERRORS[dtype] * scale)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("dtype", LOW)
def test_a_mask_from_outside_is_cast_to_numbers(dtype, rng):
    model = attention("y = Attention(q, k, v, mask)", "float[b, 1, 5, 5] mask")
    feed = attention_feed(rng)
    keep = feed.pop("keep")
    feed["mask"] = np.where(keep, np.float32(0), np.float32(LOWEST))
    before = run_reference(model, feed)

    assert checked(model, dtype) == []

    assert collections.Counter(operators(model)) == {"Cast": 5, "Max": 1, "Attention": 1}
    (after,) = run_reference(model, feed)
    assert np.isfinite(after).all()
    seen = np.broadcast_to(keep.any(-1), (3, 2, 5))
    assert np.abs(after - before[0])[seen].max() / np.abs(before[0]).max() < ERRORS[dtype]


def test_infinity_stays_infinity(rng):
    """It masks in any type; what is read in calibration is no overflow."""
    model = attention(MASKS["where"].replace("low", "inf"), more=", float inf = {-inf}")
    feed = attention_feed(rng)
    feed["keep"][0, 0, 2, 1] = True
    before = run_ort(model, feed)
    assert checked(model, DType.FLOAT16, {"mask": np.inf}) == []
    assert np.isneginf(model.graph.initializers["inf"].const_value.numpy())
    assert max(errors(model, feed, before, DType.FLOAT16)) < ERRORS[DType.FLOAT16]


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_scores_that_stay_keep_their_mask(rng):
    """-32752 masks no score of 1e5; the mask of float16 neighbours is cast to numbers."""
    model = attention(
        "mask = Where(keep, zero, low) c = Mul(q, big) t = Transpose<perm = [0, 1, 3, 2]>(k) "
        "s = MatMul(c, t) m = Add(s, mask) p = Softmax<axis = -1>(m) o = MatMul(p, v) "
        "y = Attention(o, k, v, mask)",
        more=", float big = {1e5}",
    )
    feed = attention_feed(rng)
    feed["keep"][0, 0, 2, 1] = True
    before = run_ort(model, feed)
    kept = checked(model, DType.FLOAT16, {"c": 3e5, "s": 8e5})
    assert {node.reason for node in kept if "mask" in node.reason} == {
        "makes the mask of scores in float32",
        "input m has scores in float32 and their mask",
    }
    assert operators(model)[-1] == "Cast"
    assert max(errors(model, feed, before, DType.FLOAT16)) < ERRORS[DType.FLOAT16]


def test_the_variant_shares_the_file_of_weights(tmp_path, rng):
    model = with_weights(
        "g (float[b, 64] x, float[64, 64] w) => (float[b, 64] y) { y = MatMul(x, w) }",
        w=rng.normal(size=(64, 64)).astype(np.float32),
    )
    checked(model, DType.FLOAT16)
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
    ir.save(cpu_variant(ir.load(tmp_path / "model.onnx")), tmp_path / "cpu.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size == 64 * 64 * 2
    assert (tmp_path / "cpu.onnx").stat().st_size < 1000
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "cpu.onnx", options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": rng.normal(size=(2, 64)).astype(np.float32)}
    assert session.run(None, feed)[0] == pytest.approx(run_ort(model, feed)[0], rel=1e-2, abs=1e-2)
    # The weights were cast when the graph was loaded.
    assert operators(ir.load(tmp_path / "optimized.onnx")) == ["MatMul"]


def test_the_variant_has_no_cast_but_those_of_weights():
    model = graph_of(LINEAR)
    checked(model, DType.BFLOAT16)
    assert operators(cpu_variant(model)) == ["MatMul", "Add", "Tanh"]
    assert operators(model) == ["Cast", "MatMul", "Add", "Tanh", "Cast"]  # as it was


def test_the_variant_of_a_graph_with_another_interface():
    model = graph_of("g (float16[b] x) => (float16[b] y) { y = Abs(x) }")
    with pytest.raises(QuantizeError, match="x is FLOAT16, expected an interface of float32") as e:
        cpu_variant(model)
    assert e.value.hint.startswith("Lower a graph with lower_floats")


def test_a_type_that_is_none_of_the_two():
    with pytest.raises(QuantizeError, match="to int8, expected float16 or bfloat16"):
        lower_floats(graph_of(LINEAR), DType.INT8, None)


def test_a_graph_without_types():
    model = graph_of(LINEAR)
    model.graph.node(0).outputs[0].type = None
    with pytest.raises(QuantizeError, match="type of 1 values is not known") as caught:
        lower_floats(model, DType.FLOAT16, None)
    assert caught.value.hint == "Infer the graph's shapes first."


def test_a_graph_of_integers():
    model = graph_of("g (int64[b] x) => (int64[b] y) { y = Neg(x) }")
    with pytest.raises(QuantizeError, match="the graph has no float32 to lower"):
        lower_floats(model, DType.FLOAT16, None)
