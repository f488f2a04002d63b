"""Threads of a pool: what is said where the system gives none, and when the program ends."""

from __future__ import annotations

import concurrent.futures.thread
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

from tfx.errors import BackendError

P = ParamSpec("P")
T = TypeVar("T")


def begin(pool: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Have a thread of a pool do some work.

    Raises:
        BackendError: If there is none: too many run already, or the program ends. The pool may
            still do the work, when another of its threads has the time.
    """
    try:
        return pool.submit(work, *args, **kwargs)
    except RuntimeError as error:
        if program_ends():
            raise program_ended() from error
        raise BackendError(
            f"no thread can be started: {error}",
            hint="Let this process have more threads, or run fewer sessions in it.",
        ) from error


def program_ends() -> bool:
    """Whether the main thread is at its end, and Python waits for the threads of pools.

    Whatever waits in a pool is done before: who has much to do asks between its parts.
    """
    # No public name says it in time. ``threading.main_thread()`` counts as alive, and ``atexit``
    # calls nobody, until the pools have done all they were given; ``submit`` looks at this too.
    return concurrent.futures.thread._shutdown


def program_ended() -> BackendError:
    """What is raised for work that waited when the program ended."""
    return BackendError(
        "not answered: the program ends", hint="Wait for all answers before it does."
    )
