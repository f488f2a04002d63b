"""Bundles x ways to run them x shapes to a report, in interleaved rounds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.errors import BundleError, DataError, TfxError
from tfx.runtime.clock import SETTLE_S, Clock, WarmUp, block_calls
from tfx.runtime.stats import LEAST_ROUNDS, compare_speed, latency_of

from .accuracy import Judge, Judged
from .energy import EnergyMeter
from .family import (
    OF_SOURCE,
    REFERENCE,
    allowed_error,
    is_reference,
    model_bytes,
    pairs_of,
    said,
    same_model,
)
from .generation import (
    LOGITS,
    TOKENS,
    Writing,
    Written,
    checked_feed,
    require_cache,
    same_share,
    writing_of,
)
from .machine import Machine
from .probe import Probe, Probing
from .report import (
    Agreement,
    BenchReport,
    Measurement,
    Row,
    Status,
    agreement_of,
    percentiles_of,
)
from .scenario import MIXED_CALLS, Scenario
from .worker import Loaded, ProcessWorker, Start, Worker
from .workload import Plan, Shape, Way, shapes_of

# What is unfinished of a run whose shapes are measured, and not their accuracy.
ACCURACY = "accuracy"

# Reference outputs, or why there are none.
Reference = dict[str, np.ndarray] | str


@dataclass(slots=True)
class _Run:
    """A row while it is measured."""

    bundle: Bundle
    way: Way
    worker: Worker
    reason: str = ""
    loaded: Loaded | None = None
    warm_up: WarmUp | None = None
    calls: int = 0
    rounds: list[list[int]] = field(default_factory=list)
    elapsed_ns: int = 0
    joules: float | None = None
    peak_memory_mb: float | None = None
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    agreement: tuple[Agreement, ...] | None = None
    no_reference: str = ""
    wrong: str = ""
    texts: list[Written] = field(default_factory=list)
    same_tokens: float | None = None

    @property
    def name(self) -> str:
        return f"{self.bundle.name} on {self.way}"

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
        return float(np.median(self.rounds))

    def attempt(self, step: Callable[[], None]) -> None:
        """Do ``step`` unless an earlier one failed; keep why it fails."""
        if self.reason:
            return
        try:
            step()
        except TfxError as error:
            self.reason = said(error)
            self.worker.close()


def measure(
    bundles: Sequence[Bundle],
    plan: Plan,
    ways: Sequence[Way],
    machine: Machine,
    *,
    progress: Progress,
    start: Start = ProcessWorker,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    probe: Probing | None = None,
    earlier: BenchReport | None = None,
    keep: Callable[[BenchReport], None] = lambda report: None,
) -> BenchReport:
    """Measure every bundle in every way.

    All rows of a shape are loaded, each in its own process, and give their outputs; those that are
    not wrong are warmed up; then rounds in which every row runs one block of calls, in an order
    drawn anew each time. What the machine does meanwhile (heat, other processes) so hits all rows
    alike. Accuracy, where the plan asks for it, comes last, one row after the other.

    Args:
        bundles: At least one.
        plan: Shapes, budget and seed.
        ways: Backends and precisions.
        machine: What this runs on.
        progress: Told of every step.
        start: Makes the worker of a row.
        clock: Nanoseconds, for the budget.
        sleep: Waits, in seconds.
        probe: Fixed work, timed before each round; None for a product of matrices.
        earlier: What an interrupted run of the same plan left; what it finished is not done again.
        keep: Given the report so far after each step that counts, also when interrupted.

    Returns:
        A row per shape, bundle and way; one that cannot run says why and takes no other along.

    Raises:
        BundleError: If outputs of a bundle's precision cannot be judged.
        DataError: If the data of accuracy cannot be read.
        FeedError: If text is to be generated with a bundle that has no cache.
    """
    if plan.load.writes:
        require_cache(bundles)
    for bundle in bundles:
        for way in ways:
            allowed_error(bundle, way)
    judge = Judge(plan, progress, start) if plan.data else None
    shapes, notes = shapes_of([bundle.manifest.signature for bundle in bundles], plan)
    damaged = {}
    for bundle in bundles:
        progress.step(f"checking {bundle.name}")
        damaged[bundle.path] = _damage(bundle)
    pairs = pairs_of(bundles, ways, damaged)
    begun = earlier.created if earlier else datetime.now(UTC).isoformat(timespec="seconds")
    done = _finished_rows(earlier, shapes, pairs)
    probes = {title: earlier.probes.get(title, ()) for title in done} if earlier else {}
    probe = probe or Probe()
    left = [str(shape) for shape in shapes if str(shape) not in done]

    def report(*, judged: bool = False) -> BenchReport:
        rows = tuple(row for shape in shapes for row in done.get(str(shape), ()))
        unfinished = (*left, *((ACCURACY,) if judge and not judged else ()))
        return BenchReport(machine, plan, notes, rows, begun, unfinished, probes)

    try:
        for shape in shapes:
            if str(shape) not in left:
                continue
            runs = [
                _Run(bundle, way, start(bundle.path, way, shape, plan), damaged[bundle.path])
                for bundle, way in pairs
            ]
            times_ms: list[float] = []
            try:
                _measure_shape(
                    runs,
                    shape,
                    plan,
                    progress,
                    start,
                    clock,
                    sleep,
                    lambda times_ms=times_ms: times_ms.append(probe()),  # type: ignore[misc]
                )
                left.remove(str(shape))
            finally:
                for run in runs:
                    run.worker.close()
                if all(run.settled for run in runs):
                    count = _same_rounds(runs)
                    probes[str(shape)] = tuple(times_ms[:count])
                    done[str(shape)] = [_row(run, runs, shape, plan) for run in runs]
                keep(report())
        if judge is not None:
            for judged_rows in _judged(done, shapes, pairs, judge):
                done |= judged_rows
                keep(report())
    finally:
        if judge is not None:
            judge.close()
    finished = report(judged=True)
    keep(finished)
    return finished


def _finished_rows(
    earlier: BenchReport | None, shapes: Sequence[Shape], pairs: Sequence[tuple[Bundle, Way]]
) -> dict[str, list[Row]]:
    """Rows of the shapes that an earlier run came to the end of, by title.

    Raises:
        DataError: If it measured other bundles, in other ways or shapes.
    """
    if earlier is None:
        return {}
    wanted = [(bundle.digest, way) for bundle, way in pairs]
    found = {
        title: rows for title, rows in earlier.by_shape().items() if title not in earlier.unfinished
    }
    if strange := found.keys() - {str(shape) for shape in shapes}:
        raise DataError(
            f"the earlier run measured {', '.join(sorted(strange))}, this one does not",
            hint="Give the same sizes, or begin anew without --resume.",
        )
    for title, rows in found.items():
        if [(row.digest, row.way) for row in rows] != wanted:
            names = ", ".join(row.name for row in rows)
            raise DataError(
                f"the earlier run measured other rows at {title}: {names}",
                hint="Give the same bundles and backends, or begin anew without --resume.",
            )
    return found


def _judged(
    done: Mapping[str, Sequence[Row]],
    shapes: Sequence[Shape],
    pairs: Sequence[tuple[Bundle, Way]],
    judge: Judge,
) -> Iterator[dict[str, list[Row]]]:
    """Rows with their accuracy, again after each bundle and way; it is that of every shape."""
    for index, (bundle, way) in enumerate(pairs):
        mine = [done[str(shape)][index] for shape in shapes]
        known = next((row for row in mine if row.accuracy or row.no_accuracy), None)
        if known is not None:
            judged = Judged(known.accuracy, known.no_accuracy)
        elif any(row.status is Status.MEASURED for row in mine):
            judged = judge.judge(bundle, way, shapes[0])
        else:
            continue
        yield {
            str(shape): [
                dataclasses.replace(row, accuracy=judged.accuracy, no_accuracy=judged.reason)
                if at == index and row.status is Status.MEASURED
                else row
                for at, row in enumerate(done[str(shape)])
            ]
            for shape in shapes
        }


def _measure_shape(
    runs: Sequence[_Run],
    shape: Shape,
    plan: Plan,
    progress: Progress,
    start: Start,
    clock: Clock,
    sleep: Callable[[float], None],
    probe: Callable[[], None],
) -> None:
    def load(run: _Run) -> None:
        run.loaded = run.worker.load()
        run.outputs = run.worker.outputs()

    def warm_up(run: _Run) -> None:
        run.warm_up = run.worker.warm_up(plan.seconds)
        if plan.load.scenario in (Scenario.OFFLINE, Scenario.GENERATION):
            run.calls = 1
        else:
            run.calls = MIXED_CALLS if plan.load.mixed else block_calls(run.warm_up.median_ms)

    def collect(run: _Run) -> None:
        run.peak_memory_mb = run.worker.peak_memory_mb()

    for run in runs:
        progress.step(f"{shape}: loading {run.name}")
        run.attempt(lambda run=run: load(run))  # type: ignore[misc]
    _judge_outputs(runs, shape, plan, progress, start)
    for run in runs:
        if run.wrong:  # nothing is measured on wrong outputs
            run.worker.close()
            continue
        progress.step(f"{shape}: warming up {run.name}")
        run.attempt(lambda run=run: warm_up(run))  # type: ignore[misc]
    progress.step(f"{shape}: measuring", plan.rounds)
    fair = [run for run in runs if run.fair]
    _interleave(fair, plan, progress, clock, sleep, probe)
    for run in fair:
        run.attempt(lambda run=run: collect(run))  # type: ignore[misc]


def _same_rounds(runs: Sequence[_Run]) -> int:
    """Leave out a round that an interruption cut, rows are compared round by round; how many."""
    count = min((len(run.rounds) for run in runs if run.fair), default=0)
    for run in runs:
        del run.rounds[count:]
        del run.texts[count:]
    return count


def _damage(bundle: Bundle) -> str:
    """Why a bundle must not be run, or ""; reads every file, so that rows load from memory."""
    try:
        bundle.verify()
    except BundleError as error:
        return said(error)
    return ""


def _interleave(
    runs: Iterable[_Run],
    plan: Plan,
    progress: Progress,
    clock: Clock,
    sleep: Callable[[float], None],
    probe: Callable[[], None],
) -> None:
    rng = np.random.default_rng(plan.seed)
    meter = EnergyMeter()
    load = plan.load

    def block(run: _Run, done: int) -> None:
        before = meter.read()
        if load.scenario == Scenario.SERVER:
            served = run.worker.serve(load.arrivals, load.qps, plan.seed + done)
            run.rounds.append(served.samples_ns)
            run.elapsed_ns += served.elapsed_ns
        elif load.writes:
            run.texts.append(run.worker.write())
            run.rounds.append(run.texts[-1].steps_ns)
        elif load.mixed:
            run.rounds.append(run.worker.block(run.calls, done * run.calls))
        else:
            run.rounds.append(run.worker.block(run.calls))
        took = meter.joules(before, meter.read())
        if took is not None:
            # The call that is not timed takes energy too.
            run.joules = (run.joules or 0) + took / (len(run.rounds[-1]) + 1)

    started = clock()
    for done in range(plan.rounds):
        alive = [run for run in runs if not run.reason]
        spent_s = (clock() - started) / 1e9
        if not alive or (done >= LEAST_ROUNDS and spent_s >= plan.seconds):
            return
        sleep(SETTLE_S)
        probe()
        for index in rng.permutation(len(alive)):
            sleep(SETTLE_S)
            alive[index].attempt(lambda run=alive[index], done=done: block(run, done))
        progress.advance()


def _judge_outputs(
    runs: Sequence[_Run], shape: Shape, plan: Plan, progress: Progress, start: Start
) -> None:
    """Compare the outputs of every run with its family's on PyTorch, for the same feed."""
    references: list[tuple[Bundle, Reference]] = []
    for run in runs:
        if run.reason:
            continue
        reference = next((found for one, found in references if same_model(one, run.bundle)), None)
        if reference is None:
            reference = _reference_of(run.bundle, runs, shape, plan, progress, start)
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
    runs: Iterable[_Run],
    shape: Shape,
    plan: Plan,
    progress: Progress,
    start: Start,
) -> Reference:
    """Outputs of the PyTorch model a bundle was made from; of a row, if one ran it."""
    for run in runs:
        if is_reference(run.way) and same_model(run.bundle, bundle):
            return run.reason or run.outputs
    progress.step(f"{shape}: outputs of PyTorch")
    worker = start(bundle.path, REFERENCE, shape, plan)
    try:
        worker.load()
        return worker.outputs()
    except TfxError as error:
        return said(error)
    finally:
        worker.close()


def _row(run: _Run, runs: Sequence[_Run], shape: Shape, plan: Plan) -> Row:
    measurement = comparison = None
    if run.fair:
        assert run.loaded is not None
        assert run.warm_up is not None
        latency = latency_of(run.rounds)
        measurement = Measurement(
            facts=run.loaded.facts,
            load_s=run.loaded.load_s,
            first_call_ms=run.loaded.first_call_ms,
            peak_memory_mb=run.peak_memory_mb,
            warm_up=run.warm_up,
            rounds=len(run.rounds),
            latency=latency,
            throughput_per_s=_throughput(run, shape, latency.median_ms),
            round_ms=tuple(round(float(np.median(one)) / 1e6, 6) for one in run.rounds),
            percentiles_ms=percentiles_of(run.rounds),
            joules_per_call=None if run.joules is None else run.joules / len(run.rounds),
            writing=_writing(run, shape),
        )
        baseline = _baseline_of(run, runs)
        if baseline is not None and baseline is not run:
            rng = np.random.default_rng(plan.seed)
            comparison = compare_speed(run.rounds, baseline.rounds, against=baseline.name, rng=rng)
    return Row(
        bundle=run.bundle.name,
        digest=run.bundle.digest,
        random_weights=run.bundle.manifest.source.random_weights,
        backend=run.way.backend,
        precision=run.way.precision,
        sizes=shape.sizes,
        status=Status.NOT_RUN if run.reason else Status.WRONG if run.wrong else Status.MEASURED,
        reason=run.reason or run.wrong,
        measurement=measurement,
        agreement=run.agreement,
        no_reference=run.no_reference,
        comparison=comparison,
        load=shape.load,
        model_bytes=None if run.way.backend in OF_SOURCE else model_bytes(run.bundle),
    )


def _writing(run: _Run, shape: Shape) -> Writing | None:
    if not run.texts:
        return None
    return writing_of(run.texts, shape.batch, run.same_tokens, run.bundle.manifest.signature)


def _throughput(run: _Run, shape: Shape, median_ms: float) -> float:
    """Samples per second: of the median call, or of the server what it really answered.

    Where text is generated, new tokens of all rows.
    """
    if (writing := _writing(run, shape)) is not None:
        return writing.tokens_per_s
    if run.elapsed_ns:
        return sum(map(len, run.rounds)) * shape.batch * 1e9 / run.elapsed_ns
    samples = (run.loaded.samples if run.loaded else 0) or shape.batch
    return samples * 1000 / median_ms


def _baseline_of(run: _Run, runs: Sequence[_Run]) -> _Run | None:
    """The first PyTorch row of the same model; without one, the fastest row."""
    fair = [other for other in runs if other.fair]
    for other in fair:
        if is_reference(other.way) and same_model(other.bundle, run.bundle):
            return other
    return min(fair, key=lambda other: other.median, default=None)
