"""tfx tune and backend "auto", with real processes on tiny bundles."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from support.bundles import text_graph, write_bundle
from support.engines import write_engine_bundle
from support.proofs import write_proven_bundle
from support.texts import write_text_bundle
from support.tuning import Behaviour, World, proof, write_child

import tfx
from tfx.cli import main
from tfx.console import Progress
from tfx.dtypes import DType
from tfx.errors import BackendError, RecipeError
from tfx.runtime.parity import check_bundle
from tfx.runtime.tuning import tuner as tuning
from tfx.runtime.tuning.candidates import Candidate, Outcome
from tfx.runtime.tuning.choices import choice_file, conditions_here, stored_choice
from tfx.runtime.tuning.plan import TuningPlan
from tfx.runtime.tuning.tuner import tune, tune_bundle
from tfx.runtime.tuning.worker import ProcessWorker, feed_of, write_feeds

# One candidate, quickly.
QUICK = TuningPlan(
    shapes=({"batch": 2, "sequence": 8},),
    backends=("onnxruntime",),
    threads=(1,),
    seconds=600,  # a busy machine must not leave a candidate out
    torch=False,
)
ARGUMENTS = ("--backend", "onnxruntime", "--threads", "1", "--shape", "2x8", "--no-torch")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFX_CACHE_MB", "10")
    return tmp_path / "cache/tfx/choices"


@pytest.fixture
def bundle(tmp_path):
    return write_proven_bundle(tmp_path / "b")


def pretend(monkeypatch, bundle, **behaviours):
    """Let candidates behave as a test says, in no process; gives their world."""
    world = World(bundle, **behaviours)
    fake = lambda path, candidate, feeds, *, limit_s, trust: world.start(path, candidate)  # noqa: E731
    monkeypatch.setattr(tuning, "ProcessWorker", fake)
    monkeypatch.setattr("tfx.runtime.tuning.contest.SETTLE_S", 0.0)
    return world


def test_a_plan_says_everything_that_is_wrong_with_it():
    with pytest.raises(RecipeError) as caught:
        TuningPlan(threads=(0,), max_drop=1.0, min_cosine=2.0, seconds=0, limit_s=np.inf, seed=-1)
    assert str(caught.value).splitlines() == [
        "nothing can be tuned like this:",
        "  seconds is 0, expected more than 0, and finite",
        "  limit is inf, expected more than 0, and finite",
        "  threads is 0, expected 1 or more",
        "  max_drop is 1.0, expected 0 or more and below 1",
        "  min_cosine is 2.0, expected -1 to 1",
        "  seed is -1, expected 0 or more",
    ]


def test_feeds_of_a_model_that_takes_text_are_words(tmp_path):
    bundle = write_text_bundle(tmp_path / "t")
    feed = feed_of(bundle, {"batch": 3, "sequence": 8}, 0)
    bundle.manifest.signature.bind(feed)
    mask = feed["attention_mask"].astype(bool)
    lengths = mask.sum(axis=1)
    assert lengths[0] == 8
    assert lengths.min() < 8
    ends = {int(row[length - 1]) for row, length in zip(feed["input_ids"], lengths, strict=True)}
    assert len(ends) == 1  # the token that ends a text
    again = feed_of(bundle, {"batch": 3, "sequence": 8}, 0)
    assert all((feed[name] == again[name]).all() for name in feed)


def test_a_candidate_runs_in_a_process_of_its_own(bundle, tmp_path):
    feeds = [feed_of(bundle, {"batch": 2, "sequence": 8}, 0)]
    write_feeds(tmp_path / "feeds.npz", feeds)
    candidate = Candidate(bundle.name, bundle.digest, "onnxruntime", "", 1)
    worker = ProcessWorker(bundle.path, candidate, tmp_path / "feeds.npz", limit_s=60, trust=False)
    with contextlib.closing(worker):
        loaded = worker.load()
        assert loaded.facts.threads == 1
        assert loaded.error < loaded.tolerance == 1e-4
        with tfx.open_session(bundle, backend="onnxruntime") as session:
            expected = session.predict(feeds[0])
        found = worker.outputs(0)
        assert all((found[name] == expected[name]).all() for name in expected)
        assert len(worker.block(0, 3)) == 3


def test_a_bundle_is_tuned_and_then_run_as_chosen(bundle, cache):
    result = CliRunner().invoke(main, ["tune", str(bundle.path), *ARGUMENTS])
    assert result.exit_code == 0, result.output
    assert "chosen: the fastest" in result.stdout
    assert f"chosen for 2x8: {bundle.name} on onnxruntime, threads 1, of 1" in result.stdout
    with tfx.open_session(bundle.path, backend="auto") as session:
        facts = session.report.facts
    assert (facts.backend, facts.threads) == ("onnxruntime", 1)
    assert facts.notes[-1].startswith("chosen by tune on 20")
    shown = CliRunner().invoke(main, ["tune", str(bundle.path), "--show", "--json"])
    (document,) = json.loads(shown.stdout)
    assert document["digest"] == bundle.digest
    assert document["trials"][0]["outcome"] == "chosen"


def test_auto_without_a_choice_is_an_error(bundle):
    with pytest.raises(BackendError) as caught:
        tfx.open_session(bundle.path, backend="auto")
    assert str(caught.value) == f"no choice is stored for {bundle.path} on this machine"
    assert caught.value.hint == f"Run: tfx tune {bundle.path}"


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_auto_measures_where_it_may(bundle, monkeypatch, caplog, by):
    pretend(monkeypatch, bundle, openvino=Behaviour(99))
    if by == "environment":
        monkeypatch.setenv("TFX_TUNE", "1")
    tune_it = {"tune": True} if by == "argument" else {}
    with tfx.open_session(bundle, backend="auto", **tune_it) as session:
        assert session.report.facts.backend == "onnxruntime"
    assert "no choice is stored" in caplog.text
    assert "measuring for about 30 s" in caplog.text
    caplog.clear()
    tfx.open_session(bundle, backend="auto").close()  # it is stored now
    assert not caplog.text


def test_the_argument_wins_over_the_environment(bundle, monkeypatch):
    monkeypatch.setenv("TFX_TUNE", "1")
    with pytest.raises(BackendError, match="no choice is stored"):
        tfx.open_session(bundle, backend="auto", tune=False)


def test_the_environment_must_make_sense(bundle, monkeypatch):
    monkeypatch.setenv("TFX_TUNE", "yes")
    with pytest.raises(BackendError, match="TFX_TUNE is 'yes', expected 0 or 1") as caught:
        tfx.open_session(bundle, backend="auto")
    assert caught.value.hint == "Unset TFX_TUNE."


def test_auto_checks_nothing(bundle):
    with pytest.raises(BackendError, match="'auto' may run a bundle made from this one") as caught:
        check_bundle(bundle, backend="auto")
    assert caught.value.hint == "Name a backend, or none."


def test_auto_is_for_the_cpu(bundle):
    with pytest.raises(BackendError, match="'auto' chooses for cpu, not for 'cuda:0'") as caught:
        tfx.open_session(bundle, backend="auto", device="cuda:0")
    assert caught.value.hint == "Name a backend, or use device='cpu'."


def test_auto_keeps_to_what_the_caller_asks_for(bundle, monkeypatch):
    pretend(monkeypatch, bundle)
    tune_bundle(bundle, TuningPlan(backends=("onnxruntime",), threads=(2, 1)), progress=Progress())
    with tfx.open_session(bundle, backend="auto", threads=2) as session:
        assert session.report.facts.threads == 2
        assert "of those with what the caller asked for" in session.report.facts.notes[-1]
    with pytest.raises(BackendError) as caught:
        tfx.open_session(bundle, backend="auto", threads=3)
    assert str(caught.value) == f"no candidate with 3 threads was measured for {bundle.path}"
    assert caught.value.hint == f"Run: tfx tune {bundle.path} --threads 3"
    with pytest.raises(BackendError, match="with precision 'fp16' was measured"):
        tfx.open_session(bundle, backend="auto", precision="fp16")


def test_auto_runs_a_child_that_is_faster_until_it_is_gone(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    child = write_child(tmp_path / "c", bundle, proof(0.001), precision=DType.FLOAT32)
    pretend(monkeypatch, bundle, c_onnxruntime=Behaviour(1))
    tune_bundle(bundle, TuningPlan(threads=(1,)), progress=Progress())
    with tfx.open_session(bundle.path, backend="auto") as session:
        assert session.bundle.digest == session.report.digest == child.digest
    data = child.model.read_bytes()
    child.model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(tfx.TfxError, match="sha256 is not the one"):
        tfx.open_session(bundle.path, backend="auto")
    child.path.rename(tmp_path / "away")
    with pytest.raises(BackendError, match="the stored choice is not used: no such bundle"):
        tfx.open_session(bundle.path, backend="auto")


def test_a_damaged_choice_is_said_and_measured_again_where_it_may(bundle, monkeypatch, caplog):
    pretend(monkeypatch, bundle)
    tune_bundle(bundle, QUICK, progress=Progress())
    choice_file(bundle, conditions_here()).write_text("{")
    with pytest.raises(BackendError, match=r"the stored choice is not used: .* is damaged"):
        tfx.open_session(bundle, backend="auto")
    tfx.open_session(bundle, backend="auto", tune=True).close()
    assert "is damaged" in caplog.text
    assert stored_choice(bundle).chosen


def test_a_choice_that_cannot_be_kept_is_used_once(bundle, monkeypatch, caplog, tmp_path):
    pretend(monkeypatch, bundle)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tfx.open_session(bundle, backend="auto", tune=True).close()
    assert "the choice cannot be kept in" in caplog.text


def test_the_command_fails_where_the_choice_cannot_be_kept(bundle, monkeypatch, tmp_path):
    pretend(monkeypatch, bundle)
    monkeypatch.setenv("TFX_CACHE_MB", "0")
    result = CliRunner().invoke(main, ["tune", str(bundle.path), *ARGUMENTS])
    assert result.exit_code == 1
    assert "chosen for 2x8" in result.stdout
    assert "error: the choice is not kept: the cache is turned off" in result.stderr


@pytest.mark.parametrize("fails", ["tempfile.TemporaryDirectory", "numpy.savez"])
def test_a_full_disk_is_no_traceback(bundle, monkeypatch, fails):
    def full(*args, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, full)
    with pytest.raises(BackendError, match="files cannot be written: No space left") as caught:
        tune(bundle, QUICK, progress=Progress())
    assert caught.value.hint == "Free space there, or set TMPDIR to a folder that can be written."


def test_an_engine_leaves_nothing_to_tune(tmp_path):
    engine = write_engine_bundle(tmp_path / "e")
    with pytest.raises(BackendError, match="holds an engine, and runs on the backend") as caught:
        tune(engine, QUICK, progress=Progress())
    assert caught.value.hint == "Tune the bundle it was built from."


def test_a_shape_outside_the_signature_is_an_error(bundle):
    result = CliRunner().invoke(main, ["tune", str(bundle.path), "--shape", "1x999"])
    assert result.exit_code == 1
    assert "error: no feed of these sizes: axis 'sequence': size 999, outside" in result.stderr


def test_a_wrong_backend_is_not_chosen_with_real_outputs(tmp_path):
    """A child whose graph has nothing to do with its parent's, and no proof of its own."""
    bundle = write_bundle(tmp_path / "b")
    write_child(tmp_path / "c", bundle, graph=text_graph(1))
    made = tune(bundle, QUICK, progress=Progress())
    trials = {trial.candidate.bundle: trial for trial in made.trials}
    assert trials["b"].outcome is Outcome.CHOSEN
    assert trials["c"].outcome in (Outcome.WRONG, Outcome.OVER_BUDGET)


def test_a_tuning_that_is_killed_leaves_no_process_and_no_lock(bundle, tmp_path):
    command = [sys.executable, "-m", "tfx", "tune", str(bundle.path), *ARGUMENTS]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # what a killed process leaves goes with it
    )
    assert "trying b on onnxruntime" in process.stderr.readline()
    children = []
    while not children:  # it says what it does before it does it
        assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    process.stderr.close()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left
    with pytest.raises(BackendError, match="no choice is stored"):
        stored_choice(bundle)
    with tuning.alone() as waited:
        assert not waited
