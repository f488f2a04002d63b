"""``tfx quantize``: from files to bundles, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

from tfx.bundle import open_bundle
from tfx.cli import main
from tfx.dtypes import DType
from tfx.errors import DataError
from tfx.manifest import FILE_NAME
from tfx.quantization import ORT_CPU, RangeMethod


def run(*arguments):
    return CliRunner().invoke(main, ["quantize", *map(str, arguments)])


def works(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fails(*arguments):
    """What a failed command said: the error, and the hint or ""."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    error, _, hint = result.stderr[result.stderr.index("error: ") :].partition("\nhint: ")
    return error.removeprefix("error: ").strip(), hint.strip()


def operators(path):
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


@pytest.fixture(scope="module")
def int8(classifier, files, tmp_path_factory):
    """A calibrated bundle, smoothed."""
    path = tmp_path_factory.mktemp("int8") / "small"
    works(classifier.path, "-o", path, "--int8", "--calibrate", files.tsv, "--smooth", 0.5)
    return open_bundle(path)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "to" / "small"


@pytest.fixture
def untouched(target):
    """After the test nothing was written, neither whole nor half."""
    target.parent.mkdir()
    yield
    assert list(target.parent.iterdir()) == []


def test_a_report_of_what_was_done(classifier, files, target):
    result = works(classifier.path, "-o", target, "--int8", "--calibrate", files.text)
    for text in (
        f"{target}  ",
        "MB, int8",
        "parent     tiny (",
        "calibrated on 48 samples of data.txt",
        " ranges",
        f"against {classifier.name} float32, on feeds of data.txt",
    ):
        assert text in result.stdout
    steps = result.stderr.splitlines()
    assert steps[0] == "calibrating ..."
    assert "calibrating: activation ranges ..." in steps
    assert "calibrating: histograms ..." in steps
    assert steps[-1] == "writing the bundle ..."


def test_json(classifier, files, target):
    result = works(
        classifier.path, "-o", target, "--int8", "--calibrate", files.tsv, "--json",
        "--method", "entropy", "--smooth", 0, "--samples", 40, "--seed", 3, "--tokens", 9,
    )  # fmt: skip
    document = json.loads(result.stdout)
    bundle = open_bundle(target)
    assert document["bundle"] == str(target)
    assert document["digest"] == bundle.digest
    assert document["precision"] == "int8"
    assert document["step"] == "quantize"
    assert document["parent"] == {"name": classifier.name, "digest": classifier.digest}
    assert document["variants"] == {ORT_CPU: "model.onnxruntime-cpu.onnx"}
    quantization = document["quantization"]
    assert quantization["recipe"] == {
        "precision": "int8", "method": "entropy", "smooth": 0.0, "samples": 40, "seed": 3,
        "tokens": 9,
    }  # fmt: skip
    calibration = quantization["calibration"]
    assert (calibration["name"], calibration["samples"]) == ("data.tsv", 40)
    assert calibration["tokens"] <= 9 * 40
    # Samples that calibration left over show how far the outputs moved.
    (accuracy,) = quantization["accuracy"]
    assert (accuracy["data"], accuracy["samples"]) == ("data.tsv", 8)


@pytest.mark.parametrize("kind", ["text", "tsv", "jsonl"])
def test_the_same_texts_in_any_format(kind, classifier, files, target, int8):
    data = getattr(files, kind)
    works(classifier.path, "-o", target, "--int8", "--calibrate", data, "--smooth", 0.5)
    quantization = open_bundle(target).manifest.quantization
    assert quantization.calibration.name == data.name
    assert quantization.calibration.samples == 48
    assert quantization.calibration.digest == int8.manifest.quantization.calibration.digest
    assert (target / "model.onnx").read_bytes() == (int8.path / "model.onnx").read_bytes()


def test_arrays(classifier, files, target):
    works(classifier.path, "-o", target, "--int8", "--calibrate", files.npz)
    calibration = open_bundle(target).manifest.quantization.calibration
    assert (calibration.name, calibration.samples, calibration.tokens) == ("data.npz", 40, 480)


def test_a_bundle_calibrated_before_gives_the_same_graph(classifier, int8, target):
    works(classifier.path, "-o", target, "--int8", "--calibrate", int8.path, "--smooth", 0.5)
    bundle = open_bundle(target)
    for name in ("model.onnx", "model.onnx.data", "model.onnxruntime-cpu.onnx", "calibration.npz"):
        assert (target / name).read_bytes() == (int8.path / name).read_bytes()
    before, after = int8.manifest, bundle.manifest
    assert after.quantization == before.quantization
    assert after.quantization.smooth == 0.5
    assert after.parity.reference == before.parity.reference
    assert after.parity.outputs == before.parity.outputs


def test_a_bundle_calibrated_before_serves_other_ranges(classifier, int8, target):
    works(classifier.path, "-o", target, "--int8", "--calibrate", int8.path, "--method", "minmax")
    bundle = open_bundle(target)
    assert bundle.manifest.quantization.recipe.method is RangeMethod.MINMAX
    assert (target / "model.onnx.data").read_bytes() == (int8.path / "model.onnx.data").read_bytes()
    assert (target / "model.onnx").read_bytes() != (int8.path / "model.onnx").read_bytes()


def test_random_data_is_said(classifier, target):
    result = works(classifier.path, "-o", target, "--int8", "--calibrate", "random")
    calibration = open_bundle(target).manifest.quantization.calibration
    warning = "random calibration data: the ranges fit no real input, for latency work only"
    assert calibration.name == "random"
    assert warning in calibration.warnings
    assert warning in result.stdout


def test_few_samples_are_said(classifier, target, tmp_path):
    one = tmp_path / "one.txt"
    one.write_text("alpha beta\n")
    works(classifier.path, "-o", target, "--int8", "--calibrate", one)
    (warning,) = open_bundle(target).manifest.quantization.calibration.warnings
    assert warning.startswith("1 calibration sample: 32 or more")


def test_without_data_there_are_no_static_ranges(classifier, target, untouched):
    for option in ("--int8", "--fp8"):
        error, hint = fails(classifier.path, "-o", target, option)
        assert error == f"{option[2:]} needs data to find the ranges of activations with"
        assert hint == ("Give a file of real inputs: --calibrate FILE (texts, TSV, JSONL or npz).")


def truncated(path):
    np.savez_compressed(path, input_ids=np.zeros((40, 12), np.int64))
    path.write_bytes(path.read_bytes()[:-100])


def other_columns(path):
    np.savez(path, ids=np.zeros((40, 12), np.int64))


def wrong_type(path):
    np.savez(
        path,
        input_ids=np.zeros((40, 12), np.float32),
        attention_mask=np.ones((40, 12), np.int64),
        token_type_ids=np.zeros((40, 12), np.int64),
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", b""),
        ("spaces.txt", b"  \n\n"),
        ("columns.tsv", b"words\tlabel\na b\t1\n"),
        ("ragged.tsv", b"sentence\tlabel\na b\t1\t3\n"),
        ("broken.jsonl", b'{"sentence": "a"\n'),
        ("bytes.txt", b"\xff\xfe\x00a\n"),
        ("truncated.npz", truncated),
        ("columns.npz", other_columns),
        ("types.npz", wrong_type),
        ("missing.tsv", None),
        ("folder", Path.mkdir),
    ],
)
def test_data_that_cannot_be_used(name, content, classifier, target, untouched, tmp_path):
    path = tmp_path / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)
    error, _ = fails(classifier.path, "-o", target, "--int8", "--calibrate", path)
    assert error.count("\n") <= 3
    assert name in error


def test_a_bundle_of_another_parent(classifier, int8, target, untouched, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(classifier.path, other)
    manifest = other / FILE_NAME
    manifest.write_text(manifest.read_text().replace('"created": "20', '"created": "19', 1))
    error, hint = fails(other, "-o", target, "--int8", "--calibrate", int8.path)
    assert error == f"{int8.path} was not made from {other}"
    assert hint.startswith("Calibrate with a file")


def test_a_bundle_without_ranges(classifier, target, tmp_path):
    works(classifier.path, "-o", tmp_path / "dynamic", "--int8", "--dynamic")
    error, _ = fails(classifier.path, "-o", target, "--int8", "--calibrate", tmp_path / "dynamic")
    assert error == f"{tmp_path / 'dynamic'} carries no calibration: it has no calibration.npz"
    assert not target.exists()


def test_a_bundle_that_was_quantized(int8, files, target, untouched):
    error, hint = fails(int8.path, "-o", target, "--int8", "--calibrate", files.tsv)
    assert error == f"{int8.path} is int8 already, expected a float32 export"
    assert hint == "Quantize its parent instead: tiny."


def test_a_graph_with_nothing_to_quantize(target, untouched, tmp_path):
    bundle = write_bundle(tmp_path / "plain")
    error, hint = fails(bundle.path, "-o", target, "--int8", "--dynamic")
    assert error.startswith("the graph has nothing to quantize: no MatMul")
    assert hint == "Lower it to 16-bit floats instead: --fp16 or --bf16."


def groups_of(classifier):
    return json.loads(works(classifier.path, "--list-groups", "--json").stdout)


def test_groups_are_listed(classifier):
    lines = works(classifier.path, "--list-groups").stdout.splitlines()
    assert lines == groups_of(classifier)
    assert "bert.encoder.layer.0.attention.self" in lines
    assert "bert.embeddings.word_embeddings" in lines


def test_groups_are_kept(classifier, files, target):
    kept = "bert.encoder.layer.1.attention.self"
    works(
        classifier.path, "-o", target, "--int8", "--calibrate", files.tsv, "--keep", kept,
        "--keep", "bert.embeddings.word_embeddings",
    )  # fmt: skip
    quantization = open_bundle(target).manifest.quantization
    assert {node.group for node in quantization.kept} == {kept, "bert.embeddings.word_embeddings"}
    assert {node.reason for node in quantization.kept} == {"kept as asked"}
    graph = onnx.load(target / "model.onnx", load_external_data=False).graph
    nodes = {node.name: node for node in graph.node}
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == 1}
    assert len(quantization.kept) == 4
    for node in quantization.kept:
        assert floats & set(nodes[node.name].input)
    # The rest is quantized: as many products and tables as are not kept.
    lowered = [node for node in nodes.values() if node.op_type in ("MatMul", "Gather")]
    dequantized = {node.output[0] for node in nodes.values() if node.op_type == "DequantizeLinear"}
    assert quantization.quantized == sum(bool(dequantized & set(node.input)) for node in lowered)


def test_a_group_there_is_not(classifier, target, untouched):
    error, hint = fails(
        classifier.path, "-o", target, "--int8", "--dynamic", "--keep", "layer.9", "--keep", "x"
    )
    assert error == "there is no such group to keep:\n  layer.9\n  x"
    assert hint == "See the groups with: tfx quantize --list-groups"


def test_all_groups_kept(classifier, target, untouched):
    keep = [word for group in groups_of(classifier) for word in ("--keep", group)]
    error, _ = fails(classifier.path, "-o", target, "--int8", "--dynamic", *keep)
    assert error == "nothing of tiny would be int8: kept as asked"


def test_a_bundle_that_is_there(classifier, int8, target):
    works(classifier.path, "-o", target, "--int8", "--dynamic")
    before = open_bundle(target).digest
    error, hint = fails(classifier.path, "-o", target, "--int8", "--dynamic")
    assert error == f"{target} already holds a bundle"
    assert hint == "Use --force or another -o folder."
    assert open_bundle(target).digest == before
    works(classifier.path, "-o", target, "--int8", "--calibrate", int8.path, "--force")
    bundle = open_bundle(target, verify=True)
    assert not bundle.manifest.quantization.recipe.dynamic
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_the_newest_bundle_and_a_name_beside_it(classifier, tmp_path, monkeypatch):
    shutil.copytree(classifier.path, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    result = works("--int8", "--dynamic")
    assert "using mine (" in result.stderr
    bundle = open_bundle(tmp_path / "mine-int8-dynamic")
    assert bundle.manifest.precision is DType.INT8
    assert bundle.manifest.name == classifier.manifest.name


def test_no_precision(classifier):
    result = run(classifier.path)
    assert result.exit_code == 2
    assert "say which precision: --fp16, --bf16, --int8, --fp8, --int4" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fp16", "--dynamic"), "dynamic ranges are for int8, got float16"),
        (("--int8", "--percentile", 50), "percentile is 50.0, expected above 50 and up to 100"),
        (("--int8", "--smooth", 1.5), "smooth is 1.5, expected 0 to 1"),
        (("--int8", "--samples", 0), "samples is 0, expected 1 or more"),
    ],
)
def test_a_recipe_that_cannot_be_followed(options, message, classifier, target, untouched):
    assert message in fails(classifier.path, "-o", target, *options)[0]


def test_a_budget_in_percent_is_refused_before_anything_runs(
    classifier, files, target, untouched, monkeypatch
):
    monkeypatch.setattr("tfx.quantize.runs.Judge", None)
    error, hint = fails(
        classifier.path, "-o", target, "--int8", "--calibrate", files.tsv,
        "--eval", files.tsv, "--metric", "accuracy", "--max-drop", 1,
    )  # fmt: skip
    assert error == "max_drop is 1 of accuracy, which is at most 1: expected below 1"
    assert hint == "Write 1 % as 0.01."


@pytest.mark.parametrize("metric", ["auto", "agreement"])
def test_a_budget_is_checked_once(metric, classifier, files, target, monkeypatch):
    asked = []

    def stop(*_, **__):
        raise DataError("far enough")

    monkeypatch.setattr("tfx.quantize.runs.check_drop", lambda *given: asked.append(given))
    monkeypatch.setattr("tfx.quantize.runs.quantize_bundle", stop)
    fails(
        classifier.path, "-o", target, "--int8", "--calibrate", files.tsv,
        "--eval", files.tsv, "--metric", metric, "--max-drop", 0.5,
    )  # fmt: skip
    assert asked == [("accuracy" if metric == "auto" else metric, 0.5)]


def test_a_metric_is_measured_once(classifier, files, target):
    works(
        classifier.path, "-o", target, "--int8", "--calibrate", files.text,
        "--eval", files.tsv, "--metric", "agreement",
    )  # fmt: skip
    (accuracy,) = open_bundle(target).manifest.quantization.accuracy
    assert accuracy.metric == "agreement"


def test_two_at_once_leave_one_whole_bundle(classifier, files, target, monkeypatch):
    """The other is done while this one calibrates: it is left as it is, and nothing beside it."""
    from tfx.quantize import runs

    arguments = (classifier.path, "-o", target, "--int8", "--calibrate", files.text)
    quantize_bundle = runs.quantize_bundle
    found = []

    def second(*given, accuracy, **named):
        def measured(bundle):
            if not found:
                found.append(None)
                found[0] = run(*arguments)
            return accuracy(bundle)

        return quantize_bundle(*given, accuracy=measured, **named)

    monkeypatch.setattr(runs, "quantize_bundle", second)
    error, _ = fails(*arguments)
    assert found[0].exit_code == 0, found[0].output
    assert error == f"{target} already holds a bundle"
    assert list(target.parent.iterdir()) == [target]
    open_bundle(target)
