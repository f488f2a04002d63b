import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import graph_of, operators, run_reference

from tfx.export.passes.cleanup import SCOPES, clean_metadata, simplify

CHAIN = "g (float[2] x) => (float[2] z) { y = Relu(x) z = Sigmoid(y) }"


@pytest.mark.parametrize(
    ("scopes", "scope"),
    [
        ("['', 'bert', 'bert.encoder', 'linear']", "bert.encoder"),
        ("['', 'linear']", None),
        ("['bert', '', 'linear']", "bert"),
        ("[]", None),
        ("", None),
        ("not a list (", None),
    ],
)
def test_only_the_scope_is_kept(scopes, scope):
    model = graph_of(CHAIN)
    node = next(iter(model.graph))
    node.metadata_props[SCOPES] = scopes
    node.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/me/model.py"
    node.doc_string = "/home/me"

    named = clean_metadata(model)

    assert dict(node.metadata_props) == ({"scope": scope} if scope else {})
    assert not node.doc_string
    assert named == (1 if scope else 0)


def test_metadata_of_every_kind_goes():
    model = graph_of(CHAIN)
    where = {"pkg.torch.export.graph_signature": "/home/me/model.py"}
    model.doc_string = "/home/me/model.py"
    for holder in (model, model.graph, *model.graph.inputs, *model.graph.outputs):
        holder.metadata_props.update(where)
    for node in model.graph:
        node.outputs[0].metadata_props.update(where)

    clean_metadata(model)

    assert b"/home/me" not in ir.to_proto(model).SerializeToString()


X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "t = Transpose<perm = [1, 0]>(x) u = Transpose<perm = [1, 0]>(t) y = Relu(u)",
            ["Relu"],
        ),
        ("a = Relu(x) b = Relu(x) y = Add(a, b)", ["Relu", "Add"]),
        ("unread = Sigmoid(x) y = Relu(x)", ["Relu"]),
    ],
    ids=["transposes", "equal nodes", "unused node"],
)
def test_simplify_fires_and_keeps_the_numbers(text, left):
    model = graph_of(f"g (float[2, 3] x) => (float[2, 3] y) {{ {text} }}")
    (expected,) = run_reference(model, {"x": X})

    simplify(model)

    assert operators(model) == left
    np.testing.assert_array_equal(run_reference(model, {"x": X})[0], expected)


def test_unused_weights_go_and_names_stay():
    model = graph_of(
        "g (float[2, 3] x) => (float[2, 3] y)"
        " <float[3] used = {1, 2, 3}, float[2] unused = {3, 4}> { y = Add(x, used) }"
    )

    simplify(model)

    assert set(model.graph.initializers) == {"used"}
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_array_equal(run_reference(model, {"x": X})[0], X + np.float32([1, 2, 3]))


@pytest.mark.parametrize(
    "text",
    ["y = Transpose<perm = [1, 0]>(x)", "t = Transpose<perm = [1, 0]>(x) y = Relu(t)"],
)
def test_what_is_needed_stays(text):
    model = graph_of(f"g (float[2, 3] x) => (float[3, 2] y) {{ {text} }}")
    before = operators(model)
    simplify(model)
    assert operators(model) == before
