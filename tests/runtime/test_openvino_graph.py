"""Graphs before OpenVINO compiles them: shared heads are repeated, masks are choices."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.bundles import write_bundle

from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.extras import need
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.backends import openvino_graph
from tfx.runtime.backends.openvino_graph import choose_masks, repeat_heads
from tfx.signature import Signature, TensorSpec

SIZE = 8  # of a head
NAMES = ("q", "k", "v")
AXES = {"q": "sequence", "k": "keys", "v": "keys"}


def signature(heads):
    shapes = [("batch", AXES[name], count * SIZE) for name, count in zip(NAMES, heads, strict=True)]
    return Signature(
        tuple(TensorSpec(*one) for one in zip(NAMES, [DType.FLOAT32] * 3, shapes, strict=True)),
        (TensorSpec("y", DType.FLOAT32, ("batch", heads[0], "sequence", SIZE)),),
    )


def attention_graph(heads, inside=TensorProto.FLOAT) -> onnx.ModelProto:
    """Attention on inputs cut into heads by a reshape to -1, which hides how many there are.

    Args:
        heads: Of queries, keys and values.
        inside: Element type it computes in; inputs and output are float32.
    """
    nodes, inputs = [], []
    for name, count in zip(NAMES, heads, strict=True):
        shape = ["batch", AXES[name], count * SIZE]
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        nodes.append(helper.make_node("Shape", [name], [f"{name}.tokens"], end=2))
        nodes.append(
            helper.make_node("Concat", [f"{name}.tokens", "cut"], [f"{name}.shape"], axis=0)
        )
        nodes.append(helper.make_node("Cast", [name], [f"{name}.cast"], to=inside))
        nodes.append(
            helper.make_node("Reshape", [f"{name}.cast", f"{name}.shape"], [f"{name}.cut"])
        )
        nodes.append(
            helper.make_node("Transpose", [f"{name}.cut"], [f"{name}.heads"], perm=[0, 2, 1, 3])
        )
    nodes.append(helper.make_node("Attention", [f"{name}.heads" for name in NAMES], ["mixed"]))
    # What follows attention asks for its type.
    nodes.append(helper.make_node("Add", ["mixed", "one"], ["more"]))
    nodes.append(helper.make_node("Cast", ["more"], ["y"], to=TensorProto.FLOAT))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", heads[0], "sequence", SIZE])
    fixed = [
        numpy_helper.from_array(np.array([-1, SIZE]), "cut"),
        helper.make_tensor("one", inside, [], [1.0]),
    ]
    graph = helper.make_graph(nodes, "attention", inputs, [y], fixed)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def feed_of(heads, rng, batch=2, lengths=(5, 5, 5)):
    return {
        name: rng.normal(size=(batch, length, count * SIZE)).astype(np.float32)
        for name, count, length in zip(NAMES, heads, lengths, strict=True)
    }


@pytest.mark.parametrize("heads", [(4, 2, 2), (6, 2, 2), (4, 1, 1), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_grouped_queries_give_what_onnxruntime_gives(tmp_path, rng, heads, threads):
    bundle = write_bundle(tmp_path / "b", attention_graph(heads), signature=signature(heads))
    feed, found = feed_of(heads, rng), {}
    for name in ("onnxruntime", "openvino"):
        found[name] = get_backend(name).load(bundle, RunOptions(threads=threads)).run(feed)["y"]
    np.testing.assert_allclose(found["openvino"], found["onnxruntime"], rtol=1e-5, atol=1e-6)


def test_a_graph_in_half_precision_runs_in_float32(tmp_path, rng):
    heads = (4, 2, 2)
    model = attention_graph(heads, TensorProto.FLOAT16)
    bundle = write_bundle(
        tmp_path / "b", model, signature=signature(heads), precision=DType.FLOAT16
    )
    executable = get_backend("openvino").load(bundle, RunOptions(precision="fp32"))
    assert executable.facts.precision == "float32"
    feed = feed_of(heads, rng)
    bundle = write_bundle(tmp_path / "c", attention_graph(heads), signature=signature(heads))
    expected = get_backend("onnxruntime").load(bundle, RunOptions()).run(feed)["y"]
    np.testing.assert_allclose(executable.run(feed)["y"], expected, rtol=1e-2, atol=1e-2)


def test_sizes_that_change_from_run_to_run(tmp_path, rng):
    """OpenVINO's generated kernels, left on, remember the sizes of an earlier run."""
    heads = (4, 4, 4)
    bundle = write_bundle(tmp_path / "b", attention_graph(heads), signature=signature(heads))
    one, other = (
        get_backend(name).load(bundle, RunOptions(threads=2))
        for name in ("onnxruntime", "openvino")
    )
    for batch, queries, keys in ((3, 1, 1), (1, 11, 13), (1, 14, 16), (1, 23, 27), (3, 23, 27)):
        feed = feed_of(heads, rng, batch, (queries, keys, keys))
        np.testing.assert_allclose(other.run(feed)["y"], one.run(feed)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("heads", "changed"), [((4, 2, 2), 1), ((4, 4, 4), 0)], ids=str)
def test_only_shared_heads_are_repeated(tmp_path, heads, changed):
    bundle = write_bundle(tmp_path / "b", attention_graph(heads), signature=signature(heads))
    model = need("openvino").Core().read_model(str(bundle.model))
    before = [node.get_name() for node in model.get_ops()]
    assert repeat_heads(model, signature(heads)) == changed
    assert ([node.get_name() for node in model.get_ops()] == before) is not changed


def test_what_it_mends_is_still_broken(tmp_path, monkeypatch):
    """Fails when OpenVINO has learnt it: then ``openvino_graph`` can go."""
    monkeypatch.setattr(openvino_graph, "attentions_of", lambda model: [])
    bundle = write_bundle(
        tmp_path / "b", attention_graph((4, 2, 2)), signature=signature((4, 2, 2))
    )
    with pytest.raises(BackendError, match="Key input shape not compatible"):
        get_backend("openvino").load(bundle, RunOptions(threads=2))


MASK = (
    "g ({kind}[batch, sequence] seen) => (float[batch, sequence] y) "
    "<float low = {{-3.4028235e38}}> {{ cast = Cast<to = 1>(seen) y = Mul({factors}) }}"
)


def read_mask(tmp_path, kind, factors):
    dtype = {"bool": DType.BOOL, "int64": DType.INT64}[kind]
    takes = TensorSpec("seen", dtype, ("batch", "sequence"))
    gives = TensorSpec("y", DType.FLOAT32, ("batch", "sequence"))
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> {MASK.format(kind=kind, factors=factors)}'
    )
    return write_bundle(tmp_path / "b", model, signature=Signature((takes,), (gives,)))


@pytest.mark.parametrize("factors", ["cast, low", "low, cast"])
def test_a_mask_becomes_a_choice_of_the_same_numbers(tmp_path, factors):
    bundle = read_mask(tmp_path, "bool", factors)
    model = need("openvino").Core().read_model(str(bundle.model))
    assert choose_masks(model) == 1
    assert {"Select"} <= {node.get_type_name() for node in model.get_ops()}
    assert "Multiply" not in {node.get_type_name() for node in model.get_ops()}
    executable = get_backend("openvino").load(bundle, RunOptions())
    seen = np.array([[True, False, True]])
    low = np.float32(-3.4028235e38)
    np.testing.assert_array_equal(executable.run({"seen": seen})["y"], [[low, 0, low]])


@pytest.mark.parametrize(("kind", "factors"), [("int64", "cast, low"), ("bool", "cast, cast")])
def test_other_products_are_left_alone(tmp_path, kind, factors):
    bundle = read_mask(tmp_path, kind, factors)
    model = need("openvino").Core().read_model(str(bundle.model))
    assert choose_masks(model) == 0
