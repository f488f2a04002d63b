import onnx_ir as ir
import pytest
from support.graphs import graph_of

from tfx.errors import ExportError
from tfx.export.passes.shapes import name_axes, settle_axes

# What tracing two token inputs gives: a name per axis of each input.
TWO = (
    "g (int64[s18, s41] ids, int64[s43, s7] mask) => (int64[s18, s41] y)"
    " { x = Identity(ids) y = Identity(x) }"
)
TOKENS = ("batch", "sequence")


def shapes(model):
    values = [*model.graph.inputs, *(out for node in model.graph for out in node.outputs)]
    return {value.name: [getattr(d, "value", d) for d in value.shape] for value in values}


def test_axes_of_one_name_get_that_name_everywhere():
    model = graph_of(TWO)
    names = name_axes(model, {"ids": TOKENS, "mask": TOKENS})
    assert names == {"s18": "batch", "s41": "sequence", "s43": "batch", "s7": "sequence"}
    assert shapes(model) == {name: list(TOKENS) for name in ("ids", "mask", "x", "y")}


def test_expressions_keep_their_form():
    model = graph_of(TWO)
    value = next(iter(model.graph)).outputs[0]
    value.shape = ir.Shape(["s18*s41", "s41 + 1", "s410", 3])
    name_axes(model, {"ids": TOKENS, "mask": TOKENS})
    assert shapes(model)["x"] == ["batch*sequence", "sequence + 1", "s410", 3]


def test_size_written_as_text_is_a_size():
    model = graph_of(TWO)
    model.graph.inputs[1].shape = ir.Shape(["s43", "32"])
    name_axes(model, {"ids": TOKENS, "mask": ("batch", "")})
    assert shapes(model)["mask"] == ["batch", 32]


def test_fixed_axis_that_should_vary():
    model = graph_of(
        "g (int64[3, s41] ids, int64[s43, 13] mask) => (int64[3, s41] y) { y = Identity(ids) }"
    )
    with pytest.raises(ExportError) as caught:
        name_axes(model, {"ids": TOKENS, "mask": TOKENS})
    assert str(caught.value) == (
        "the model's code does not let these axes vary:\n"
        "  ids: axis 0 (batch) is fixed at 3\n"
        "  mask: axis 1 (sequence) is fixed at 13"
    )
    assert caught.value.hint == (
        "Name the axes of every input (those without names are fixed), or fix these too."
    )


def test_two_names_forced_equal():
    model = graph_of(
        "g (int64[s1, s2] ids, int64[s2, s3] mask) => (int64[s1, s2] y) { y = Identity(ids) }"
    )
    with pytest.raises(ExportError) as caught:
        name_axes(model, {"ids": TOKENS, "mask": ("other", "more")})
    assert str(caught.value) == (
        "the model's code does not let these axes vary: "
        "mask: axis 0 (other) must equal axis 'sequence'"
    )


def test_unnamed_axes_are_left_alone():
    model = graph_of(TWO)
    assert name_axes(model, {"ids": ("batch", ""), "mask": ("", "")}) == {"s18": "batch"}
    assert shapes(model)["ids"] == ["batch", "s41"]


def test_settled_axes_are_what_tracing_found():
    model = graph_of(
        "g (float[s1, 6, s2] x, float[s1, s2, s9] y) => (float[s1, 6, s2] z) { z = Identity(x) }"
    )
    guessed = {"x": ("batch", "sequence", "x_dim2"), "y": ("batch", "y_dim1", "y_dim2")}

    settled, notes = settle_axes(model, guessed)

    assert settled == {"x": ("batch", "", "x_dim2"), "y": ("batch", "x_dim2", "y_dim2")}
    assert notes == ["axis 1 of x is fixed at 6 by the model"]
    name_axes(model, settled)  # applies as it stands
    assert shapes(model)["y"] == ["batch", "x_dim2", "y_dim2"]


def test_axis_that_the_example_alone_fixes():
    model = graph_of("g (float[1, s2] x) => (float[1, s2] z) { z = Identity(x) }")
    _, notes = settle_axes(model, {"x": TOKENS})
    why = "fixed at 1, the example's size: give an example of 2 or more"
    assert notes == [f"axis 0 of x is {why}"]
    with pytest.raises(ExportError, match=rf"x: axis 0 \(batch\) is {why}$"):
        name_axes(model, {"x": TOKENS})


def test_settling_says_nothing_of_axes_that_were_not_guessed():
    model = graph_of("g (float[4] x) => (float[4] y) { y = Identity(x) }")
    assert settle_axes(model, {"x": ("",)}) == ({"x": ("",)}, [])


def test_a_square_over_a_size_is_that_size():
    model = graph_of("g (int64[s1, s2] ids) => (int64[s1, s2] y) { y = Identity(ids) }")
    model.graph.node(0).outputs[0].shape = ir.Shape(["4*s1", "((s2**2)//s2)", "((s2**2)//s1)"])
    name_axes(model, {"ids": TOKENS})
    assert list(map(str, model.graph.node(0).outputs[0].shape)) == [
        "4*batch",
        "sequence",
        "((sequence**2)//batch)",
    ]
