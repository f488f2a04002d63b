"""Texts a second of tfx and of what users would take instead, side by side on the same texts.

Every contestant is a process of its own that runs ``embedders.py``. All are loaded; each finds its
best batch size on a sample, tfx how many batches to run at once. Then come rounds of ``CHUNK``
texts, in an order drawn anew for each. Who is ``BEHIND`` after the first needs no other, and once
the rest have embedded all texts the fastest of both sides go on alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.runtime.clock import SETTLE_S
from tfx.runtime.stats import LEAST_ROUNDS, Comparison, compare_speed

from ..measuring.flops import flops_of
from ..peaks import Peaks
from . import embedders
from .contestants import Contestant, PeerProcess, PeerRun

# Texts of a round: several of what ``Session.map`` sorts together.
CHUNK = 1000
# Batch sizes a peer may choose from, and the texts it tries them on: so many, that a large batch of
# texts of like length is not filled up as it would not be in a round.
BATCHES = (8, 16, 32, 64)
SAMPLE = 256
# A row that takes so many times as long as the fastest embeds the texts of one round only.
BEHIND = 2.5
# Rows of each side, tfx's and the peers', that go on when all texts are embedded.
FINALISTS = {True: 2, False: 2}
LEAST_COSINE = 0.995

SCRIPT = Path(embedders.__file__)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts, and what embedding them takes at least.

    Attributes:
        texts: All of them.
        tokens: Of each, special tokens included, after truncation; ``int64[texts]``.
        flops: Operations each takes by itself, without padding; ``float64[texts]``.
    """

    texts: tuple[str, ...]
    tokens: np.ndarray
    flops: np.ndarray

    def chunks(self) -> list[slice]:
        """What the rounds are of."""
        size = min(CHUNK, len(self.texts))
        return [slice(start, start + size) for start in range(0, len(self.texts), size)]

    def count(self, index: int) -> int:
        """Texts of a chunk."""
        return len(self.texts[self.chunks()[index]])


@dataclass(frozen=True, slots=True)
class TextRow:
    """What came of a contestant.

    Attributes:
        name: Of it.
        own: Whether it is tfx.
        reason: Why it did not run; "".
        versions: Of its library and engine.
        precision: Type it multiplies in.
        note: What a reader must know; "".
        batch: Batch size it was fastest with; of tfx, which cuts its own, how many batches it
            was fastest with at once.
        rounds: That it took part in.
        sentences_per_s: Texts a second.
        tokens_per_s: Tokens a second, padding not counted.
        gflops: 10^9 operations a second, padding not counted.
        peak_share: ``gflops`` of the peak of this machine in its precision; None where that has
            none.
        min_cosine: Of its embeddings with the reference's; None without a reference.
        mean_cosine: The same.
        comparison: Its speed against the best peer's whose cosine is right; None for that one
            and for those that were not in the final.
        any_comparison: The same against the fastest peer, right or wrong.
    """

    name: str
    own: bool
    reason: str = ""
    versions: str = ""
    precision: str = ""
    note: str = ""
    batch: int = 0
    rounds: int = 0
    sentences_per_s: float | None = None
    tokens_per_s: float | None = None
    gflops: float | None = None
    peak_share: float | None = None
    min_cosine: float | None = None
    mean_cosine: float | None = None
    comparison: Comparison | None = None
    any_comparison: Comparison | None = None

    @property
    def right(self) -> bool:
        """Whether it ran, and every embedding is near enough to float32's."""
        return self.min_cosine is not None and self.min_cosine >= LEAST_COSINE


@dataclass(frozen=True, slots=True)
class Limits:
    """How long it may take.

    Attributes:
        seconds: Begin no round of the final after this.
        rounds: Most rounds.
        limit_s: Seconds a contestant may take for anything.
    """

    seconds: float
    rounds: int
    limit_s: float


@dataclass(slots=True, eq=False)
class _Run(PeerRun):
    """One that embeds texts."""

    batch: int = 0
    # Chunk and seconds of each round.
    rounds: list[tuple[int, float]] = field(default_factory=list)
    embeddings: np.ndarray | None = None
    cosines: np.ndarray | None = None

    def choose(self, sample: Sequence[str]) -> None:
        """Warm up, and find the best batch size."""
        sizes = self.who.batches
        times = {}
        for batch in (sizes[-1], *sizes):  # the first allocates and compiles
            times[batch] = self.process.ask(do="try", texts=list(sample), batch=batch)
        self.batch = min(times, key=times.__getitem__)

    def round(self, index: int, texts: Sequence[str], kind: str) -> None:
        seconds = self.process.ask(do=kind, texts=list(texts), batch=self.batch)
        self.rounds.append((index, float(seconds)))

    def collect(self) -> None:
        path = self.folder / "embeddings.npy"
        self.process.ask(do="outputs", path=str(path))
        self.embeddings = np.load(path, allow_pickle=False)

    def per_token(self, corpus: Corpus) -> list[list[int]]:
        """Nanoseconds for a million tokens, of each round: chunks differ in their tokens."""
        chunks = corpus.chunks()
        return [
            [round(seconds * 1e15 / int(corpus.tokens[chunks[index]].sum()))]
            for index, seconds in self.rounds
        ]


def text_flops(bundle: Bundle, tokens: np.ndarray) -> np.ndarray:
    """Operations that texts of so many tokens take, each by itself; ``float64[texts]``.

    Products with weights grow with the tokens, attention with their square: three lengths say it
    all.
    """
    (specs,) = (one for one in bundle.manifest.signature.inputs if one.name == "input_ids")
    rows, length = (str(axis) for axis in specs.shape)
    points = np.array([16, 64, 128])
    counted = [flops_of(bundle, {rows: 1, length: int(point)}).total for point in points]
    return np.polyval(np.polyfit(points, counted, 2), tokens)


def measure_texts(
    contestants: Sequence[Contestant],
    corpus: Corpus,
    limits: Limits,
    peaks: Peaks,
    *,
    reference: Sequence[str],
    progress: Progress,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[tuple[TextRow, ...], str]:
    """Measure all contestants.

    Args:
        contestants: At least one.
        corpus: What they embed.
        limits: How long it may take.
        peaks: Of this machine.
        reference: Names whose embeddings the others' are compared with; the first that ran.
        progress: Told of every step.
        seed: Of the order of rounds, and the bootstrap.
        clock: Seconds, for the budget.
        sleep: Waits, in seconds.

    Returns:
        A row for each, in their order; and which was the reference, or "".
    """
    rng = np.random.default_rng(seed)
    sample = [corpus.texts[index] for index in rng.permutation(len(corpus.texts))[:SAMPLE]]
    with tempfile.TemporaryDirectory(prefix="tfx-bench-") as name:
        runs = []
        for index, who in enumerate(contestants):
            folder = Path(name, str(index))
            folder.mkdir()
            process = PeerProcess(who.python, who.script, limits.limit_s)
            runs.append(_Run(who, process, folder, who.problem))
        try:
            for run in runs:
                progress.step(f"loading {run.who.name}")
                run.attempt(run.load)
                run.attempt(lambda run=run: run.choose(sample))  # type: ignore[misc]
            _all_once(runs, corpus, reference, rng, progress, sleep)
            for run in runs:
                run.attempt(run.collect)
            judge = _compare_embeddings(runs, corpus, reference)
            _final(runs, corpus, limits, rng, progress, clock, sleep)
        finally:
            for run in runs:
                run.process.close()
    return _rows(runs, corpus, peaks, seed), judge


def _all_once(
    runs: Sequence[_Run],
    corpus: Corpus,
    reference: Sequence[str],
    rng: np.random.Generator,
    progress: Progress,
    sleep: Callable[[float], None],
) -> None:
    chunks = corpus.chunks()
    progress.step("everybody embeds the texts", len(chunks))
    going: Sequence[_Run] = runs
    for index, chunk in enumerate(chunks):
        _one_round(going, index, corpus.texts[chunk], "embed", rng, sleep)
        progress.advance()
        alive = [run for run in going if not run.reason]
        limit = BEHIND * min(map(_seconds, alive), default=0.0)
        names = {run.who.name for run in alive}
        judge = next((name for name in reference if name in names), "")
        going = [run for run in alive if _seconds(run) <= limit or run.who.name == judge]


def _one_round(
    runs: Sequence[_Run],
    index: int,
    texts: Sequence[str],
    kind: str,
    rng: np.random.Generator,
    sleep: Callable[[float], None],
) -> None:
    for chosen in rng.permutation(len(runs)):
        sleep(SETTLE_S)
        run = runs[chosen]
        run.attempt(lambda run=run: run.round(index, texts, kind))


def _compare_embeddings(runs: Sequence[_Run], corpus: Corpus, reference: Sequence[str]) -> str:
    """Give every run its cosines with the reference; which that is."""
    ran = {run.who.name: run for run in runs if run.embeddings is not None}
    chosen = next((ran[name] for name in reference if name in ran), None)
    if chosen is None:
        return ""
    assert chosen.embeddings is not None
    for run in ran.values():
        assert run.embeddings is not None
        # Who was behind embedded the first ones only.
        expected = chosen.embeddings[: sum(corpus.count(index) for index, _ in run.rounds)]
        if run.embeddings.shape != expected.shape:
            run.reason = (
                f"its embeddings are {list(run.embeddings.shape)}, "
                f"those of {chosen.who.name} {list(expected.shape)}"
            )
            continue
        run.cosines = cosines(run.embeddings, expected)
    return chosen.who.name


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine of each row with the other's; ``[rows, dim]`` to ``float64[rows]``."""
    one, other = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: np.ndarray = np.nan_to_num((one * other).sum(1) / np.maximum(norms, 1e-30), nan=-1.0)
    return found


def _final(
    runs: Sequence[_Run],
    corpus: Corpus,
    limits: Limits,
    rng: np.random.Generator,
    progress: Progress,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    finalists: list[_Run] = []
    for own, count in FINALISTS.items():
        side = [run for run in runs if run.who.own == own and _is_through(run, corpus)]
        side.sort(key=_seconds)
        right = [run for run in side if _is_right(run)]
        # Right or wrong, the fastest is among them: it is shown what it would be compared with.
        finalists += dict.fromkeys([*right[:count], *side[:1]])
    chunks = corpus.chunks()
    left = range(len(chunks), limits.rounds)
    progress.step("the fastest go on", len(left))
    started = clock()
    for done in left:
        if done >= LEAST_ROUNDS and clock() - started >= limits.seconds:
            return
        index = done % len(chunks)
        _one_round(finalists, index, corpus.texts[chunks[index]], "try", rng, sleep)
        progress.advance()


def _is_through(run: _Run, corpus: Corpus) -> bool:
    """Whether it embedded all texts."""
    return not run.reason and len(run.rounds) >= len(corpus.chunks())


def _seconds(run: _Run) -> float:
    return sum(seconds for _, seconds in run.rounds)


def _is_right(run: _Run) -> bool:
    return run.cosines is not None and float(run.cosines.min()) >= LEAST_COSINE


def _rows(runs: Sequence[_Run], corpus: Corpus, peaks: Peaks, seed: int) -> tuple[TextRow, ...]:
    ran = [run for run in runs if not run.reason]
    most = max((len(run.rounds) for run in ran), default=0)
    final = [run for run in ran if len(run.rounds) == most]
    others = [run for run in final if not run.who.own]
    speed = {run.who.name: float(np.median(run.per_token(corpus))) for run in final}
    fastest = min(others, key=lambda run: speed[run.who.name], default=None)
    best = min(
        (run for run in others if _is_right(run)), key=lambda run: speed[run.who.name], default=None
    )

    def compared(run: _Run, other: _Run | None) -> Comparison | None:
        if other is None or other is run or run not in final:
            return None
        rng = np.random.default_rng(seed)
        return compare_speed(
            run.per_token(corpus), other.per_token(corpus), against=other.who.name, rng=rng
        )

    return tuple(
        _row(run, corpus, peaks, compared(run, best), compared(run, fastest)) for run in runs
    )


def _row(
    run: _Run,
    corpus: Corpus,
    peaks: Peaks,
    comparison: Comparison | None,
    any_comparison: Comparison | None,
) -> TextRow:
    who, loaded = run.who, run.loaded
    if run.reason:
        return TextRow(who.name, who.own, run.reason, loaded.get("versions", ""))
    chunks, seconds = corpus.chunks(), _seconds(run)
    done = [chunks[index] for index, _ in run.rounds]
    flops = float(sum(corpus.flops[chunk].sum() for chunk in done))
    return TextRow(
        name=who.name,
        own=who.own,
        versions=loaded["versions"],
        precision=loaded["precision"],
        note=loaded["note"],
        batch=run.batch,
        rounds=len(run.rounds),
        sentences_per_s=sum(len(corpus.texts[chunk]) for chunk in done) / seconds,
        tokens_per_s=float(sum(corpus.tokens[chunk].sum() for chunk in done)) / seconds,
        gflops=flops / seconds / 1e9,
        peak_share=peaks.share_of_named(flops, seconds, loaded["precision"]),
        min_cosine=None if run.cosines is None else float(run.cosines.min()),
        mean_cosine=None if run.cosines is None else float(run.cosines.mean()),
        comparison=comparison,
        any_comparison=any_comparison,
    )
