"""``python -m tfx.bench.planted``: a slowdown that is really there is found, and no other."""

import functools
import itertools
import json
import time

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.reports import made_up

from tfx.bench import planted as module
from tfx.bench.measuring.baseline import PROBE, Outcome, RowChange
from tfx.bench.measuring.slowed import SlowedServer, SlowedWorker, slowed
from tfx.bench.measuring.worker import ProcessWorker
from tfx.bench.measuring.workload import Plan, Shape, Way
from tfx.bench.pages.stored import read_stored
from tfx.bench.planted import Try, plant, planted, show_tries, try_of
from tfx.errors import BackendError

WAY = Way("onnxruntime")
SHAPE = Shape({"batch": 2, "sequence": 8})


def runs(*, found=1.15, failed=()):
    """What measures: made-up runs of a machine that drifts, slower by what is asked for."""
    seeds = itertools.count(1)
    started = []

    def measured(start, more):
        seed = next(seeds)
        worker = start("path", WAY, SHAPE, Plan())
        started.append(type(worker))
        beside = start("path", Way("torch"), SHAPE, Plan())
        assert type(beside) is ProcessWorker
        worker.close()
        beside.close()
        factor = found if isinstance(worker, SlowedWorker) else 1.0
        speeds = {("tiny", "torch"): 20.0, ("tiny", "onnxruntime"): 10.0 * factor}
        return made_up(
            speeds, shapes=(SHAPE.sizes,), with_accuracy=False, seed=seed, slow=1 + seed % 3 / 5,
            load_noise=0.005, failed=failed, processes=4,
        )  # fmt: skip

    return measured, started


def test_a_call_takes_a_share_longer_and_says_the_same():
    took = []

    def call():
        started = time.perf_counter_ns()
        while time.perf_counter_ns() < started + 2_000_000:
            pass
        took.append(time.perf_counter_ns() - started)
        return "answer"

    slow = slowed(call, 0.5)
    started = time.perf_counter_ns()
    assert slow() == "answer"
    assert time.perf_counter_ns() - started >= 1.5 * took[0]


def test_the_process_of_a_row_is_really_slowed(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    plan = Plan(threads=1)
    usual, slow = (
        start(bundle.path, WAY, SHAPE, plan)
        for start in (ProcessWorker, functools.partial(SlowedWorker, share=9.0))
    )
    try:
        assert usual.load().facts == slow.load().facts
        expected, found = usual.outputs(), slow.outputs()
        assert all((found[name] == expected[name]).all() for name in expected)
        assert min(slow.block(20)) > 3 * min(usual.block(20))
    finally:
        usual.close()
        slow.close()


def test_only_the_asked_calls_are_slowed(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    server = SlowedServer()
    worker = ProcessWorker(bundle.path, WAY, SHAPE, Plan(threads=1))
    job = worker._job
    worker.close()
    server.answer({"do": "load", "share": 0.15, **job})
    assert len(server.answer({"do": "block", "calls": 3, "first": 0})) == 3


def test_a_slowdown_is_found_and_nothing_else_is_on_a_machine_that_drifts():
    measured, started = runs()
    found = plant(measured, WAY, baselines=2, tries=4)
    assert started[:2] == [ProcessWorker, ProcessWorker]
    assert started[2:] == [ProcessWorker, SlowedWorker] * 4
    assert [one.planted for one in found] == [0.0, 0.15] * 4
    assert all(one.right for one in found)
    assert all(one.ratio == pytest.approx(1.15 if one.planted else 1.0, abs=0.04) for one in found)


def test_a_slowdown_that_is_not_there_is_not_found():
    measured, _ = runs(found=1.0)
    found = plant(measured, WAY, baselines=1, tries=2)
    assert [one.right for one in found] == [True, False] * 2


def test_a_row_that_does_not_run_is_an_error():
    measured, _ = runs(failed=[("tiny", "openvino")])
    with pytest.raises(BackendError, match="tiny on openvino cannot be measured: openvino <is>"):
        plant(measured, WAY, tries=1)


def test_without_pytorch_beside_it_nothing_is_said():
    change = RowChange("a", "b", 1.0, 1.0, PROBE, None, None)
    found = try_of(0.15, change)
    assert found.outcome is Outcome.UNSURE
    assert found.reason == "torch was not measured beside it"
    assert not found.right


def test_the_table_counts_both_kinds(capsys):
    show_tries(
        [
            Try(0.0, 10.0, 1.01, 0.99, 1.02, Outcome.FINE),
            Try(0.15, 11.5, 1.15, 1.13, 1.17, Outcome.FAILED),
            Try(0.15, 10.2, 1.02, 0.99, 1.05, Outcome.FINE),
        ]
    )
    text = " ".join(capsys.readouterr().out.split())
    assert "15% 11.5 1 1.150x 1.130..1.170 failed yes" in text
    assert "15% 10.2 1 1.020x 0.990..1.050 fine WRONG" in text
    assert "unchanged: 0 of 1 flagged 15% slower: 1 of 2 flagged" in text


@pytest.mark.parametrize(("found", "code"), [(1.15, 0), (1.0, 1)])
def test_the_command(tmp_path, monkeypatch, found, code):
    bundle = write_bundle(tmp_path / "tiny")
    measured, _ = runs(found=found)
    monkeypatch.setattr(module, "_measured_once", lambda *given: measured(*given[-2:]))
    arguments = [str(bundle.path), "--tries", "2", "--baselines", "1", "--json"]
    done = CliRunner().invoke(planted, [*arguments, "--save", str(tmp_path / "kept")])
    assert done.exit_code == code, done.output
    (kept,) = (tmp_path / "kept").glob("*-planted-*.json")
    stored = read_stored(json.loads(kept.read_text()))
    assert stored.result == json.loads(done.stdout)
    assert [one["right"] for one in stored.result["tries"]] == [True, code == 0] * 2
    assert ("2 of 4 runs are judged wrongly" in done.stderr) == bool(code)


def test_pytorch_itself_cannot_be_the_slowed_one(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    done = CliRunner().invoke(planted, [str(bundle.path), "--backend", "torch"])
    assert done.exit_code == 1
    assert "torch is what others are compared with" in done.stderr
