"""A row in several processes: who is started when, and how rounds are divided."""

import numpy as np
import pytest
from support.bundles import HIDDEN, write_bundle

from tfx.bench.measuring import rounds
from tfx.bench.measuring.machine import this_machine
from tfx.bench.measuring.report import Status
from tfx.bench.measuring.runner import measure
from tfx.bench.measuring.worker import Loaded
from tfx.bench.measuring.workload import Plan, Way
from tfx.console import Progress
from tfx.errors import BackendError, RecipeError
from tfx.runtime.backend import RunFacts
from tfx.runtime.clock import WarmUp

SPEEDS_MS = {"torch": 20, "onnxruntime": 10, "openvino": 8}


class World:
    """Processes of rows: what each was asked for, in order."""

    def __init__(self, *, fail=None, interrupt=None):
        self.fail, self.interrupt = fail or {}, interrupt
        self.now_ns, self.blocks, self.alive, self.most = 0, 0, 0, 0
        self.started, self.asked = [], []

    def start(self, bundle, way, shape, plan):
        self.started.append(str(way))
        return Process(self, str(way), self.started.count(str(way)), shape)


class Process:
    def __init__(self, world, way, number, shape):
        self.world, self.way, self.number, self.shape = world, way, number, shape
        self.open = False

    def load(self):
        self.open = True
        self.world.alive += 1
        self.world.most = max(self.world.most, self.world.alive)
        if self.world.fail.get(self.way) == self.number:
            raise BackendError("out of memory")
        return Loaded(RunFacts(self.way, "1.0", "fake", "cpu", "float32", 2), 0.5, 12.0)

    def warm_up(self, limit_s):
        return WarmUp(15, 0.2, SPEEDS_MS[self.way], True)

    def block(self, calls):
        self.world.blocks += 1
        self.world.asked.append(self.way)
        if self.world.blocks == self.world.interrupt:
            raise KeyboardInterrupt
        took = round(SPEEDS_MS[self.way] * 1e6 * (1 + self.number / 10))
        self.world.now_ns += calls * took
        return [took] * calls

    def peak_memory_mb(self):
        return 100.0 * (3 - self.number)

    def outputs(self):
        assert self.number == 1  # they are compared once
        sizes = self.shape.sizes
        return {"last_hidden_state": np.ones((sizes["batch"], sizes["sequence"], HIDDEN), "<f4")}

    def close(self):
        self.world.alive -= self.open
        self.open = False


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny")


def run(world, bundle, more=None, keep=lambda report: None, **plan):
    report = measure(
        [bundle],
        Plan(**{"batches": (2,), "lengths": (8,), "rounds": 9, "processes": 3} | plan),
        [Way(name) for name in SPEEDS_MS],
        this_machine(),
        progress=Progress(),
        start=world.start,
        clock=lambda: world.now_ns,
        sleep=lambda seconds: None,
        probe=lambda: 1.0,
        more=more,
        keep=keep,
    )
    assert world.alive == 0
    return report


def process_rounds(report):
    return {row.backend: row.measurement.process_rounds for row in report.rows if row.measurement}


def test_all_rows_get_fresh_processes_which_share_the_rounds(bundle):
    world = World()
    report = run(world, bundle)
    assert world.started == list(SPEEDS_MS) * 3
    assert world.most == 3
    assert process_rounds(report) == dict.fromkeys(SPEEDS_MS, (3, 3, 3))
    row = report.rows[1]
    assert row.measurement.round_ms == tuple(np.repeat([11.0, 12.0, 13.0], 3))
    assert row.measurement.round_min_ms == row.measurement.round_ms
    assert row.measurement.peak_memory_mb == 200.0
    assert row.comparison.speedup == pytest.approx(2.0)
    assert len(report.probes[row.title]) == 9


def test_rounds_that_cannot_be_divided_are_made_up(bundle):
    assert process_rounds(run(World(), bundle, rounds=8))["torch"] == (3, 3, 3)


def test_each_process_has_its_rounds_in_another_order(bundle):
    world = World()
    run(world, bundle, rounds=16, processes=2)
    half = len(world.asked) // 2
    assert sorted(world.asked[:half]) == sorted(world.asked[half:])
    assert world.asked[:half] != world.asked[half:]


def test_seconds_are_divided_too(bundle):
    report = run(World(), bundle, rounds=100, seconds=1.2)
    counts = process_rounds(report)["torch"]
    assert len(counts) == 3
    assert all(3 <= count <= 4 for count in counts)


def test_a_row_is_asked_for_more_processes_with_what_it_is_compared_with(bundle):
    seen = []

    def more(report):
        seen.append(process_rounds(report))
        return ["tiny on onnxruntime"] if len(seen) < 3 else []

    world = World()
    report = run(world, bundle, more, processes=1, rounds=8)
    assert world.started == [*SPEEDS_MS, "torch", "onnxruntime", "torch", "onnxruntime"]
    assert process_rounds(report) == {
        "torch": (8, 8, 8),
        "onnxruntime": (8, 8, 8),
        "openvino": (8,),
    }
    assert seen[-1] == {"torch": (8, 8, 8), "onnxruntime": (8, 8, 8)}
    assert report.rows[2].comparison.against == "tiny on torch"
    assert len(report.probes[report.rows[0].title]) == 24


def test_a_process_that_fails_later_fails_the_row_and_no_other(bundle):
    report = run(World(fail={"onnxruntime": 2}), bundle)
    rows = {row.backend: row for row in report.rows}
    assert rows["onnxruntime"].status is Status.NOT_RUN
    assert rows["onnxruntime"].reason == "out of memory"
    assert rows["openvino"].measurement.process_rounds == (3, 3, 3)


def test_what_a_row_was_compared_with_may_fail_in_a_process_that_others_did_not_take(bundle):
    seen = []

    def more(report):
        seen.append(report)
        return ["tiny on onnxruntime"] if len(seen) < 2 else []

    report = run(World(fail={"torch": 2}), bundle, more, processes=1, rounds=8)
    rows = {row.backend: row for row in report.rows}
    assert rows["torch"].status is Status.NOT_RUN
    assert process_rounds(report) == {"onnxruntime": (8, 8), "openvino": (8,)}
    assert rows["onnxruntime"].comparison.against == "tiny on openvino"
    assert rows["onnxruntime"].comparison.speedup == pytest.approx(0.8)


class Meter:
    """Reads nothing, and says that a block took a joule more than the one before."""

    def __init__(self):
        self.blocks = 0

    def read(self):
        return None

    def joules(self, before, after):
        self.blocks += 1
        return float(self.blocks)


def test_energy_is_of_the_rounds_that_count(bundle, monkeypatch):
    meter = Meter()
    monkeypatch.setattr(rounds, "EnergyMeter", lambda: meter)
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(World(interrupt=5), bundle, keep=kept.append, processes=1)
    joules = [row.measurement.joules_per_call for row in kept[-1].rows]
    # Of three blocks, one of each row: a call more than the five of a block takes energy too.
    assert sorted(joules) == [pytest.approx(1 / 6), pytest.approx(2 / 6), pytest.approx(3 / 6)]


def test_an_interruption_leaves_out_the_round_it_cut(bundle):
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(World(interrupt=15), bundle, keep=kept.append)
    assert process_rounds(kept[-1]) == dict.fromkeys(SPEEDS_MS, (3, 1))
    assert kept[-1].unfinished == (kept[-1].rows[0].title,)
    assert len(kept[-1].probes[kept[-1].rows[0].title]) == 4


def test_less_than_one_process_is_refused():
    with pytest.raises(RecipeError, match="processes is 0, expected 1 or more"):
        Plan(processes=0)
