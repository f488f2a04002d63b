"""One row of a benchmark, in a process of its own: load, warm up, run blocks of calls.

A process per row is what makes its numbers its own. Its peak memory holds no other backend's
libraries, its first call finds nothing warmed up by another, one thread pool cannot be resized by
another library, and a backend that crashes takes no other row along.

``Plan.limit_s`` is how long the process may take to answer a question (``tfx.runtime.child``).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tfx.bundle import open_bundle
from tfx.codec import decode, encode
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.accuracy.evaluation import Evaluation, evaluate, record
from tfx.runtime.accuracy.metrics import Form
from tfx.runtime.accuracy.observations import Recorded
from tfx.runtime.backend import RunFacts
from tfx.runtime.child import Child, serve
from tfx.runtime.clock import WarmUp, time_calls, warm_up
from tfx.runtime.opening import open_session
from tfx.runtime.session import Session

from .generation import LOGITS, SHORT, TOKENS, Writer, Written, open_writer
from .scenario import PATIENCE, SERVER_S, Load, Scenario, Served, poisson_arrivals, queries_of
from .scenario import serve as serve_queries
from .workload import NEW, Plan, Shape, Way


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading a row took.

    Attributes:
        facts: What really runs.
        load_s: Seconds of ``open_session(verify=False)`` in a fresh process: import of the
            backend's library, and the model made ready. The check of every sha256 is not in it:
            the runner does that once before the first row starts, so a bundle's files come from
            memory here. A library, and the source's weights that PyTorch reads, come from the
            disk if nothing has read them lately: a row of a second shape finds them in memory.
        first_call_ms: The first ``predict``, which may still allocate and compile.
        samples: Of one call, where it is not the batch: all of them in the offline scenario.
    """

    facts: RunFacts
    load_s: float
    first_call_ms: float
    samples: int = 0


class Worker(Protocol):
    """One row at one shape. Methods are called in the order they stand here."""

    def load(self) -> Loaded:
        """Open the session and make the first call.

        Raises:
            TfxError: If the backend cannot run the bundle.
        """
        ...

    def warm_up(self, limit_s: float) -> WarmUp:
        """Call until the time per call is steady."""
        ...

    def block(self, calls: int, first: int = 0) -> list[int]:
        """Nanoseconds of each of ``calls`` calls; one more before them is not timed.

        Args:
            calls: How many.
            first: Number of the first one's query; the others follow, in a ring.
        """
        ...

    def write(self) -> Written:
        """Write one text after each prompt, all in one batch; of the generation scenario."""
        ...

    def serve(self, arrivals: int, qps: float, seed: int) -> Served:
        """Answer queries that arrive at random; one before them is not timed.

        Args:
            arrivals: How many.
            qps: A second, on average.
            seed: Of their moments; rows of a round get the same ones.
        """
        ...

    def peak_memory_mb(self) -> float | None:
        """Peak so far, beyond what the process took before; None where it is not known."""
        ...

    def outputs(self) -> dict[str, np.ndarray]:
        """Outputs of the feed; of the generation scenario ``LOGITS`` and ``TOKENS``."""
        ...

    def evaluate(
        self, metric: str, reference: Path | None, on_progress: Callable[[int], None]
    ) -> Evaluation:
        """Measure a metric on the plan's data.

        Args:
            metric: Its name.
            reference: What ``record`` wrote, for a metric that needs it.
            on_progress: Told how many more samples are done.
        """
        ...

    def record(self, metric: str, path: Path, on_progress: Callable[[int], None]) -> None:
        """Write what the row says of the plan's data, as other rows are compared with it."""
        ...

    def close(self) -> None:
        """Free everything; may be called at any time, and twice."""
        ...


# Limits of a block that an evaluation may take: thousands of samples take longer than a block.
EVALUATION_LIMITS = 10

# Makes the worker of a row; tests give others.
Start = Callable[[Path, Way, Shape, Plan], Worker]


class ProcessWorker:
    """A worker in a child process.

    Attributes:
        child: The process.
    """

    # What the process runs, as ``python -m`` takes it.
    MODULE = "tfx.bench.measuring.worker"

    def __init__(self, bundle: Path, way: Way, shape: Shape, plan: Plan) -> None:
        self._job = {
            "bundle": str(bundle),
            "backend": way.backend,
            "precision": way.precision,
            "sizes": dict(shape.sizes),
            "threads": plan.threads,
            "trust": plan.trust,
            "seed": plan.seed,
            "load": encode(plan.load),
        }
        self._data = {"data": plan.data, "samples": plan.samples, "seed": plan.seed}
        self.child = Child(self.MODULE, plan.limit_s)

    def load(self) -> Loaded:
        """Start the process, open the session in it and make the first call."""
        self.child.start()
        return decode(Loaded, self.child.ask(do="load", **self._job))

    def warm_up(self, limit_s: float) -> WarmUp:
        """Call until the time per call is steady."""
        return decode(WarmUp, self.child.ask(limit_s, do="warm_up", limit_s=limit_s))

    def block(self, calls: int, first: int = 0) -> list[int]:
        """Nanoseconds of each of ``calls`` calls."""
        samples: list[int] = self.child.ask(do="block", calls=calls, first=first)
        return samples

    def write(self) -> Written:
        """Write one text after each prompt."""
        found = self.child.ask(do="write")
        return Written(tuple(found["times_ns"]), np.array(found["ids"], np.int64))

    def serve(self, arrivals: int, qps: float, seed: int) -> Served:
        """Answer queries that arrive at random; they come as slowly as they come."""
        # Twice: random moments may be far later than they are on average.
        most_s = 2 * PATIENCE * max(arrivals / qps, SERVER_S)
        found = self.child.ask(most_s, do="serve", arrivals=arrivals, qps=qps, seed=seed)
        return Served(found["samples_ns"], found["elapsed_ns"], found["answered"])

    def peak_memory_mb(self) -> float | None:
        """Peak resident memory of the process, less what it had before the session.

        The high-water mark of the resident set (``VmHWM`` of Linux) after the calls so far,
        minus the resident set (``VmRSS``) once Python, numpy and the runtime's own modules were
        imported. So it holds the backend's library, the model, and what its calls allocated.
        In units of 10^6 bytes; None where the system has no ``/proc/self/status``.
        """
        peak: float | None = self.child.ask(do="peak_memory_mb")
        return peak

    def outputs(self) -> dict[str, np.ndarray]:
        """Outputs of the feed."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outputs.npz"
            names: list[str] = self.child.ask(do="outputs", path=str(path))
            with np.load(path, allow_pickle=False) as file:
                return {name: file[str(index)] for index, name in enumerate(names)}

    def evaluate(
        self, metric: str, reference: Path | None, on_progress: Callable[[int], None]
    ) -> Evaluation:
        """Measure a metric on the plan's data, within ``EVALUATION_LIMITS`` times the limit."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.npy"
            found = self.child.ask(
                (EVALUATION_LIMITS - 1) * self.child.limit_s,
                on_progress,
                do="evaluate",
                metric=metric,
                reference=str(reference) if reference else "",
                path=str(path),
                **self._data,
            )
            found.pop("unit")
            warnings = tuple(found.pop("warnings"))
            return Evaluation(**found, warnings=warnings, rows=np.load(path, allow_pickle=False))

    def record(self, metric: str, path: Path, on_progress: Callable[[int], None]) -> None:
        """Write what the row says of the plan's data."""
        self.child.ask(
            (EVALUATION_LIMITS - 1) * self.child.limit_s,
            on_progress,
            do="record",
            metric=metric,
            path=str(path),
            **self._data,
        )

    def close(self) -> None:
        """End the process."""
        self.child.close()


class Server:
    """The child's side: answers questions about one row."""

    def __init__(self) -> None:
        self.tell: Callable[[int], None] = lambda count: None
        self._before_mb = memory_mb("VmRSS")
        self._session: Session | None = None
        self._feed: Mapping[str, np.ndarray] = {}
        self._calls: list[Callable[[], object]] = []
        self._asked = 0
        self._writer: Writer | None = None
        self._new = 0

    def answer(self, question: Mapping[str, Any]) -> Any:
        """Do what the parent asks and return what it is told, as JSON values.

        Raises:
            TfxError: If the backend cannot do it.
        """
        arguments = dict(question)
        match arguments.pop("do"):
            case "load":
                return encode(self._load(**arguments))
            case "warm_up":
                turn = len(self._calls)  # queries that differ in length come in a ring
                return dataclasses.asdict(warm_up(self._next, turn=turn, **arguments))
            case "block":
                # Not timed: other rows ran meanwhile and had the caches for themselves, and
                # the threads of this one's pool went to sleep.
                self._next()
                self._asked = arguments.get("first", 0)
                return time_calls(self._next, arguments["calls"], time.perf_counter_ns)
            case "write":
                assert self._writer is not None  # the scenario says so
                written = self._writer.write(self._new)
                return {"times_ns": list(written.times_ns), "ids": written.ids.tolist()}
            case "serve":
                self._next()
                rng = np.random.default_rng(arguments["seed"])
                arrivals = poisson_arrivals(arguments["arrivals"], arguments["qps"], rng)
                return dataclasses.asdict(serve_queries(self._calls, arrivals))
            case "peak_memory_mb":
                peak = memory_mb("VmHWM")
                return None if peak is None or self._before_mb is None else peak - self._before_mb
            case "outputs":
                outputs = self._call()
                arrays = {str(index): array for index, array in enumerate(outputs.values())}
                np.savez(arguments["path"], allow_pickle=False, **arrays)
                return list(outputs)
            case "evaluate":
                return self._evaluate(**arguments)
            case "record":
                return self._record(**arguments)
            case other:
                raise AssertionError(f"no such question: {other}")

    def _load(
        self,
        bundle: str,
        backend: str,
        precision: str,
        sizes: dict[str, int],
        threads: int | None,
        trust: bool,
        seed: int,
        device: str = "",
        load: Mapping[str, Any] | None = None,
    ) -> Loaded:
        asked = decode(Load, load or {})
        if asked.writes:
            opened = open_bundle(bundle, verify=False)
            self._new = sizes[NEW]
            self._session, self._writer, load_s = open_writer(
                opened,
                backend=backend,
                precision=precision,
                threads=threads,
                trust=trust,
                device=device,
                shape=Shape(sizes),
                seed=seed,
            )
            # What is warmed up and called first; a whole text would take as long as a round.
            self._calls = [functools.partial(self._writer.write, min(SHORT, self._new))]
            (first_call_ns,) = time_calls(self._next, 1, time.perf_counter_ns)
            return Loaded(self._session.report.facts, load_s, first_call_ns / 1e6)
        signature = open_bundle(bundle, verify=False).manifest.signature
        self._feed = Shape(sizes).feed_for(signature, seed)
        started = time.perf_counter_ns()
        self._session = open_session(
            bundle,
            backend=backend,
            device=device,
            threads=threads,
            precision=precision,
            trust=trust,
            verify=False,
        )
        load_s = (time.perf_counter_ns() - started) / 1e9
        (first_call_ns,) = time_calls(self._call, 1, time.perf_counter_ns)
        session = self._session
        queries, samples = queries_of(session, asked, sizes, seed)
        self._calls = [functools.partial(session.predict, query) for query in queries]
        if asked.scenario == Scenario.OFFLINE:
            every = self._calls
            self._calls = [lambda: [call() for call in every]]
            return Loaded(session.report.facts, load_s, first_call_ns / 1e6, samples)
        return Loaded(session.report.facts, load_s, first_call_ns / 1e6)

    def _evaluate(
        self,
        data: str,
        samples: int | None,
        seed: int,
        metric: str,
        reference: str,
        path: str,
    ) -> dict[str, Any]:
        assert self._session is not None  # load() comes first
        found = evaluate(
            self._session,
            read_dataset(Path(data), limit=samples, seed=seed),
            metric,
            reference=_read_recorded(Path(reference)) if reference else None,
            seed=seed,
            on_progress=self.tell,
        )
        np.save(path, found.rows, allow_pickle=False)
        return found.to_dict()

    def _record(self, data: str, samples: int | None, seed: int, metric: str, path: str) -> None:
        assert self._session is not None  # load() comes first
        dataset = read_dataset(Path(data), limit=samples, seed=seed)
        recorded = record(self._session, dataset, metric, on_progress=self.tell)
        _write_recorded(Path(path), recorded)

    def _next(self) -> object:
        """Answer the next query of the ring."""
        call = self._calls[self._asked % len(self._calls)]
        self._asked += 1
        return call()

    def _call(self) -> dict[str, np.ndarray]:
        assert self._session is not None  # load() comes first
        if self._writer is not None:
            return {LOGITS: self._writer.logits(), TOKENS: self._writer.write(self._new).ids}
        outputs: dict[str, np.ndarray] = self._session.predict(self._feed)
        return outputs


def _write_recorded(path: Path, found: Recorded) -> None:
    about = json.dumps([found.name, found.bundle, found.data, found.form])
    arrays = {str(index): np.asarray(value) for index, value in enumerate(found.values)}
    np.savez(path, allow_pickle=False, about=np.array(about), **arrays)


def _read_recorded(path: Path) -> Recorded:
    with np.load(path, allow_pickle=False) as file:
        name, bundle, data, form = json.loads(str(file["about"]))
        values = tuple(file[str(index)] for index in range(len(file.files) - 1))
    return Recorded(name, bundle, data, Form(form), values)


def memory_mb(field: str, proc: Path = Path("/proc")) -> float | None:
    """A field of ``/proc/self/status`` in units of 10^6 bytes; None where there is none.

    ``getrusage`` is no substitute: its ``ru_maxrss`` survives ``exec`` and starts at the peak of
    the process that spawned this one.
    """
    try:
        lines = (proc / "self" / "status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / 1e6  # "kB" there means 1024 bytes
    return None


def main() -> None:
    """Answer questions from stdin until it ends."""
    serve(Server())


if __name__ == "__main__":
    main()
