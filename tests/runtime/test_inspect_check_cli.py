import json
import os
import shutil

import pytest
from click.testing import CliRunner
from onnx import helper
from support.bundles import text_graph, write_bundle
from support.proofs import redigest, text_outputs, write_proven_bundle

from tfx.bundle import sha256_of
from tfx.cli import main
from tfx.manifest import SCHEMA_VERSION

COMMANDS = ("inspect", "check")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fails(result):
    """What a failed command said: the error, and the hint or ""."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    said = [line for line in result.stderr.splitlines() if not line.startswith("using ")]
    error, _, hint = "\n".join(said).partition("\nhint: ")
    assert error.startswith("error: ")
    return error.removeprefix("error: "), hint


@pytest.fixture
def bundle(tmp_path):
    return write_proven_bundle(tmp_path / "tiny")


def edit_manifest(bundle, change):
    path = bundle.path / "tfx.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# what they print


def test_inspect(bundle):
    result = run("inspect", bundle.path)
    assert (result.exit_code, result.stderr) == (0, "")
    for text in (
        f"{bundle.path}  ",
        "source     module tests",
        "input_ids: int64[batch, sequence]  values 0..63",
        "batch = single",
        "opset 23",
        "1 Gather",
        "0 fused into one node each",
        sha256_of(bundle.model)[:12],
        "proof.npz",
    ):
        assert text in result.stdout


def test_inspect_without_the_graph(bundle):
    bundle.model.write_bytes(bytes(bundle.model.stat().st_size))  # never read
    result = run("inspect", bundle.path, "--no-graph")
    assert result.exit_code == 0
    assert "opset" not in result.stdout
    assert "model.onnx" in result.stdout


def test_inspect_as_json(bundle):
    result = run("inspect", bundle.path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["bundle"] == str(bundle.path)
    assert document["digest"] == bundle.digest
    assert document["schema"] == SCHEMA_VERSION
    assert document["graph"]["operators"]["Gather"] == 1
    assert document["files"][0].keys() == {"path", "size_bytes", "sha256"}
    assert "graph" not in json.loads(run("inspect", bundle.path, "--json", "--no-graph").stdout)


def test_inspect_fusion(bundle):
    result = run("inspect", bundle.path, "--fusion")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "0 of 0 attentions fused into one node each\n"


def test_inspect_fusion_as_json(tmp_path):
    bundle = write_bundle(tmp_path / "tiny", softmax_graph())
    result = run("inspect", bundle.path, "--fusion", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "fusion": [{"node": "gate", "scope": "", "fused": False, "traits": [], "reason": "a gate"}],
    }
    whole = json.loads(run("inspect", bundle.path, "--json").stdout)
    assert whole["graph"]["fusion"] == json.loads(result.stdout)["fusion"]


def softmax_graph():
    """The text graph, its outputs through a Softmax that says why it is there."""
    graph = text_graph()
    graph.graph.node[-1].output[0] = "plain"
    node = helper.make_node("Softmax", ["plain"], ["last_hidden_state"], name="gate")
    entry = node.metadata_props.add()
    entry.key, entry.value = "not_fused", "a gate"
    graph.graph.node.append(node)
    return graph


def test_inspect_fusion_without_the_graph(bundle):
    result = run("inspect", bundle.path, "--fusion", "--no-graph")
    assert result.exit_code == 2
    assert "--fusion reads the graph, --no-graph excludes it" in result.stderr


def test_check(bundle):
    result = run("check", bundle.path, "--threads", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{bundle.path}: sha256 of 2 files is right" in result.stdout
    assert "against stored outputs of torch 2.13.0 eager float32" in result.stdout
    assert "ok" in result.stdout


def test_check_as_json(bundle):
    result = run("check", bundle.path, "--json", "--threads", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["passed"] is True
    assert document["digest"] == bundle.digest
    assert document["checks"][0]["name"] == "parity"
    assert document["backend"].startswith("onnxruntime ")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_newest_bundle_of_the_folder(command, options, tmp_path, monkeypatch):
    write_proven_bundle(tmp_path / "b-old", created="2026-01-01T00:00:00.000000Z")
    write_proven_bundle(tmp_path / "a-new", created="2026-01-02T00:00:00.000000Z")
    monkeypatch.chdir(tmp_path)
    result = run(command, *options)
    assert result.exit_code == 0
    assert result.stderr == "using a-new (2026-01-02T00:00:00)\n"
    if options:
        assert json.loads(result.stdout)["bundle"] == "a-new"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_bundle_at_all(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error, hint = fails(run(command))
    assert error == f"no bundle in {tmp_path}"
    assert hint.startswith("Make one with: tfx export minilm")


@pytest.mark.parametrize("command", COMMANDS)
def test_usage(command, tmp_path):
    assert run(command, "--no-such-option").exit_code == 2
    assert run(command, "one", "two").exit_code == 2


# damaged bundles: one clear error each


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: shutil.rmtree(b.path), "no such bundle: {path}"),
        (
            lambda b: (b.path / "tfx.json").unlink(),
            "{path} is not a bundle: it has no tfx.json",
        ),
        (
            lambda b: os.truncate(b.path / "tfx.json", 300),
            "{path}/tfx.json is damaged: ",
        ),
        (
            lambda b: (b.path / "tfx.json").write_bytes(b"\xff\xfe\x00"),
            "{path}/tfx.json is damaged: not UTF-8",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d.update(schema=99)),
            "{path}/tfx.json has schema 99, this version reads up to 2",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["files"][0].update(path="../model.onnx")),
            "{path}/tfx.json is not safe to open: '../model.onnx': path leaves the bundle",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d.update(model="/etc/passwd")),
            "{path}/tfx.json is not safe to open: '/etc/passwd': used and not listed",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d.pop("signature")),
            "{path}/tfx.json is damaged: signature: missing",
        ),
        (
            lambda b: os.truncate(b.model, 100),
            "bundle {path} is damaged: model.onnx: is 100 bytes, expected ",
        ),
        (lambda b: b.model.unlink(), "bundle {path} is damaged: model.onnx: missing"),
    ],
    ids=[
        "gone",
        "no manifest",
        "truncated manifest",
        "binary manifest",
        "newer",
        "outside",
        "absolute",
        "no signature",
        "truncated graph",
        "no graph",
    ],
)
def test_damaged(damage, message, options, command, bundle):
    damage(bundle)
    result = run(command, bundle.path, *options)
    error, _ = fails(result)
    assert error.startswith(message.format(path=bundle.path))
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["model.onnx", "proof.npz"])
def test_flipped_byte(name, bundle):
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    error, hint = fails(run("check", bundle.path))
    assert error == (f"bundle {bundle.path} is damaged: {name}: sha256 is not the one in tfx.json")
    assert hint == "Make the bundle again or copy it again from where it came."


def test_flipped_byte_in_the_newest_bundle(bundle, monkeypatch):
    data = bytearray(bundle.model.read_bytes())
    data[-20] ^= 1
    bundle.model.write_bytes(data)
    monkeypatch.chdir(bundle.path.parent)
    error, _ = fails(run("check"))
    assert error.startswith("bundle tiny is damaged:")


def test_link_out_of_the_bundle(bundle, tmp_path):
    outside = bundle.model.rename(tmp_path / "outside.onnx")
    bundle.model.symlink_to(outside)
    for command in COMMANDS:
        error, _ = fails(run(command, bundle.path))
        assert error == (f"bundle {bundle.path} is damaged: model.onnx: leads outside the bundle")


def test_graph_that_is_none_with_right_digests(bundle):
    bundle.model.write_bytes(b"not a graph")
    redigest(bundle)
    assert fails(run("inspect", bundle.path))[0].startswith(f"cannot read {bundle.model}: ")
    assert fails(run("check", bundle.path))[0].startswith(
        f"onnxruntime cannot load {bundle.model}: "
    )


# graphs that are not the one proved


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_graph_changed_and_digested_again(options, bundle):
    bundle.model.write_bytes(text_graph(seed=1).SerializeToString())
    redigest(bundle)
    result = run("check", bundle.path, "--threads", 1, *options)
    error, _ = fails(result)
    assert error == f"{bundle.path} differs from PyTorch by more than its tolerance"
    if options:
        document = json.loads(result.stdout)
        assert document["passed"] is False
        assert document["checks"][0]["error"] > 0.1
    else:
        assert "FAILED" in result.stdout


def narrower(feed):
    return {name: array[:, :, :-1] for name, array in text_outputs(feed).items()}


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_output_of_another_shape(options, tmp_path):
    """Its error is infinite, which JSON has no number for."""
    bundle = write_proven_bundle(tmp_path / "tiny", proof=narrower)
    result = run("check", bundle.path, "--threads", 1, *options)
    error, _ = fails(result)
    assert error == f"{bundle.path} differs from PyTorch by more than its tolerance"
    if options:
        document = json.loads(result.stdout)
        assert document["passed"] is False
        assert document["checks"][0]["error"] is None
        assert document["outputs"][0]["max_abs"] is None


def test_bundle_without_a_proof(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    error, _ = fails(run("check", bundle.path))
    assert error == f"{bundle.path} carries no proof: it has no proof.npz"


# backends


def test_backend_that_is_none(bundle):
    error, hint = fails(run("check", bundle.path, "--backend", "gone"))
    assert error == "no backend called 'gone'"
    assert hint.startswith("Choose one of: torch, ")


def test_torch_on_a_module_that_was_in_memory(bundle):
    error, hint = fails(run("check", bundle.path, "--backend", "torch"))
    assert error == "tiny was exported from a module in memory, which cannot be loaded again"
    assert hint == "Export it from file.py:factory to be able to."


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_that_are_none(threads, bundle):
    error, _ = fails(run("check", bundle.path, "--threads", threads))
    assert error == f"threads is {threads}, expected 1 or more"
