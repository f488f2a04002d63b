"""One candidate of ``tfx tune``, in a process of its own: load, check, time, and give outputs."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tfx.bundle import Bundle, open_bundle
from tfx.codec import decode, encode
from tfx.errors import BackendError, FeedError
from tfx.feeds import MASK, random_feed
from tfx.signature import Feed

from ..backend import RunFacts, RunOptions, float_type, get_backend
from ..child import Child, serve
from ..clock import time_calls
from ..compare import tolerance_of
from ..generation.decoder import is_generator
from ..generation.sample_texts import TEXTS
from ..proof import PROOF_FILE, Run, check_cases, load_cases
from ..session import Session
from ..text.tokenizer import Tokenizer
from .candidates import Candidate
from .texts import TextRun, text_feed


def feed_of(bundle: Bundle, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """A feed as the model meets it: right-padded, and of real words where it takes text.

    Args:
        bundle: Its signature and tokenizer.
        sizes: Axis name to size.
        seed: Of lengths and of everything that is no token.

    Raises:
        FeedError: If the sizes do not fit the signature.
    """
    signature = bundle.manifest.signature
    if is_generator(signature):
        return text_feed(bundle, sizes, seed)
    feed = random_feed(signature, sizes, np.random.default_rng(seed), padding="right")
    try:
        tokenizer = Tokenizer(bundle)
    except FeedError:
        return feed  # it takes no text, or more than text
    ids = feed["input_ids"]  # [batch, sequence]
    mask = feed.get(MASK, np.ones_like(ids)).astype(np.bool_)
    first = seed % len(TEXTS)
    words = [" ".join(TEXTS[(first + row) % len(TEXTS) :] + TEXTS) for row in range(len(ids))]
    for row, encoded in enumerate(tokenizer.encode(words)):
        kept = np.resize(encoded.ids, int(mask[row].sum()))
        kept[-1] = encoded.ids[-1]  # cut as texts are: the token that ends them stays
        ids[row, mask[row]] = kept
    return feed


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading a candidate showed.

    Attributes:
        facts: What really runs.
        load_s: Seconds that loading took.
        error: Largest scaled error against the outputs that the bundle carries; None where it
            carries none.
        tolerance: Largest one allowed.
    """

    facts: RunFacts
    load_s: float
    error: float | None
    tolerance: float


class Worker(Protocol):
    """One candidate. ``load`` comes first."""

    def load(self) -> Loaded:
        """Open the session and run the feeds that the bundle carries.

        Raises:
            TfxError: If it cannot run.
        """
        ...

    def outputs(self, shape: int) -> dict[str, np.ndarray]:
        """Outputs of the feed of one shape, by its number."""
        ...

    def block(self, shape: int, calls: int) -> list[int]:
        """Nanoseconds of each of ``calls`` calls; one more before them is not timed."""
        ...

    def close(self) -> None:
        """Free everything; may be called at any time, and twice."""
        ...


class ProcessWorker:
    """A worker in a child process.

    Attributes:
        child: The process.
    """

    def __init__(
        self, path: Path, candidate: Candidate, feeds: Path, *, limit_s: float, trust: bool
    ) -> None:
        """Prepare a process; ``load`` starts it.

        Args:
            path: The candidate's bundle.
            candidate: How to run it.
            feeds: What ``write_feeds`` wrote.
            limit_s: Seconds it may take to answer.
            trust: Whether a factory's Python file may run.
        """
        self._job = {
            "bundle": str(path),
            "backend": candidate.backend,
            "precision": candidate.precision,
            "threads": candidate.threads,
            "feeds": str(feeds),
            "trust": trust,
        }
        self.child = Child("tfx.runtime.tuning.worker", limit_s)

    def load(self) -> Loaded:
        """Start the process, open the session in it, and run the feeds the bundle carries."""
        self.child.start()
        answer = self.child.ask(do="load", **self._job)
        # JSON has no infinity: an error without size is a word.
        return decode(Loaded, answer | {"error": answer["error"] and float(answer["error"])})

    def outputs(self, shape: int) -> dict[str, np.ndarray]:
        """Outputs of the feed of one shape."""
        with scratch_folder() as folder:
            path = folder / "outputs.npz"
            self.child.ask(do="outputs", shape=shape, path=str(path))
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}

    def block(self, shape: int, calls: int) -> list[int]:
        """Nanoseconds of each of ``calls`` calls."""
        samples: list[int] = self.child.ask(do="block", shape=shape, calls=calls)
        return samples

    def close(self) -> None:
        """End the process."""
        self.child.close()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what processes give each other, which is removed afterwards.

    Raises:
        BackendError: If it cannot be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="tfx-tune-")
    except OSError as error:
        raise _no_room(error) from error
    with folder as name:
        yield Path(name)


def _no_room(error: OSError) -> BackendError:
    return BackendError(
        f"temporary files cannot be written: {error.strerror}",
        hint="Free space there, or set TMPDIR to a folder that can be written.",
    )


def write_feeds(path: Path, feeds: Sequence[Feed]) -> None:
    """Write the feeds of all shapes, for every candidate the same.

    Raises:
        BackendError: If they cannot be written.
    """
    arrays = {
        f"{index}/{name}": array for index, feed in enumerate(feeds) for name, array in feed.items()
    }
    try:
        np.savez(path, allow_pickle=False, **arrays)
    except OSError as error:
        raise _no_room(error) from error


def read_feeds(path: Path) -> list[dict[str, np.ndarray]]:
    """Read what ``write_feeds`` wrote."""
    feeds: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            index, _, name = key.partition("/")
            feeds.setdefault(int(index), {})[name] = file[key]
    return [feeds[index] for index in sorted(feeds)]


class Server:
    """The child's side: answers questions about one candidate."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._texts: TextRun | None = None
        self._feeds: list[dict[str, np.ndarray]] = []

    def answer(self, question: Mapping[str, Any]) -> Any:
        """Do what the parent asks and return what it is told, as JSON values.

        Raises:
            TfxError: If the backend cannot do it.
        """
        arguments = dict(question)
        do = arguments.pop("do")
        if do == "load":
            return self._load(**arguments)
        assert self._session is not None  # load() comes first
        predict = self._session.predict if self._texts is None else self._texts.outputs
        call = predict if self._texts is None else self._texts.write
        feed = self._feeds[arguments.pop("shape")]
        match do:
            case "outputs":
                np.savez(arguments["path"], allow_pickle=False, **predict(feed))
                return None
            case "block":
                # Not timed: other candidates ran meanwhile and had the caches for themselves.
                call(feed)
                return time_calls(lambda: call(feed), arguments["calls"], time.perf_counter_ns)
            case other:
                raise AssertionError(f"no such question: {other}")

    def _load(
        self, bundle: str, backend: str, precision: str, threads: int, feeds: str, trust: bool
    ) -> dict[str, Any]:
        self._feeds = read_feeds(Path(feeds))
        opened = open_bundle(bundle, verify=False)
        signature = opened.manifest.signature
        started = time.perf_counter()
        options = RunOptions(threads=threads, trust=trust, precision=precision)
        executable = get_backend(backend).load(opened, options)
        load_s = time.perf_counter() - started
        self._session = Session(opened, executable, load_s)
        run: Run = self._session.predict
        if is_generator(signature):
            self._texts = TextRun(executable, signature)
            run = self._texts.whole
        runs_in = float_type(opened, RunOptions(precision=precision))
        tolerance = tolerance_of(opened.manifest.precision, runs_in)
        error = None
        if (opened.path / PROOF_FILE).exists():
            _, verdict = check_cases(run, load_cases(opened.path / PROOF_FILE), tolerance)
            error = verdict.error
        loaded = Loaded(self._session.report.facts, load_s, None, tolerance)
        answer: dict[str, Any] = encode(loaded)
        return answer | {"error": None if error is None else str(error)}


def main() -> None:
    """Answer questions from stdin until it ends."""
    serve(Server())


if __name__ == "__main__":
    main()
