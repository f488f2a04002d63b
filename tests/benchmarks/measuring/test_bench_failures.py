"""A row that crashes, hangs or runs out of memory is reported, and takes no other along."""

import os
import signal

import numpy as np
import pytest
from support.bundles import write_bundle

from tfx.bench.measuring.machine import this_machine
from tfx.bench.measuring.report import Status
from tfx.bench.measuring.runner import measure
from tfx.bench.measuring.worker import ProcessWorker
from tfx.bench.measuring.workload import Plan, Way
from tfx.console import Progress


class Struck(ProcessWorker):
    """A worker whose process gets a signal before its third block."""

    def __init__(self, sent, *arguments):
        super().__init__(*arguments)
        self.sent, self.blocks = sent, 0

    def block(self, calls, first=0):
        self.blocks += 1
        if self.blocks == 3:
            os.kill(self.child.process.pid, self.sent)
        return super().block(calls, first)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (signal.SIGKILL, "the process ended: signal 9"),  # as the kernel does without memory left
        (signal.SIGSEGV, "the process ended: signal 11"),
        (signal.SIGSTOP, "no answer to 'block' within 5 s, killed"),
    ],
)
def test_a_planted_failure_leaves_the_other_rows_whole(tmp_path, sent, reason):
    bundle = write_bundle(tmp_path / "tiny")

    def start(path, way, shape, plan):
        arguments = (path, way, shape, plan)
        return Struck(sent, *arguments) if way.precision else ProcessWorker(*arguments)

    report = measure(
        [bundle],
        Plan(batches=(2,), lengths=(8,), rounds=4, seconds=0.5, threads=1, limit_s=5),
        [Way("onnxruntime"), Way("onnxruntime", "fp32")],
        this_machine(),
        progress=Progress(),
        start=start,
        probe=lambda: 1.0,
    )
    whole, struck = report.rows
    assert whole.status is Status.MEASURED
    assert whole.measurement.rounds == 4
    assert struck.status is Status.NOT_RUN
    assert struck.measurement is None
    assert struck.reason.startswith(reason)


def test_nothing_is_timed_on_wrong_outputs(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "tiny")
    wrong = {"last_hidden_state": np.zeros((2, 8, 8), np.float32) + 5}
    monkeypatch.setattr("tfx.bench.measuring.rounds._reference_of", lambda *_: wrong)
    monkeypatch.setattr(ProcessWorker, "warm_up", lambda *_: pytest.fail("timed"))
    report = measure(
        [bundle],
        Plan(batches=(2,), lengths=(8,), rounds=1, threads=1),
        [Way("onnxruntime")],
        this_machine(),
        progress=Progress(),
        probe=lambda: 1.0,
    )
    assert report.rows[0].status is Status.WRONG
    assert report.rows[0].measurement is None
