"""All or nothing: whatever fails, no bundle that opens and no file are left."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from support.bundles import write_bundle
from torch import nn

import tfx
from tfx.bundle import open_bundle
from tfx.errors import BundleError, ExportError, ParityError, SourceError
from tfx.export import pipeline, portable
from tfx.export.pipeline import export_bundle
from tfx.staging import STAGING_PREFIX

STAGES = [
    (pipeline, "load", SourceError),
    (portable, "trace", ExportError),
    (portable, "_require_portable", ExportError),
    (pipeline, "_save", OSError),
    (pipeline, "reference", ExportError),
    (pipeline, "store_cases", MemoryError),
    (pipeline, "prove", ParityError),
    (pipeline, "load", KeyboardInterrupt),
    (pipeline, "prove", KeyboardInterrupt),
]


@pytest.mark.parametrize(("module", "stage", "error"), STAGES)
def test_failure_leaves_nothing(module, stage, error, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise error("planted")

    monkeypatch.setattr(module, stage, fail)
    expected = BundleError if error is OSError else error  # create_bundle translates it
    with pytest.raises(expected, match="planted"):
        export_bundle(nn.Linear(4, 3), tmp_path / "deep" / "to", examples=torch.ones(2, 4))
    assert list((tmp_path / "deep").iterdir()) == []


def test_failure_leaves_the_old_bundle(tmp_path, monkeypatch):
    old = write_bundle(tmp_path / "to")

    def fail(*args, **options):
        raise ParityError("planted")

    monkeypatch.setattr(pipeline, "prove", fail)
    with pytest.raises(ParityError, match="planted"):
        export_bundle(nn.Linear(4, 3), tmp_path / "to", examples=torch.ones(2, 4), force=True)
    assert open_bundle(tmp_path / "to").digest == old.digest
    assert os.listdir(tmp_path) == ["to"]


def test_taken_target_is_refused_before_loading(tmp_path, monkeypatch):
    write_bundle(tmp_path / "to")
    monkeypatch.setattr(pipeline, "load", lambda *args: pytest.fail("loaded the model"))
    with pytest.raises(BundleError, match=r"already holds a bundle$") as caught:
        export_bundle(nn.Linear(4, 3), tmp_path / "to", examples=torch.ones(1, 4))
    assert caught.value.hint == "Use --force or another -o folder."


def test_name_that_cannot_be_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(SourceError, match=r"^no such folder"):
        export_bundle("./nowhere", tmp_path / "deep" / "to")
    assert os.listdir(tmp_path) == []


def test_force_replaces(tmp_path):
    write_bundle(tmp_path / "to")
    bundle = export_bundle(nn.Linear(4, 3), tmp_path / "to", examples=torch.randn(2, 4), force=True)
    assert open_bundle(tmp_path / "to").digest == bundle.digest
    assert bundle.manifest.name == "linear"
    assert os.listdir(tmp_path) == ["to"]


def test_default_target_is_named_after_the_model(factories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export_bundle(f"{factories}:linear").path.name == "linear"
    assert os.listdir(tmp_path) == ["linear"]


KILLED = """
import sys, time
from tfx.export import pipeline, portable

prove = pipeline.prove
def stop(*args, **options):
    print("proving", flush=True)
    time.sleep(60)
pipeline.prove = stop
pipeline.export_bundle(sys.argv[1], sys.argv[2])
"""


def test_killed_export_leaves_nothing_that_opens(factories, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, f"{factories}:linear", tmp_path / "to"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "proving\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert not (tmp_path / "to").exists()
    left = os.listdir(tmp_path)
    assert [name for name in left if not name.startswith(STAGING_PREFIX)] == []
    for name in left:
        with pytest.raises(BundleError):
            open_bundle(tmp_path / name)
    assert tfx.open_bundle(export_bundle(f"{factories}:linear", tmp_path / "to").path)
