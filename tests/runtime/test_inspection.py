import io
import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console
from support.bundles import manifest, write_bundle
from support.proofs import PARITY

from tfx.errors import BundleError
from tfx.manifest import Parent
from tfx.processing import (
    Activation,
    Classification,
    Embedding,
    Pooling,
    Processing,
    Tokenization,
)
from tfx.recipe import Source, SourceKind
from tfx.report import Check, OutputError, ParityReport
from tfx.runtime.inspection import (
    fusion_of,
    graph_facts,
    show_bundle,
    show_fusion,
    show_graph,
    show_parity,
    tell_bundles,
)


def shown(show, *things):
    out = io.StringIO()
    show(Console(file=out, width=160, highlight=False), *things)
    return out.getvalue()


def lines(text):
    return [line.rstrip() for line in text.splitlines()]


def attention_graph():
    """One Attention, one Softmax, each in a module; float32, int64 and bool weights."""
    nodes = [
        helper.make_node("Attention", ["q", "q", "q"], ["a"], name="fused"),
        helper.make_node("Softmax", ["a"], ["s"], name="open"),
        helper.make_node("Softmax", ["s"], ["t"], name="outer"),
        helper.make_node("Add", ["t", "w"], ["y"]),
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
    ]
    for node, scope in zip(nodes, ["layer.0.attention", "layer.1[0].attention"], strict=False):
        entry = node.metadata_props.add()
        entry.key, entry.value = "scope", scope
    entry = nodes[1].metadata_props.add()
    entry.key, entry.value = "not_fused", "two masks"
    shape = ["batch", 2, 3, 4]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["batch", 24])],
        [
            numpy_helper.from_array(np.ones((3, 4), np.float32), "w"),
            numpy_helper.from_array(np.array([-1, 24]), "shape"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_facts_of_a_graph(tmp_path):
    bundle = write_bundle(tmp_path / "tiny", attention_graph())
    assert graph_facts(bundle) == {
        "opset": 23,
        "operators": {"Softmax": 2, "Attention": 1, "Add": 1, "Reshape": 1},
        "weight_bytes": {"float32": 48, "int64": 16},
        "fusion": [
            {
                "node": "fused",
                "scope": "layer.0.attention",
                "fused": True,
                "traits": ["self"],
                "reason": "",
            },
            {
                "node": "open",
                "scope": "layer.1[0].attention",
                "fused": False,
                "traits": [],
                "reason": "two masks",
            },
            {
                "node": "outer",
                "scope": "",
                "fused": False,
                "traits": [],
                "reason": "no reason was recorded",
            },
        ],
    }


def test_facts_are_shown(tmp_path):
    bundle = write_bundle(tmp_path / "tiny", attention_graph())
    assert lines(shown(show_graph, graph_facts(bundle))) == [
        "  graph      opset 23",
        "    operators  2 Softmax, 1 Attention, 1 Add, 1 Reshape",
        "    weights    48 bytes float32, 16 bytes int64",
        "    attention  1 fused into one node each",
        "    not fused  layer.1[0].attention (open): two masks",
        "    not fused  the model (outer): no reason was recorded",
    ]


def test_fusion_is_shown_a_line_each(tmp_path):
    bundle = write_bundle(tmp_path / "tiny", attention_graph())
    assert lines(shown(show_fusion, fusion_of(bundle))) == [
        "1 of 3 attentions fused into one node each",
        "  fused      layer.0.attention (fused): self",
        "  not fused  layer.1[0].attention (open): two masks",
        "  not fused  the model (outer): no reason was recorded",
    ]


@pytest.mark.parametrize("data", [b"hello", bytes(range(256))])
def test_graph_that_cannot_be_read(data, tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    bundle.model.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        graph_facts(bundle)
    assert str(caught.value).startswith(f"cannot read {bundle.model}: ")


def outside(tensor, location):
    """Say that a tensor's bytes are in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "other.data", "sub/../w.data"])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_weights_in_a_file_that_is_not_listed(location, place, tmp_path):
    graph = attention_graph()
    if place == "initializer":
        outside(graph.graph.initializer[0], location)
    else:
        value = outside(numpy_helper.from_array(np.ones(3, np.float32)), location)
        graph.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))
    bundle = write_bundle(tmp_path / "tiny")
    bundle.model.write_bytes(graph.SerializeToString())
    with pytest.raises(BundleError) as caught:
        graph_facts(bundle)
    assert str(caught.value) == (
        f"{bundle.model} is not safe to read: "
        f"{location!r}: holds weights and is not listed in tfx.json"
    )
    assert caught.value.hint == "Do not use this bundle; ask where it came from."


def test_weights_in_a_file_that_is_listed(tmp_path):
    graph = attention_graph()
    outside(graph.graph.initializer[0], "w.data")
    bundle = write_bundle(tmp_path / "tiny", files={"w.data": bytes(48)})
    bundle.model.write_bytes(graph.SerializeToString())
    assert graph_facts(bundle)["weight_bytes"] == {"float32": 48, "int64": 16}


FULL = {
    "task": "text-classification",
    "source": Source(SourceKind.CHECKPOINT, "models/tiny", "BertModel", random_weights=True),
    "parity": PARITY,
    "facts": {"parameters": 22713216, "attention": 6, "softmax": 1},
    "notes": ("the first [note]", "another"),
    "parent": Parent("older", "ab" * 32),
    "processing": Processing(
        None,
        Embedding("last_hidden_state", (Pooling.CLS, Pooling.MEAN), normalize=True),
        Classification("logits", tuple(f"L{i}" for i in range(7)), Activation.SOFTMAX),
    ),
}


def test_a_bundle_is_shown(tmp_path):
    bundle = write_bundle(tmp_path / "tiny", **FULL)
    text = lines(shown(show_bundle, bundle))
    assert text[0] == f"{bundle.path}  {bundle.size_bytes / 1e3:.1f} kB, float32"
    for line in (
        "  source     checkpoint models/tiny (BertModel), random weights",
        "  task       text-classification",
        "  parent     older (abababababab)",
        "  made       2026-01-01T00:00:00 UTC with tfx-toolkit 0.0.0",
        "  parameters 22,713,216",
        "  attention  6 fused nodes, 1 Softmax left",
        "  embedding  cls + mean pooling, normalized",
        "  labels     7: L0, L1, L2, L3, L4, ...",
        "    input_ids: int64[batch, sequence]  values 0..63",
        "    batch: 1 to 16, tuned for 4",
        "  note: the first [note]",
        "  note: another",
    ):
        assert line in text


def test_what_is_not_there_is_not_shown(tmp_path):
    text = shown(show_bundle, write_bundle(tmp_path / "tiny", task=""))
    for word in ("task", "parent", "parameters", "embedding", "labels", "proof", "note", "text "):
        assert word not in text


def test_tokenizer_is_shown(tmp_path):
    processing = Processing(Tokenization("tokenizer.json", 48))
    bundle = write_bundle(tmp_path / "tiny", processing=processing, files={"tokenizer.json": b"{}"})
    assert "  text       tokenizer.json, up to 48 tokens" in lines(shown(show_bundle, bundle))


def test_names_with_brackets_are_shown_as_they_are(tmp_path):
    bundle = write_bundle(tmp_path / "[bold]x[/bold]")
    assert lines(shown(show_bundle, bundle))[0].startswith(str(bundle.path))


def test_parity_is_shown():
    report = ParityReport(
        "torch",
        "onnxruntime",
        ("batch 1",),
        (OutputError("[b]y[0]", 1.24e-5, np.inf, -1.0),),
        (Check("parity", 8, 1e-6, 1e-4), Check("batch = single", 3, 2e-3, 1e-4)),
    )
    assert [line.split() for line in lines(shown(show_parity, report))] == [
        ["proof"],
        ["onnxruntime", "against", "torch"],
        ["output", "max", "abs", "max", "rel", "min", "cosine"],
        ["[b]y[0]", "1.2e-05", "inf", "-1.0000000"],
        ["claim", "feeds", "scaled", "error", "allowed"],
        ["parity", "8", "1.0e-06", "1e-04", "ok"],
        ["batch", "=", "single", "3", "2.0e-03", "1e-04", "FAILED"],
    ]


def test_sizes_are_in_the_unit_that_fits(tmp_path):
    small = write_bundle(tmp_path / "small")
    large = write_bundle(tmp_path / "large", files={"more.bin": bytes(2_000_000)})
    assert "kB, float32" in shown(show_bundle, small)
    assert "2.0 MB, float32" in shown(show_bundle, large)


def test_manifest_of_the_tests_is_complete():
    assert manifest().parity is None


def test_bundles_that_were_made_are_told(tmp_path, capsys):
    made = [write_bundle(tmp_path / name) for name in ("one", "two")]
    tell_bundles(made, as_json=False)
    assert [line for line in capsys.readouterr().out.splitlines() if str(tmp_path) in line]
    tell_bundles(made[:1], as_json=True)
    alone = json.loads(capsys.readouterr().out)
    assert (alone["bundle"], alone["digest"]) == (str(made[0].path), made[0].digest)
    tell_bundles(made, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [one["bundle"] for one in told] == [str(one.path) for one in made]
