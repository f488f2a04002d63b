import dataclasses
import errno
import json
import logging
import threading
import time
from pathlib import Path

import pytest
from support.bundles import text_graph, write_bundle
from support.tuning import proof, write_child

import tfx
from tfx.errors import BackendError
from tfx.extras import DISTRIBUTION
from tfx.runtime.backend import GRAPH_BACKENDS
from tfx.runtime.tuning import choices
from tfx.runtime.tuning.candidates import Candidate, Outcome, Trial
from tfx.runtime.tuning.choices import (
    Tuning,
    alone,
    choice_file,
    chosen_bundle,
    conditions_here,
    differences,
    read_choice,
    store_choice,
    stored_choice,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFX_CACHE_MB", "10")
    return tmp_path / "cache/tfx/choices"


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b")


def trial(bundle, backend="onnxruntime", *, threads=2, precision="", outcome="chosen", ms=10.0):
    candidate = Candidate(bundle.name, bundle.digest, backend, precision, threads)
    timed = {} if ms is None else {"1x8": ms}
    return Trial(candidate, Outcome(outcome), "because", timed, ms, "float32", 1.0)


def tuning(bundle, /, *trials, **changes):
    base = Tuning(
        bundle=str(bundle.path.resolve()),
        digest=bundle.digest,
        created="2026-11-21T10:00:00.000000Z",
        conditions=conditions_here(),
        shapes={"1x8": {"batch": 1, "sequence": 8}},
        weights={"1x8": 1},
        trials=trials or (trial(bundle),),
        rounds=9,
        duration_s=3.5,
    )
    return dataclasses.replace(base, **changes)


def test_what_is_stored_is_found_again(bundle, cache):
    made = tuning(bundle, trial(bundle), trial(bundle, "openvino", outcome="slower", ms=20.0))
    path = store_choice(bundle, made)
    assert path.parent == cache
    assert path.name.startswith("b-")
    assert stored_choice(bundle) == made


def test_every_distribution_that_brings_an_engine_is_a_condition(monkeypatch):
    assert choices.ENGINES.keys() == set(GRAPH_BACKENDS)
    installed = {"numpy": "2", "onnxruntime-gpu": "1.31", "openvino": "2026.3"}
    monkeypatch.setattr(choices, "version_of", installed.get)
    assert conditions_here().versions == {DISTRIBUTION: tfx.__version__} | installed


def test_a_second_one_takes_the_place_of_the_first(bundle, cache):
    store_choice(bundle, tuning(bundle))
    later = tuning(bundle, created="2026-11-22T10:00:00.000000Z")
    store_choice(bundle, later)
    assert stored_choice(bundle) == later
    assert len(list(cache.glob("*.json"))) == 1


def test_without_any_it_says_how_to_make_one(bundle):
    with pytest.raises(BackendError) as caught:
        stored_choice(bundle)
    assert str(caught.value) == f"no choice is stored for {bundle.path} on this machine"
    assert caught.value.hint == f"Run: tfx tune {bundle.path}"


def test_one_of_other_versions_is_not_used_and_says_so(bundle):
    then = conditions_here()
    then = dataclasses.replace(then, versions=then.versions | {"numpy": "1.0"})
    store_choice(bundle, tuning(bundle, conditions=then))
    now = conditions_here().versions["numpy"]
    with pytest.raises(BackendError) as caught:
        stored_choice(bundle)
    assert str(caught.value) == (
        f"no choice is stored for {bundle.path} on this machine; the one of 2026-11-21 is not "
        f"used: numpy was 1.0, is {now}"
    )


def test_one_of_another_bundle_in_the_same_folder_is_not_used_and_says_so(bundle, tmp_path):
    other = write_bundle(tmp_path / "other", text_graph(1))
    store_choice(other, tuning(other, bundle=str(bundle.path.resolve())))
    with pytest.raises(BackendError, match=r"not used: the bundle was made again$"):
        stored_choice(bundle)


def test_one_of_another_bundle_elsewhere_is_not_mentioned(bundle, tmp_path):
    other = write_bundle(tmp_path / "other", text_graph(1))
    store_choice(other, tuning(other))
    with pytest.raises(BackendError, match=r"on this machine$"):
        stored_choice(bundle)


def test_every_difference_is_said():
    now = conditions_here()
    versions = dict.fromkeys(now.versions, "9") | {"gone": "1"}
    then = dataclasses.replace(
        now, cpu="Another", flags=(*now.flags, "zz"), usable_cpus=99, versions=versions
    )
    found = differences(then, now)
    assert found[0] == f"the CPU was Another, is {now.cpu or 'unknown'}"
    assert found[1] == "CPU flags differ: zz"
    assert found[2] == f"usable CPUs were 99, are {now.usable_cpus}"
    assert "gone was 1, is absent" in found
    assert differences(now, now) == []


def test_fewer_usable_cpus_are_another_machine(bundle, monkeypatch):
    store_choice(bundle, tuning(bundle))
    usable = conditions_here().usable_cpus
    monkeypatch.setattr(choices, "usable_cpus", lambda: usable + 1)
    with pytest.raises(BackendError, match=f"usable CPUs were {usable}, are {usable + 1}$"):
        stored_choice(bundle)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda text: text[:-20], "is damaged: "),
        (lambda text: "", "is damaged: "),
        (lambda text: "\x00" * 10, "is damaged: "),
        (lambda text: "[]", "is damaged: its schema is None"),
        (lambda text: text.replace('"schema": 1', '"schema": 0'), "its schema is 0"),
        (lambda text: text.replace('"rounds": 9', '"rounds": "9"'), "rounds: got '9', expected"),
        (lambda text: text.replace("chosen", "slower"), "0 are chosen, expected 1"),
        (lambda text: text.replace('"score_ms": 10.0', '"score_ms": -1.0'), "has no time, and is"),
    ],
)
def test_a_damaged_one_is_not_used(bundle, damage, problem):
    path = store_choice(bundle, tuning(bundle))
    text = damage(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(BackendError) as caught:
        stored_choice(bundle)
    assert str(caught.value).startswith(f"the stored choice is not used: {path} is damaged: ")
    assert problem in str(caught.value)
    assert caught.value.hint == f"Run: tfx tune {bundle.path}"


def test_one_of_a_newer_version_is_not_called_damaged(bundle):
    path = store_choice(bundle, tuning(bundle))
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(BackendError) as caught:
        stored_choice(bundle)
    assert str(caught.value) == (
        f"the stored choice is not used: {path} was written by a newer version of tfx: "
        "its schema is 2, expected 1"
    )
    assert caught.value.hint == f"Run: tfx tune {bundle.path}"


def test_a_full_disk_leaves_the_earlier_choice(bundle, monkeypatch):
    path = store_choice(bundle, tuning(bundle))
    before = path.read_bytes()

    def write_half(self, text, **_):
        self.write_bytes(text.encode()[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(BackendError, match="the choice cannot be kept in ") as caught:
        store_choice(bundle, tuning(bundle))
    assert caught.value.hint.startswith("Free space there, or set XDG_CACHE_HOME")
    assert path.read_bytes() == before
    assert [one for one in path.parent.iterdir() if one.suffix != ".json"] == []


def test_a_damaged_one_beside_it_is_passed_over(bundle, cache):
    store_choice(bundle, tuning(bundle)).with_name("x.json").write_text("no JSON")
    choice_file(bundle, conditions_here()).unlink()
    with pytest.raises(BackendError, match="no choice is stored"):
        stored_choice(bundle)


def test_a_file_under_the_wrong_name_is_not_used(bundle, tmp_path):
    other = write_bundle(tmp_path / "other", text_graph(1))
    path = store_choice(other, tuning(other))
    path.rename(choice_file(bundle, conditions_here()))
    with pytest.raises(BackendError, match=r"^the stored choice is not used: .* is of another$"):
        stored_choice(bundle)


def test_a_folder_in_its_place_cannot_be_read(bundle):
    path = choice_file(bundle, conditions_here())
    path.mkdir(parents=True)
    with pytest.raises(BackendError, match=f"^cannot read {path}: "):
        read_choice(path)


def test_a_cache_that_cannot_be_written_is_an_error(bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BackendError, match=r"^the choice cannot be kept in ") as caught:
        store_choice(bundle, tuning(bundle))
    assert caught.value.hint == (
        "Free space there, or set XDG_CACHE_HOME to a folder that can be written."
    )


def test_a_cache_that_is_turned_off_is_an_error(bundle, monkeypatch):
    monkeypatch.setenv("TFX_CACHE_MB", "0")
    with pytest.raises(BackendError, match=r"^the choice is not kept: the cache is turned off$"):
        store_choice(bundle, tuning(bundle))


def test_callers_narrow_the_choice(bundle):
    made = tuning(
        bundle,
        trial(bundle),
        trial(bundle, "openvino", threads=1, outcome="slower", ms=20.0),
        trial(bundle, threads=1, outcome="clearly slower", ms=15.0),
        trial(bundle, "openvino", precision="bf16", outcome="clearly slower", ms=30.0),
        trial(bundle, "openvino", threads=1, precision="bf16", outcome="wrong", ms=1.0),
        trial(bundle, "torch", threads=3, outcome="reference", ms=1.0),
    )
    assert made.best() is made.trials[0]
    assert made.best(threads=1) is made.trials[1]  # a first round is rough
    assert made.best(precision="bf16") is made.trials[3]
    assert made.best(threads=1, precision="bf16") is None
    assert made.best(threads=3) is None


def test_it_says_why_it_runs(bundle):
    made = tuning(
        bundle,
        trial(bundle),
        trial(bundle, threads=1, outcome="slower", ms=20.0),
        trial(bundle, "openvino", outcome="not run", ms=None),
    )
    assert made.said(made.chosen) == "chosen by tune on 2026-11-21 among 2 candidates for 1x8"
    assert made.said(made.trials[1]) == (
        "chosen by tune on 2026-11-21 among 2 candidates for 1x8, of those with what the caller "
        "asked for"
    )
    torch = trial(bundle, "torch", outcome="reference", ms=31.0)
    made = dataclasses.replace(made, trials=(*made.trials, torch))
    assert made.said(made.chosen) == (
        "chosen by tune on 2026-11-21 among 2 candidates for 1x8: 3.1 times as fast as torch"
    )


def test_the_chosen_child_must_still_be_there(bundle, tmp_path):
    child = write_child(tmp_path / "c", bundle, proof(0.0))
    assert chosen_bundle(bundle, trial(bundle)) is bundle
    assert chosen_bundle(bundle, trial(child)).digest == child.digest
    child.path.rename(tmp_path / "away")
    with pytest.raises(BackendError) as caught:
        chosen_bundle(bundle, trial(child))
    assert str(caught.value) == f"the stored choice is not used: no such bundle: {child.path}"
    assert caught.value.hint == f"Run: tfx tune {bundle.path}"
    write_child(tmp_path / "c", bundle, proof(0.0), name="new")
    with pytest.raises(BackendError, match=f"^the stored choice is not used: {child.path} is anot"):
        chosen_bundle(bundle, trial(child))


def test_a_second_tuning_waits_for_the_first(caplog):
    caplog.set_level(logging.INFO, "tfx")  # whatever a command set before
    order = []

    def second():
        with alone() as waited:
            order.append(("second", waited))

    with alone() as waited:
        order.append(("first", waited))
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append(("first ends", waited))
    thread.join(10)
    assert order == [("first", False), ("first ends", False), ("second", True)]
    assert "another process tunes: waiting for it" in caplog.text


def test_nobody_waits_for_ever(monkeypatch):
    monkeypatch.setattr(choices, "WAIT_S", 0.05)
    with (
        alone(),
        pytest.raises(BackendError, match=r"another process tunes for more than 0\.05 s"),
        alone(),
    ):
        pass


def test_a_cache_that_cannot_be_written_keeps_nobody_waiting(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with alone() as waited, alone():
        assert not waited


def test_files_are_the_users_own(bundle):
    path = store_choice(bundle, tuning(bundle))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(path.read_text())["digest"] == bundle.digest
