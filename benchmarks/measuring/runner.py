"""Bundles x ways to run them x shapes to a report, in interleaved rounds."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.errors import BundleError, DataError
from tfx.runtime.clock import Clock
from tfx.runtime.stats import latency_of

from .accuracy import Judge, Judged
from .family import OF_SOURCE, allowed_error, is_reference, model_bytes, pairs_of, said, same_model
from .generation import Writing, require_cache, writing_of
from .machine import Machine
from .probe import Probe, Probing
from .processes import compare_rows
from .report import BenchReport, Measurement, Row, Status, percentiles_of
from .rounds import Running, Stage, measure_again, measure_shape
from .worker import ProcessWorker, Start
from .workload import Plan, Shape, Way, shapes_of

# What is unfinished of a run whose shapes are measured, and not their accuracy.
ACCURACY = "accuracy"

# Of the rows of one shape so far, the names of those that need another process.
More = Callable[[BenchReport], Collection[str]]


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
    more: More | None = None,
) -> BenchReport:
    """Measure every bundle in every way.

    All rows of a shape are loaded, each in its own process, and give their outputs; those that are
    not wrong are warmed up; then rounds in which every row runs one block of calls, in an order
    drawn anew each time. What the machine does meanwhile (heat, other processes) so hits all rows
    alike. So it goes for each process of the plan, and those ``more`` asks for. Accuracy, where
    the plan asks for it, comes last, one row after the other.

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
        more: Says which rows of a shape need another process, until it says none; what a row is
            compared with gets one too.

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
    course = _begun(machine, plan, notes, shapes, _finished_rows(earlier, shapes, pairs), earlier)
    stage = Stage(progress, start, clock, sleep, probe or Probe())
    try:
        for shape in list(course.left):
            runs = [
                Running(bundle, way, start(bundle.path, way, shape, plan), damaged[bundle.path])
                for bundle, way in pairs
            ]
            try:
                _measure_rows(runs, shape, course, stage, more)
            finally:
                keep(course.report())
        if judge is not None:
            for judged_rows in _judged(course.done, shapes, pairs, judge):
                course.done |= judged_rows
                keep(course.report())
            course.judged = True
    finally:
        if judge is not None:
            judge.close()
    finished = course.report()
    keep(finished)
    return finished


@dataclasses.dataclass(slots=True)
class _Course:
    """How far a run has come.

    Attributes:
        machine: What it runs on.
        plan: Of it.
        notes: Of its sizes.
        created: When it began.
        shapes: All of them.
        left: Those that are not measured to their end.
        done: Rows so far, by the title of their shape.
        probes: By the same.
        judged: Whether accuracy is measured, or not asked for.
    """

    machine: Machine
    plan: Plan
    notes: tuple[str, ...]
    created: str
    shapes: tuple[Shape, ...]
    left: list[Shape]
    done: dict[str, list[Row]]
    probes: dict[str, tuple[float, ...]]
    judged: bool

    def report(self) -> BenchReport:
        """What is known, and what is unfinished."""
        rows = tuple(row for shape in self.shapes for row in self.done.get(str(shape), ()))
        unfinished = (*map(str, self.left), *(() if self.judged else (ACCURACY,)))
        return BenchReport(
            self.machine, self.plan, self.notes, rows, self.created, unfinished, self.probes
        )


def _begun(
    machine: Machine,
    plan: Plan,
    notes: tuple[str, ...],
    shapes: tuple[Shape, ...],
    done: dict[str, list[Row]],
    earlier: BenchReport | None,
) -> _Course:
    """A run that has done what the earlier one came to the end of."""
    return _Course(
        machine,
        plan,
        notes,
        earlier.created if earlier else datetime.now(UTC).isoformat(timespec="seconds"),
        shapes,
        [shape for shape in shapes if str(shape) not in done],
        done,
        {title: earlier.probes.get(title, ()) for title in done} if earlier else {},
        judged=not plan.data,
    )


def _measure_rows(
    runs: Sequence[Running], shape: Shape, course: _Course, stage: Stage, more: More | None
) -> None:
    """Measure the rows of one shape, and end their processes; what there is goes into ``course``.

    Also when interrupted, where every row has something to report; the shape is left then.
    """
    title = str(shape)
    plan = course.plan
    times_ms: list[float] = []
    try:
        measure_shape(runs, shape, plan, stage, times_ms)
        wanted: Sequence[Running] = runs
        while more is not None:
            so_far = tuple(_row(run, wanted, shape, plan) for run in wanted)
            probes = {title: tuple(times_ms)}
            found = dataclasses.replace(course.report(), rows=so_far, probes=probes)
            if not (wanted := _with_baselines(wanted, more(found))):
                break
            measure_again(wanted, shape, plan, stage, times_ms)
        course.left.remove(shape)
    finally:
        for run in runs:
            run.worker.close()
        if all(run.settled for run in runs):
            course.probes[title] = tuple(times_ms)
            course.done[title] = [_row(run, runs, shape, plan) for run in runs]


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


def _with_baselines(last: Sequence[Running], names: Collection[str]) -> list[Running]:
    """Of the runs of the last process those named, and what they are compared with.

    A run that was left out once stays out: its rounds are the first of those of any other.
    """
    asked = [run for run in last if run.name in names and run.fair]
    beside = [_baseline_of(run, last) for run in asked]
    return [run for run in last if any(run is one for one in (*asked, *beside))]


def _damage(bundle: Bundle) -> str:
    """Why a bundle must not be run, or ""; reads every file, so that rows load from memory."""
    try:
        bundle.verify()
    except BundleError as error:
        return said(error)
    return ""


def _row(run: Running, runs: Sequence[Running], shape: Shape, plan: Plan) -> Row:
    measurement = comparison = None
    if run.fair:
        measurement = _measurement(run, shape, plan)
        baseline = _baseline_of(run, runs)
        if baseline is not None and baseline is not run:
            rng = np.random.default_rng(plan.seed)
            comparison = compare_rows(
                run.rounds, baseline.rounds, run.process_rounds, against=baseline.name, rng=rng
            )
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


def _measurement(run: Running, shape: Shape, plan: Plan) -> Measurement:
    assert run.warm_up is not None  # only of a row that ran
    latency = latency_of(run.rounds)
    loads = run.usual_loads
    return Measurement(
        facts=loads[-1].facts,
        load_s=statistics.median(one.load_s for one in loads),
        loads_s=tuple(one.load_s for one in run.loads),
        first_call_ms=statistics.median(one.first_call_ms for one in loads),
        peak_memory_mb=run.peak_memory_mb,
        warm_up=run.warm_up,
        rounds=len(run.rounds),
        latency=latency,
        throughput_per_s=_throughput(run, shape, latency.median_ms),
        process_rounds=tuple(run.process_rounds),
        round_min_ms=_fastest_ms(run.rounds) if plan.load.alike else (),
        round_ms=tuple(round(float(np.median(one)) / 1e6, 6) for one in run.rounds),
        percentiles_ms=percentiles_of(run.rounds),
        joules_per_call=run.joules_per_call,
        writing=_writing(run, shape),
    )


def _fastest_ms(rounds: Sequence[Sequence[int]]) -> tuple[float, ...]:
    return tuple(round(min(one) / 1e6, 6) for one in rounds)


def _writing(run: Running, shape: Shape) -> Writing | None:
    if not run.texts:
        return None
    return writing_of(run.texts, shape.batch, run.same_tokens, run.bundle.manifest.signature)


def _throughput(run: Running, shape: Shape, median_ms: float) -> float:
    """Samples per second: of the median call, or of the server what it really answered.

    Where text is generated, new tokens of all rows.
    """
    if (writing := _writing(run, shape)) is not None:
        return writing.tokens_per_s
    if run.elapsed_ns:
        return run.answered * shape.batch * 1e9 / run.elapsed_ns
    samples = (run.loads[0].samples if run.loads else 0) or shape.batch
    return samples * 1000 / median_ms


def _baseline_of(run: Running, runs: Sequence[Running]) -> Running | None:
    """The first PyTorch row of the same model; without one, the fastest row."""
    fair = [other for other in runs if other.fair]
    for other in fair:
        if is_reference(other.way) and same_model(other.bundle, run.bundle):
            return other
    return min(fair, key=lambda other: other.median, default=None)
