import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from support.checkpoints import POSITIONS, SIZES, VOCABULARY
from support.graphs import graph_of

from tfx.errors import ExportError
from tfx.export.tracing.architectures import plan_inputs
from tfx.export.tracing.examples import plan_examples
from tfx.export.tracing.signature import signature_of
from tfx.export.tracing.tracer import _bounds
from tfx.recipe import ExportRecipe
from tfx.signature import ShapeRange, ValueRange

TABLE = ", ".join(["0"] * 36)
TEXT = f"""
g (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)
    => (float[batch, sequence, 4] y) <float[9, 4] table = {{{TABLE}}}>
{{ y = Gather(table, input_ids) }}
"""


def ranges(recipe=None, limits=None, smallest=None, text=TEXT):
    return signature_of(
        graph_of(text), recipe or ExportRecipe(), limits or {}, smallest or {}, text=True
    ).ranges


# axes


def test_ranges_come_from_the_model_and_the_recipe():
    assert ranges(limits={"sequence": 512}) == {
        "batch": ShapeRange(1, 8, 128),
        "sequence": ShapeRange(1, 128, 512),
    }


def test_tuned_size_stays_within_the_range():
    found = ranges(ExportRecipe(max_batch=4), {"sequence": 64})
    assert found == {"batch": ShapeRange(1, 4, 4), "sequence": ShapeRange(1, 64, 64)}


def test_axis_nobody_bounds_has_no_range():
    assert "sequence" not in ranges()


def test_asked_length_is_the_range():
    assert ranges(ExportRecipe(max_sequence=100), {"sequence": 512})["sequence"].max == 100


def test_length_beyond_the_positions():
    with pytest.raises(
        ExportError, match=r"^--max-seq is 600, the model has positions for 512$"
    ) as e:
        ranges(ExportRecipe(max_sequence=600), {"sequence": 512})
    assert e.value.hint == "Ask for 512 or less."


def test_batch_the_model_bounds_itself():
    assert ranges(ExportRecipe(max_batch=128), {"batch": 16})["batch"].max == 16


@pytest.mark.parametrize(
    ("constraints", "bounds"),
    [
        ("{s18: VR[2, int_oo], s41: VR[2, 64]}", {"s41": 64}),
        ("{s18: VR[-int_oo, 9], s41: VR[0, 512]}", {"s18": 9, "s41": 512}),
        ("", {}),
    ],
)
def test_upper_bounds_of_a_trace(constraints, bounds):
    assert _bounds(constraints, upper=True) == bounds


def test_smallest_size_of_an_axis():
    found = ranges(ExportRecipe(max_sequence=40), {"sequence": 512}, {"sequence": 9})
    assert found["sequence"] == ShapeRange(9, 40, 40)


# values


def test_ids_are_bounded_by_the_table_they_index():
    signature = signature_of(graph_of(TEXT), ExportRecipe(), {}, {}, text=True)
    assert [spec.values for spec in signature.inputs] == [ValueRange(0, 8), ValueRange(0, 1)]


def test_mask_has_no_meaning_in_a_hand_written_module():
    signature = signature_of(graph_of(TEXT), ExportRecipe(), {}, {}, text=False)
    assert signature.inputs[1].values is None


@pytest.mark.parametrize(
    ("nodes", "values"),
    [
        ("i = Cast<to = 6>(x) y = Gather(t, i)", ValueRange(0, 2)),
        ("i = Reshape(x, shape) y = Gather(t, i)", ValueRange(0, 2)),
        ("c = Cast<to = 6>(x) i = Reshape(c, shape) y = Gather(t, i)", ValueRange(0, 2)),
        ("a = Gather(t, x) b = Gather(u, x) y = Add(a, b)", ValueRange(0, 1)),
        ("i = Add(x, one) y = Gather(t, i)", None),
        ("f = Cast<to = 1>(x) g = Cast<to = 7>(f) y = Gather(t, g)", None),
        ("y = Gather<axis = 1>(t, x)", None),
        ("c = Cast<to = 1>(x) y = Identity(c)", None),
    ],
    ids=["cast", "reshape", "both", "smallest", "offset", "through floats", "columns", "no table"],
)
def test_values_of_an_index(nodes, values):
    model = graph_of(
        "g (int64[n] x) => (float y)"
        " <float[3, 2] t = {1, 2, 3, 4, 5, 6}, float[2, 2] u = {1, 2, 3, 4}, int64[1] one = {1},"
        f" int64[1] shape = {{-1}}> {{ {nodes} }}"
    )
    model.graph.outputs[0].shape = ir.Shape(["n", 2])
    assert signature_of(model, ExportRecipe(), {}, {}, text=False).inputs[0].values == values


# what cannot be


def test_output_without_a_shape():
    model = graph_of(TEXT)
    model.graph.outputs[0].shape = None
    with pytest.raises(ExportError, match=r"^the graph does not say the type and shape of y$"):
        signature_of(model, ExportRecipe(), {}, {}, text=True)


def test_type_that_no_backend_has():
    model = graph_of("g (complex64[n] x) => (complex64[n] y) { y = Identity(x) }")
    with pytest.raises(ExportError, match=r"^x: unsupported ONNX data type code 14$"):
        signature_of(model, ExportRecipe(), {}, {}, text=False)


def test_output_named_like_an_input():
    model = graph_of("g (float[n] x) => (float[n] y) { y = Identity(x) }")
    model.graph.outputs[0].name = "x"
    with pytest.raises(ExportError, match="x: named twice"):
        signature_of(model, ExportRecipe(), {}, {}, text=False)


def test_size_that_tracing_could_not_express_gets_a_name():
    model = graph_of("g (float[n] x) => (float[?] y) { y = Identity(x) }")
    model.graph.outputs[0].shape = ir.Shape([None])
    assert signature_of(model, ExportRecipe(), {}, {}, text=False).outputs[0].shape == ("y_dim0",)


# plans of transformers models


def plan(config, cls=transformers.AutoModel):
    return plan_inputs(cls.from_config(config), config)


def test_plan_of_bert():
    found = plan(transformers.BertConfig(**SIZES))
    assert list(found.examples) == ["input_ids", "attention_mask", "token_type_ids"]
    assert found.limits == {"sequence": POSITIONS}
    assert not found.inferred
    assert set(found.dynamic.values()) == {("batch", "sequence")}
    assert found.examples["input_ids"].max() < VOCABULARY
    assert 0 < found.examples["attention_mask"].sum() < found.examples["attention_mask"].numel()


def test_positions_of_roberta_start_after_the_padding_token():
    config = transformers.RobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1)
    found = plan(config)
    assert found.limits == {"sequence": POSITIONS - 2}
    assert "token_type_ids" not in found.examples


def test_plan_of_an_image_model():
    config = transformers.ViTConfig(
        image_size=[8, 16], patch_size=4, hidden_size=8, num_attention_heads=2, num_hidden_layers=1
    )
    found = plan(config)
    assert tuple(found.examples["pixel_values"].shape[1:]) == (3, 8, 16)
    assert found.dynamic == {"pixel_values": ("batch", "", "", "")}


def test_input_nobody_planned():
    class Strange(torch.nn.Module):
        main_input_name = "inputs"

        def forward(self, inputs):
            return inputs

    with pytest.raises(ExportError) as caught:
        plan_inputs(Strange(), transformers.BertConfig())
    assert str(caught.value).startswith("Strange takes inputs, expected one of input_ids, ")
    assert caught.value.hint == (
        "Write a factory that returns the module and example inputs: file.py:function."
    )


# plans of hand-written modules


class Two(torch.nn.Module):
    def forward(self, x, y, *, flag=None):
        return x + y


X, Y = torch.ones(2, 5, 3), torch.ones(2, 7, 3)


def test_guessed_axes():
    found = plan_examples(Two(), (X, Y), {})
    assert found.inferred
    assert found.dynamic == {
        "x": ("batch", "sequence", "x_dim2"),
        "y": ("batch", "y_dim1", "y_dim2"),
    }


def test_given_axes():
    found = plan_examples(Two(), {"x": X, "y": Y}, {"x": ("batch", "", "")})
    assert not found.inferred
    assert found.dynamic == {"x": ("batch", "", ""), "y": ("", "", "")}


def test_one_tensor_is_the_first_argument():
    assert list(plan_examples(Two(), X, {}).examples) == ["x"]


@pytest.mark.parametrize(
    ("examples", "dynamic", "message"),
    [
        (
            {"x": X, "y": Y},
            {"z": ("batch",)},
            "dynamic axes of z: not an input, expected some of x, y",
        ),
        (
            {"x": X},
            {"x": ("batch",)},
            "dynamic axes of x: got 1 names, expected 3 for shape [2, 5, 3]",
        ),
        ((X, X, X, X), {}, "got 4 example inputs, Two.forward takes 3"),
        (
            "text",
            {},
            "example inputs are str, expected a tensor, a tuple of tensors or a mapping from "
            "input name to tensor",
        ),
        (
            {},
            {},
            "example inputs are dict, expected a tensor, a tuple of tensors or a mapping from "
            "input name to tensor",
        ),
        (
            {"x": np.ones(2), "w": X},
            {},
            "example inputs do not fit the module: x: got ndarray, expected a tensor; "
            "w: not an argument of forward",
        ),
    ],
)
def test_examples_that_do_not_fit(examples, dynamic, message):
    with pytest.raises(ExportError) as caught:
        plan_examples(Two(), examples, dynamic)
    assert str(caught.value) == message
