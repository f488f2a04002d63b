"""Candidates against each other: a rough first round, interleaved final rounds, one choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.errors import BackendError, TfxError, listing
from tfx.signature import Feed

from ..bootstrap import draw, percentile_interval
from ..clock import SETTLE_S, Clock, block_calls
from ..compare import tolerance_of
from ..proof import compare_case
from ..stats import LEAST_ROUNDS, MARGIN
from .candidates import Candidate, Outcome, Trial, is_proved
from .plan import TuningPlan
from .worker import Loaded, Worker

# In the first round a candidate is called for about so long, but this often.
FIRST_MS = 300.0
FIRST_CALLS = (2, 50)
# The first round is rough: what takes more than this many times the fastest one's time is out.
CLEARLY = 1.5
# With half the threads nothing is twice as fast: so far behind, fewer are not tried.
HOPELESS = 2 * CLEARLY
# So many are measured to the end, and held in memory at once.
FINALISTS = 4
# The first round ends, if it must, after this share of the time.
FIRST_SHARE = 0.6
MOST_ROUNDS = 25
# However slow the machine: with fewer there is nothing to see but noise.
FEWEST_ROUNDS = 3
# A block of a slow model ends sooner than that of a fast one.
BLOCK_LIMIT_MS = 250.0

# Makes the worker of a candidate whose bundle is at a path; tests give others.
Start = Callable[[Path, Candidate], Worker]
Outputs = list[dict[str, np.ndarray]]  # of each shape


@dataclass(slots=True, eq=False)
class _Run:
    """A candidate that is alive."""

    candidate: Candidate
    worker: Worker
    is_reference: bool = False
    computes_in: str = ""
    cosine: float | None = None
    first_ms: list[float] = field(default_factory=list)  # of each shape
    rounds: list[list[list[int]]] = field(default_factory=list)  # [round][shape][call]

    def medians_ms(self) -> list[float]:
        """Median time per call of each shape: of all rounds, or of the first without any."""
        if not self.rounds:
            return self.first_ms
        shapes = zip(*self.rounds, strict=True)
        return [float(np.median(np.concatenate(blocks))) / 1e6 for blocks in shapes]


class _UnfitError(TfxError):
    """Outputs that a candidate must not be chosen with."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class Contest:
    """Candidates for one bundle; a context manager that ends their processes."""

    def __init__(
        self,
        bundle: Bundle,
        family: Mapping[str, Bundle],
        feeds: Mapping[str, Feed],
        weights: Mapping[str, int],
        plan: TuningPlan,
        *,
        progress: Progress,
        start: Start,
        clock: Clock,
    ) -> None:
        """Begin; the clock runs.

        Args:
            bundle: The bundle that is tuned.
            family: Digest to bundle, of all that candidates run.
            feeds: One of each shape, by its name.
            weights: How much each shape counts.
            plan: How long it may take, how near outputs must be, and the seed of the order in a
                round.
            progress: Told of every step.
            start: Makes the worker of a candidate.
            clock: Nanoseconds.
        """
        self._bundle = bundle
        self._family = family
        self._labels = list(feeds)
        self._feeds = list(feeds.values())
        self._weights = np.array([weights[label] for label in self._labels], np.float64)
        self._plan = plan
        self._rng = np.random.default_rng(plan.seed)
        self._progress = progress
        self._start = start
        self._clock = clock
        self._began = clock()
        self._alive: list[_Run] = []
        self._trials: list[Trial] = []
        # Digest of a bundle to the candidate that ran it first, in its own precision.
        self._own: dict[str, tuple[Candidate, Outputs]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for run in self._alive:
            run.worker.close()

    def first_round(self, ways: Sequence[Candidate]) -> None:
        """Load, check and time each candidate once; those clearly slower end here."""
        hopeless: dict[tuple[str, ...], tuple[Outcome, str]] = {}
        for candidate in ways:
            how = (candidate.backend, candidate.precision)
            way = (candidate.digest, *how)
            ruled_out = hopeless.get(way) or hopeless.get(how)
            if not ruled_out and self._alive and self._spent_s() > FIRST_SHARE * self._plan.seconds:
                reason = f"the time was up: {self._plan.seconds:g} s for all of them"
                ruled_out = Outcome.NOT_RUN, reason
            if ruled_out:
                self._trials.append(Trial(candidate, *ruled_out))
                continue
            self._progress.step(f"trying {candidate}")
            run = _Run(candidate, self._start(self._path_of(candidate), candidate))
            if failed := self._enter(run):
                hopeless[way] = failed
                if candidate.precision and not run.computes_in:
                    hopeless[how] = failed  # refused, whatever the bundle
            else:
                behind = self._score(run.first_ms) / self._fastest()
                if behind > HOPELESS:
                    reason = f"with more threads it took {behind:.1f} times the fastest one's time"
                    hopeless[way] = Outcome.NOT_RUN, reason
                self._drop_slow()

    def add_reference(self, candidate: Candidate) -> None:
        """Load one that is timed beside the others and not to be chosen, if it runs at all."""
        if not self._alive:
            return
        self._progress.step(f"loading {candidate}")
        worker = self._start(self._path_of(candidate), candidate)
        self._enter(_Run(candidate, worker, is_reference=True))

    def final_rounds(self, sleep: Callable[[float], None]) -> int:
        """Time those left in interleaved rounds, until the time is up.

        Returns:
            How many rounds there were.
        """
        if len(self._alive) < 2:
            return 0
        calls = {
            id(run): [min(block_calls(ms), math.ceil(BLOCK_LIMIT_MS / ms)) for ms in run.first_ms]
            for run in self._alive
        }
        self._progress.step("timing the fastest side by side", MOST_ROUNDS)
        rounds = 0
        while rounds < MOST_ROUNDS:
            if rounds >= FEWEST_ROUNDS and self._spent_s() > self._plan.seconds:
                break
            order = [self._alive[index] for index in self._rng.permutation(len(self._alive))]
            for run in order:
                sleep(SETTLE_S)
                try:
                    run.rounds.append(
                        [run.worker.block(i, count) for i, count in enumerate(calls[id(run)])]
                    )
                except TfxError as error:
                    self._end(run, Outcome.NOT_RUN, error.with_hint)
            rounds += 1
            self._progress.advance()
        return rounds

    def decide(self, ways: Sequence[Candidate]) -> list[Trial]:
        """Choose, and say of every candidate what became of it.

        Of those within ``MARGIN`` of the fastest, which is no difference, the one nearest to the
        bundle as it is is chosen: the least lowered, and the one with the fewest threads.

        Args:
            ways: All candidates, the least lowered first.

        Raises:
            BackendError: If none is left.
        """
        left = [run for run in self._alive if not run.is_reference]
        if not left:
            reasons = [f"{one.candidate}: {one.reason}" for one in self._trials]
            raise BackendError(
                listing(f"nothing runs {self._bundle.path} as it must:", reasons),
                hint="See what is missing with: tfx doctor",
            )
        scores = {id(run): self._score(run.medians_ms()) for run in left}
        fastest = min(left, key=lambda run: scores[id(run)])
        near = [run for run in left if scores[id(run)] <= scores[id(fastest)] * (1 + MARGIN)]
        bundles = list(dict.fromkeys(way.digest for way in ways))
        chosen = min(
            near,
            key=lambda run: (
                bundles.index(run.candidate.digest),
                run.candidate.precision != "",
                run.candidate.threads,
                scores[id(run)],
            ),
        )
        for run in list(self._alive):
            if run is chosen:
                reason = "the fastest"
                if run is not fastest:
                    reason = (
                        f"within {MARGIN:.0%} of the fastest, {fastest.candidate}, and nearer to "
                        "the bundle as it is"
                    )
                self._end(run, Outcome.CHOSEN, reason)
            else:
                outcome = Outcome.REFERENCE if run.is_reference else Outcome.LOST
                self._end(run, outcome, self._behind(run, chosen))
        order = {way: index for index, way in enumerate(ways)}
        return sorted(
            self._trials,
            key=lambda one: (one.score_ms or math.inf, order.get(one.candidate, len(order))),
        )

    def _spent_s(self) -> float:
        return (self._clock() - self._began) / 1e9

    def _path_of(self, candidate: Candidate) -> Path:
        return self._family[candidate.digest].path.resolve()

    def _score(self, medians_ms: Sequence[float]) -> float:
        logs = np.log(np.asarray(medians_ms))
        return float(np.exp(np.average(logs, weights=self._weights)))

    def _fastest(self) -> float:
        return min(self._score(run.first_ms) for run in self._alive if not run.is_reference)

    def _enter(self, run: _Run) -> tuple[Outcome, str] | None:
        """Load, check and time a run; why it cannot stay, or None."""
        self._alive.append(run)
        try:
            loaded = run.worker.load()
            run.computes_in = str(loaded.facts.precision)
            self._check(run, loaded)
            run.first_ms = [self._first_ms(run, shape) for shape in range(len(self._feeds))]
        except _UnfitError as error:
            failed = error.outcome, str(error)
        except TfxError as error:
            failed = Outcome.NOT_RUN, error.with_hint
        else:
            return None
        self._end(run, *failed)
        return failed

    def _first_ms(self, run: _Run, shape: int) -> float:
        (one_ns,) = run.worker.block(shape, 1)
        least, most = FIRST_CALLS
        calls = min(max(math.ceil(FIRST_MS * 1e6 / max(one_ns, 1)), least), most)
        return float(np.median(run.worker.block(shape, calls))) / 1e6

    def _check(self, run: _Run, loaded: Loaded) -> None:
        """Compare what a run gives with what its bundle carries and with the other outputs.

        Raises:
            _UnfitError: If it must not be chosen.
        """
        if loaded.error is not None and not loaded.error <= loaded.tolerance:
            raise _UnfitError(
                Outcome.WRONG,
                f"differs from PyTorch's stored outputs by {loaded.error:.2g}, "
                f"{loaded.tolerance:g} is allowed",
            )
        outputs = [run.worker.outputs(index) for index in range(len(self._feeds))]
        candidate = run.candidate
        first = self._own.get(self._bundle.digest)
        if first is None:
            if candidate.digest != self._bundle.digest or candidate.precision:
                raise _UnfitError(
                    Outcome.NOT_RUN,
                    f"{self._bundle.name} ran nowhere in its own precision: nothing to compare "
                    "with",
                )
            first = candidate, outputs
        # Both may be off by their own tolerance from what PyTorch gives.
        allowed = loaded.tolerance + tolerance_of(self._bundle.manifest.precision)
        error, run.cosine = self._compare(first[1], outputs)
        if not error <= allowed:
            raise _UnfitError(
                Outcome.WRONG,
                f"differs from the outputs of {self._bundle.name} by {error:.2g}, {allowed:g} is "
                "allowed",
            )
        if run.is_reference:
            return
        own = self._own.get(candidate.digest)
        child = self._family[candidate.digest]
        if candidate.digest != self._bundle.digest and not is_proved(
            child, own[0].backend if own else candidate.backend
        ):
            self._require(
                run.cosine,
                f"its accuracy was not measured when it was made, and its outputs have cosine {{}} "
                f"to those of {self._bundle.name}",
            )
        if own is not None:
            # What was proved on one engine must be the same on another, and in fewer bits.
            _, cosine = self._compare(own[1], outputs)
            self._require(cosine, f"its outputs have cosine {{}} to those of {own[0]}")
        elif candidate.precision:
            raise _UnfitError(
                Outcome.NOT_RUN,
                f"{candidate.bundle} ran nowhere in its own precision: nothing to compare with",
            )
        else:
            self._own[candidate.digest] = candidate, outputs

    def _require(self, cosine: float, words: str) -> None:
        if not cosine >= self._plan.min_cosine:
            reason = f"{words.format(f'{cosine:.4f}')}, {self._plan.min_cosine:g} is needed"
            raise _UnfitError(Outcome.OVER_BUDGET, reason)

    def _compare(self, reference: Outputs, actual: Outputs) -> tuple[float, float]:
        """Largest scaled error and smallest cosine over all shapes, padding left out."""
        signature = self._bundle.manifest.signature
        worst, cosine = 0.0, 1.0
        for feed, expected, found in zip(self._feeds, reference, actual, strict=True):
            errors, scaled = compare_case(signature, feed, expected, found)
            worst = max(worst, scaled)
            cosine = min(cosine, *(error.min_cosine for error in errors))
        return worst, cosine

    def _drop_slow(self) -> None:
        fastest = self._fastest()
        left = sorted(self._alive, key=lambda run: self._score(run.first_ms))
        for place, run in enumerate(left):
            behind = self._score(run.first_ms) / fastest
            if behind > CLEARLY:
                self._end(
                    run, Outcome.DROPPED, f"{behind:.1f} times the fastest one's time at first"
                )
            elif place >= FINALISTS:
                self._end(
                    run,
                    Outcome.DROPPED,
                    f"{behind:.2f} times the fastest one's time at first, and {FINALISTS} others "
                    "were faster",
                )

    def _behind(self, run: _Run, chosen: _Run) -> str:
        """How much slower a run is than the chosen one, with its interval where there is one."""
        ratio = self._score(run.medians_ms()) / self._score(chosen.medians_ms())
        words = f"{ratio:.2f} times the chosen one's time"
        if len(run.rounds) < LEAST_ROUNDS or len(chosen.rounds) != len(run.rounds):
            return words
        ours, theirs = self._log_scores(run), self._log_scores(chosen)  # [rounds]
        drawn = draw(len(ours), self._rng)  # of both at once: they ran beside each other
        # Of the figure in front of it: the median of the rounds' ratios is another one.
        logs = np.median(ours[drawn], axis=1) - np.median(theirs[drawn], axis=1)
        low, high = percentile_interval(np.exp(logs))
        return f"{words}, {low:.2f} to {high:.2f}"

    def _log_scores(self, run: _Run) -> np.ndarray:
        medians = [[float(np.median(block)) for block in shapes] for shapes in run.rounds]
        return np.average(np.log(np.asarray(medians)), axis=1, weights=self._weights)

    def _end(self, run: _Run, outcome: Outcome, reason: str) -> None:
        run.worker.close()
        self._alive.remove(run)
        medians = run.medians_ms()
        self._trials.append(
            Trial(
                run.candidate,
                outcome,
                reason,
                medians_ms=dict(zip(self._labels, medians, strict=False)),
                score_ms=self._score(medians) if len(medians) == len(self._feeds) else None,
                computes_in=run.computes_in,
                cosine=run.cosine,
            )
        )
