"""Threads of a pool, and what is said where the system gives none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

from tfx.errors import BackendError

P = ParamSpec("P")
T = TypeVar("T")


def begin(pool: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Have a thread of a pool do some work.

    Raises:
        BackendError: If there is none: too many run already, or the interpreter ends. The pool may
            still do the work, when another of its threads has the time.
    """
    try:
        return pool.submit(work, *args, **kwargs)
    except RuntimeError as error:
        raise BackendError(
            f"no thread can be started: {error}",
            hint="Let this process have more threads, or run fewer sessions in it.",
        ) from error
