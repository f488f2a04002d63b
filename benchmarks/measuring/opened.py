"""One opening of a bundle in a process of its own, timed in its parts: JSON on stdout.

Run by its path: as ``python -m tfx.bench...`` it would have imported tfx before the clock runs.
"""

from __future__ import annotations

import builtins
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

TEXT = "A man is eating food."

# What ``open_session`` imports from the module that brings all others.
LAST_IMPORT = "load_session"

# Parts of ``open_session`` that its caller waits for, and the functions they are spent in.
PARTS = {
    "library": ("tfx.runtime.loading", "get_backend"),
    "digests": ("tfx.runtime.verification", "Verification.finish"),
}


class Parts:
    """Time spent in functions, by the name of a part."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.spent_ms: dict[str, float] = {}
        self._clock = clock

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function that also adds what it takes to its part."""

        def timed_call(*args: Any, **options: Any) -> Any:
            started = self._clock()
            try:
                return call(*args, **options)
            finally:
                spent = (self._clock() - started) * 1000
                self.spent_ms[part] = self.spent_ms.get(part, 0.0) + spent

        return timed_call

    def watch_imports(self) -> None:
        """Time what ``open_session`` imports before it opens anything, and then ``watch``.

        Called right before ``open_session``: NumPy comes first, then a session's modules.
        """
        real, started = builtins.__import__, self._clock()

        def timed_import(name: str, *more: Any) -> Any:
            module = real(name, *more)
            if LAST_IMPORT in (more[2] if len(more) > 2 and more[2] else ()):
                builtins.__import__ = real
                self.spent_ms["modules"] = (self._clock() - started) * 1000
                self.watch()
            return module

        builtins.__import__ = timed_import  # type: ignore[assignment]

    def watch(self) -> None:
        """Time the functions of ``PARTS``, and a backend's ``load``."""
        for part, (module, path) in PARTS.items():
            *outer, name = path.split(".")
            owner: Any = importlib.import_module(module)
            for one in outer:
                owner = getattr(owner, one)
            setattr(owner, name, self.timed(part, getattr(owner, name)))
        loading: Any = importlib.import_module("tfx.runtime.loading")
        found = loading.get_backend

        def get_backend(name: str) -> Any:
            backend = found(name)
            backend.load = self.timed("load", backend.load)
            return backend

        loading.get_backend = get_backend


def opening(bundle: str, backend: str, *, verify: bool) -> dict[str, Any]:
    """Import tfx, open a session and ask it twice.

    Args:
        bundle: Its folder; it takes texts.
        backend: A name in ``BACKENDS``.
        verify: Whether the files' sha256 is compared.

    Returns:
        Milliseconds: ``import`` of tfx, ``open`` of the session with the imports it needs, the
        ``first`` and ``second`` text, and ``processor`` for all of it with the interpreter's start;
        ``parts`` of ``open``; ``memory_mb`` resident at the end; and what ``ran``.
    """
    parts = Parts()
    started = time.perf_counter()
    import tfx

    imported = time.perf_counter()
    parts.watch_imports()
    session = tfx.open_session(bundle, backend=backend, verify=verify)
    opened = time.perf_counter()
    session.predict(TEXT)
    first = time.perf_counter()
    session.predict(TEXT)
    second = time.perf_counter()
    whole = (opened - imported) * 1000
    parts.spent_ms["rest"] = whole - sum(parts.spent_ms.values())
    return {
        "import": (imported - started) * 1000,
        "open": whole,
        "first": (first - opened) * 1000,
        "second": (second - first) * 1000,
        "processor": time.process_time() * 1000,
        "memory_mb": resident_mb(),
        "parts": parts.spent_ms,
        "ran": f"{session.report.facts}; {', '.join(session.report.facts.notes)}".rstrip("; "),
    }


def resident_mb() -> float:
    """The most that was resident, in units of 10^6 bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    """Open ``argv[1]`` on ``argv[2]``; with a third argument "unverified", without its digests."""
    bundle, backend, *more = sys.argv[1:]
    try:
        document = opening(bundle, backend, verify=more != ["unverified"])
    except Exception as error:
        from tfx.errors import TfxError  # not before the clock runs

        if not isinstance(error, TfxError):
            raise
        document = {"error": str(error), "hint": error.hint}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
