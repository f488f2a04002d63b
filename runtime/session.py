"""Session: checked arrays or texts in, outputs or answers out, the same on every backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import BackendError, FeedError
from tfx.signature import Feed, Signature

from .arrays import shared_array
from .backend import Executable, GpuExecutable, session_closed
from .counts import count_problem
from .device_arrays import DeviceArray, outlines_of
from .forks import inherited_session, unpicklable_session, watch
from .generation.kv_cache import text_view, whole_feed
from .generation.writing import Writing
from .session_report import SessionReport
from .text.answers import Answer
from .text.texts import TextRunner, stacked
from .text.tokenizer import LongTexts, Text

if TYPE_CHECKING:
    from .text.batcher import Batcher, Batching

# What predict gives for arrays.
Outputs = Literal["numpy", "dlpack"]


class Session(Writing):
    """A model loaded on one backend. Thread-safe; also a context manager.

    Attributes:
        bundle: The bundle it runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        executable: Executable,
        load_s: float,
        batching: Batching | None = None,
        open_encoder: Callable[[], Session] | None = None,
    ) -> None:
        self.bundle = bundle
        self._open_encoder = open_encoder
        self._encoder: Session | None = None
        self._executable = executable
        self._on_gpu = executable if isinstance(executable, GpuExecutable) else None
        self._signature = bundle.manifest.signature
        self._accepts = self._signature.acceptor()
        self._lowest = {
            spec.name: spec.values.min for spec in self._signature.inputs if spec.values
        }
        # Texts go through a graph with a cache all at once.
        self._texts = TextRunner(text_view(bundle), self._run)
        self._batching = batching
        self._batcher: Batcher | None = None
        self._closed = self._inherited = False
        self._lock = threading.Lock()
        self._report = SessionReport(str(bundle.path), bundle.digest, executable.facts, load_s)
        watch(self)

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self._signature

    @property
    def report(self) -> SessionReport:
        """What really runs, and the texts answered so far."""
        return self._report

    @overload
    def predict(
        self, inputs: Feed, *, check_finite: bool = False, outputs: Literal["numpy"] = "numpy"
    ) -> dict[str, np.ndarray]: ...

    @overload
    def predict(
        self, inputs: Mapping[str, Any], *, check_finite: bool = False, outputs: Literal["dlpack"]
    ) -> dict[str, np.ndarray | DeviceArray]: ...

    @overload
    def predict(
        self,
        inputs: Text,
        *,
        max_rows: int | None = None,
        long: LongTexts | str = LongTexts.TRUNCATE,
    ) -> Answer: ...

    @overload
    def predict(
        self,
        inputs: list[str] | list[Text],
        *,
        max_rows: int | None = None,
        long: LongTexts | str = LongTexts.TRUNCATE,
    ) -> np.ndarray | list[Answer]: ...

    @overload
    def predict(
        self, inputs: Any, *, max_rows: int | None = None, sampling_rate: int | None = None
    ) -> Any: ...

    def predict(
        self,
        inputs: Any,
        *,
        check_finite: bool = False,
        max_rows: int | None = None,
        outputs: Outputs = "numpy",
        long: LongTexts | str = LongTexts.TRUNCATE,
        sampling_rate: int | None = None,
    ) -> Any:
        """Run the model on arrays, on a text or sound, or on a list of texts or sounds.

        Args:
            inputs: Input name to array, exactly as ``signature`` says; tensors of other
                libraries that speak DLPack (PyTorch, JAX) are taken without a copy, on the GPU
                too where the session runs there; values on it are not checked. Or a string; or
                a tuple of two, which the model reads together; or a list of those. For a bundle
                that hears: a WAV file's path, or ``float32[samples]``; or a list of those.
            check_finite: Also refuse NaN and infinities in float inputs.
            max_rows: Most texts or sounds in one run of the model; None for ``BATCH_ROWS``.
            outputs: For arrays: "numpy"; or "dlpack" to leave the outputs where the model makes
                them, which on a GPU are of ``DeviceArray``, for ``torch.from_dlpack`` and its
                like, and on a CPU of NumPy.
            long: Of texts longer than the model takes: "truncate" cuts them, "windows" reads
                them in windows that overlap, and gives the mean of embeddings or scores, or each
                token's label from the window that has most around it; of a pair the second text.
                ``report`` counts both. A question's context is always read in windows, and so is
                a long sound.
            sampling_rate: Of sounds given as arrays, samples a second; None for the model's.

        Returns:
            For arrays, output name to array: same names, dtypes and shapes from every
            backend. For one text its answer, as the model's head has it: an embedding
            ``float32[dim]``, a ``TextLabel``, a list of ``TokenLabel``, a ``TextAnswer`` for a
            question and its context, a ``Transcript`` of what is said, or else its part of every
            output. For a list, the answers in its order, embeddings as ``float32[texts, dim]``.

        Raises:
            FeedError: If the arrays or texts do not fit; lists every problem.
            BackendError: If the session is closed or the backend fails.
        """
        if self._closed:
            raise self._refusal()
        # What a service does millions of times comes first, and touches as little as it can.
        if type(inputs) is dict and not check_finite and self._accepts(inputs):
            if outputs == "numpy":
                return self._executable.run(inputs)
            return self._run_where_it_is(inputs, outputs)
        if isinstance(inputs, Mapping):
            feed = self._checked(inputs, check_finite=check_finite)
            return self._run_where_it_is(feed, outputs)
        if self.bundle.manifest.processing.audio is not None:
            from .speech.sounds import answer_sounds  # few models hear

            return answer_sounds(self.bundle, self._run, inputs, sampling_rate, max_rows)
        if isinstance(inputs, str | tuple):
            return self._predict_texts([inputs], max_rows, long)[0]
        if isinstance(inputs, list):
            return stacked(self._predict_texts(inputs, max_rows, long))
        from .text.requests import no_inputs

        raise no_inputs(inputs)

    def _checked(self, inputs: Mapping[str, Any], *, check_finite: bool = False) -> dict[str, Any]:
        gpu = None if self._on_gpu is None else self._on_gpu.gpu
        facts = self._report.facts
        feed = {name: shared_array(name, value, facts, gpu) for name, value in inputs.items()}
        self._signature.bind(outlines_of(feed, self._lowest), check_finite=check_finite)
        return feed

    def _run_where_it_is(self, feed: Mapping[str, Any], outputs: Outputs) -> dict[str, Any]:
        if outputs not in get_args(Outputs):
            raise FeedError(
                f"outputs is {outputs!r}, expected one of {', '.join(get_args(Outputs))}"
            )
        if self._on_gpu is None:  # NumPy's arrays speak DLPack too
            return self._executable.run(feed)
        return self._on_gpu.run_on_gpu(feed, keep=outputs == "dlpack")

    def predict_async(
        self,
        inputs: Mapping[str, Any] | Text | list[str] | list[Text],
        *,
        long: LongTexts | str = LongTexts.TRUNCATE,
    ) -> Future[Any]:
        """Answer soon, in one run with what else is asked at about the same time.

        For many callers that each have a little: threads of a service, or coroutines, through
        ``asyncio.wrap_future``. First come, first served; ``open_session(batching=...)`` sets how
        long requests wait for others and how many may wait. A future can be cancelled until it
        runs. What is wrong with one request fails its future and no other.

        Args:
            inputs: As in ``predict``. Arrays are merged where their other axes are equal; they
                must not change before the answer is there.
            long: As in ``predict``.

        Returns:
            A future of what ``predict`` would return or raise.

        Raises:
            QueueFullError: If too many texts or feeds wait.
            FeedError: If the inputs are neither arrays nor texts, or ``long`` is unknown.
            BackendError: If the session is closed, or no thread can be started.
        """
        from .text.requests import request_of  # few sessions merge requests

        request = request_of(inputs, long)
        return self._opened_batcher().submit(request)

    def _opened_batcher(self) -> Batcher:
        from .text.batcher import Batcher

        with self._lock:
            if self._closed:
                raise self._refusal()
            if self._batcher is None:
                self._batcher = Batcher(
                    self._texts,
                    self._signature,
                    lambda feed: self._run_where_it_is(feed, "numpy"),
                    check_feed=self._checked,
                    count=self._count,
                    streams=self._report.facts.streams,
                    settings=self._batching,
                )
            return self._batcher

    def map(
        self,
        texts: Iterable[Text],
        *,
        max_rows: int | None = None,
        long: LongTexts | str = LongTexts.TRUNCATE,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Answer]:
        """Answer a stream of texts of any length, in its order and in constant memory.

        Some hundreds of texts are sorted by length together, tokenized in a thread of their own
        while the model runs on those before. The iterable is read in the caller's thread and only
        as far ahead as that takes. Stopping early, or an error, ends its threads, once they have
        run what they are at.

        Args:
            texts: Strings, or pairs of strings.
            max_rows: Most texts in one run of the model; None for ``BATCH_ROWS``.
            long: As in ``predict``.
            on_progress: Told how many more texts are answered, in the caller's thread.

        Yields:
            The answer to each, as ``predict`` gives it for one.

        Raises:
            TextError: If a text cannot be read, when those before it were given; its ``problems``
                are numbered as the stream is.
            FeedError: If the bundle takes no text.
            BackendError: If the session is closed or the backend fails.
        """
        found = self.map_stretches(texts, max_rows=max_rows, long=long, on_progress=on_progress)
        return (answer for stretch in found for answer in stretch)

    def map_stretches(
        self,
        texts: Iterable[Text],
        *,
        max_rows: int | None = None,
        long: LongTexts | str = LongTexts.TRUNCATE,
        stretch: int | None = None,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[list[Answer]]:
        """The same as ``map``, some hundreds of answers at a time: what is ready together.

        Args:
            texts: As ``map`` takes them.
            max_rows: As ``map`` takes it.
            long: As ``map`` takes it.
            stretch: Texts sorted by length together; None for ``STRETCH_TEXTS``, or fewer where
                an answer is large.
            on_progress: As ``map`` takes it.
        """
        from .text.stream import answer_stretches  # for texts that are many

        self._check_open(max_rows)
        # A string is of characters, and bytes are of numbers.
        if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
            raise FeedError(
                f"got {type(texts).__name__}, expected an iterable of texts",
                hint="Put a single text in a list, or use predict.",
            )
        if stretch is not None and (problem := count_problem("stretch", stretch)):
            raise FeedError(problem)
        return answer_stretches(
            self._texts,
            texts,
            streams=self._report.facts.streams,
            count=self._count,
            max_rows=max_rows,
            long=long,
            stretch=stretch,
            on_progress=on_progress,
        )

    def encoder(self) -> Session:
        """The session of the encoder that a decoder belongs to; opened when it is first needed.

        Raises:
            BundleError: If it is not beside the decoder, or another one.
            FeedError: If the bundle is no decoder.
        """
        self._check_open(None)
        with self._lock:
            if self._encoder is None:
                if self._open_encoder is None:
                    raise FeedError(
                        f"{self.bundle.name} is no decoder: it has no encoder",
                        hint="Leave the encoder out.",
                    )
                self._encoder = self._open_encoder()
            return self._encoder

    def _run(self, feed: Feed) -> dict[str, np.ndarray]:
        return self._executable.run(whole_feed(self._signature, feed))

    def disinherit(self) -> object:
        """Refuse to run: called in a forked child, where no thread of it is."""
        self._closed = self._inherited = True
        self._lock, self._batcher = threading.Lock(), None  # another thread may have held it
        return self._executable

    def _refusal(self) -> BackendError:
        return inherited_session() if self._inherited else session_closed()

    def __reduce__(self) -> Any:
        raise unpicklable_session()

    def _check_open(self, max_rows: int | None) -> None:
        if self._closed:
            raise self._refusal()
        if max_rows is not None and (problem := count_problem("max_rows", max_rows)):
            raise FeedError(problem)

    def _predict_texts(
        self, texts: Sequence[Text], max_rows: int | None, long: LongTexts | str
    ) -> list[Answer]:
        self._check_open(max_rows)
        if not texts:
            raise FeedError("got an empty list, expected at least one text")
        reading = self._texts.read(texts, long)
        found: list[Any] = [None] * len(reading.pieces)
        for indices in self._texts.batches(reading.pieces, max_rows=max_rows):
            pieces = [reading.pieces[index] for index in indices]
            for index, answer in zip(indices, self._texts.run(pieces), strict=True):
                found[index] = answer
        answers = self._texts.joined(reading, found)
        self._count(len(texts), reading.truncated, reading.windowed)
        return answers

    def _count(self, texts: int, truncated: int, windowed: int) -> None:
        with self._lock:
            self._report = self._report.after(texts, truncated, windowed)

    def close(self, *, drop: bool = False) -> None:
        """Free the model; a closed session refuses to predict. May be called twice.

        Args:
            drop: Fail what ``predict_async`` accepted and what does not run yet, instead of
                waiting for its answers.
        """
        if self._inherited:
            return
        with self._lock:
            self._closed = True
        if self._batcher is not None:
            self._batcher.close(drop=drop)
        if self._encoder is not None:
            self._encoder.close(drop=drop)
        self._executable.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(drop=error is not None)
