"""A session whose runs a test holds back."""

import threading

LIMIT_S = 60  # for what must happen; nothing here takes a second


class Valve:
    """Stands before a session's runs: notes their rows, and holds them until it is opened."""

    def __init__(self, session, monkeypatch, *, shut=False):
        self.rows = []
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        self._run = session._executable.run
        if not shut:
            self._open.set()
        monkeypatch.setattr(session._executable, "run", self.run)

    def run(self, feed):
        self.rows.append(len(feed["input_ids"]))
        self.entered.release()
        assert self._open.wait(LIMIT_S)
        return self._run(feed)

    def open(self):
        self._open.set()

    def wait_for_a_run(self):
        assert self.entered.acquire(timeout=LIMIT_S)


def settled(session):
    """Wait until everything that was asked so far is tokenized."""
    own = session._batcher
    with own._changed:
        assert own._changed.wait_for(lambda: not own._reading, LIMIT_S)
