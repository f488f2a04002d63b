import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.graphs import graph_of, operators, run_reference

from tfx.export.passes.cleanup import simplify
from tfx.export.rewrite.einsum import as_product, lower_einsums

SIZES = {"b": 2, "h": 3, "q": 4, "k": 5, "d": 6, "s": 7}


def einsum(equation, dtype="float"):
    inputs, output = equation.split("->")
    left, right = inputs.split(",")

    def declared(axes):
        return f"{dtype}[{', '.join(str(SIZES[axis]) for axis in axes)}]"

    return graph_of(
        f"g ({declared(left)} x, {declared(right)} y) => ({declared(output)} z)"
        f' {{ z = Einsum<equation = "{equation}">(x, y) }}'
    )


def feed_of(equation, rng):
    left, right = equation.partition("->")[0].split(",")
    return {
        name: rng.normal(size=[SIZES[axis] for axis in axes]).astype(np.float32)
        for name, axes in (("x", left), ("y", right))
    }


@pytest.mark.parametrize(
    "equation",
    [
        "bhqd,bhkd->bhqk",
        "bhkd,bhqd->bhqk",  # operands swapped
        "bqhd,bkhd->bhqk",
        "bhqk,bkhd->bqhd",
        "bsd,dk->bsk",
        "qd,dk->kq",
        "bqd,bdk->bkq",
    ],
)
def test_fires_and_keeps_the_numbers(equation, rng):
    model, feed = einsum(equation), feed_of(equation, rng)

    assert lower_einsums(model) == 1
    simplify(model)  # takes away the node nothing reads any more

    assert set(operators(model)) <= {"MatMul", "Transpose"}
    assert [value.name for value in model.graph.outputs] == ["z"]
    expected = np.einsum(equation, feed["x"], feed["y"])
    np.testing.assert_allclose(run_reference(model, feed)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "equation",
    ["bq,bk->bqk", "bkq,bhkd->bhkqd", "bk,bq->kqb", "bq,dk->bqdk", "bqd,bqd->bqd", "bqd,q->dbq"],
)
@pytest.mark.parametrize("dtype", ["float", "int64"])
def test_what_sums_nothing_is_a_product_of_elements(equation, dtype, rng):
    model = einsum(equation, dtype)
    feed = {
        name: rng.integers(-3, 4, array.shape).astype(array.dtype if dtype == "float" else "int64")
        for name, array in feed_of(equation, rng).items()
    }
    assert lower_einsums(model) == 1
    simplify(model)
    assert set(operators(model)) - {"Constant"} <= {"Mul", "Transpose", "Unsqueeze"}
    expected = np.einsum(equation, feed["x"], feed["y"])
    np.testing.assert_array_equal(run_reference(model, feed)[0], expected)


@pytest.mark.parametrize(
    "equation", ["bq,bq->b", "bqs,bdk->bqk", "ii,ij->ij", "bq,qd->", "...q,qd->...qd", "bq,qd"]
)
def test_sums_are_no_product_of_elements(equation):
    model = einsum("bq,qd->bqd")
    node = model.graph[0]
    node.attributes["equation"] = ir.AttrString("equation", equation)
    assert lower_einsums(model) == 0


@pytest.mark.parametrize(
    "equation",
    ["bq,bq->b", "bq,dk->bqdk", "bqd,bqd->bqd", "bqs,bdk->bqk"],
    ids=["inner", "outer", "elementwise", "sum over one"],
)
def test_near_misses_are_untouched_or_right(equation, rng):
    model, feed = einsum(equation), feed_of(equation, rng)
    lower_einsums(model)
    expected = np.einsum(equation, feed["x"], feed["y"])
    np.testing.assert_allclose(run_reference(model, feed)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "equation", ["ii,ij->ij", "...q,qd->...d", "bq,qd", "bqd->bdq", "bq,qd,dk->bk"]
)
def test_equations_that_are_no_product(equation):
    assert as_product(equation) is None


axes = st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(axes, axes, st.data())
def test_any_equation_keeps_its_numbers(left, right, data):
    both = sorted({*left, *right})
    output = data.draw(st.lists(st.sampled_from(both), min_size=1, max_size=4, unique=True))
    equation = f"{''.join(left)},{''.join(right)}->{''.join(output)}"
    model, feed = einsum(equation), feed_of(equation, np.random.default_rng(0))
    lower_einsums(model)
    expected = np.einsum(equation, feed["x"], feed["y"])
    np.testing.assert_allclose(run_reference(model, feed)[0], expected, rtol=1e-4, atol=1e-4)
