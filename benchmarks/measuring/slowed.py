"""A row that is really slower than it need be, to see whether a comparison of runs finds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfx.runtime.child import serve

from .worker import Loaded, ProcessWorker, Server
from .workload import Plan, Shape, Way


class SlowedWorker(ProcessWorker):
    """A worker whose calls each take a share longer, by waiting with the CPU in use."""

    MODULE = "tfx.bench.measuring.slowed"

    def __init__(self, bundle: Path, way: Way, shape: Shape, plan: Plan, *, share: float) -> None:
        """Prepare the process of a row.

        Args:
            bundle: Its path.
            way: How to run it.
            shape: Of its feeds.
            plan: What is measured.
            share: Of each call's own time, that is added to it.
        """
        super().__init__(bundle, way, shape, plan)
        self._job["share"] = share


class SlowedServer(Server):
    """The child's side."""

    def _load(self, *, share: float, **job: Any) -> Loaded:  # type: ignore[override]
        found = super()._load(**job)
        self._calls = [slowed(call, share) for call in self._calls]
        return found


def slowed(call: Callable[[], object], share: float) -> Callable[[], object]:
    """A call that takes ``share`` longer than it does."""

    def wait_after() -> object:
        started = time.perf_counter_ns()
        answer = call()
        ended = time.perf_counter_ns()
        until = ended + round((ended - started) * share)
        while time.perf_counter_ns() < until:
            pass
        return answer

    return wait_after


def main() -> None:
    """Answer questions from stdin until it ends."""
    serve(SlowedServer())


if __name__ == "__main__":
    main()
