"""``tfx profile``: where the time goes, by operator and by layer."""

import json

import onnx.parser
import pytest
import torch
from click.testing import CliRunner
from support.bundles import text_graph, write_bundle

from tfx.bench.measuring.profile import (
    ELSEWHERE,
    PROFILERS,
    Node,
    layer_of,
    nodes_of_trace,
    profile_bundle,
    shares_of,
)
from tfx.bench.measuring.workload import Shape
from tfx.cli import SUMMARIES, main
from tfx.dtypes import DType
from tfx.errors import BackendError, BundleError
from tfx.signature import Signature, TensorSpec

SHAPE = Shape({"batch": 2, "sequence": 8})


@pytest.fixture
def bundle(tmp_path):
    """Two of its nodes say of which layer they are."""
    graph = text_graph()
    for node in graph.graph.node[:2]:
        node.name = node.name or f"n_{node.op_type}"
        prop = node.metadata_props.add()
        prop.key, prop.value = "scope", "bert.encoder.layer.11.output"
    return write_bundle(tmp_path / "tiny", graph)


def tfx(*arguments):
    return CliRunner().invoke(main, ["profile", *map(str, arguments)])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert.encoder.layer.3.attention.self", "layer 3"),
        ("model.layers.12.mlp", "layer 12"),
        ("/transformer/h.0/attn/MatMul", "h 0"),
        ("stages.1.blocks.2", "stage 1"),
        ("node_add_10", ELSEWHERE),
        ("player.3", ELSEWHERE),
        ("", ELSEWHERE),
    ],
)
def test_layers_by_the_names_of_modules(name, layer):
    assert layer_of(name) == layer


def test_shares_are_of_one_run_and_of_all_that_was_counted():
    nodes = [Node("a", "MatMul", 6e6), Node("b", "MatMul", 2e6), Node("c", "Add", 2e6)]
    first, second = shares_of(nodes, 2, lambda node: node.op)
    assert (first.name, first.ms, first.share, first.nodes) == ("MatMul", 4.0, 0.8, 2)
    assert (second.name, second.ms, second.share) == ("Add", 1.0, 0.2)


def test_a_trace_counts_its_last_runs_and_kernels_alone():
    def event(name, duration, cat="Node"):
        return {"cat": cat, "name": name, "dur": duration, "args": {"op_name": "Add"}}

    events = [event("x_kernel_time", 100), event("x_kernel_time", 3), event("x_kernel_time", 4)]
    events += [event("x_fence_before", 50), event("model_run", 900, cat="Session")]
    assert nodes_of_trace(events, 2) == [Node("x", "Add", 7000.0)]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_each_engine_says_where_its_time_goes(bundle, backend):
    pytest.importorskip(backend)
    found = profile_bundle(bundle, backend, SHAPE, threads=1, runs=3)
    assert found.run_ms > 0
    assert found.ops
    assert sum(one.share for one in found.ops) == pytest.approx(1)
    assert all(one.ms > 0 for one in found.ops[:1])
    assert found.backend.startswith(backend)
    if backend == "onnxruntime":
        assert "Gather" in {one.name for one in found.ops}
        assert [one.name for one in found.layers] == ["layer 11", ELSEWHERE]


def test_onnxruntime_fuses_in_a_profile_what_it_fuses_in_a_run(tmp_path):
    pytest.importorskip("onnxruntime")
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 23]>
    g (float[batch, sequence, 4] x, float[batch, sequence, 4] z) => (float[batch, sequence, 4] y)
    <float[4] scale = {1.0, 2.0, 3.0, 4.0}, float[4] bias = {0.0, 0.0, 0.0, 0.0}> {
      sum = Add(x, z)
      y = LayerNormalization(sum, scale, bias)
    }""")
    inputs, outputs = (
        tuple(TensorSpec(name, DType.FLOAT32, ("batch", "sequence", 4)) for name in names)
        for names in (("x", "z"), ("y",))
    )
    bundle = write_bundle(tmp_path / "sum", model, signature=Signature(inputs, outputs))
    found = profile_bundle(bundle, "onnxruntime", SHAPE, threads=1, runs=3)
    assert {one.name for one in found.ops} == {"Add", "LayerNormalization"}


class Repeated(torch.nn.Module):
    """Two layers, and a product that is in neither."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x):
        for one in self.layer:
            x = one(x)
        return self.head(x)


class Ran:
    """In place of an executable: what PyTorch runs."""

    def __init__(self, module):
        self.module = module

    def run(self, feed):
        with torch.inference_mode():
            return self.module(feed)


def test_operators_of_pytorch_are_of_the_layer_that_calls_them():
    ran = Ran(Repeated().eval())
    nodes = PROFILERS["torch"](None, ran, None, torch.ones(3, 8), 4)
    products = {node.name for node in nodes if node.op == "aten::addmm"}
    assert products == {"layer.0", "layer.1", ""}
    layers = shares_of(nodes, 4, lambda node: layer_of(node.name))
    assert {one.name for one in layers} == {"layer 0", "layer 1", ELSEWHERE}
    assert not ran.module.layer[0]._forward_hooks  # it is as it was


def test_json_and_table_say_the_same(bundle):
    asked = (bundle.path, "--batch", 2, "--length", 8, "--runs", 3, "--threads", 1)
    document = json.loads(tfx(*asked, "--json").stdout)
    assert document["shape"] == "batch 2, sequence 8"
    assert document["runs"] == 3
    result = tfx(*asked)
    assert result.exit_code == 0, result.output
    assert "tiny on onnxruntime" in result.stdout
    assert "Gather" in result.stdout
    assert "layer 11" in result.stdout
    assert "note: times of nodes are with the profiler on" in result.stdout


def test_a_backend_without_profiler_is_refused(bundle):
    with pytest.raises(BackendError, match="tensorrt does not say where its time goes") as caught:
        profile_bundle(bundle, "tensorrt", SHAPE)
    assert caught.value.hint == f"Choose one of: {', '.join(PROFILERS)}."


def test_no_runs_are_refused(bundle):
    with pytest.raises(BackendError, match="runs is 0, expected 1 or more"):
        profile_bundle(bundle, "onnxruntime", SHAPE, runs=0)


def test_a_damaged_bundle_is_not_run(bundle):
    bundle.model.write_bytes(b"")
    with pytest.raises(BundleError):
        profile_bundle(bundle, "onnxruntime", SHAPE)


def test_help_says_what_the_group_says():
    assert SUMMARIES["profile"] in tfx("--help").output
