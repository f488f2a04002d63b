import json
import os
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from support.bundles import write_bundle
from support.proofs import redigest

from tfx.bundle import open_bundle
from tfx.cli import main
from tfx.models import KNOWN_MODELS


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fails(result):
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


# export


def test_text_report(factories, tmp_path):
    result = run("export", f"{factories}:linear", "-o", tmp_path / "to")
    assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "to")
    for text in (
        f"{bundle.path}  ",
        f"source     factory {factories}:linear",
        "input: float32[batch, 4]",
        "output: float32[batch, 3]",
        "parity",
        "batch = single",
        "ok",
    ):
        assert text in result.stdout
    assert "FAILED" not in result.stdout
    steps = result.stderr.splitlines()
    assert steps[0] == "loading the model ..."
    assert steps[-1] == "writing the bundle ..."
    assert all(step.endswith(" ...") for step in steps)


def test_json_report(factories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("export", f"{factories}:linear", "--json", "--max-batch", 9, "--seed", 4)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    bundle = open_bundle(tmp_path / "linear")
    assert document["bundle"] == "linear"
    assert document["digest"] == bundle.digest
    assert document["recipe"] == {"max_batch": 9, "seed": 4}
    assert document["parity"]["checks"][0]["name"] == "parity"
    assert "loading the model" in result.stderr


def test_axes_of_a_factory(factories, tmp_path):
    result = run(
        "export", f"{factories}:linear", "-o", tmp_path / "to", "--dynamic", "input=rows, "
    )
    assert result.exit_code == 0, result.output
    assert open_bundle(tmp_path / "to").manifest.signature.inputs[0].shape == ("rows", 4)


@pytest.mark.parametrize("value", ["input", "=batch", ""])
def test_axes_that_are_none(value, factories):
    result = run("export", f"{factories}:linear", "--dynamic", value)
    assert result.exit_code == 2
    assert f"{value!r} is not NAME=AXIS,AXIS,..." in result.stderr


@pytest.mark.parametrize(
    "arguments", [(), ("one", "two"), ("x", "--no-such-option"), ("x", "--max-seq", "long")]
)
def test_usage(arguments):
    assert run("export", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("./nowhere",), "no such folder: ./nowhere", "Use an alias (minilm, "),
        (("net.py",), "net.py names a file and no function in it", "Write net.py:function."),
        (
            ("nobody/model",),
            "'nobody/model' is not in the local cache and the hub did not give it: ",
            "Check the name and the network",
        ),
        (
            ("bert-base",),
            "'google-bert/bert-base-uncased' is not in the local cache",
            "Check the name and the network, or name a local folder; for latency work alone: "
            "tfx export bert-base --random-weights",
        ),
        (
            ("x", "--opset", "18", "--max-batch", "0"),
            "recipe cannot be followed:\n  opset is 18, Attention needs 23 or later\n"
            "  max_batch is 0, expected 1 or more",
            None,
        ),
    ],
)
def test_errors_are_one_message_and_a_hint(arguments, error, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = fails(run("export", *arguments))
    said = said[said.index("error: ") :]
    assert said.startswith(f"error: {error}")
    if hint:
        assert f"\nhint: {hint}" in said
    assert os.listdir(tmp_path) == []


def test_target_that_is_taken(factories, tmp_path):
    write_bundle(tmp_path / "to")
    said = fails(run("export", f"{factories}:linear", "-o", tmp_path / "to"))
    assert said == (
        f"error: {tmp_path / 'to'} already holds a bundle\n"
        "hint: Use --force or another -o folder.\n"
    )
    assert run("export", f"{factories}:linear", "-o", tmp_path / "to", "--force").exit_code == 0


def test_target_that_is_something_else(factories, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    said = fails(run("export", f"{factories}:linear", "-o", tmp_path, "--force"))
    assert said.startswith(f"error: {tmp_path} exists and is not a bundle\n")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_help_names_every_alias():
    text = run("export", "--help").stdout
    for alias in KNOWN_MODELS:
        assert alias in text


# check, on bundles that were really exported


def test_check_with_onnxruntime(classifier):
    result = run("check", classifier.path, "--threads", 2)
    assert result.exit_code == 0, result.output


def test_check_with_torch(classifier):
    result = run("check", classifier.path, "--backend", "torch", "--threads", 2, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["passed"] is True
    assert document["backend"].startswith("torch ")


def test_check_with_torch_needs_trust_for_a_factory(padded):
    said = fails(run("check", padded.path, "--backend", "torch"))
    assert "runs Python code of" in said
    assert "hint: Use --trust (trust=True) if you trust that code." in said
    result = run("check", padded.path, "--backend", "torch", "--trust", "--threads", 2)
    assert result.exit_code == 0, result.output


def test_check_of_a_graph_changed_and_digested_again(classifier, tmp_path):
    copy = open_bundle(shutil.copytree(classifier.path, tmp_path / "copy"))
    graph = onnx.load(copy.model)
    bias = next(t for t in graph.graph.initializer if list(t.dims) == [3])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1e-3, bias.name))
    onnx.save(graph, copy.model)
    redigest(copy)
    result = run("check", copy.path, "--threads", 2)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert result.stderr == (
        f"error: {copy.path} differs from PyTorch by more than its tolerance\n"
        "hint: Export it again, or name another backend.\n"
    )
    assert run("check", classifier.path, "--threads", 2).exit_code == 0


def test_inspect_shows_what_was_fused(encoder):
    result = run("inspect", encoder.path)
    assert result.exit_code == 0
    assert "attention  2 fused nodes, 0 Softmax left" in result.stdout
    assert "embedding  mean pooling, normalized" in result.stdout
    assert Path(encoder.path).name in result.stdout
