"""Variants of a graph: each changes what it says, and no numbers."""

import dataclasses

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import pytest
from click.testing import CliRunner
from support.bundles import TEXT_SIGNATURE, write_bundle
from support.graphs import graph_of, operators, run_ort

from tfx.bench.graphs import (
    AS_IT_IS,
    EVERY_FUSION,
    VARIANTS,
    every_fusion,
    main,
    measure,
    packed,
    plain_mask,
    split_heads,
    table,
    unguarded,
    write_variants,
)
from tfx.dtypes import DType
from tfx.runtime.backends import onnxruntime
from tfx.signature import ShapeRange, Signature, TensorSpec

# One attention as export writes it: projections, a mask looked up, a guard. Hidden size 8.
TEXT = (
    "g (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask, "
    "float[64, 8] table, float[8, 8] wq, float[8, 8] wk, float[8, 8] wv, "
    "float[8] bq, float[8] bk, float[8] bv) => (float[batch, sequence, 8] last_hidden_state) "
    "<float zero = {0}, int64 nought = {0}, int64 one = {1}, int64[1] end = {-1}, "
    "int64[1] ax = {1}, int64[3] after = {1, 2, 3}, int64[2] ones = {1, 1}, "
    "int64[1] lone = {1}> {"
    " x = Gather(table, input_ids) seen = Cast<to = 9>(attention_mask)"
    " batch = Shape<start = 0, end = 1>(input_ids) b = Squeeze(batch)"
    " length = Shape<start = 1, end = 2>(input_ids) n = Squeeze(length)"
    " i = Range(nought, b, one) j = Range(nought, n, one) r = Unsqueeze(i, after)"
    " both = Concat<axis = 0>(batch, ones, length) ri = Expand(r, both) rj = Expand(j, both)"
    " ui = Unsqueeze(ri, end) uj = Unsqueeze(rj, end) at = Concat<axis = -1>(ui, uj)"
    " found = GatherND(seen, at)"
    " square = Concat<axis = 0>(batch, lone, length, length) mask = Expand(found, square)"
    " pq = MatMul(x, wq) q = Add(pq, bq) pk = MatMul(x, wk) k = Add(pk, bk)"
    " pv = MatMul(x, wv) v = Add(pv, bv)"
    " a = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v, mask)"
    " count = Cast<to = 7>(seen) some = ReduceSum<keepdims = 1>(count, ax)"
    " none = Less(some, one) rows = Unsqueeze(none, end) g = Where(rows, zero, a)"
    " last_hidden_state = Neg(g) }"
)
WEIGHTS = ("table", "wq", "wk", "wv", "bq", "bk", "bv")


@pytest.fixture
def model(rng):
    """The graph with its weights as such."""
    graph = graph_of(TEXT)
    (lookup,) = (node for node in graph.graph if node.op_type == "GatherND")
    lookup.outputs[0].shape = ir.Shape(["batch", 1, 1, "sequence"])
    for value in [one for one in graph.graph.inputs if one.name in WEIGHTS]:
        array = rng.normal(size=list(value.shape)).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        graph.graph.inputs.remove(value)
        graph.graph.initializers[value.name] = value
    return graph


@pytest.fixture
def feed(rng):
    mask = np.ones((3, 5), np.int64)
    mask[1, 3:] = 0
    return {"input_ids": rng.integers(0, 64, (3, 5)), "attention_mask": mask}


@pytest.mark.parametrize(
    ("change", "gone", "new"),
    [
        (packed, None, "Split"),
        (split_heads, None, "Reshape"),
        (unguarded, "Where", None),
        (plain_mask, "GatherND", None),
    ],
)
def test_a_variant_changes_the_graph_and_no_numbers(change, gone, new, model, feed):
    (expected,) = run_ort(model, feed)
    assert change(model) == 1
    ir.passes.common.RemoveUnusedNodesPass()(model)
    ir.passes.common.NameFixPass()(model)
    assert gone not in operators(model)
    assert new is None or new in operators(model)
    np.testing.assert_allclose(run_ort(model, feed)[0], expected, rtol=1e-5, atol=1e-6)


def test_packing_leaves_one_product(model):
    assert packed(model) == 1
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert operators(model).count("MatMul") == 1


@pytest.mark.parametrize("change", [packed, split_heads, unguarded, plain_mask])
def test_nothing_to_change(change):
    assert change(graph_of("g (float[b, 4] x) => (y) { y = Relu(x) }")) == 0


def test_variants_that_change_nothing_are_not_written(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    (tmp_path / "to").mkdir()
    assert [name for name, _ in write_variants(bundle, tmp_path / "to")] == [AS_IT_IS]


def test_each_variant_has_a_digest_of_its_own(model, tmp_path):
    bundle = write_bundle(tmp_path / "tiny", ir.to_proto(model))
    (tmp_path / "to").mkdir()
    digests = [variant.digest for _, variant in write_variants(bundle, tmp_path / "to")]
    # What OpenVINO compiled of one variant would be run for another.
    assert len(set(digests)) == len(digests) == 1 + len(VARIANTS)


def test_runs_take_turns():
    seen = []
    times = measure({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 20)
    assert {name: values.shape for name, values in times.items()} == {"a": (20,), "b": (20,)}
    pairs = {tuple(seen[index : index + 2]) for index in range(0, 40, 2)}
    assert pairs == {("a", "b"), ("b", "a")}


def test_table_has_ratios_to_the_first():
    times = {AS_IT_IS: np.full(10, 0.02), "half": np.full(10, 0.01)}
    assert table(times).splitlines() == [
        "  as it is                  20.00 ms  1.000 1.000..1.000",
        "  half                      10.00 ms  0.500 0.500..0.500",
    ]


def test_command(model, tmp_path):
    bundle = write_bundle(tmp_path / "tiny", ir.to_proto(model))
    done = CliRunner().invoke(main, [str(bundle.path), "--rounds", "3", "--length", "7"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny, onnxruntime, 1 x 7, 3 rounds"
    assert [line[2:24].rstrip() for line in lines[1:]] == [AS_IT_IS, *VARIANTS, EVERY_FUSION]


def test_fusions_are_left_out_again_afterwards():
    left_out = onnxruntime.SLOWER_FUSIONS
    with every_fusion():
        assert onnxruntime.SLOWER_FUSIONS == ()
    assert onnxruntime.SLOWER_FUSIONS == left_out != ()


def test_a_bundle_that_runs_another_graph_has_no_variants(model, tmp_path):
    bundle = write_bundle(tmp_path / "tiny", ir.to_proto(model))
    manifest = dataclasses.replace(bundle.manifest, variants={"onnxruntime-cpu": "model.onnx"})
    other = dataclasses.replace(bundle, manifest=manifest)
    assert [name for name, _ in write_variants(other, tmp_path)] == [AS_IT_IS]


def test_a_bundle_that_takes_no_text(tmp_path):
    spec = TensorSpec("x", DType.FLOAT32, ("batch", 9))
    signature = Signature((spec,), TEXT_SIGNATURE.outputs, {"batch": ShapeRange(1, 2, 4)})
    write_bundle(tmp_path / "tiny", signature=signature)
    done = CliRunner().invoke(main, [str(tmp_path / "tiny")])
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "Error: tiny takes no text: its inputs have no axes 'batch' and 'sequence'",
        "Name a bundle that takes texts.",
    ]
