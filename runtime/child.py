"""A process of its own that answers questions, so that what happens to it happens to no other.

The parent writes one JSON object a line to the process, ``{"do": "block", "calls": 4}``, and reads
one back: ``{"ok": ...}``, or ``{"error": message, "hint": hint}``. Before it may come any number of
``{"done": 8}``: parts of a long answer. A process that takes longer than its limit to answer is
killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol, runtime_checkable

from tfx.errors import BackendError, TfxError

# A process that ends closes its pipes a moment before it is gone.
GONE_S = 5.0


class Child:
    """The parent's side of a process that runs ``serve``.

    Attributes:
        limit_s: Seconds it may take to answer.
        process: None before ``start`` and after ``close``.
        command: What it is; in a group of processes of its own, as ``close`` ends the group.
    """

    def __init__(self, module: str, limit_s: float) -> None:
        """Prepare a process; ``start`` makes it.

        Args:
            module: What it runs, as ``python -m`` takes it.
            limit_s: Seconds it may take to answer.
        """
        self.limit_s = limit_s
        self.process: subprocess.Popen[str] | None = None
        # -P: a numpy.py in the current folder must not stand in for the real one.
        self.command: tuple[str, ...] = (sys.executable, "-P", "-m", module)
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()

    def start(self) -> None:
        """Start the process."""
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            # A group of its own, so that compilers it started end with it.
            process_group=0 if hasattr(os, "killpg") else None,
        )

    def ask(
        self,
        extra_s: float = 0,
        on_progress: Callable[[int], None] = lambda count: None,
        /,
        **question: Any,
    ) -> Any:
        """Ask and wait for the answer.

        Args:
            extra_s: Seconds it may take beyond ``limit_s``.
            on_progress: Told how many more parts of the answer are done.
            **question: JSON values; ``do`` says what is asked for.

        Raises:
            BackendError: If it cannot do it, ends, or takes too long.
        """
        process = self.process
        assert process is not None  # start() comes first
        assert process.stdin is not None
        assert process.stdout is not None
        # Killed, it closes its end, and readline returns.
        limit_s = self.limit_s + extra_s
        watch = _Watch(process, limit_s)
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            while line := process.stdout.readline():
                if not line.endswith("\n"):  # it died while it wrote
                    line = ""
                    break
                answer = json.loads(line)
                if "done" not in answer:
                    break
                on_progress(answer["done"])
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if watch.barked:
            raise BackendError(
                f"no answer to {question['do']!r} within {limit_s:g} s, killed",
                hint="Give it more time with --limit, or leave it out with --backend.",
            )
        if not line:
            raise BackendError(f"the process ended: {self._last_words()}")
        if "error" in answer:
            raise BackendError(answer["error"], hint=answer["hint"])
        return answer["ok"]

    def close(self) -> None:
        """End the process; may be called at any time, and twice."""
        if (process := self.process) is not None:
            self.process = None
            _kill(process)  # it holds nothing that must be written
            process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died with a question unread
                process.stdin.close()
            process.stdout.close()
        self._stderr.close()

    def _last_words(self) -> str:
        assert self.process is not None
        code = self.process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{ended}, {lines[-1]}" if lines else ended


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and those it started; the group of one that has ended may hold others yet."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


class _Watch(threading.Timer):
    """Kills a process after a while, unless cancelled before."""

    def __init__(self, process: subprocess.Popen[str], limit_s: float) -> None:
        super().__init__(limit_s, self._bark)
        self.daemon = True
        self.barked = False
        self._watched = process
        self.start()

    def _bark(self) -> None:
        self.barked = True
        _kill(self._watched)


class Answering(Protocol):
    """What answers questions in the process."""

    def answer(self, question: Mapping[str, Any]) -> Any:
        """Do what the parent asks and return what it is told, as JSON values."""
        ...


@runtime_checkable
class Telling(Answering, Protocol):
    """Answers that take long: ``tell`` is set, and takes how many more parts are done."""

    tell: Callable[[int], None]


def serve(server: Answering) -> None:
    """Answer questions from stdin until it ends, or until the parent is gone."""
    watch = threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True)
    if hasattr(select, "poll") and hasattr(os, "killpg"):
        watch.start()
    # Answers have a descriptor of their own: what libraries print must not mix with them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def write(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    if isinstance(server, Telling):
        server.tell = lambda count: write({"done": count})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = {"ok": server.answer(question)}
        except TfxError as error:
            answer = {"error": str(error), "hint": error.hint}
        # What a library raises must reach the report, whatever it is.
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}", "hint": ""}
        write(answer)
    if watch.is_alive():  # between two questions too, what this process started ends with it
        watch.join(2 * GONE_S)


def _end_with(parent: int) -> None:
    """End this process and those it started once its parent is gone, also while it answers."""
    watch = select.poll()
    watch.register(0, 0)  # nothing but that the parent's end of the pipe was closed
    watch.poll()
    until = time.monotonic() + GONE_S
    while os.getppid() == parent:
        if time.monotonic() > until:  # it closed the pipe and lives: `serve` returns
            return
        time.sleep(GONE_S / 100)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
