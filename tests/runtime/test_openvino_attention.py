"""Attention before OpenVINO compiles it: the same numbers from fewer products and choices."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from support.bundles import write_bundle

from tfx.bench.measuring.profile import profile_bundle
from tfx.bench.measuring.workload import Shape
from tfx.dtypes import DType
from tfx.extras import need
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.backends import openvino
from tfx.runtime.backends.openvino_attention import drop_number_checks, join_projections
from tfx.runtime.backends.openvino_graph import choose_masks
from tfx.signature import Signature, TensorSpec

HEADS, SIZE = 3, 4
HIDDEN = HEADS * SIZE
LOWEST = np.finfo(np.float32).min

TOKENS = ("batch", "sequence")
SIGNATURE = Signature(
    (
        TensorSpec("x", DType.FLOAT32, (*TOKENS, HIDDEN)),
        TensorSpec("z", DType.FLOAT32, (*TOKENS, HIDDEN)),
        TensorSpec("hidden", DType.BOOL, ("batch", 1, "sequence", "sequence")),
    ),
    (TensorSpec("y", DType.FLOAT32, ("batch", HEADS, "sequence", SIZE)),),
)

BODY = """<ir_version: 10, opset_import: ["" : 23]>
g (float[batch, sequence, 12] x, float[batch, sequence, 12] z,
   bool[batch, 1, sequence, sequence] hidden) => (float[batch, 3, sequence, 4] y)
<float none = {{0.0}}, float half = {{-1.7e38}}, int64[2] cut = {{-1, 4}}> {{
  {weights}
  tokens = Shape<end = 2>(x)
  shape = Concat<axis = 0>(tokens, cut)
  q0 = MatMul(x, wq)
  q1 = {q}
  q2 = Reshape(q1, shape)
  q = Transpose<perm = [{perm}]>(q2)
  k0 = MatMul({keys}, wk)
  k1 = Add(bk, k0)
  k2 = Reshape(k1, shape)
  k = Transpose<perm = [0, 2, 1, 3]>(k2)
  v0 = MatMul(x, wv)
  v1 = Add(v0, bv)
  v2 = Reshape(v1, shape)
  v = Transpose<perm = [0, 2, 1, 3]>(v2)
  x1 = ReduceMin(z)
  first = Where(hidden, low, none)
  lowest = Equal(first, low)
  mask = {mask}
  y = Attention{scale}({inputs})
}}"""


def write_attention(folder, rng, *, low=LOWEST, integers="", **changes):
    text = {
        "q": "Add(q0, bq)",
        "perm": "0, 2, 1, 3",
        "keys": "x",
        "scale": "",
        "inputs": "q, k, v, first",
        "mask": "Where(lowest, half, first)",
        "weights": "\n  ".join(
            f"w{name} = DequantizeLinear<axis = 1>(integers_{name}, steps_{name})"
            for name in integers
        ),
    }
    model = onnx.parser.parse_model(BODY.format(**(text | changes)))
    weights = {f"w{name}": rng.standard_normal((HIDDEN, HIDDEN)) for name in "qkv"}
    weights |= {f"b{name}": rng.standard_normal(HIDDEN) for name in "qkv"} | {"low": np.array(low)}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    for name in integers:
        steps = np.abs(arrays[f"w{name}"]).max(0) / np.float32(127)
        arrays[f"integers_{name}"] = np.rint(arrays.pop(f"w{name}") / steps).astype(np.int8)
        arrays[f"steps_{name}"] = steps
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    return write_bundle(folder / "b", model, signature=SIGNATURE)


def feed_of(rng, batch, sequence, *, whole=False):
    """Tokens hidden from some others; ``whole``: of the last text from all of them."""
    hidden = rng.random((batch, 1, sequence, sequence)) < 0.3
    hidden[..., 0] = False
    hidden[-1] |= whole
    shape = (batch, sequence, HIDDEN)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name in "xz"}
    return {**arrays, "hidden": hidden}


def read(bundle):
    model = need("openvino").Core().read_model(str(bundle.model))
    choose_masks(model)
    return model


def kinds(model):
    return [node.get_type_name() for node in model.get_ops()]


def as_written(bundle):
    """What runs a graph node by node: fused, products with integers round their other side too."""
    ort = need("onnxruntime")
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(bundle.model), settings)
    return lambda feed: session.run(["y"], feed)[0]


JOINED = {
    "biases": {},
    "no bias": {"q": "MatMul(x, wq)"},
    "a scale": {"scale": "<scale = 0.3>"},
    "no mask": {"inputs": "q, k, v"},
    "weights of 8 bits": {"integers": "qkv"},
}
APART = {
    "keys of another text": {"keys": "z"},
    "another order of axes": {"perm": "0, 1, 2, 3"},
    "a bias that is no constant": {"q": "Add(q0, z)"},
    "weights of two types": {"integers": "kv"},
}


@pytest.mark.parametrize("changes", JOINED.values(), ids=JOINED)
def test_three_products_become_one_with_the_same_numbers(tmp_path, rng, changes):
    bundle = write_attention(tmp_path, rng, **changes)
    model = read(bundle)
    assert join_projections(model, SIGNATURE) == 1
    assert kinds(model).count("MatMul") == 1
    assert kinds(model).count("Transpose") == 1
    expected = as_written(bundle)
    found = get_backend("openvino").load(bundle, RunOptions())
    for batch, sequence in ((1, 1), (2, 7), (3, 16), (2, 5)):
        feed = feed_of(rng, batch, sequence)
        np.testing.assert_allclose(found.run(feed)["y"], expected(feed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", APART.values(), ids=APART)
def test_other_products_stay_three(tmp_path, rng, changes):
    model = read(write_attention(tmp_path, rng, **changes))
    assert join_projections(model, SIGNATURE) == 0
    assert kinds(model).count("MatMul") == 3


@pytest.mark.parametrize(("low", "dropped"), [(LOWEST, 1), (-1e4, 1), (-np.inf, 0)])
def test_only_a_finite_mask_needs_no_search_for_rows_without_numbers(tmp_path, rng, low, dropped):
    model = read(write_attention(tmp_path, rng, low=low))
    assert "IsNaN" in kinds(model)
    assert drop_number_checks(model) == dropped
    assert ("IsNaN" in kinds(model)) is not bool(dropped)


@pytest.mark.parametrize(("half", "dropped"), [("half", 1), ("x1", 0)])
def test_a_mask_of_several_choices_is_finite_if_all_are(tmp_path, rng, half, dropped):
    """As graphs have it whose rows that are hidden whole give ONNX Runtime an average."""
    bundle = write_attention(
        tmp_path, rng, inputs="q, k, v, mask", mask=f"Where(lowest, {half}, first)"
    )
    model = read(bundle)
    assert drop_number_checks(model) == dropped
    expected = get_backend("onnxruntime").load(bundle, RunOptions())
    found = get_backend("openvino").load(bundle, RunOptions())
    feed = feed_of(rng, 2, 6)
    np.testing.assert_allclose(found.run(feed)["y"], expected.run(feed)["y"], atol=1e-4)


def test_a_profile_is_of_the_graph_that_runs(tmp_path, rng):
    bundle = write_attention(tmp_path, rng)
    found = profile_bundle(bundle, "openvino", Shape({"batch": 2, "sequence": 5}), runs=1)
    nodes = {one.name: one.nodes for one in found.ops}
    assert "IsNaN" not in nodes
    assert nodes["FullyConnected"] == 1


@pytest.mark.parametrize("inputs", ["q, k, v", "q, k, v, hidden"])
def test_without_a_mask_of_numbers_nothing_is_dropped(tmp_path, rng, inputs):
    assert drop_number_checks(read(write_attention(tmp_path, rng, inputs=inputs))) == 0


@pytest.mark.parametrize("low", [LOWEST, -np.inf])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_hidden_whole_are_as_in_float32_without_changes(
    tmp_path, rng, low, precision, monkeypatch
):
    """In bfloat16 the lowest float32 is minus infinity, and a row of it no number."""
    if precision == "bf16" and "bf16" not in _float_types():
        pytest.skip("this CPU multiplies no bfloat16")
    bundle = write_attention(tmp_path, rng, low=low)
    backend = get_backend("openvino")
    feed = feed_of(rng, 2, 6, whole=True)
    found = backend.load(bundle, RunOptions(precision=precision)).run(feed)["y"]
    monkeypatch.setattr(openvino, "drop_number_checks", lambda model: 0)
    monkeypatch.setattr(openvino, "join_projections", lambda model, signature: 0)
    monkeypatch.setattr(openvino, "CHANGES", "none")
    expected = backend.load(bundle, RunOptions(precision="fp32")).run(feed)["y"]
    np.testing.assert_allclose(found, expected, atol=1e-4 if precision == "fp32" else 0.3)


def _float_types():
    said = need("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {one.lower() for one in said}
