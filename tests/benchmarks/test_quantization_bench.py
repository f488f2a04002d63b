import json

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

from tfx.bench import quantization as module
from tfx.bench.quantization import quantization, run_command, show, weights_bytes
from tfx.errors import DataError


def test_a_command_is_timed_and_its_document_read(tmp_path):
    write_bundle(tmp_path / "one")
    run = run_command(["inspect", "one"], tmp_path)
    assert run.document["bundle"] == "one"
    assert run.seconds > 0
    assert run.peak_bytes > 1 << 20


def test_a_command_that_fails_says_why(tmp_path):
    with pytest.raises(DataError) as raised:
        run_command(["inspect", "nothing"], tmp_path)
    assert str(raised.value) == (
        "tfx inspect nothing failed: error: no such bundle: nothing "
        "hint: Make one with tfx export, or name a bundle's folder."
    )


def test_the_command_says_what_failed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "models" / "minilm-sst2").mkdir(parents=True)
    folders = ["--data", tmp_path / "data", "--models", tmp_path / "models"]
    done = CliRunner().invoke(quantization, [str(one) for one in folders])
    assert done.exit_code == 1
    assert done.output.startswith("Error: tfx export ")
    assert "Traceback" not in done.output


def test_the_command_keeps_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measure_case", lambda name, *folders: {"model": name})
    arguments = ["--data", str(tmp_path), "--models", str(tmp_path), "--no-speed", "--json"]
    done = CliRunner().invoke(quantization, [*arguments, "--save", str(tmp_path / "kept")])
    assert done.exit_code == 0, done.output
    (kept,) = (tmp_path / "kept").glob("*-quantization-*.json")
    document = json.loads(kept.read_text())["result"]
    assert document == json.loads(done.stdout)
    assert [case["model"] for case in document["cases"]] == list(module.CASES)


def test_weights_are_the_portable_graphs_alone(tmp_path):
    for name, size in (("model.onnx", 3), ("model.onnx.data", 40), ("model.other.onnx", 500)):
        (tmp_path / name).write_bytes(b"." * size)
    assert weights_bytes(tmp_path) == 43


def test_ratios_are_to_float32_on_the_same_backend(capsys):
    cost = {
        "metric": "accuracy",
        "value": 0.75,
        "parent": 0.8,
        "drop": 0.05,
        "drop_low": -0.01,
        "drop_high": 0.1,
        "samples": 20,
    }
    case = {
        "model": "m",
        "accuracy": [cost],
        "size_share": 0.25,
        "quantize_s": 4.0,
        "quantize_peak_bytes": 512 << 20,
    }
    row = {"shape": "1x128", "bundle": "b"}
    show(
        [case],
        [
            row | {"backend": "onnxruntime", "precision": "float32", "p50_ms": 90.0},
            row | {"backend": "onnxruntime", "precision": "int8", "p50_ms": 30.0},
            row | {"backend": "openvino", "precision": "int8", "p50_ms": 10.0},
        ],
    )
    lines = capsys.readouterr().out.splitlines()
    assert (
        "m      accuracy   0.8000  0.7500  +0.0500 (-0.0100 to +0.1000)       20  0.250x  4  512"
        in [line.rstrip() for line in lines]
    )
    assert [line.split()[-1] for line in lines if "ONNX" in line or "onnxruntime" in line] == [
        "1.00x",
        "3.00x",
    ]
    assert next(line for line in lines if "openvino" in line).split()[-1] == "nanx"
