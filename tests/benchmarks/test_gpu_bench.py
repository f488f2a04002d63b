"""The GPU bench, on a machine without one: what it says, runs, counts and writes, on stand-ins."""

import contextlib
import dataclasses
import json

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.engines import write_engine_bundle
from support.reports import made_up

from tfx.bench import gpu, gpu_peak
from tfx.bench.gpu import GpuWorker, Step, main, run_command, shares_of, targets_of
from tfx.bench.gpu_peak import GpuPeak
from tfx.bench.measuring.cells import Deadline
from tfx.bench.measuring.worker import ProcessWorker
from tfx.bench.measuring.workload import Plan, Shape, Way
from tfx.errors import BackendError
from tfx.runtime.cuda import Device

PEAK = GpuPeak("Fake GPU", "2.0", 8192, 100.0)
SPEEDS = {("minilm-fp16", "onnxruntime"): 1.0, ("minilm", "torch-compiled"): 2.0}


def report_of(speeds=SPEEDS, shapes=({"batch": 1, "sequence": 128},), **changes):
    found = made_up(speeds, shapes=shapes, noise=0.0, with_accuracy=False)
    rows = [
        dataclasses.replace(row, precision="fp16" if "torch" in row.backend else "", **changes)
        for row in found.rows
    ]
    return dataclasses.replace(found, rows=tuple(rows))


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU whose every command says "ok"; what was run is listed."""
    ran = []

    def command(arguments, limit_s=0.0):
        ran.append(arguments)
        if arguments == ["tfx.bench.gpu_peak"]:
            return Step("peak", 0, json.dumps(dataclasses.asdict(PEAK)))
        return Step(" ".join(arguments), 1 if "build" in arguments else 0, "no GPU of that kind")

    def measure_cells(bundles, plan, ways, machine, *, deadline, progress, start, keep):
        ran.append((tuple(bundle.name for bundle in bundles), ways, start))
        report = report_of(digest=bundles[0].digest)
        keep(report)
        return report

    monkeypatch.setattr(gpu, "missing_gpu", lambda: "")
    monkeypatch.setattr(gpu, "describe_device", lambda index: Device(0, "Fake", "sm89", "12.8"))
    monkeypatch.setattr(gpu, "measure_cells", measure_cells)
    monkeypatch.setattr(gpu, "run_command", command)
    return ran


def test_without_a_gpu_there_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "missing_gpu", lambda: "no driver (Install one.)")
    result = CliRunner().invoke(main, [str(write_bundle(tmp_path / "b").path)])
    assert result.exit_code == 1
    assert result.output == ("Error: there is no GPU to measure on: no driver (Install one.)\n")


def test_everything_in_one_call(machine, tmp_path):
    bundle, target = write_bundle(tmp_path / "b"), tmp_path / "out.json"
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_other.py").touch()
    (tests / "test_one.py").write_text("@pytest.mark.gpu\n")
    arguments = [str(bundle.path), "--tests", str(tests), "-o", str(target)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text())
    assert found == json.loads(result.stdout)
    assert list(found) == ["schema", "gpu", "tests", "peak", "builds", "bench", "targets", "shares"]
    assert found["gpu"]["capability"] == "sm89"
    assert found["tests"]["code"] == 0
    assert found["peak"]["tflops"] == 100
    (built,) = found["builds"]
    assert (built["code"], built["said"]) == (1, "no GPU of that kind")
    # Files without such a test are not read; other versions of libraries may warn.
    options = ["-q", "-m", "gpu", "-W", "default"]
    assert machine[0] == ["pytest", *options, str(tests / "test_one.py")]
    assert machine[2][:2] == ["tfx", "build"]
    names, ways, start = machine[3]
    assert (names, ways, start.func) == (("b",), gpu.WAYS, GpuWorker)
    # Rows carry the bundle's digest, so operations are counted in its graph.
    assert [share["row"] for share in found["shares"]] == [
        "minilm-fp16 on onnxruntime",
        "minilm on torch-compiled fp16",
    ]
    assert found["targets"][0]["found"] == pytest.approx(2)


def test_what_was_measured_is_kept_when_the_machine_goes_away(machine, tmp_path, monkeypatch):
    whole = gpu.measure_cells

    def cut_short(*arguments, **named):
        whole(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "measure_cells", cut_short)
    target = tmp_path / "out.json"
    result = CliRunner().invoke(main, [str(write_bundle(tmp_path / "b").path), "-o", str(target)])
    assert result.exit_code == 1
    found = json.loads(target.read_text())
    assert list(found) == ["schema", "gpu", "peak", "builds", "bench", "targets"]
    assert found["targets"][0]["found"] == pytest.approx(2)


def test_a_folder_without_gpu_tests(tmp_path):
    step = gpu.run_tests(tmp_path, run_command)
    assert (step.code, step.said) == (None, f"no file in {tmp_path} has a test marked gpu")


def test_nothing_is_built_where_it_is_not_wanted(machine, tmp_path):
    engine = write_engine_bundle(tmp_path / "e")
    result = CliRunner().invoke(main, [str(engine.path), "--no-build"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["shares"] == []  # no graph to count in
    assert not [one for one in machine if "build" in one]


def test_a_worker_opens_its_session_on_the_gpu(tmp_path):
    worker = worker_of(tmp_path, Deadline())
    assert worker._job["device"] == "cuda:0"
    worker.close()


def worker_of(bundle, deadline):
    return GpuWorker(bundle, Way("torch", "fp16"), Shape({"batch": 1}), Plan(limit_s=9), deadline)


def test_a_row_loads_in_the_time_that_is_left(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(ProcessWorker, "load", lambda self: limits.append(self.child.limit_s))
    now = [0.0]
    with contextlib.closing(worker_of(tmp_path, Deadline(100, lambda: now[0]))) as worker:
        worker.load()
        now[0] = 96.0
        worker.load()
        assert (limits, worker.child.limit_s) == ([9, 4.0], 9)  # a block has its own limit again
        now[0] = 100.0
        with pytest.raises(BackendError, match="not reached in 100 s") as caught:
            worker.load()
    assert "--until" in caught.value.hint


def test_a_row_that_is_cut_off_was_not_reached(tmp_path, monkeypatch):
    now = [0.0]

    def load(self):
        now[0] += 60
        raise BackendError("no answer to 'load' within 60 s, killed")

    monkeypatch.setattr(ProcessWorker, "load", load)
    with contextlib.closing(worker_of(tmp_path, Deadline(100, lambda: now[0]))) as worker:
        with pytest.raises(BackendError, match="no answer"):
            worker.load()
        with pytest.raises(BackendError, match="not reached in 100 s"):
            worker.load()


def test_commands_have_parts_of_the_time(machine, tmp_path, monkeypatch):
    limits = []
    whole = gpu.run_command

    def command(arguments, limit_s):
        limits.append(limit_s)
        return whole(arguments)

    monkeypatch.setattr(gpu, "run_command", command)
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_one.py").write_text("@pytest.mark.gpu\n")
    bundles = [str(write_bundle(tmp_path / name).path) for name in "ab"]
    arguments = [*bundles, "--tests", str(tests), "--until", "1000"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert limits == pytest.approx([400, 900, 250, 500], rel=0.05)


def test_a_command_that_is_not_reached():
    step = run_command(["timeit"], 0.0)
    assert (step.code, step.said) == (None, "not reached: no time was left")


@pytest.mark.parametrize("until", ["0", "-1", "nan"])
def test_a_time_that_is_none(tmp_path, until):
    result = CliRunner().invoke(main, [str(tmp_path), f"--until={until}"])
    assert result.exit_code == 2
    assert f"--until is {until}, expected more than 0 seconds" in result.output


def test_share_of_the_peak(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    report = report_of(digest=bundle.digest)
    assert [one.of_peak for one in shares_of(report, [bundle], PEAK)] == [0, 0]  # no products
    assert [one.of_peak for one in shares_of(report, [bundle], None)] == [None, None]
    assert shares_of(report, [], PEAK) == ()


def test_share_is_operations_by_time_and_peak(tmp_path, monkeypatch):
    class Flops:
        total = 5e9

    bundle = write_bundle(tmp_path / "b")
    monkeypatch.setattr(gpu, "flops_of", lambda bundle, sizes: Flops)
    first, second = shares_of(report_of(digest=bundle.digest), [bundle], PEAK)
    assert first.tflops == pytest.approx(5, rel=0.2)  # 5e9 in about 1 ms
    assert first.of_peak == pytest.approx(first.tflops / 100)
    assert second.tflops == pytest.approx(first.tflops / 2)


def test_targets_are_of_their_shapes_alone():
    shapes = ({"batch": 1, "sequence": 128}, {"batch": 8, "sequence": 128})
    (target,) = targets_of(report_of(shapes=shapes))
    assert (target.model, target.wanted) == ("minilm-fp16", 1.3)
    assert target.found == pytest.approx(2)
    (lacking,) = targets_of(report_of({("minilm-fp16", "onnxruntime"): 1.0}))
    assert lacking.found is None
    assert targets_of(report_of({("minilm", "openvino"): 1.0})) == ()


def test_a_command_and_its_last_words():
    step = run_command(["timeit", "-n1", "-r1", "print('said')"])
    assert step.code == 0
    assert "said" in step.said
    assert run_command(["no_such_module"]).code == 1
    slow = run_command(["timeit", "-n1", "import time; time.sleep(9)"], 0.2)
    assert slow.code is None


def test_the_peak_needs_a_gpu(monkeypatch):
    def torch_device(name):
        raise BackendError("torch is built for CPUs alone", hint="Install another.")

    monkeypatch.setattr(gpu_peak, "torch_device", torch_device)
    result = CliRunner().invoke(gpu_peak.main)
    assert result.exit_code == 1
    assert result.output == "Error: torch is built for CPUs alone\nInstall another.\n"
    peak, step = gpu.peak_here(lambda arguments: Step("peak", 1, "no"))
    assert (peak, step.said) == (None, "no")


@pytest.mark.gpu
def test_a_real_peak():
    assert gpu_peak.measure_peak().tflops > 1
