"""A program that ends while much is asked: nothing more is begun, and who waits is told."""

import subprocess
import sys
import time

import pytest
from support.texts import MEAN, write_text_bundle

import tfx
from tfx.errors import BackendError
from tfx.runtime.text.batcher import Batching

LIMIT_S = 60  # for what takes a second or two
FAILED = "not answered: the program ends | Wait for all answers before it does.\n"

# Every run takes 0.3 s: what waits would take longer than ``LIMIT_S``.
BEGINNING = """
import sys, threading, time
import tfx
from tfx.errors import BackendError
from tfx.runtime.text import stream
from tfx.runtime.text.batcher import Batching

def said(error):
    print(error, "|", error.hint)

def slowly(pieces):
    began.set()
    time.sleep(0.3)
    return run(pieces)

def all_of(answers):
    try:
        print(len(list(answers)))
    except BackendError as error:
        said(error)

def wait_for_a_run():
    began.wait()
    time.sleep(0.3)  # until the rest of what was asked waits as well

began = threading.Event()
stream.STRETCH_TEXTS = 2000
session = tfx.open_session(sys.argv[1], batching=Batching(max_rows=2, max_wait_ms=WAIT_MS))
run, session._texts.run = session._texts.run, slowly
texts = ["good film"] * 16000
"""

RUNS = "wait_for_a_run()\n"
MAP = "answers = session.map(texts, max_rows=1)\n"
LEFT = MAP + "threading.Thread(target=next, args=(answers,), daemon=True).start()\n" + RUNS
READ_BY_ANOTHER = MAP + "threading.Thread(target=all_of, args=(answers,)).start()\n" + RUNS
QUEUED = """
asked = [session.predict_async("good film") for _ in range(1000)]
wait_for_a_run()
asked[-1].add_done_callback(lambda future: said(future.exception()))
"""
NOT_BEGUN = """
session.predict_async("good film").add_done_callback(lambda future: said(future.exception()))
while not session._batcher._waiting:
    time.sleep(0.01)
"""


def end_of(path, program, wait_ms=0):
    """What a program says, that has its session do much and comes to its end."""
    beginning = BEGINNING.replace("WAIT_MS", str(wait_ms))
    return subprocess.run(
        [sys.executable, "-c", beginning + program, path],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.mark.parametrize(
    ("program", "wait_ms", "said"),
    [
        pytest.param(LEFT, 0, "", id="a map that is not read on"),
        pytest.param(READ_BY_ANOTHER, 0, FAILED, id="a map that another thread reads"),
        pytest.param(QUEUED, 0, FAILED, id="requests behind one that runs"),
        pytest.param(NOT_BEGUN, 1800_000, FAILED, id="a request that waits for others"),
    ],
)
def test_nothing_more_begins(tmp_path, program, wait_ms, said):
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    done = end_of(bundle.path, program, wait_ms)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_an_uncaught_interrupt_ends_it_as_well(tmp_path):
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    done = end_of(bundle.path, QUEUED + "raise KeyboardInterrupt\n")
    assert (done.returncode != 0, done.stdout) == (True, FAILED)
    assert done.stderr.endswith("\nKeyboardInterrupt\n")


def test_a_close_that_was_interrupted_may_drop_the_rest(tmp_path, monkeypatch):
    """Nor does a ``close`` that drops nothing take that back."""
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    session = tfx.open_session(bundle, batching=Batching(max_rows=1))
    run = session._texts.run

    def slowly(pieces):
        time.sleep(0.1)
        return run(pieces)

    def interrupted(predicate):
        raise KeyboardInterrupt

    monkeypatch.setattr(session._texts, "run", slowly)
    asked = [session.predict_async("good film") for _ in range(900)]
    with monkeypatch.context() as patched:
        patched.setattr(session._batcher._changed, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.close()
    session.close(drop=True)
    session.close()
    assert session._batcher._dropping
    assert all(one.done() for one in asked)
    assert isinstance(asked[-1].exception(), BackendError)
