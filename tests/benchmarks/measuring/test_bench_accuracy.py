"""``tfx bench --eval``: accuracy beside speed, each row in its own process."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.texts import WORDS, logits_table, write_classifier

from tfx.bench.measuring.accuracy import (
    Accuracy,
    Change,
    Judge,
    accuracy_of,
    drop_between,
    shown_change,
)
from tfx.bench.measuring.worker import ProcessWorker
from tfx.bench.measuring.workload import Plan, Shape, Way
from tfx.cli import main
from tfx.console import Progress
from tfx.errors import BackendError, DataError
from tfx.runtime.accuracy.evaluation import Evaluation

SHAPE = Shape({"batch": 1, "sequence": 8})
USED = WORDS[4:]


@pytest.fixture
def data(tmp_path):
    """Five times each word, one in eight labelled wrongly."""
    best = [int(logits_table(2)[WORDS.index(word)].argmax()) for word in USED]
    best[0] = 1 - best[0]
    rows = [f"{word}\t{label}\n" for word, label in zip(USED, best, strict=True)] * 5
    path = tmp_path / "dev.tsv"
    path.write_text("sentence\tlabel\n" + "".join(rows))
    return path


def evaluation(rows, **changes):
    rows = np.asarray(rows, np.float64).reshape(-1, 1)
    found = Evaluation(
        metric="accuracy",
        value=float(rows.mean()),
        low=0.5,
        high=0.9,
        samples=len(rows),
        data="dev.tsv",
        data_digest="d",
        bundle="classifier",
        bundle_digest="0",
        backend="fake",
        reference="",
        truncated=0,
        duration_s=1.0,
        warnings=(),
        rows=rows,
    )
    return dataclasses.replace(found, **changes)


RIGHT = {"torch": [1, 1, 1, 0] * 10, "onnxruntime": [1, 1, 0, 0] * 10}


class FakeWorker:
    """A row that is right about the samples a table says."""

    def __init__(self, calls, way):
        self.calls, self.way = calls, way

    def load(self):
        if self.way.backend == "openvino":
            raise BackendError("no such library", hint="Install it.")

    def evaluate(self, metric, reference, on_progress):
        self.calls.append((str(self.way), metric, reference is not None))
        return evaluation(RIGHT[self.way.backend], metric=metric)

    def record(self, metric, path, on_progress):
        self.calls.append((str(self.way), metric, "record"))

    def close(self):
        self.calls.append("closed")


@pytest.fixture
def judge_of():
    judges = []

    def make(data, calls, **plan):
        plan = Plan(data=str(data), **plan)
        judges.append(Judge(plan, Progress(), lambda _, way, shape, plan: FakeWorker(calls, way)))
        return judges[-1]

    yield make
    for judge in judges:
        judge.close()


def test_each_row_is_compared_in_pairs_with_torch_which_runs_once(tmp_path, data, judge_of):
    bundle, calls = write_classifier(tmp_path / "classifier"), []
    judge = judge_of(data, calls)
    torch = judge.judge(bundle, Way("torch"), SHAPE)
    other = judge.judge(bundle, Way("onnxruntime"), SHAPE)
    assert torch.accuracy.value == 0.75
    assert torch.accuracy.change is None
    assert other.accuracy.value == 0.5
    change = other.accuracy.change
    assert change.against == "classifier on torch"
    assert change.value == -0.25
    assert -0.45 < change.low < -0.2 < change.high < 0
    assert [call for call in calls if call != "closed"] == [
        ("torch", "accuracy", False),
        ("onnxruntime", "accuracy", False),
    ]
    assert calls.count("closed") == 2


def test_a_row_that_fails_says_why(tmp_path, data, judge_of):
    found = judge_of(data, []).judge(
        write_classifier(tmp_path / "classifier"), Way("openvino"), SHAPE
    )
    assert found.accuracy is None
    assert found.reason == "no such library (Install it.)"


def test_without_labels_answers_are_compared_with_those_of_torch(tmp_path, judge_of):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(USED))
    calls = []
    judge = judge_of(texts, calls)
    bundle = write_classifier(tmp_path / "classifier")
    assert judge.judge(bundle, Way("onnxruntime"), SHAPE).accuracy.change is None
    assert calls[0] == ("torch", "agreement", "record")
    assert calls[2] == ("onnxruntime", "agreement", True)


def test_data_that_fits_no_answer_is_said(tmp_path, data, judge_of):
    judge = judge_of(data, [], metric="abacus")
    found = judge.judge(write_bundle(tmp_path / "tiny"), Way("onnxruntime"), SHAPE)
    assert found.accuracy is None
    assert found.reason.startswith("no metric called 'abacus' (Use one of: accuracy, ")


def test_what_a_worker_recorded_is_what_another_is_compared_with(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(USED))
    bundle = write_classifier(tmp_path / "classifier")
    worker = ProcessWorker(bundle.path, Way("onnxruntime"), SHAPE, Plan(threads=1, data=str(texts)))
    try:
        worker.load()
        recorded, done = [], []
        worker.record("kl", tmp_path / "said.npz", recorded.append)
        found = worker.evaluate("kl", tmp_path / "said.npz", done.append)
    finally:
        worker.close()
    assert found.value == pytest.approx(0, abs=1e-9)
    assert found.samples == sum(done) == sum(recorded) == len(USED)
    assert found.rows.shape == (len(USED), 1)


def test_a_report_keeps_enough_to_compare_with_another_run():
    first = accuracy_of(evaluation([1, 1, 1, 0] * 10), None)
    second = accuracy_of(evaluation([1, 1, 0, 0] * 10), None)
    drop, low, high = drop_between(first, second, np.random.default_rng(0))
    assert drop == 0.25
    assert 0 < low < drop < high
    assert drop_between(first, first, np.random.default_rng(0)) == (0, 0, 0)


def test_damaged_contributions_are_refused():
    broken = dataclasses.replace(accuracy_of(evaluation([1, 0]), None), packed="AAAA")
    with pytest.raises(DataError, match="what each sample adds cannot be read"):
        broken.evaluation()


def test_the_reference_has_no_change():
    found = accuracy_of(evaluation([1, 0]), None)
    assert shown_change(found) == ""
    changed = dataclasses.replace(found, change=Change("t", -0.01, -0.02, 0.0))
    assert isinstance(changed, Accuracy)
    assert shown_change(changed) == "-0.0100 ±0.010"


def test_the_table_and_json_have_the_metric(tmp_path, data):
    bundle = write_classifier(tmp_path / "classifier")
    arguments = ["bench", bundle.path, "--backend", "onnxruntime", "--eval", data, "--json"]
    arguments += ["--rounds", 1, "--seconds", 0.1, "--batch", 1, "--length", 8, "--threads", 1]
    arguments += ["--save", tmp_path / "kept"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["accuracy"]["metric"] == "accuracy"
    assert row["accuracy"]["value"] == 0.875
    assert row["accuracy"]["low"] < 0.875 < row["accuracy"]["high"]
    assert row["accuracy"]["samples"] == 40
    assert row["no_accuracy"] == ""
    assert "evaluating classifier on onnxruntime" in result.stderr
    (kept,) = (tmp_path / "kept").iterdir()
    assert json.loads(kept.read_text())["result"]["plan"]["data"] == data.name  # no path of here
