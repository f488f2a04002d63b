"""Bundles x ways to run them x shapes to a report, in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.errors import BundleError, TfxError
from tfx.runtime.backend import RunOptions, float_type
from tfx.runtime.clock import SETTLE_S, Clock, WarmUp, block_calls
from tfx.runtime.compare import tolerance_of
from tfx.runtime.stats import LEAST_ROUNDS, compare_speed, latency_of

from .machine import Machine
from .report import Agreement, BenchReport, Measurement, Row, Status, agreement_of
from .worker import Loaded, ProcessWorker, Worker
from .workload import Plan, Shape, Way, shapes_of

REFERENCE = Way("torch")
# They run a bundle's source and not its graph.
OF_SOURCE = (REFERENCE.backend, "torch-compiled")

# Makes the worker of a row; tests give others.
Start = Callable[[Path, Way, Shape, Plan], Worker]
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
    peak_memory_mb: float | None = None
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    agreement: tuple[Agreement, ...] | None = None
    no_reference: str = ""
    wrong: str = ""

    @property
    def name(self) -> str:
        return f"{self.bundle.name} on {self.way}"

    @property
    def fair(self) -> bool:
        """Whether its speed may be compared."""
        return not self.reason and not self.wrong

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
            self.reason = _said(error)
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
) -> BenchReport:
    """Measure every bundle in every way.

    All rows of a shape are loaded and warmed up, each in its own process; then rounds in which
    every row runs one block of calls, in an order drawn anew each time. What the machine does
    meanwhile (heat, other processes) so hits all rows alike.

    Args:
        bundles: At least one.
        plan: Shapes, budget and seed.
        ways: Backends and precisions.
        machine: What this runs on.
        progress: Told of every step.
        start: Makes the worker of a row.
        clock: Nanoseconds, for the budget.
        sleep: Waits, in seconds.

    Returns:
        A row per shape, bundle and way; one that cannot run says why and takes no other along.

    Raises:
        BundleError: If outputs of a bundle's precision cannot be judged.
    """
    for bundle in bundles:
        for way in ways:
            allowed_error(bundle, way)
    shapes, notes = shapes_of([bundle.manifest.signature for bundle in bundles], plan)
    rows: list[Row] = []
    damaged = {}
    for bundle in bundles:
        progress.step(f"checking {bundle.name}")
        damaged[bundle.path] = _damage(bundle)
    pairs = _pairs(bundles, ways, damaged)
    for shape in shapes:
        runs = [
            _Run(bundle, way, start(bundle.path, way, shape, plan), damaged[bundle.path])
            for bundle, way in pairs
        ]
        try:
            _prepare(runs, shape, plan, progress)
            progress.step(f"{shape}: measuring", plan.rounds)
            _interleave(runs, plan, progress, clock, sleep)
            for run in runs:
                run.attempt(lambda run=run: _collect(run))  # type: ignore[misc]
        finally:
            for run in runs:
                run.worker.close()
        _judge_outputs(runs, shape, plan, progress, start)
        rows += [_row(run, runs, shape, plan) for run in runs]
    return BenchReport(machine, plan, notes, tuple(rows))


def _damage(bundle: Bundle) -> str:
    """Why a bundle must not be run, or ""; reads every file, so that rows load from memory."""
    try:
        bundle.verify()
    except BundleError as error:
        return _said(error)
    return ""


def _pairs(
    bundles: Sequence[Bundle], ways: Sequence[Way], damaged: Mapping[Path, str]
) -> list[tuple[Bundle, Way]]:
    """What the rows of a shape are: PyTorch runs a source, so once for all bundles made from it."""
    pairs: list[tuple[Bundle, Way]] = []
    for bundle in bundles:
        for way in ways:
            again = way.backend in OF_SOURCE and any(
                other == way and not damaged[one.path] and _same_model(one, bundle)
                for one, other in pairs
            )
            if not again:
                pairs.append((bundle, way))
    return pairs


def _said(error: TfxError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def is_reference(way: Way) -> bool:
    """Whether a row's outputs are what the others' are compared with: PyTorch in float32."""
    return way.backend == REFERENCE.backend and way.precision in ("", "fp32")


def allowed_error(bundle: Bundle, way: Way) -> float:
    """Largest scaled error of the bundle's precision, or of the one it runs in if that is lower.

    Raises:
        BundleError: If there is no tolerance for it.
    """
    try:
        runs_in = float_type(bundle, RunOptions(precision=way.precision))
        return tolerance_of(bundle.manifest.precision, runs_in)
    except BundleError as error:
        raise BundleError(f"{bundle.name}: {error}", hint=error.hint) from error


def _prepare(runs: Iterable[_Run], shape: Shape, plan: Plan, progress: Progress) -> None:
    def load(run: _Run) -> None:
        run.loaded = run.worker.load()

    def warm_up(run: _Run) -> None:
        run.warm_up = run.worker.warm_up(plan.seconds)
        run.calls = block_calls(run.warm_up.median_ms)

    for run in runs:
        progress.step(f"{shape}: loading {run.name}")
        run.attempt(lambda run=run: load(run))  # type: ignore[misc]
        run.attempt(lambda run=run: warm_up(run))  # type: ignore[misc]


def _interleave(
    runs: Iterable[_Run],
    plan: Plan,
    progress: Progress,
    clock: Clock,
    sleep: Callable[[float], None],
) -> None:
    rng = np.random.default_rng(plan.seed)

    def block(run: _Run) -> None:
        run.rounds.append(run.worker.block(run.calls))

    started = clock()
    for done in range(plan.rounds):
        alive = [run for run in runs if not run.reason]
        spent_s = (clock() - started) / 1e9
        if not alive or (done >= LEAST_ROUNDS and spent_s >= plan.seconds):
            return
        for index in rng.permutation(len(alive)):
            sleep(SETTLE_S)
            alive[index].attempt(lambda run=alive[index]: block(run))
        progress.advance()


def _collect(run: _Run) -> None:
    run.peak_memory_mb = run.worker.peak_memory_mb()
    run.outputs = run.worker.outputs()


def _judge_outputs(
    runs: Sequence[_Run], shape: Shape, plan: Plan, progress: Progress, start: Start
) -> None:
    """Compare the outputs of every run with its family's on PyTorch, for the same feed."""
    references: list[tuple[Bundle, Reference]] = []
    for run in runs:
        if run.reason:
            continue
        reference = next((found for one, found in references if _same_model(one, run.bundle)), None)
        if reference is None:
            reference = _reference_of(run.bundle, runs, shape, plan, progress, start)
            references.append((run.bundle, reference))
        if isinstance(reference, str):
            run.no_reference = reference
            continue
        signature = run.bundle.manifest.signature
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
        if is_reference(run.way) and _same_model(run.bundle, bundle):
            return run.reason or run.outputs
    progress.step(f"{shape}: outputs of PyTorch")
    worker = start(bundle.path, REFERENCE, shape, plan)
    try:
        worker.load()
        return worker.outputs()
    except TfxError as error:
        return _said(error)
    finally:
        worker.close()


def _same_model(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles come from one PyTorch model and get the same feeds."""
    left, right = one.manifest, other.manifest
    return left.source == right.source and left.signature.inputs == right.signature.inputs


def _row(run: _Run, runs: Sequence[_Run], shape: Shape, plan: Plan) -> Row:
    measurement = comparison = None
    if not run.reason:
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
            throughput_per_s=shape.batch * 1000 / latency.median_ms,
        )
        baseline = _baseline_of(run, runs)
        if run.fair and baseline is not None and baseline is not run:
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
    )


def _baseline_of(run: _Run, runs: Sequence[_Run]) -> _Run | None:
    """The first PyTorch row of the same model; without one, the fastest row."""
    fair = [other for other in runs if other.fair]
    for other in fair:
        if is_reference(other.way) and _same_model(other.bundle, run.bundle):
            return other
    return min(fair, key=lambda other: other.median, default=None)
