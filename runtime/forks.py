"""Sessions in a child that was forked: the threads that run them stayed with the parent."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Protocol

from tfx.errors import BackendError


class Inheritable(Protocol):
    """What holds threads that a forked child has not."""

    def disinherit(self) -> object:
        """Refuse to run from now on, and give what waits for those threads when it is freed."""
        ...


_open: weakref.WeakSet[Inheritable] = weakref.WeakSet()
_lock = threading.Lock()


def watch(session: Inheritable) -> None:
    """Have a session told when it finds itself in a forked child."""
    with _lock:
        _open.add(session)


def inherited_session() -> BackendError:
    """What a run raises in a child of the process that opened the session."""
    return BackendError(
        "session was opened before this process was forked: its threads are the parent's",
        hint="Call open_session in each process, or start them with multiprocessing's 'spawn'.",
    )


def unpicklable_session() -> BackendError:
    """What pickling a session raises."""
    return BackendError(
        "a session cannot be pickled: its model and threads are of this process",
        hint="Send the bundle's path, and call open_session where it arrives.",
    )


def _disinherit() -> None:
    global _lock  # the parent's may be held by a thread that is not here
    _lock = threading.Lock()
    for session in list(_open):
        # What it gives is never freed. ONNX Runtime's own exit handler still waits: a child ends
        # by os._exit, as those of multiprocessing do.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session.disinherit()))


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_disinherit)
