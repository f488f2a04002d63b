import contextlib
import dataclasses

import numpy as np
import pytest
from support.bundles import HIDDEN, write_bundle

from tfx.bench.measuring.machine import this_machine
from tfx.bench.measuring.report import Status
from tfx.bench.measuring.runner import measure
from tfx.bench.measuring.worker import Loaded
from tfx.bench.measuring.workload import Plan, Way
from tfx.console import Progress
from tfx.dtypes import DType
from tfx.errors import BackendError, BundleError
from tfx.recipe import Source, SourceKind
from tfx.runtime.backend import RunFacts
from tfx.runtime.clock import SETTLE_S, WarmUp
from tfx.runtime.compare import TOLERANCES
from tfx.runtime.stats import LEAST_ROUNDS, Verdict

MS = 1_000_000


class FakeWorld:
    """Workers with planted speeds, outputs and failures, and the time they share."""

    def __init__(self, speeds_ms, *, wrong=(), fail=None, fail_block=None, drift=0.0):
        self.speeds_ms = speeds_ms
        self.wrong = wrong
        self.fail = fail or {}
        self.fail_block = fail_block or {}
        self.drift = drift
        self.load_s = ()  # seconds and notes of each process of a row
        self.now_ns = 0
        self.rng = np.random.default_rng(0)
        self.started, self.closed, self.blocks, self.slept_s, self.loaded = [], [], [], [], []

    def start(self, bundle, way, shape, plan):
        self.started.append(str(way))
        return FakeWorker(self, str(way), shape)

    def clock(self):
        return self.now_ns

    def call_ns(self, backend):
        noise = np.exp(self.rng.normal(0, 0.02))
        took = int(self.speeds_ms[backend] * MS * noise * (1 + self.drift * self.now_ns / 1e9))
        self.now_ns += took
        return took


class FakeWorker:
    def __init__(self, world, backend, shape):
        self.world, self.backend, self.shape = world, backend, shape
        self.blocks = 0

    def load(self):
        self.world.loaded.append(self.backend)
        if self.backend in self.world.fail:
            raise BackendError(self.world.fail[self.backend], hint="Install it.")
        facts = RunFacts(self.backend, "1.0", "fake", "cpu", "float32", 2)
        times = self.world.loaded.count(self.backend)
        if times <= len(self.world.load_s):
            load_s, *notes = self.world.load_s[times - 1]
            return Loaded(dataclasses.replace(facts, notes=tuple(notes)), load_s, 10 * load_s)
        return Loaded(facts, 0.5, 12.0)

    def warm_up(self, limit_s):
        return WarmUp(15, 0.2, self.world.speeds_ms[self.backend], True)

    def block(self, calls):
        self.blocks += 1
        if self.blocks == self.world.fail_block.get(self.backend):
            raise BackendError("out of memory")
        self.world.blocks.append((self.backend, calls))
        return [self.world.call_ns(self.backend) for _ in range(calls)]

    def peak_memory_mb(self):
        return 100.0

    def outputs(self):
        sizes = self.shape.sizes
        rng = np.random.default_rng(1)
        values = rng.normal(size=(sizes["batch"], sizes["sequence"], HIDDEN)).astype(np.float32)
        if self.backend in self.world.wrong:
            values = self.world.wrong[self.backend](values)
        return {"last_hidden_state": values}

    def close(self):
        self.world.closed.append(self.backend)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny")


def run_all(world, bundles, *backends, **plan):
    report = measure(
        bundles,
        Plan(**{"batches": (2,), "lengths": (8,)} | plan),
        [Way(*name.split()) for name in backends or world.speeds_ms],
        this_machine(),
        progress=Progress(),
        start=world.start,
        clock=world.clock,
        sleep=world.slept_s.append,
        probe=lambda: 1.0,
    )
    return report.rows


def run(world, bundle, *backends, **plan):
    rows = run_all(world, [bundle], *backends, **plan)
    return {str(row.way): row for row in rows}


CACHED = "its compiled model came from the cache"


@pytest.mark.parametrize(
    ("loads", "load_s"),
    [
        ([(9.0,)], 9.0),
        ([(9.0,), (3.0,), (2.0,)], 2.5),  # a cold disk cache alone: no note tells it
        ([(9.0,), (8.0,), (2.0, CACHED), (1.0, CACHED)], 1.5),  # the second fills the cache
        ([(2.0, CACHED), (1.0, CACHED), (8.0,)], 8.0),
    ],
)
def test_loads_that_found_the_caches_alike_are_one_figure(bundle, loads, load_s):
    world = FakeWorld({"onnxruntime": 10}, fail={"torch": "not installed"})
    world.load_s = loads
    (row,) = run(world, bundle, processes=len(loads)).values()
    found = row.measurement
    assert found.load_s == load_s
    assert found.first_call_ms == 10 * load_s
    assert found.loads_s == tuple(one for one, *_ in loads)
    assert found.facts.notes == tuple(loads[-1][1:])


def test_a_planted_slowdown_of_15_percent_is_found(bundle):
    rows = run(FakeWorld({"torch": 10, "onnxruntime": 11.5}, drift=0.1), bundle)
    assert rows["onnxruntime"].comparison.verdict is Verdict.SLOWER
    assert rows["onnxruntime"].comparison.against == "tiny on torch"
    assert rows["torch"].comparison is None


def test_equal_rows_are_not_called_different(bundle):
    rows = run(FakeWorld({"torch": 10, "onnxruntime": 10}, drift=0.1), bundle)
    assert rows["onnxruntime"].comparison.verdict in (Verdict.SAME, Verdict.UNSURE)


def test_without_torch_the_fastest_row_is_the_baseline(bundle):
    rows = run(FakeWorld({"slow": 30, "fast": 10}, fail={"torch": "not installed"}), bundle)
    assert rows["fast"].comparison is None
    assert rows["slow"].comparison.against == "tiny on fast"
    assert rows["slow"].comparison.speedup == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda values: values * 2,  # the same direction
            "last_hidden_state has scaled error 1.0e+00 against PyTorch's, expected at most 1e-04",
        ),
        (
            lambda values: values * np.nan,
            "last_hidden_state has another shape than PyTorch's, or is not finite",
        ),
        (
            lambda values: values[:1],
            "last_hidden_state has another shape than PyTorch's, or is not finite",
        ),
    ],
)
def test_wrong_outputs_are_flagged_and_their_speed_is_not_judged(bundle, change, reason):
    rows = run(FakeWorld({"torch": 10, "onnxruntime": 1}, wrong={"onnxruntime": change}), bundle)
    assert rows["onnxruntime"].status is Status.WRONG
    assert rows["onnxruntime"].reason == reason
    assert rows["onnxruntime"].comparison is None
    assert rows["torch"].status is Status.MEASURED


def test_a_wrong_row_is_nobodys_baseline(bundle):
    world = FakeWorld(
        {"torch": 10, "a": 1, "b": 5}, wrong={"a": lambda v: -v}, fail_block={"torch": 1}
    )
    # Without torch as a row there is still its reference, which makes "a" wrong.
    rows = run(world, bundle, "a", "b")
    assert rows["a"].status is Status.WRONG
    assert rows["b"].comparison is None


def test_small_errors_are_reported_and_not_wrong(bundle):
    world = FakeWorld({"torch": 10, "a": 5}, wrong={"a": lambda v: v + np.float32(3e-5)})
    row = run(world, bundle)["a"]
    assert row.status is Status.MEASURED
    (found,) = row.agreement
    assert found.max_abs == pytest.approx(3e-5, rel=1e-2)
    assert 0 < found.scaled_error <= found.max_abs
    assert found.tolerance == TOLERANCES[DType.FLOAT32].scaled_error


def test_a_precision_without_a_tolerance_is_refused_before_anything_runs(tmp_path):
    world = FakeWorld({"torch": 10})
    bundle = write_bundle(tmp_path / "tiny8", precision=DType.FLOAT64)
    with pytest.raises(BundleError, match="tiny8: there is no tolerance to judge by: got"):
        run(world, bundle)
    assert world.started == []


def test_a_lower_precision_has_its_own_tolerance(bundle):
    wrong = {name: lambda v: v + np.float32(1e-2) for name in ("a", "a bf16")}
    world = FakeWorld({"torch": 10, "a": 5, "a bf16": 4}, wrong=wrong)
    rows = run(world, bundle)
    assert [rows[name].status for name in ("a", "a bf16")] == [Status.WRONG, Status.MEASURED]
    assert rows["a bf16"].agreement[0].tolerance == TOLERANCES[DType.BFLOAT16].scaled_error


def test_pytorch_is_the_reference_in_float32_only(bundle):
    world = FakeWorld(
        {"torch bf16": 2, "torch": 10, "torch fp32": 9, "a": 5},
        wrong={"torch bf16": lambda v: v + np.float32(1e-2)},
    )
    rows = run(world, bundle, "torch bf16", "a")
    assert world.started == ["torch bf16", "a", "torch"]  # the last for its outputs alone
    assert rows["a"].status is Status.MEASURED
    assert rows["a"].comparison.against == "tiny on torch bf16"  # the fastest row
    rows = run(world, bundle, "torch bf16", "torch fp32", "a")
    assert {row.comparison.against for row in rows.values() if row.comparison} == {
        "tiny on torch fp32"
    }
    assert rows["torch bf16"].agreement[0].max_abs == pytest.approx(1e-2, rel=1e-3)


def test_what_runs_the_source_runs_once_for_all_bundles_of_it(tmp_path):
    bundles = [write_bundle(tmp_path / "one"), write_bundle(tmp_path / "two")]
    world = FakeWorld({"torch": 10, "torch-compiled": 8, "a": 5})
    run_all(world, bundles)
    assert sorted(world.started) == ["a", "a", "torch", "torch-compiled"]


def test_errors_at_padded_positions_do_not_count(bundle):
    def last_position(values):
        changed = values.copy()
        changed[1, -1] = 9  # row 1 is padded on the right
        return changed

    row = run(FakeWorld({"torch": 10, "a": 5}, wrong={"a": last_position}), bundle)["a"]
    assert row.agreement[0].max_abs == 0


def test_a_backend_that_does_not_load_keeps_the_others(bundle):
    world = FakeWorld({"torch": 10, "onnxruntime": 5}, fail={"torch": "torch is not installed"})
    rows = run(world, bundle)
    assert rows["torch"].status is Status.NOT_RUN
    assert rows["torch"].reason == "torch is not installed (Install it.)"
    assert rows["torch"].measurement is None
    assert rows["onnxruntime"].status is Status.MEASURED
    assert rows["onnxruntime"].agreement is None
    assert rows["onnxruntime"].no_reference == "torch is not installed (Install it.)"


def test_a_backend_that_fails_half_way_keeps_the_others(bundle):
    world = FakeWorld({"torch": 10, "onnxruntime": 5}, fail_block={"onnxruntime": 4})
    rows = run(world, bundle, rounds=10)
    assert rows["onnxruntime"].reason == "out of memory"
    assert rows["torch"].measurement.rounds == 10


def test_a_reference_is_fetched_where_torch_is_no_row(bundle):
    world = FakeWorld({"torch": 10, "onnxruntime": 5})
    rows = run(world, bundle, "onnxruntime")
    assert world.started == ["onnxruntime", "torch"]
    assert rows["onnxruntime"].agreement[0].max_abs == 0
    assert rows.keys() == {"onnxruntime"}


def test_torch_runs_once_for_bundles_of_one_source(tmp_path):
    parent = write_bundle(tmp_path / "tiny")
    child = write_bundle(tmp_path / "child", parent=parent.as_parent())
    world = FakeWorld({"torch": 10, "onnxruntime": 5})
    rows = run_all(world, [parent, child])
    assert [row.name for row in rows] == [
        "tiny on torch",
        "tiny on onnxruntime",
        "child on onnxruntime",
    ]
    assert world.started == ["torch", "onnxruntime", "onnxruntime"]
    assert rows[2].comparison.against == "tiny on torch"
    assert rows[2].agreement[0].max_abs == 0


def test_bundles_of_two_sources_have_torch_rows_of_their_own(tmp_path):
    other = write_bundle(tmp_path / "other", source=Source(SourceKind.MODULE, "elsewhere"))
    rows = run_all(FakeWorld({"torch": 10}), [write_bundle(tmp_path / "tiny"), other])
    assert [row.name for row in rows] == ["tiny on torch", "other on torch"]


def test_a_damaged_bundle_is_not_run_and_keeps_the_others(tmp_path):
    parent = write_bundle(tmp_path / "tiny")
    child = write_bundle(tmp_path / "child", parent=parent.as_parent())
    data = bytearray(parent.model.read_bytes())
    data[-1] ^= 1
    parent.model.write_bytes(data)
    world = FakeWorld({"torch": 10, "onnxruntime": 5})
    rows = {row.name: row for row in run_all(world, [parent, child])}
    for name in ("tiny on torch", "tiny on onnxruntime"):
        assert rows[name].status is Status.NOT_RUN
        assert "model.onnx: sha256 is not the one in tfx.json" in rows[name].reason
    assert rows["child on onnxruntime"].comparison.against == "child on torch"
    assert world.loaded == ["torch", "onnxruntime"]


def test_every_worker_is_closed(bundle):
    world = FakeWorld({"torch": 10, "a": 5}, fail={"b": "no"})
    run(world, bundle, "torch", "a", "b")
    assert set(world.closed) == {"torch", "a", "b"}


def test_every_worker_is_closed_when_interrupted(bundle):
    world = FakeWorld({"torch": 10, "a": 5})

    def interrupt(_):
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        measure(
            [bundle],
            Plan(batches=(1,), lengths=(8,)),
            (Way("torch"), Way("a")),
            this_machine(),
            progress=Progress(),
            start=world.start,
            sleep=interrupt,
        )
    assert sorted(world.closed) == ["a", "torch"]


def test_every_round_has_every_row_in_a_seeded_random_order(bundle):
    def order_of(seed):
        world = FakeWorld({"torch": 10, "a": 5})
        run(world, bundle, rounds=20, seed=seed)
        return [backend for backend, _ in world.blocks]

    first = order_of(1)
    pairs = [tuple(first[i : i + 2]) for i in range(0, len(first), 2)]
    assert {frozenset(pair) for pair in pairs} == {frozenset({"torch", "a"})}
    assert set(pairs) == {("torch", "a"), ("a", "torch")}
    assert order_of(1) == first
    assert order_of(2) != first


def test_each_block_comes_after_a_pause(bundle):
    world = FakeWorld({"torch": 10, "a": 5})
    run(world, bundle, rounds=10)
    assert world.slept_s == [SETTLE_S] * 30  # before the probe too


def test_short_calls_are_made_in_longer_blocks(bundle):
    world = FakeWorld({"torch": 50, "a": 1, "b": 0.001})
    run(world, bundle, rounds=1)
    assert dict(world.blocks) == {"torch": 5, "a": 20, "b": 100}


def test_no_round_begins_after_the_seconds_but_the_least_are_made(bundle):
    world = FakeWorld({"torch": 100})
    rows = run(world, bundle, seconds=6.0)
    assert rows["torch"].measurement.rounds == 12  # 5 calls of 0.1 s each
    rows = run(FakeWorld({"torch": 1000}), bundle, seconds=0.1)
    assert rows["torch"].measurement.rounds == LEAST_ROUNDS


def test_throughput_is_the_batch_over_the_median(bundle):
    row = run(FakeWorld({"torch": 10}), bundle, batches=(4,))["torch"]
    found = row.measurement
    assert found.throughput_per_s == pytest.approx(4 * 1000 / found.latency.median_ms)
    assert (found.load_s, found.first_call_ms, found.peak_memory_mb) == (0.5, 12.0, 100.0)
