import json

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

from tfx.cli import SUMMARIES, main

QUICK = ("--rounds", "2", "--seconds", "0.2", "--batch", "2", "--length", "8", "--threads", "1")


def tfx(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_a_bundle_is_measured_and_what_cannot_run_says_why(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    found = tfx("bench", bundle.path, *QUICK, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    rows = {row["backend"]: row for row in document["rows"]}
    assert rows["onnxruntime"]["status"] == "measured"
    assert rows["onnxruntime"]["digest"] == bundle.digest
    assert rows["onnxruntime"]["measurement"]["rounds"] == 2
    assert rows["torch"]["status"] == "not run"
    assert "from a module in memory" in rows["torch"]["reason"]
    assert rows["onnxruntime"]["no_reference"] == rows["torch"]["reason"]
    assert "loading tiny on onnxruntime" in found.stderr


def test_without_a_bundle_the_newest_and_its_family_are_measured(tmp_path, monkeypatch):
    parent = write_bundle(tmp_path / "tiny", created="2026-01-01T00:00:00.000000Z")
    write_bundle(tmp_path / "stranger", created="2026-01-02T00:00:00.000000Z")
    write_bundle(
        tmp_path / "child", created="2026-01-03T00:00:00.000000Z", parent=parent.as_parent()
    )
    monkeypatch.chdir(tmp_path)
    found = tfx("bench", "--backend", "onnxruntime", *QUICK)
    assert found.exit_code == 0, found.output
    assert "using child" in found.stderr
    table = found.stdout.split("\n\n")[0].splitlines()
    assert table[0] == "batch 2, sequence 8"
    assert sorted(line.split()[0] for line in table[2:]) == ["child", "tiny"]


def test_each_backend_in_each_precision(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    asked = ("--backend", "onnxruntime", "--precision", "fp32", "--precision", "fp16")
    found = tfx("bench", bundle.path, *QUICK, *asked, "--json")
    assert found.exit_code == 0, found.output
    rows = {(row["backend"], row["precision"]): row for row in json.loads(found.stdout)["rows"]}
    assert list(rows) == [("onnxruntime", "fp32"), ("onnxruntime", "fp16")]
    assert rows["onnxruntime", "fp32"]["status"] == "measured"
    assert "in float32 here, not in float16" in rows["onnxruntime", "fp16"]["reason"]


def test_clipped_sizes_are_said(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    found = tfx("bench", bundle.path, *QUICK, "--length", "99", "--backend", "onnxruntime")
    assert "note: sequence 99 was clipped to 32: the bundles admit 1..32" in found.stdout


def test_nothing_measured_is_an_error_after_the_report(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    found = tfx("bench", bundle.path, *QUICK, "--backend", "torch")
    assert found.exit_code == 1
    assert "tiny on torch not run: tiny was exported from a module in memory" in found.stdout
    assert "error: nothing could be measured\nhint: See what is missing" in found.stderr


def test_wrong_outputs_are_an_error_after_the_report(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "tiny")
    monkeypatch.setattr(
        "tfx.bench.measuring.rounds._reference_of",
        lambda *_: {"last_hidden_state": -session_outputs(bundle)},
    )
    found = tfx("bench", bundle.path, *QUICK, "--backend", "onnxruntime")
    assert found.exit_code == 1
    assert "WRONG" in found.stdout
    assert "error: outputs are wrong: tiny on onnxruntime\nhint: Run tfx check" in found.stderr


def session_outputs(bundle):
    from tfx.bench.measuring.workload import Shape
    from tfx.runtime.opening import open_session

    with open_session(bundle, backend="onnxruntime") as session:
        feed = Shape({"batch": 2, "sequence": 8}).feed_for(session.signature, 0)
        return session.predict(feed)["last_hidden_state"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--batch", "0"), 1, "batch is 0, expected 1 or more"),
        (("--backend", "abacus"), 2, "'abacus' is not one of 'torch', "),
    ],
)
def test_bad_options(tmp_path, arguments, code, message):
    bundle = write_bundle(tmp_path / "tiny")
    found = tfx("bench", bundle.path, *arguments)
    assert found.exit_code == code
    assert message in found.stderr


def test_no_bundle_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = tfx("bench")
    assert found.exit_code == 1
    assert "error: no bundle in" in found.stderr


def test_help_says_what_the_group_says():
    assert SUMMARIES["bench"] in tfx("bench", "--help").output
