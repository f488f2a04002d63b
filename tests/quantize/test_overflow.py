"""What stays in float32, and the reason each node gives."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from support.graphs import graph_of, operators, run_ort, run_reference

from tfx.dtypes import DType
from tfx.errors import QuantizeError
from tfx.quantize.floats import cpu_variant, lower_floats
from tfx.quantize.overflow import MARGIN, SUMS, Limits

LOW = [DType.FLOAT16, DType.BFLOAT16]


def reasons(model, dtype=DType.FLOAT16, ranges=None, keep=()):
    """Operator and reason of each kept node; the graph must stay valid."""
    kinds = {node.name: node.op_type for node in model.graph}
    kept = lower_floats(model, dtype, ranges, keep)
    check_model(ir.to_proto(model), full_check=True)
    return {kinds[node.name]: node.reason for node in kept}


def named(text):
    model = graph_of(text)
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return model


CHAIN = "g (float[b, 4] x) => (float[b, 4] y) { a = Tanh(x) c = Softplus(a) y = Abs(c) }"


@pytest.mark.parametrize(
    ("reach", "kept"),
    [
        (65504 / MARGIN, {}),
        (
            40000.0,
            {
                "Softplus": "output c reaches 4.0e+04, float16 ends at 6.6e+04, with a margin of 2",
                "Abs": "input c reaches 4.0e+04, float16 ends at 6.6e+04, with a margin of 2",
            },
        ),
        (
            1.2e5,
            {
                "Softplus": "output c reaches 1.2e+05, float16 ends at 6.6e+04",
                "Abs": "input c reaches 1.2e+05, float16 ends at 6.6e+04",
            },
        ),
        (
            np.nan,
            {
                "Softplus": "output c reaches nan, float16 ends at 6.6e+04, with a margin of 2",
                "Abs": "input c reaches nan, float16 ends at 6.6e+04, with a margin of 2",
            },
        ),
    ],
)
def test_activations_beyond_the_type(reach, kept):
    assert reasons(named(CHAIN), ranges={"c": reach}) == kept


def test_bfloat16_reaches_as_far_as_float32():
    assert reasons(named(CHAIN), DType.BFLOAT16, {"c": 1e30}) == {}


def test_numbers_stay_where_float16_overflows(rng):
    """As in the feed-forward layers of T5."""
    model = named(
        "g (float[b, 4] x) => (float[b, 4] y) <float big = {1000}, float small = {0.001}> {"
        "a = Mul(x, big) c = Mul(a, big) d = Add(c, a) e = Mul(d, small) f = Mul(e, small)"
        "y = Tanh(f) }"
    )
    feed = {"x": rng.normal(size=(3, 4)).astype(np.float32)}
    (before,) = run_ort(model, feed)
    naive = ir.from_proto(ir.to_proto(model))
    lower_floats(naive, DType.FLOAT16, None)
    with np.errstate(over="ignore"):
        assert np.abs(run_reference(naive, feed)[0] - before).max() > 0.1  # what it is for

    kept = lower_floats(model, DType.FLOAT16, {"a": 3e3, "c": 3e6, "d": 3e6, "e": 3e3, "f": 3})

    assert [node.name for node in kept] == ["n1", "n2", "n3"]
    assert operators(model) == [
        *("Cast", "Mul", "Cast", "Mul", "Add", "Mul", "Cast", "Mul", "Tanh", "Cast")
    ]
    for run in (run_ort(model, feed), run_ort(cpu_variant(model), feed)):
        np.testing.assert_allclose(run[0], before, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        ("7e4, 1", "weight w reaches 7.0e+04, float16 ends at 6.6e+04"),
        ("-7e4, 1", "weight w reaches 7.0e+04, float16 ends at 6.6e+04"),
        ("nan, 1", "weight w holds NaN"),
        ("nan, inf", "weight w holds NaN"),
        ("65504, 1e-8", ""),  # a tiny weight is zero
        ("inf, 1", ""),
    ],
)
def test_weights_beyond_the_type(weight, reason):
    model = named(
        f"g (float[b, 2] x) => (float[b, 2] y) <float[2] w = {{{weight}}}> "
        "{ a = Add(x, w) y = Tanh(a) }"
    )
    assert reasons(model) == ({"Add": reason} if reason else {})
    low = ir.DataType.FLOAT if reason else ir.DataType.FLOAT16
    assert model.graph.initializers["w"].dtype == low


@pytest.mark.parametrize(
    ("epsilon", "reason"),
    [
        ("1e-12", "constant e is 1.00e-12, float16 rounds it to 0.00e+00"),
        ("1e-6", "constant e is 1.00e-06, float16 rounds it to 1.01e-06"),
        ("1e-3", ""),
        ("0", ""),
    ],
)
def test_epsilons_stay(epsilon, reason):
    text = (
        f"g (float[b, 2] x) => (float[b, 2] y) <float e = {{{epsilon}}}> "
        "{ a = Max(x, e) y = Tanh(a) }"
    )
    assert reasons(named(text)) == ({"Max": reason} if reason else {})
    assert reasons(named(text), DType.BFLOAT16) == {}


@pytest.mark.parametrize("name", sorted(SUMS & {"ReduceMean", "ReduceSum", "ReduceL2"}))
@pytest.mark.parametrize("dtype", LOW)
def test_sums_stay(name, dtype):
    model = named(
        "g (float[b, 4] x) => (float[b, 1] y) <int64[1] one = {1}> "
        f"{{ a = Tanh(x) y = {name}(a, one) }}"
    )
    bits = {DType.FLOAT16: 11, DType.BFLOAT16: 8}[dtype]
    assert reasons(model, dtype) == {name: f"{name} adds up many numbers, {dtype} has {bits} bits"}


NORMALIZATIONS = {
    "rms": "s = Pow(h, two) m = ReduceMean(s, last) v = Add(m, eps) r = Sqrt(v) i = Reciprocal(r) "
    "n = Mul(h, i) o = Mul(n, w)",
    "squared": "s = Mul(h, h) m = ReduceMean(s, last) v = Add(eps, m) r = Sqrt(v) "
    "n = Div(h, r) o = Mul(w, n)",
    "layer": "u = ReduceMean(h, last) d = Sub(h, u) s = Pow(d, two) m = ReduceMean(s, last) "
    "v = Add(m, eps) r = Sqrt(v) n = Div(d, r) o = Mul(n, w)",
    "unit": "s = ReduceL2(h, last) m = Max(s, eps) x1 = Shape(h) r = Expand(m, x1) n = Div(h, r) "
    "o = Mul(n, w)",
}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_a_spelled_out_normalization_is_one_stretch_of_float32(kind, scale, dtype, rng):
    """Its squares overflow from 256 on, and vanish below 2e-4."""
    model = named(
        "g (float[b, 4, 8] x) => (float[b, 4, 8] y) <float two = {2}, int64[1] last = {-1}, "
        "float eps = {1e-12}, float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> "
        f"{{ h = Neg(x) {NORMALIZATIONS[kind]} y = Tanh(o) }}"
    )
    feed = {"x": (rng.normal(size=(3, 4, 8)) * scale).astype(np.float32)}
    feed["x"][0, 0] = 0 if kind != "layer" else 1  # by which nothing may be divided
    (before,) = run_ort(model, feed)

    kept = lower_floats(model, dtype, None)

    assert not {"Neg", "Tanh"} & {node.name for node in kept}
    inner = operators(model)
    assert inner[:3] == ["Cast", "Neg", "Cast"]
    assert inner[-4:] == ["Cast", "Mul", "Tanh", "Cast"]
    assert inner.count("Cast") == 4
    tolerance = {DType.FLOAT16: 4e-3, DType.BFLOAT16: 3e-2}[dtype]
    np.testing.assert_allclose(run_ort(cpu_variant(model), feed)[0], before, atol=tolerance)
    if dtype is DType.FLOAT16:
        np.testing.assert_allclose(run_ort(model, feed)[0], before, atol=tolerance)


@pytest.mark.parametrize("operator", ["Exp(x)", "Pow(x, three)", "Mul(x, x)"])
def test_what_grows_stays_unless_calibrated(operator):
    text = (
        "g (float[b, 4] x) => (float[b, 4] y) <float three = {3}> "
        f"{{ a = {operator} y = Tanh(a) }}"
    )
    name = operator.partition("(")[0]
    assert reasons(named(text)) == {
        name: f"{name} may grow without end and was not calibrated, float16 ends at 6.6e+04"
    }
    assert reasons(named(text), ranges={"a": 1e3}) == {}
    assert reasons(named(text), DType.BFLOAT16) == {}


@pytest.mark.parametrize(("dtype", "exact"), [(DType.FLOAT16, 2048), (DType.BFLOAT16, 256)])
def test_positions_stay(dtype, exact, rng):
    """Rotary angles, and the buckets of relative positions."""
    model = named(
        "g (int64[b, s] ids) => (float[b, s, 2] y, int64[b, s] z) <float[2] freq = {1, 0.25}, "
        "int64[1] last = {-1}, float step = {16}> {"
        "p = Cast<to = 1>(ids) u = Unsqueeze(p, last) a = Mul(u, freq) c = Cos(a) y = Neg(c)"
        "q = Div(p, step) l = Log(q) z = Cast<to = 7>(l) }"
    )
    feed = {"ids": rng.integers(4000, 9000, (2, 5))}
    before = run_ort(model, feed)

    kept = lower_floats(model, dtype, None)

    assert operators(model).count("Cast") == 4  # two were there, one to Neg, one to y
    assert {node.reason for node in kept} == {
        f"counts, or tells positions apart; {dtype} does up to {exact}"
    }
    after = run_ort(cpu_variant(model), feed)
    np.testing.assert_allclose(after[0], before[0], atol=1e-2)
    np.testing.assert_array_equal(after[1], before[1])


def test_integers_are_cast_to_float32_where_somebody_needs_it(rng):
    model = named(
        "g (int64[b, s] ids) => (float[b, s] y, float[b, s] z) "
        "<float[1] big = {1e5}, float c = {2}> "
        "{ p = Cast<to = 1>(ids) y = Mul(p, big) z = Mul(p, c) }"
    )
    assert reasons(model)["Cast"] == "gives integers to nodes in float32"
    feed = {"ids": rng.integers(4000, 9000, (2, 5))}
    assert run_ort(model, feed)[0] == pytest.approx(feed["ids"] * 1e5)


@pytest.mark.parametrize(
    ("dtype", "operator", "kept"),
    [
        (DType.FLOAT16, "v, i = TopK(a, k)", False),
        (DType.BFLOAT16, "v, i = TopK(a, k)", True),
    ],
)
def test_what_an_opset_has_no_form_of(dtype, operator, kept):
    model = named(
        "g (float[b, 4] x) => (float[b, 2] y) <int64[1] k = {2}> "
        f"{{ a = Tanh(x) {operator} y = Neg(v) }}"
    )
    expected = {"TopK": f"TopK has no {dtype} form in opset 23"} if kept else {}
    assert reasons(model, dtype) == expected


def test_inputs_that_are_always_float32_stay(rng):
    """The scales of a Resize have one type, its image another."""
    model = named(
        "g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 2, 2}> "
        '{ a = Tanh(x) y = Resize<mode = "nearest">(a, , s) }'
    )
    assert reasons(model) == {}
    assert model.graph.initializers["s"].dtype == ir.DataType.FLOAT
    feed = {"x": rng.normal(size=(1, 1, 2, 2)).astype(np.float32)}
    assert np.isfinite(run_reference(model, feed)[0]).all()


def test_a_normalizations_statistics_have_the_type_it_computes_in():
    model = named(
        "g (float[b, 4] x) => (float[b, 4] y, float[b, 1] m) <float[4] w = {1, 1, 1, 1}> "
        "{ a = Tanh(x) y, m = LayerNormalization<stash_type = 1>(a, w) }"
    )
    for dtype in LOW:
        assert reasons(ir.from_proto(ir.to_proto(model)), dtype) == {}


def test_operators_of_others_stay():
    model = named("g (float[b, 4] x) => (float[b, 4] y) { a = Tanh(x) y = Neg(a) }")
    model.opset_imports["com.example"] = 1
    model.graph.node(0).domain = "com.example"
    kept = lower_floats(model, DType.FLOAT16, None)
    assert [node.reason for node in kept] == [
        "com.example::Tanh is not an operator of the standard"
    ]


@pytest.mark.parametrize(
    ("keep", "count"),
    [(("layer.1",), 2), (("layer.1.out",), 1), (("layer",), 3), (("n0",), 1), (("lay",), 0)],
)
def test_what_was_asked_for_stays(keep, count):
    model = named(CHAIN)
    for node, scope in zip(model.graph, ("layer.10", "layer.1", "layer.1.out"), strict=True):
        node.metadata_props["scope"] = scope
    kept = lower_floats(model, DType.FLOAT16, None, keep)
    assert [node.reason for node in kept] == ["asked for"] * count
    assert {node.group for node in kept} <= {"layer.10", "layer.1", "layer.1.out"}


def test_limits_are_of_two_types():
    assert Limits.of(DType.FLOAT16).largest == 65504
    assert Limits.of(DType.BFLOAT16).largest == pytest.approx(3.39e38, rel=1e-3)
    with pytest.raises(QuantizeError, match="to float64, expected float16 or bfloat16"):
        Limits.of(DType.FLOAT64)
