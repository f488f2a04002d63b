"""Which products and lookups of a graph can be quantized, and their groups."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from support.graphs import fill_constants, graph_of, operators, run_ort

from tfx.quantize.linear import (
    SMALLEST_WEIGHT,
    add_constant,
    find_lookups,
    find_products,
    groups_of,
    shared_data,
    split_gemms,
)

GEMMS = {
    "plain": ("(x, w)", "float[32, 48] w"),
    "bias": ("(x, w, b)", "float[32, 48] w, float[48] b"),
    "bias of a row": ("(x, w, b)", "float[32, 48] w, float[1, 48] b"),
    "one bias for all": ("(x, w, b)", "float[32, 48] w, float[1] b"),
    "transposed": ("<transB = 1> (x, w)", "float[48, 32] w"),
    "transposed, with bias": ("<transB = 1> (x, w, b)", "float[48, 32] w, float[48] b"),
    "ones spelled out": ("<alpha = 1.0, beta = 1.0> (x, w, b)", "float[32, 48] w, float[48] b"),
}

NOT_PLAIN = {
    "data transposed": ("<transA = 1> (x, w)", "float[32, 32] x, float[32, 48] w"),
    "scaled": ("<alpha = 0.5> (x, w)", "float[n, 32] x, float[32, 48] w"),
    "bias scaled": ("<beta = 2.0> (x, w, b)", "float[n, 32] x, float[32, 48] w, float[48] b"),
    "two activations": ("(x, x)", "float[32, 32] x"),
    "few weights": ("(x, w)", "float[n, 32] x, float[32, 31] w"),
}


def scoped(model, **scopes):
    """Say which module each node comes from, by the name of its output."""
    for node in model.graph:
        if (scope := scopes.get(node.outputs[0].name)) is not None:
            node.metadata_props["scope"] = scope
    return model


def of_three(rng, **scopes):
    """Query, key and value of one activation, and an output of its own."""
    names = ", ".join(f"float[32, 32] w{name}" for name in "qkvo")
    return scoped(
        fill_constants(
            graph_of(
                f"g (float[n, 32] x, {names}) => (float[n, 32] y) {{ "
                "q = MatMul(x, wq)\n k = MatMul(x, wk)\n v = MatMul(x, wv)\n"
                "a = Mul(q, k)\n c = Mul(a, v)\n y = MatMul(c, wo) }"
            ),
            rng,
        ),
        **scopes,
    )


@pytest.mark.parametrize("form", GEMMS)
def test_a_gemm_becomes_a_product_and_a_sum(form, rng):
    call, constants = GEMMS[form]
    model = fill_constants(
        graph_of(f"g (float[n, 32] x, {constants}) => (float[n, 48] y) {{ y = Gemm {call} }}"),
        rng,
    )
    scoped(model, y="head.dense")
    x = rng.normal(size=(5, 32)).astype(np.float32)
    (before,) = run_ort(model, {"x": x})
    assert split_gemms(model) == 1
    check_model(ir.to_proto(model), full_check=True)
    assert operators(model) == (["MatMul", "Add"] if "b)" in call else ["MatMul"])
    assert [output.name for output in model.graph.outputs] == ["y"]
    (after,) = run_ort(model, {"x": x})
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    (product,) = find_products(model)
    assert product.weight.shape == [32, 48]
    assert product.group == "head.dense"
    assert "w" not in model.graph.initializers
    assert split_gemms(model) == 0


@pytest.mark.parametrize("form", NOT_PLAIN)
def test_another_gemm_stays(form, rng):
    call, inputs = NOT_PLAIN[form]
    model = fill_constants(graph_of(f"g ({inputs}) => (float[m, p] y) {{ y = Gemm {call} }}"), rng)
    assert split_gemms(model) == 0
    assert operators(model) == ["Gemm"]
    assert find_products(model) == []


def test_a_gemm_in_the_middle(rng):
    model = fill_constants(
        graph_of(
            "g (float[n, 32] x, float[48, 32] w, float[48] b) => (float[n, 48] y) "
            "{ h = Gemm <transB = 1> (x, w, b)\n y = Relu(h) }"
        ),
        rng,
    )
    x = rng.normal(size=(5, 32)).astype(np.float32)
    (before,) = run_ort(model, {"x": x})
    split_gemms(model)
    np.testing.assert_allclose(run_ort(model, {"x": x})[0], before, rtol=1e-5, atol=1e-5)


def test_tied_weights_stay_one(rng):
    model = fill_constants(
        graph_of(
            "g (float[n, 32] x, float[32, 32] w, float[32] b) => (float[n, 32] y) "
            "{ h = Gemm <transB = 1> (x, w, b)\n t = Gemm <transB = 1> (h, w)\n"
            "y = Gemm (t, w) }"
        ),
        rng,
    )
    x = rng.normal(size=(5, 32)).astype(np.float32)
    (before,) = run_ort(model, {"x": x})
    assert split_gemms(model) == 3
    first, second, other = find_products(model)
    assert first.weight is second.weight
    assert other.weight is not first.weight  # the same numbers, the other way round
    np.testing.assert_allclose(run_ort(model, {"x": x})[0], before, rtol=1e-4, atol=1e-3)


def test_a_weight_that_others_read_stays_for_them(rng):
    model = fill_constants(
        graph_of(
            "g (float[n, 32] x, float[48, 32] w) => (float[n, 48] y, float[48, 32] z) "
            "{ y = Gemm <transB = 1> (x, w)\n z = Neg(w) }"
        ),
        rng,
    )
    split_gemms(model)
    assert "w" in model.graph.initializers


def test_a_head_tied_to_embeddings_is_a_product(rng):
    """The table stays for the rows that are looked up in it, and can be lowered apart."""
    model = fill_constants(
        graph_of(
            "g (int64[n] i, float[64, 32] t) => (float[n, 64] y, float[n, 64] z) { "
            "x = Gather(t, i)\n m = Transpose <perm = [1, 0]> (t)\n y = MatMul(x, m)\n"
            "a = Relu(x)\n z = MatMul(a, m) }"
        ),
        rng,
        inputs=("i",),
    )
    feed = {"i": np.array([3, 5])}
    expected = run_ort(model, feed)
    assert split_gemms(model) == 2
    assert operators(model) == ["Gather", "MatMul", "Relu", "MatMul"]
    first, second = find_products(model)
    assert first.weight is second.weight
    assert [one.table.name for one in find_lookups(model)] == ["t"]
    for found, value in zip(run_ort(model, feed), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "m = Transpose <perm = [0, 1]> (t)\n y = MatMul(x, m)",  # nothing is turned
        "m = Transpose(x)\n y = MatMul(t, m)",  # an activation
    ],
)
def test_what_else_is_transposed_stays(text, rng):
    model = fill_constants(
        graph_of(f"g (float[32, 32] x, float[32, 32] t) => (float[32, 32] y) {{ {text} }}"), rng
    )
    before = operators(model)
    assert split_gemms(model) == 0
    assert operators(model) == before


def test_products_in_the_order_of_the_graph(rng):
    model = of_three(rng)
    assert [product.weight.name for product in find_products(model)] == ["wq", "wk", "wv", "wo"]
    assert [str(data.name) for data, _ in shared_data(find_products(model))] == ["x", "c"]
    assert [len(users) for _, users in shared_data(find_products(model))] == [3, 1]


@pytest.mark.parametrize(
    ("scopes", "group"),
    [
        (["layer.0.self.query", "layer.0.self.key", "layer.0.self.value"], "layer.0.self"),
        (["layer.0.self.q"] * 3, "layer.0.self.q"),
        (["layer.0.q", "layer.1.k", "layer.2.v"], "layer"),
        (["layer.1.q", "layer.10.k", "layer.1.v"], "layer"),
        (["q", "k", "v"], "q"),
        (["", "", ""], "node_MatMul_0"),
    ],
)
def test_products_of_one_activation_are_one_group(scopes, group, rng):
    model = of_three(rng, **dict(zip("qkv", scopes, strict=True)), y="layer.0.output")
    next(iter(model.graph)).name = "node_MatMul_0"
    products = find_products(model)
    assert [product.group for product in products] == [group] * 3 + ["layer.0.output"]
    assert groups_of(products, []) == [group, "layer.0.output"]


@pytest.mark.parametrize(
    "text",
    [
        "float[n, 32] x) => (float[m, p] y) { t = Transpose(x)\n y = MatMul(x, t)",
        "float[n, 32] x, float[32, 31] w) => (float[n, 31] y) { y = MatMul(x, w)",
        "float[n, 32] x, float[4, 32, 32] w) => (float[4, n, 32] y) { y = MatMul(x, w)",
        "float[32, n] x, float[48, 32] w) => (float[48, n] y) { y = MatMul(w, x)",
        "float[n, 32] x, float[32, 32] w, float[32, 32] v) => (float[32, 32] y) "
        "{ y = MatMul(v, w)\n z = Relu(x)",
    ],
    ids=["two activations", "few weights", "three axes", "constant first", "two constants"],
)
def test_what_is_no_product(text, rng):
    assert find_products(fill_constants(graph_of(f"g ({text} }}"), rng)) == []


def test_only_a_constant_of_one_number_per_output_is_a_bias(rng):
    def product(call, shape, *, outputs="float[n, 48] y", more=""):
        model = fill_constants(
            graph_of(
                f"g (float[n, 32] x, float[32, 48] w, float{shape} b) => ({outputs}) "
                f"{{ h = MatMul(x, w)\n y = {call}\n {more} }}"
            ),
            rng,
        )
        return find_products(model)[0]

    for call in ("Add(h, b)", "Add(b, h)"):
        node, bias = product(call, "[48]").bias()
        assert (node.op_type, bias.name) == ("Add", "b")
    for miss in (
        product("Mul(h, b)", "[48]"),
        product("Add(h, b)", "[1]"),
        product("Add(h, b)", "[1, 48]"),
        product("Add(h, h)", "[48]"),
        product("Add(h, b)", "[48]", outputs="float[n, 48] y, float[n, 48] h"),
        product("Add(h, b)", "[48]", outputs="float[n, 48] y, float[n, 48] z", more="z = Relu(h)"),
    ):
        assert miss.bias() is None


def test_tables_that_rows_are_looked_up_in(rng):
    model = fill_constants(
        graph_of(
            "g (int64[n] i, float[64, 16] table, float[63, 16] small, float[16, 64] columns) "
            "=> (float[n, 16] y, float[n, 16] s, float[16, n] c) "
            "{ y = Gather(table, i)\n s = Gather(small, i)\n c = Gather <axis = 1> (columns, i) }"
        ),
        rng,
        inputs=("i",),
    )
    scoped(model, y="embeddings.words")
    (lookup,) = find_lookups(model)
    assert lookup.table.name == "table"
    assert lookup.table.const_value.size == SMALLEST_WEIGHT
    assert groups_of([], [lookup]) == ["embeddings.words"]


def test_constants_of_one_name(rng):
    graph = of_three(rng).graph
    names = [add_constant(graph, "c", np.zeros(2, np.float32)).name for _ in range(3)]
    assert names == ["c", "c_1", "c_2"]
    assert set(names) <= set(graph.initializers)
