import json
import platform
import stat
import sys

import pytest
from click.testing import CliRunner
from rich.console import Console

import tfx
from tfx.cli import main
from tfx.console import console
from tfx.extras import EXTRAS
from tfx.runtime import doctor
from tfx.runtime.backend import BACKENDS


@pytest.fixture
def installed(monkeypatch):
    """Let only the given distributions be installed."""

    def plant(**versions):
        names = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(doctor, "version_of", names.get)

    return plant


def tool(folder, body):
    path = folder / "fake-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_json_says_everything():
    result = CliRunner().invoke(main, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["version"] == tfx.__version__
    assert found["python"] == platform.python_version()
    assert [backend["name"] for backend in found["backends"]] == list(BACKENDS)
    assert found["extras"].keys() == set(EXTRAS.values())
    assert found["usable_cpus"] >= 1
    assert found["works"] is True


@pytest.mark.parametrize("name", BACKENDS)
def test_the_library_of_every_backend_has_a_version(name):
    assert {*doctor.LIBRARY.get(name, (name,))} <= {*doctor.DISTRIBUTIONS}


def test_table_says_how_to_get_what_is_missing(capsys):
    found = doctor.Diagnosis(
        version="1.2.3",
        python="3.11.7",
        prefix="env",
        system="Linux",
        cpu="",
        usable_cpus=2,
        memory_mb=8_000,
        gpus=(),
        gpu_problem="no driver",
        cache="here, 91 of 4000 MB",
        backends=(
            doctor.BackendHealth("torch", "2.13.0", ""),
            doctor.BackendHealth("other", "", "x is not installed (Run: pip install 'a[cpu]')"),
        ),
        extras={"cpu": (), "rtx": ("tensorrt_rtx_bindings",)},
        versions={"numpy": "2.4.6"},
        problems=("two copies [of x]; remove one",),
    )
    doctor.show_diagnosis(console(), found)
    said = capsys.readouterr().out
    for text in (
        "tfx 1.2.3, Python 3.11.7 in env",
        "problem: two copies [of x]; remove one",
        "x is not installed (Run: pip install 'a[cpu]')",
        "pip install 'tfx-toolkit[rtx]'",
        "unknown, 2 usable, 8.0 GB",
        "none (no driver)",
        "here, 91 of 4000 MB",
        "2.4.6",
    ):
        assert text in said
    assert "'tfx-toolkit[cpu]'" not in said


def test_the_cache_and_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert doctor.cache_state() == "off: TFX_CACHE_MB=0"
    monkeypatch.setenv("TFX_CACHE_MB", "10")
    assert doctor.cache_state() == f"{tmp_path / 'tfx'}, 0 of 10 MB"
    (tmp_path / "tfx" / "compiled").mkdir(parents=True)
    (tmp_path / "tfx" / "compiled" / "x").write_bytes(bytes(2_000_000))
    assert doctor.cache_state() == f"{tmp_path / 'tfx'}, 2 of 10 MB"


def test_names_are_whole_on_a_narrow_terminal(capsys):
    found = doctor.diagnose()
    doctor.show_diagnosis(Console(width=40), found)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert all(backend.name in shown for backend in found.backends)


def test_works_needs_a_backend_and_no_problem(monkeypatch):
    monkeypatch.setattr(doctor, "installation_problems", list)
    assert doctor.diagnose().works
    monkeypatch.setattr(doctor, "installation_problems", lambda: ["x"])
    assert not doctor.diagnose().works
    monkeypatch.setattr(doctor, "installation_problems", list)
    monkeypatch.setattr(doctor, "_health", lambda name: doctor.BackendHealth(name, "", "gone"))
    assert not doctor.diagnose().works


def test_backend_whose_library_is_gone(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    (health,) = (b for b in doctor.diagnose().backends if b.name == "onnxruntime")
    assert not health.works
    assert "pip install" in health.missing


def test_sound_installation(installed):
    installed(tfx_toolkit=tfx.__version__, onnxruntime="1.31.1")
    assert doctor.installation_problems() == []


def test_run_from_source_is_no_problem(installed):
    installed()
    assert doctor.installation_problems() == []


def test_tensorflow_extended_is_said(installed):
    installed(tfx="1.21.0")
    (problem,) = doctor.installation_problems()
    assert problem == (
        "TensorFlow Extended (tfx 1.21.0) is installed here too and has the same import name and "
        "command; install tfx-toolkit into an environment of its own"
    )


def test_other_copy_of_us_is_said(installed):
    installed(tfx_toolkit="0.0.1")
    (problem,) = doctor.installation_problems()
    assert problem.startswith(f"tfx-toolkit 0.0.1 is installed and {tfx.__version__} runs: ")


def test_both_onnx_runtimes_are_said(installed):
    installed(onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    (problem,) = doctor.installation_problems()
    assert problem.startswith("onnxruntime and onnxruntime-gpu are both installed and overwrite")


def test_no_driver():
    gpus, problem = doctor.nvidia_gpus("no-such-tool")
    assert gpus == ()
    assert problem == "no-such-tool is not on the path: no NVIDIA driver is installed"


def test_gpus(tmp_path):
    command = tool(tmp_path, "echo 'A, 580.1, 80 GB'; echo 'B, 580.1, 24 GB'")
    assert doctor.nvidia_gpus(command) == (("A, 580.1, 80 GB", "B, 580.1, 24 GB"), "")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("echo 'driver mismatch' >&2; exit 9", "finds none: driver mismatch"),
        ("echo 'No devices were found'; exit 6", "finds none: No devices were found"),
        ("exit 3", "finds none: exit code 3"),
        ("exit 0", "finds none: exit code 0"),
    ],
)
def test_driver_without_gpus(tmp_path, body, problem):
    gpus, said = doctor.nvidia_gpus(tool(tmp_path, body))
    assert gpus == ()
    assert said.endswith(problem)


def test_driver_that_does_not_start(tmp_path):
    path = tmp_path / "fake-smi"
    path.write_text("")
    path.chmod(0o755)
    path.write_bytes(b"\x7fELF not a program")
    assert "does not answer: " in doctor.nvidia_gpus(str(path))[1]


def test_extras_are_looked_for_and_not_imported(monkeypatch):
    monkeypatch.setitem(EXTRAS, "no_such_module", "rtx")
    assert "no_such_module" in doctor.missing_of_extras()["rtx"]
