"""A benchmark in cells: their order, what one deadline leaves out, and what is kept as it comes."""

import dataclasses
import math

import pytest
from support.bundles import write_bundle
from support.reports import made_up

from tfx.bench.measuring import cells as module
from tfx.bench.measuring.cells import Deadline, cells_of, measure_cells
from tfx.bench.measuring.workload import Plan, Way
from tfx.recipe import Source, SourceKind

PLAN = Plan(batches=(1, 8), lengths=(128, 384))
WAYS = (Way("onnxruntime"),)


@pytest.fixture
def bundles(tmp_path):
    """Two of one model, and one of another."""
    sources = {"a": "one", "a-fp16": "one", "b": "other"}
    return [
        write_bundle(tmp_path / name, source=Source(SourceKind.CHECKPOINT, where))
        for name, where in sources.items()
    ]


@pytest.fixture
def measured(monkeypatch):
    """Names and shape of each call; a row for each bundle."""
    calls = []

    def measure(bundles, plan, ways, machine, *, progress, start, keep):
        (batch,), (length,) = plan.batches, plan.lengths
        calls.append((tuple(bundle.name for bundle in bundles), batch, length))
        speeds = {(bundle.name, "onnxruntime"): 1.0 for bundle in bundles}
        shapes = ({"batch": batch, "sequence": min(length, 200)},)
        report = made_up(speeds, shapes=shapes, noise=0.0, with_accuracy=False)
        digests = {bundle.name: bundle.digest for bundle in bundles}
        rows = [dataclasses.replace(row, digest=digests[row.bundle]) for row in report.rows]
        report = dataclasses.replace(
            report, rows=tuple(rows), notes=("clipped",), created=f"at {len(calls)}"
        )
        keep(report)
        return report

    monkeypatch.setattr(module, "measure", measure)
    return calls


def run(bundles, deadline, keep=lambda report: None, plan=PLAN):
    return measure_cells(
        bundles,
        plan,
        WAYS,
        made_up().machine,
        deadline=deadline,
        progress=None,
        start=None,
        keep=keep,
    )


def test_every_family_at_the_first_shape_comes_first(bundles):
    assert [str(cell) for cell in cells_of(bundles, PLAN)] == [
        "a: batch 1, length 128",
        "b: batch 1, length 128",
        "a: batch 8, length 128",
        "b: batch 8, length 128",
        "a: batch 1, length 384",
        "b: batch 1, length 384",
        "a: batch 8, length 384",
        "b: batch 8, length 384",
    ]


def test_all_is_measured_where_there_is_time(bundles, measured):
    report = run(bundles, Deadline())
    assert measured[:2] == [(("a", "a-fp16"), 1, 128), (("b",), 1, 128)]
    assert len(measured) == 8
    assert [row.bundle for row in report.rows[:3]] == ["a", "a-fp16", "b"]
    assert len(report.rows) == 12
    assert (report.unfinished, report.notes) == ((), ("clipped",))
    assert (report.created, report.plan) == ("at 1", PLAN)


def test_what_is_not_reached_is_said(bundles, measured):
    now = iter([0.0, 10.0, 20.0, 30.0])
    report = run(bundles, Deadline(30, lambda: next(now)))
    assert len(measured) == 2
    assert len(report.rows) == 3
    assert report.unfinished[0] == "a: batch 8, length 128"
    assert len(report.unfinished) == 6
    nothing = run(bundles, Deadline(1, iter([0.0, 1.0]).__next__))
    assert (nothing.rows, len(nothing.unfinished)) == ((), 8)


def test_each_cell_is_kept_with_those_before(bundles, measured):
    kept = []
    run(bundles, Deadline(), kept.append)
    sizes = [len(report.rows) for report in kept]
    assert sizes == sorted(sizes)
    # By the measurement itself, while its cell counts as unfinished, and after it.
    assert [len(report.unfinished) for report in kept[:3]] == [8, 7, 7]
    assert kept[-1].unfinished == ()


def test_sizes_that_are_clipped_come_once(bundles, measured):
    plan = dataclasses.replace(PLAN, batches=(1,), lengths=(300, 400))
    report = run(bundles[2:], Deadline(), plan=plan)
    assert len(measured) == 2
    assert len(report.rows) == 1


def test_times_of_the_probe_are_joined(bundles, measured):
    report = run(bundles, Deadline(), plan=dataclasses.replace(PLAN, batches=(1,), lengths=(128,)))
    one = made_up(shapes=({"batch": 1, "sequence": 128},)).probes
    assert {title: len(times) for title, times in report.probes.items()} == {
        title: 2 * len(times) for title, times in one.items()
    }


def test_a_deadline():
    now = [5.0]
    deadline = Deadline(10, lambda: now[0])
    assert deadline.left_s == 10
    now[0] = 99
    assert deadline.left_s == 0
    assert Deadline().left_s == math.inf
