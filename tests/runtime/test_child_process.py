"""A process that answers: what it says before its answer, and what becomes of one that dies."""

import contextlib
import subprocess
import sys
import time

import psutil
import pytest

from tfx.errors import BackendError
from tfx.runtime.child import Child

ANSWERS = """
import os, subprocess, sys, time
from tfx.runtime import child


class Counting:
    def __init__(self):
        self.tell = lambda count: None

    def answer(self, question):
        for _ in range(question.get("parts", 0)):
            self.tell(8)
        if question["do"] == "die":
            os.write({stdout}, b'{{"done": 8')
            os._exit(3)
        if question["do"] == "compile":
            return subprocess.Popen(["sleep", "60"]).pid
        if question["do"] == "hang":
            time.sleep(60)
        return question["do"]


child.serve(Counting())
"""


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """A child whose answers' descriptor is one after the usual three and the duplicate's."""
    (tmp_path / "counting.py").write_text(ANSWERS.format(stdout=3))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child("counting", 20)
    child.start()
    yield child
    child.close()


def test_parts_are_told_before_the_answer_and_to_who_asked_for_it(counting):
    told = []
    assert counting.ask(0, told.append, do="count", parts=3) == "count"
    assert told == [8, 8, 8]
    assert counting.ask(do="count", parts=2) == "count"
    assert told == [8, 8, 8]


def test_one_that_dies_while_it_writes_says_how_it_ended(counting):
    told = []
    with pytest.raises(BackendError, match="the process ended: exit code 3"):
        counting.ask(0, told.append, do="die", parts=1)
    assert told == [8]


def test_what_it_started_ends_with_it(counting):
    pid = counting.ask(do="compile")
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    counting.close()
    deadline = time.monotonic() + 10
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_parts_do_not_make_the_limit_longer(counting):
    counting.limit_s = 1.0
    with pytest.raises(BackendError, match="no answer to 'hang' within 1 s, killed"):
        counting.ask(do="hang", parts=2)


PARENT = """
from tfx.runtime.child import Child

child = Child("counting", 60)
child.start()
print(child.process.pid, child.ask(do="compile"), flush=True)
child.ask(do="hang")
"""


def test_it_ends_with_a_parent_that_is_killed_while_it_answers(tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(ANSWERS.format(stdout=3))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        pids = parent.stdout.readline().split()
        left = [psutil.Process(int(pid)) for pid in pids]
        parent.kill()
    gone, alive = psutil.wait_procs(left, timeout=20)
    assert len(gone) == 2, alive
