import os
import signal
import subprocess
import sys

import pytest
from support.bundles import write_bundle

from tfx.bench.measuring.worker import ProcessWorker, Server, memory_mb
from tfx.bench.measuring.workload import Plan, Shape, Way
from tfx.errors import BackendError
from tfx.runtime.opening import open_session

SHAPE = Shape({"batch": 2, "sequence": 8})
PLAN = Plan(threads=1, seed=5)

LOUD = """
import os
from tfx.bench.measuring import worker

class Loud:
    def answer(self, question):
        print("loud library", flush=True)
        os.write(1, b"and its C code")
        return "hello"

worker.Server = Loud
worker.main()
"""


@pytest.fixture
def worker(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    worker = ProcessWorker(bundle.path, Way("onnxruntime"), SHAPE, PLAN)
    yield worker
    worker.close()


def test_a_row_is_measured_in_its_own_process(worker, tmp_path):
    loaded = worker.load()
    assert loaded.facts.backend == "onnxruntime"
    assert loaded.facts.threads == 1
    assert loaded.load_s > 0
    assert loaded.first_call_ms > 0
    assert worker.warm_up(5).calls >= 15
    samples = worker.block(4)
    assert len(samples) == 4
    assert min(samples) > 0
    # ONNX Runtime's library alone takes more; no machine has a tiny model of a gigabyte.
    assert 5 < worker.peak_memory_mb() < 1000
    with open_session(tmp_path / "tiny", backend="onnxruntime") as session:
        expected = session.predict(SHAPE.feed_for(session.signature, PLAN.seed))
    found = worker.outputs()
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)


def test_a_refusal_comes_back_with_its_hint(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    worker = ProcessWorker(bundle.path, Way("torch"), SHAPE, PLAN)
    with pytest.raises(BackendError, match="was exported from a module in memory") as caught:
        worker.load()
    assert caught.value.hint.startswith("Export it from")
    worker.close()
    worker.close()


def test_a_row_runs_in_its_precision(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    worker = ProcessWorker(bundle.path, Way("onnxruntime", "bf16"), SHAPE, PLAN)
    with pytest.raises(BackendError, match="in float32 here, not in bfloat16"):
        worker.load()
    worker.close()


def test_digests_are_no_part_of_loading(monkeypatch, tmp_path):
    """The runner has checked them, once for all rows."""
    bundle = write_bundle(tmp_path / "tiny")
    monkeypatch.setattr("tfx.bundle.sha256_of", lambda path: pytest.fail(f"read {path}"))
    loaded = Server().answer(
        {
            "do": "load",
            "bundle": str(bundle.path),
            "backend": "onnxruntime",
            "precision": "",
            "sizes": dict(SHAPE.sizes),
            "threads": 1,
            "trust": False,
            "seed": 0,
        }
    )
    assert loaded["load_s"] > 0


def test_a_process_that_dies_is_an_error_of_its_row(worker):
    worker.load()
    worker.child.process.kill()
    with pytest.raises(BackendError, match="the process ended: signal 9"):
        worker.block(1)


def test_what_a_library_raises_is_an_error_of_its_row(worker):
    worker.load()
    with pytest.raises(BackendError, match=r"^AssertionError: no such question: dance$"):
        worker.child.ask(do="dance")
    assert len(worker.block(1)) == 1  # it lives on


def test_a_crash_says_its_last_line(worker):
    worker.load()
    worker.child.process.stdin.write("no JSON\n")  # main() itself stumbles over it
    with pytest.raises(BackendError, match=r"the process ended: exit code 1, json\S*Error: Expect"):
        worker.block(1)


def test_a_process_that_hangs_is_killed(worker):
    worker.load()
    worker.child.limit_s = 0.2
    os.kill(worker.child.process.pid, signal.SIGSTOP)
    with pytest.raises(
        BackendError, match=r"^no answer to 'block' within 0\.2 s, killed$"
    ) as caught:
        worker.block(1)
    assert caught.value.hint == "Give it more time with --limit, or leave it out with --backend."
    assert worker.child.process.wait(5) == -signal.SIGKILL


def test_the_limit_is_the_plans_and_warming_up_gets_its_own_time_on_top(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    worker = ProcessWorker(bundle.path, Way("onnxruntime"), SHAPE, Plan(threads=1, limit_s=0.001))
    with pytest.raises(BackendError, match=r"^no answer to 'load' within 0\.001 s"):
        worker.load()
    worker.close()
    worker = ProcessWorker(bundle.path, Way("onnxruntime"), SHAPE, PLAN)
    worker.load()
    worker.child.limit_s = 0.001
    assert worker.warm_up(5).settled
    worker.close()


def test_what_the_process_prints_does_not_mix_with_answers(tmp_path):
    source = tmp_path / "loud.py"
    source.write_text(LOUD)
    answers = subprocess.run(
        [sys.executable, source],
        input='{"do": "greet"}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert answers.stdout == '{"ok": "hello"}\n'
    assert "loud library" in answers.stderr


def test_memory_is_read_in_megabytes(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tx\nVmHWM:\t  2000 kB\nVmRSS:\t 1000 kB\n")
    assert memory_mb("VmHWM", tmp_path) == 2.048
    assert memory_mb("VmNone", tmp_path) is None
    assert memory_mb("VmHWM", tmp_path / "nowhere") is None


def test_a_peak_is_counted_from_before_the_session(monkeypatch):
    fields = {"VmRSS": 40.0, "VmHWM": 45.0}
    monkeypatch.setattr("tfx.bench.measuring.worker.memory_mb", lambda field: fields[field])
    server = Server()
    fields["VmHWM"] = 140.0
    assert server.answer({"do": "peak_memory_mb"}) == 100.0
