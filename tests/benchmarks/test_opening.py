import json
import subprocess

import pytest
from click.testing import CliRunner
from support.texts import MEAN, write_text_bundle

from tfx.bench import opening as module
from tfx.bench.measuring.opened import Parts
from tfx.bench.opening import PARTS, measure_openings, opened_in_a_process, opening
from tfx.bench.pages.sheets import section_of
from tfx.bench.pages.stored import read_stored
from tfx.errors import BackendError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_text_bundle(tmp_path_factory.mktemp("opening") / "tiny", embedding=MEAN)


def document(open_ms):
    return {
        "import": 5.0,
        "open": open_ms,
        "first": 30.0,
        "second": 2.0,
        "processor": 200.0,
        "memory_mb": 100.0,
        "parts": {"modules": 60.0, "load": open_ms - 60.0},
        "ran": "engine 1.0",
    }


def test_rounds_open_each_backend_once_and_the_first_does_not_count():
    asked = []

    def answer(name):
        asked.append(name)
        return document(1000.0 if len(asked) <= 2 else 100.0 if name == "a" else 400.0)

    fast, slow = measure_openings(["a", "b"], answer, rounds=6)
    assert [sorted(asked[i : i + 2]) for i in range(0, 14, 2)] == [["a", "b"]] * 7
    assert len(asked) == 14
    assert (fast.backend, fast.open_ms, fast.verdict) == ("a", 100.0, "yes")
    assert (slow.backend, slow.open_ms, slow.verdict) == ("b", 400.0, "no")
    assert slow.parts_ms == {
        "modules": 60.0,
        "library": 0.0,
        "digests": 0.0,
        "load": 340.0,
        "rest": 0.0,
    }


def test_it_cannot_say_where_the_interval_holds_the_target():
    times = iter([0.0, *[200.0, 400.0] * 5])
    (row,) = measure_openings(["a"], lambda name: document(next(times)), rounds=10)
    assert row.low_ms < module.TARGET_MS < row.high_ms
    assert row.verdict == "cannot say"


def test_it_cannot_say_of_few_processes():
    (row,) = measure_openings(["a"], lambda name: document(100.0), rounds=5)
    assert (row.open_ms, row.low_ms, row.high_ms, row.verdict) == (100, None, None, "cannot say")


def test_parts_are_timed_where_they_are_spent():
    now = iter([0.0, 1.0, 10.0, 12.0])
    parts = Parts(lambda: next(now))
    call = parts.timed("load", lambda number: number + 1)
    assert (call(1), call(2)) == (2, 3)
    assert parts.spent_ms == {"load": 3000.0}


def test_the_command_measures_fresh_processes(bundle, tmp_path):
    arguments = [str(bundle.path), "--backend", "onnxruntime", "--rounds", "1"]
    found = CliRunner().invoke(opening, [*arguments, "--save", str(tmp_path), "--json"])
    assert found.exit_code == 0, found.output
    (row,) = json.loads(found.stdout)["rows"]
    assert 0 < row["import_ms"] < row["open_ms"]
    assert row["parts_ms"]["modules"] > 0
    assert row["parts_ms"]["load"] > 0
    assert sum(row["parts_ms"].values()) == pytest.approx(row["open_ms"])
    (kept,) = tmp_path.glob("*-opening-*.json")
    assert len(section_of(read_stored(json.loads(kept.read_text()))).sheets[0].lines) == 1


def test_the_command_prints_a_table(bundle, monkeypatch):
    monkeypatch.setattr(module, "opened_in_a_process", lambda *all, **options: document(200.0))
    monkeypatch.setenv("COLUMNS", "200")
    found = CliRunner().invoke(opening, [str(bundle.path), "--backend", "onnxruntime"])
    assert found.exit_code == 0, found.output
    header, row, ran, load = found.stdout.splitlines()
    assert header.split()[-1] == "ms"
    assert all(part in header for part in PARTS)
    assert row.split()[:3] == ["onnxruntime", "5", "200"]
    assert row.split()[-1] == "yes"
    assert ran == "onnxruntime: engine 1.0; 10 processes"
    assert load.startswith("load average ")


def test_modules_are_compiled_as_an_installed_package_is(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    opened_in_a_process(bundle.path, "onnxruntime", verify=True, bytecode=tmp_path)
    assert list(tmp_path.rglob("tfx/runtime/session.*.pyc"))


def test_our_errors_of_a_process_are_ours_here(bundle, tmp_path):
    with pytest.raises(BackendError) as caught:
        opened_in_a_process(bundle.path, "none", verify=True, bytecode=tmp_path)
    assert str(caught.value) == "no backend called 'none'"
    assert caught.value.hint.startswith("Choose one of: ")


def test_a_process_that_says_nothing(bundle, monkeypatch, tmp_path):
    ended = subprocess.CompletedProcess([], -11, "", "some\nlast words\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *all, **options: ended)
    with pytest.raises(BackendError) as caught:
        opened_in_a_process(bundle.path, "onnxruntime", verify=False, bytecode=tmp_path)
    assert str(caught.value) == "onnxruntime ended with exit status -11: last words"


def test_a_process_that_takes_too_long(bundle, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LIMIT_S", 0.01)
    with pytest.raises(BackendError) as caught:
        opened_in_a_process(bundle.path, "onnxruntime", verify=False, bytecode=tmp_path)
    assert str(caught.value) == f"onnxruntime did not open {bundle.path} in 0.01 s"


def test_our_errors_come_without_a_traceback(tmp_path):
    found = CliRunner().invoke(opening, [str(tmp_path)])
    assert found.exit_code == 1
    assert "is not a bundle" in found.stderr
