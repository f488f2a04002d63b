"""Session: checked feed in, named outputs out, the same on every backend."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from tfx.bundle import Bundle, open_bundle
from tfx.errors import BackendError
from tfx.signature import Feed, Signature

from .backend import Executable, RunFacts, RunOptions, find_backend, get_backend
from .cpus import usable_cpus


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
            feed: Input name to array, exactly as ``signature`` says. Tensors of other
                libraries that speak DLPack (PyTorch, JAX) are taken without a copy.
            check_finite: Also refuse NaN and infinities in float inputs.

        Returns:
            Output name to array; same names, dtypes and shapes from every backend.

        Raises:
            FeedError: If the feed does not fit the signature; lists every problem.
            BackendError: If the session is closed or the backend fails.
        """
        if self._closed:
            raise BackendError("session is closed", hint="Open another with open_session.")
        feed = {name: _as_array(value) for name, value in feed.items()}
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


def open_session(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    verify: bool = True,
    trust: bool = False,
) -> Session:
    """Load a bundle on a backend.

    Args:
        bundle: A bundle's folder, or an opened one.
        backend: A name in ``BACKENDS``; "auto" takes the first of ``AUTO`` that this machine has.
        device: "cpu".
        threads: CPU threads of one run; None for all this process may use.
        verify: Compare the sha256 of every file with the manifest first.
        trust: Let Python code that the bundle names run (a factory's file, as torch reference).

    Returns:
        A session, ready to predict.

    Raises:
        BundleError: If the bundle is missing or damaged.
        BackendError: If the backend cannot run here or refuses the model; never another
            backend than asked for.
    """
    started = time.perf_counter()
    if threads is not None and threads < 1:
        raise BackendError(f"threads is {threads}, expected 1 or more")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, verify=verify)
    name = _first_available() if backend == "auto" else backend
    options = RunOptions(device=device, threads=threads or usable_cpus(), trust=trust)
    executable = get_backend(name).load(opened, options)
    return Session(opened, executable, time.perf_counter() - started)


# What "auto" tries, in order: backends that run the bundle's own graph.
AUTO = ("onnxruntime",)


def _first_available() -> str:
    reasons = []
    for name in AUTO:
        if not (reason := find_backend(name).missing()):
            return name
        reasons.append(f"{name}: {reason}")
    raise BackendError(
        f"no backend can run here: {'; '.join(reasons)}",
        hint="Run: pip install 'tfx-toolkit[cpu]'",
    )


def _as_array(value: Any) -> Any:
    # bind() tells the caller about what is neither an array nor DLPack.
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        return value
    return np.from_dlpack(value)
