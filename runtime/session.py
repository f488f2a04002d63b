"""Session: checked feed in, named outputs out, the same on every backend."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from tfx.bundle import Bundle, open_bundle
from tfx.errors import BackendError
from tfx.runtime.backend import BACKENDS, Executable, RunFacts, RunOptions, find_backend, get_backend
from tfx.runtime.cpus import usable_cpus
from tfx.signature import Feed, Signature


@dataclass(frozen=True, slots=True)
class SessionReport:
    """What a session really runs.

    Attributes:
        bundle: Path of the bundle.
        digest: Its digest.
        facts: Backend, engine, device, precision and threads.
        load_s: Seconds from the call of ``open_session`` to a session ready to run.
    """

    bundle: str
    digest: str
    facts: RunFacts
    load_s: float


class Session:
    """A model loaded on one backend. Thread-safe; also a context manager.

    Attributes:
        bundle: The bundle it runs.
        report: What really runs.
    """

    def __init__(self, bundle: Bundle, executable: Executable, load_s: float) -> None:
        self.bundle = bundle
        self.report = SessionReport(str(bundle.path), bundle.digest, executable.facts, load_s)
        self._executable = executable
        self._signature = bundle.manifest.signature
        self._closed = False

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self._signature

    def predict(self, feed: Feed, *, check_finite: bool = False) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feed: Input name to array, exactly as ``signature`` says.
            check_finite: Also refuse NaN and infinities in float inputs.

        Returns:
            Output name to array; same names, dtypes and shapes from every backend.

        Raises:
            FeedError: If the feed does not fit the signature; lists every problem.
            BackendError: If the session is closed or the backend fails.
        """
        if self._closed:
            raise BackendError("session is closed", hint="Open another with open_session.")
        self._signature.bind(feed, check_finite=check_finite)
        return self._executable.run(feed)

    def close(self) -> None:
        """Free the model; a closed session refuses to predict. May be called twice."""
        self._closed = True
        self._executable.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
