"""Maps that nobody reads to their end, in every way that this happens: nothing hangs or goes on."""

import gc
import os
import subprocess
import sys
import threading
import time

import pytest
from support.texts import MEAN, write_text_bundle

import tfx
from tfx.errors import BackendError
from tfx.runtime.text import stream, threads

LIMIT_S = 60  # for what must happen; nothing here takes a second
TEXTS = ["good film"] * 400


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 8)
    with tfx.open_session(write_text_bundle(tmp_path / "b", embedding=MEAN)) as opened:
        yield opened


class Knot:
    """A reference to itself: only the garbage collector frees it, in whatever thread it runs."""

    def __init__(self, held):
        self.held = held
        self.itself = self


def until(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "it never happens"
        time.sleep(0.01)


def threads_left():
    return [one.name for one in threading.enumerate() if one.name.startswith("tfx-")]


def test_the_garbage_collector_may_find_it_in_a_thread_of_its_own(session, monkeypatch):
    run, armed, collected = session._texts.run, threading.Event(), threading.Event()

    def collecting(pieces):
        if armed.is_set():
            gc.collect()
            collected.set()
        return run(pieces)

    monkeypatch.setattr(session._texts, "run", collecting)
    gc.disable()  # or it is found elsewhere
    try:
        answers = session.map(TEXTS)
        next(answers)
        Knot(answers)
        del answers
        armed.set()
        list(session.map(TEXTS[:40]))
    finally:
        gc.enable()
    assert collected.wait(LIMIT_S)
    until(lambda: not threads_left())


def test_what_frees_it_may_hold_the_lock_of_another(session):
    """As the garbage collector does amid ``submit`` of another map: waiting would be for ever."""
    answers = session.map(TEXTS)
    next(answers)
    with session._lock:  # its threads need it to count what they read
        answers.close()
    until(lambda: not threads_left())


def test_nothing_more_is_run(session, monkeypatch):
    run, runs, goes_on = session._texts.run, [], threading.Event()

    def held(pieces):
        runs.append(len(pieces))
        if len(runs) > 1:
            assert goes_on.wait(LIMIT_S)
        return run(pieces)

    monkeypatch.setattr(session._texts, "run", held)
    answers = session.map(TEXTS)
    next(answers)
    until(lambda: len(runs) == 2)
    answers.close()
    goes_on.set()
    until(lambda: not threads_left())
    assert len(runs) == 2  # though two more stretches were read


@pytest.mark.parametrize("name", ["tfx-tokenize", "tfx-run"])
def test_a_system_without_threads_is_said(session, monkeypatch, name):
    start = threading.Thread.start

    def refused(self):
        if self.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(BackendError, match="no thread can be started: can't") as caught:
            list(session.map(TEXTS))
    assert caught.value.hint == "Let this process have more threads, or run fewer sessions in it."
    assert len(list(session.map(TEXTS))) == len(TEXTS)
    until(lambda: not threads_left())


def test_only_what_a_pool_raises_is_translated():
    class Pool:
        def submit(self, work, *args):
            return work(*args)

    assert threads.begin(Pool(), max, 2, 3) == 3


CHILD = """
import os, signal, sys
import tfx
from tfx.runtime.text import stream
stream.STRETCH_TEXTS = 8
session = tfx.open_session(sys.argv[1])
answers = session.map(["good film"] * 400)
next(answers)
child = os.fork()
if not child:
    signal.alarm(20)
    try:
        list(answers)
    except Exception as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status, len(list(answers)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_wait_for_threads_of_the_parent(tmp_path):
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, bundle.path],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.splitlines()
    assert said == [
        "session was opened before this process was forked: its threads are the parent's",
        "0 399",
    ]
