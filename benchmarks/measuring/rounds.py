"""The processes of a shape's rows, and the rounds that these are measured in.

How fast a loaded model runs also depends on the process it was loaded in: where its memory and
threads came to lie, which no number of rounds of one process tells (Kalibera & Jones 2013,
"Rigorous benchmarking in reasonable time"). So a row may take several: each time all rows of a
shape get a fresh process, and run their share of the rounds beside the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.errors import TfxError
from tfx.runtime.clock import SETTLE_S, Clock, WarmUp, block_calls
from tfx.runtime.stats import LEAST_ROUNDS

from .energy import EnergyMeter
from .family import REFERENCE, allowed_error, is_reference, said, same_model
from .generation import LOGITS, TOKENS, Written, checked_feed, same_share
from .probe import Probing
from .report import Agreement, agreement_of
from .scenario import MIXED_CALLS, Scenario
from .worker import Loaded, Start, Worker
from .workload import Plan, Shape, Way

# Reference outputs, or why there are none.
Reference = dict[str, np.ndarray] | str


@dataclass(slots=True)
class Running:
    """A row while it is measured.

    Attributes:
        bundle: What is run.
        way: How.
        worker: Its process, of those it has one after the other.
        reason: Why it cannot be measured; "".
        loads: What each process said when it had loaded.
        warm_up: Of the first process.
        calls: Of a block.
        rounds: Nanoseconds of each call of each round.
        process_rounds: Rounds of each process.
        elapsed_ns: Of the server scenario; and how many queries it answered.
        joules: Of a call, of each round; None where not known.
        peak_memory_mb: The most of its processes.
        outputs: Of the first process.
        agreement: With PyTorch's outputs.
        no_reference: Why there is none; "".
        wrong: How the outputs are wrong; "".
        texts: Of the generation scenario.
        same_tokens: Of the same.
    """

    bundle: Bundle
    way: Way
    worker: Worker
    reason: str = ""
    loads: list[Loaded] = field(default_factory=list)
    warm_up: WarmUp | None = None
    calls: int = 0
    rounds: list[list[int]] = field(default_factory=list)
    process_rounds: list[int] = field(default_factory=list)
    elapsed_ns: int = 0
    answered: int = 0
    joules: list[float | None] = field(default_factory=list)
    peak_memory_mb: float | None = None
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    agreement: tuple[Agreement, ...] | None = None
    no_reference: str = ""
    wrong: str = ""
    texts: list[Written] = field(default_factory=list)
    same_tokens: float | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.bundle.name} on {self.way}"

    @property
    def usual_loads(self) -> list[Loaded]:
        """The loads that found the caches as the last one did; the first only where it is alone.

        The first finds in no cache what it leaves there for the others, and a backend's notes say
        what came from one: the numbers of both kinds are of two things.
        """
        later = self.loads[1:] or self.loads
        return [one for one in later if one.facts.notes == later[-1].facts.notes]

    @property
    def fair(self) -> bool:
        """Whether its speed may be compared."""
        return not self.reason and not self.wrong

    @property
    def settled(self) -> bool:
        """Whether there is something to report: it failed, is wrong, or ran a round."""
        return bool(self.reason or self.wrong or self.rounds)

    @property
    def median(self) -> float:
        """Of all calls, in nanoseconds."""
        return float(np.median(self.rounds))

    @property
    def joules_per_call(self) -> float | None:
        """Mean of the rounds; None where one is not known."""
        known = [one for one in self.joules if one is not None]
        return sum(known) / len(known) if known and len(known) == len(self.joules) else None

    def attempt(self, step: Callable[[], None]) -> None:
        """Do ``step`` unless an earlier one failed; keep why it fails."""
        if self.reason:
            return
        try:
            step()
        except TfxError as error:
            self.reason = said(error)
            self.worker.close()

    def cut(self, count: int) -> None:
        """Leave out the rounds from ``count`` on."""
        del self.rounds[count:]
        del self.texts[count:]
        del self.joules[count:]


@dataclass(frozen=True, slots=True)
class Stage:
    """What a measurement needs of the world.

    Attributes:
        progress: Told of every step.
        start: Makes the worker of a row.
        clock: Nanoseconds, for the budget.
        sleep: Waits, in seconds.
        probe: Fixed work, timed before each round.
    """

    progress: Progress
    start: Start
    clock: Clock
    sleep: Callable[[float], None]
    probe: Probing


def measure_shape(
    runs: Sequence[Running], shape: Shape, plan: Plan, stage: Stage, probes: list[float]
) -> None:
    """Load every row, compare outputs, and measure those that are right in their processes.

    Args:
        runs: Each with a worker that was not started.
        shape: Of their feeds.
        plan: Processes and rounds.
        stage: The world.
        probes: Takes the milliseconds of the probe, of each round.
    """

    def load(run: Running) -> None:
        run.loads.append(run.worker.load())
        run.outputs = run.worker.outputs()

    for run in runs:
        stage.progress.step(f"{shape}: loading {run.name}")
        run.attempt(lambda run=run: load(run))  # type: ignore[misc]
    _judge_outputs(runs, shape, plan, stage)
    for run in runs:
        if run.wrong:  # nothing is measured on wrong outputs
            run.worker.close()
    _measure_process(runs, shape, plan, stage, probes)
    for _ in range(1, plan.processes):
        measure_again(runs, shape, plan, stage, probes)


def measure_again(
    runs: Sequence[Running], shape: Shape, plan: Plan, stage: Stage, probes: list[float]
) -> None:
    """Measure rows in another process each.

    Args:
        runs: Which; all of them took part in every process before.
        shape: Of their feeds.
        plan: Rounds.
        stage: The world.
        probes: Takes the milliseconds of the probe, of each round.
    """
    fair = [run for run in runs if run.fair]
    for run in fair:
        run.worker.close()
    for run in fair:
        stage.progress.step(f"{shape}: loading {run.name} again")
        run.worker = stage.start(run.bundle.path, run.way, shape, plan)
        run.attempt(lambda run=run: run.loads.append(run.worker.load()))  # type: ignore[misc]
    _measure_process(fair, shape, plan, stage, probes)


def _measure_process(
    runs: Sequence[Running], shape: Shape, plan: Plan, stage: Stage, probes: list[float]
) -> None:
    def warm_up(run: Running) -> None:
        found = run.worker.warm_up(plan.process_seconds)
        if run.warm_up is not None:  # blocks stay as long as those of the first process
            return
        run.warm_up = found
        if plan.load.scenario in (Scenario.OFFLINE, Scenario.GENERATION):
            run.calls = 1
        else:
            run.calls = MIXED_CALLS if plan.load.mixed else block_calls(found.median_ms)

    def collect(run: Running) -> None:
        found = run.worker.peak_memory_mb()
        if found is not None:
            run.peak_memory_mb = max(found, run.peak_memory_mb or 0)

    for run in runs:
        if run.fair:
            stage.progress.step(f"{shape}: warming up {run.name}")
            run.attempt(lambda run=run: warm_up(run))  # type: ignore[misc]
    fair = [run for run in runs if run.fair]
    before = len(probes)
    most = math.ceil(plan.rounds / plan.processes)
    stage.progress.step(f"{shape}: measuring", most)
    try:
        _interleave(fair, plan, stage, most, probes)
    finally:
        # A round that an interruption cut is left out: rows are compared round by round.
        fair = [run for run in fair if run.fair]
        count = min((len(run.rounds) for run in fair), default=before)
        for run in fair:
            run.cut(count)
            if count > before:
                run.process_rounds.append(count - before)
        del probes[count:]
    for run in fair:
        run.attempt(lambda run=run: collect(run))  # type: ignore[misc]


def _interleave(
    runs: Sequence[Running], plan: Plan, stage: Stage, most: int, probes: list[float]
) -> None:
    earlier = len(probes)
    # Each process of a row has another order.
    rng = np.random.default_rng((plan.seed, earlier))
    least = math.ceil(LEAST_ROUNDS / plan.processes)
    meter = EnergyMeter()
    load = plan.load

    def block(run: Running, done: int) -> None:
        before = meter.read()
        if load.scenario == Scenario.SERVER:
            served = run.worker.serve(load.arrivals, load.qps, plan.seed + done)
            run.rounds.append(served.samples_ns)
            run.elapsed_ns += served.elapsed_ns
            run.answered += served.answered
        elif load.writes:
            run.texts.append(run.worker.write())
            run.rounds.append(run.texts[-1].steps_ns)
        elif load.mixed:
            run.rounds.append(run.worker.block(run.calls, done * run.calls))
        else:
            run.rounds.append(run.worker.block(run.calls))
        took = meter.joules(before, meter.read())
        # The call that is not timed takes energy too.
        run.joules.append(None if took is None else took / (len(run.rounds[-1]) + 1))

    started = stage.clock()
    for done in range(most):
        alive = [run for run in runs if not run.reason]
        spent_s = (stage.clock() - started) / 1e9
        if not alive or (done >= least and spent_s >= plan.process_seconds):
            return
        stage.sleep(SETTLE_S)
        probes.append(stage.probe())
        for index in rng.permutation(len(alive)):
            stage.sleep(SETTLE_S)
            alive[index].attempt(lambda run=alive[index], done=earlier + done: block(run, done))
        stage.progress.advance()


def _judge_outputs(runs: Sequence[Running], shape: Shape, plan: Plan, stage: Stage) -> None:
    """Compare the outputs of every run with its family's on PyTorch, for the same feed."""
    references: list[tuple[Bundle, Reference]] = []
    for run in runs:
        if run.reason:
            continue
        reference = next((found for one, found in references if same_model(one, run.bundle)), None)
        if reference is None:
            reference = _reference_of(run.bundle, runs, shape, plan, stage)
            references.append((run.bundle, reference))
        if isinstance(reference, str):
            run.no_reference = reference
            continue
        signature = run.bundle.manifest.signature
        if plan.load.writes:
            run.same_tokens = same_share(run.outputs[TOKENS], reference[TOKENS])
            reference = {LOGITS: reference[LOGITS]}
            signature, feed = checked_feed(signature, shape)
        else:
            feed = shape.feed_for(signature, plan.seed)
        run.agreement = agreement_of(
            signature, feed, reference, run.outputs, allowed_error(run.bundle, run.way)
        )
        run.wrong = "; ".join(one.wrong for one in run.agreement if one.wrong)


def _reference_of(
    bundle: Bundle,
    runs: Iterable[Running],
    shape: Shape,
    plan: Plan,
    stage: Stage,
) -> Reference:
    """Outputs of the PyTorch model a bundle was made from; of a row, if one ran it."""
    for run in runs:
        if is_reference(run.way) and same_model(run.bundle, bundle):
            return run.reason or run.outputs
    stage.progress.step(f"{shape}: outputs of PyTorch")
    worker = stage.start(bundle.path, REFERENCE, shape, plan)
    try:
        worker.load()
        return worker.outputs()
    except TfxError as error:
        return said(error)
    finally:
        worker.close()
