"""``python -m tfx.bench.overhead``: what ``Session.predict`` adds to a bare call of ONNX Runtime.

The bare call is ``InferenceSession.run``, as its users call it. What is added is microseconds to a
run of milliseconds that varies by more: the difference of two whole calls drowns in that. So a
stopwatch stands around the run itself, which both calls end in, and what is compared is the time
outside of it. It is measured twice. After a run of the model, which has emptied the caches: this
is what a service sees. And with the caches warm, where the stopwatch holds no model and gives back
stored outputs: this is the work itself, as a loop without a model would show it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import FOLDER, chosen_bundle, console, emit_json, json_option, told_errors
from tfx.runtime.backend import RunOptions
from tfx.runtime.backends.onnxruntime import OnnxExecutable, OnnxRuntime
from tfx.runtime.clock import Clock, warm_up
from tfx.runtime.cpus import usable_cpus
from tfx.runtime.session import Session
from tfx.runtime.stats import median_interval
from tfx.signature import Feed

from .measuring.machine import this_machine
from .measuring.workload import Plan, shapes_of
from .pages.figures import span_text
from .pages.stored import now, save_option, save_result

LIMIT_US = 30.0
# Enough for an interval of less than a microsecond where no model runs.
MOST_PAIRS = 5000
LEAST_PAIRS = 30

COLD, WARM = "after a run", "caches warm"


class Native(Protocol):
    """What both calls end in: what runs inside ``InferenceSession``, or what stands in for it."""

    def run(self, names: Sequence[str], feed: Feed, options: Any) -> Sequence[np.ndarray]:
        """Outputs of ``names``, in their order."""
        ...


class Stopwatch:
    """Notes how long the run inside it took; all else is that of what it stands in for.

    Attributes:
        inside_ns: Of the last run.
    """

    def __init__(self, inside: Native, clock: Clock, stands_in_for: object = None) -> None:
        self.inside_ns = 0
        self._inside = inside
        self._clock = clock
        # Copied, for InferenceSession to find it as fast as without a stopwatch.
        for name in dir(stands_in_for):
            if not name.startswith("_") and name != "run":
                setattr(self, name, getattr(stands_in_for, name))

    def run(self, names: Sequence[str], feed: Feed, options: Any = None) -> Sequence[np.ndarray]:
        """Outputs of what is inside."""
        started = self._clock()
        values = self._inside.run(names, feed, options)
        self.inside_ns = self._clock() - started
        return values


class Replay:
    """Gives back stored outputs in place of a run."""

    def __init__(self, values: Sequence[np.ndarray]) -> None:
        self._values = values

    def run(self, names: Sequence[str], feed: Feed, options: Any) -> Sequence[np.ndarray]:
        """The stored outputs."""
        return self._values


@dataclass(frozen=True, slots=True)
class Overhead:
    """What ``Session.predict`` adds to ``InferenceSession.run``, on the same feed.

    Attributes:
        shape: Of the feed.
        caches: ``COLD`` or ``WARM``.
        pairs: Calls of each that were made, one of each by turns.
        run_us: Median time of the bare run.
        median_us: Median, over pairs, of the time outside the run, less that of the bare call.
        low_us: Lower end of its 95 % interval, of this process and these minutes.
        high_us: Upper end.
    """

    shape: str
    caches: str
    pairs: int
    run_us: float
    median_us: float
    low_us: float
    high_us: float

    @property
    def verdict(self) -> str:
        """Whether it is within ``LIMIT_US``, as far as the interval allows to say."""
        if self.high_us <= LIMIT_US:
            return "yes"
        return "no" if self.low_us > LIMIT_US else "cannot say"


def measure_overhead(
    checked: Callable[[], object],
    bare: Callable[[], object],
    watch: Stopwatch,
    *,
    shape: str,
    caches: str,
    seconds: float,
    rng: np.random.Generator,
    clock: Clock = time.perf_counter_ns,
) -> Overhead:
    """Time two calls in pairs, in an order drawn anew for each pair.

    Args:
        checked: Calls ``Session.predict``, and that the stopwatch.
        bare: Calls ``InferenceSession.run``, and that the stopwatch.
        watch: Notes the time of the run itself.
        shape: For the result.
        caches: For the result.
        seconds: Begin no pair after this; at least ``LEAST_PAIRS`` are made, at most
            ``MOST_PAIRS``.
        rng: Draws the order.
        clock: Gives nanoseconds.
    """

    def outside_us(call: Callable[[], object]) -> float:
        started = clock()
        call()
        return (clock() - started - watch.inside_ns) / 1e3

    warm_up(checked, limit_s=seconds, clock=clock)
    differences: list[float] = []
    runs_us: list[float] = []
    started = clock()
    while len(runs_us) < LEAST_PAIRS or (
        len(runs_us) < MOST_PAIRS and (clock() - started) / 1e9 < seconds
    ):
        outside: dict[bool, float] = {}
        first = bool(rng.integers(2))
        for is_checked in (first, not first):
            outside[is_checked] = outside_us(checked if is_checked else bare)
            if not is_checked:
                runs_us.append(watch.inside_ns / 1e3)
        differences.append(outside[True] - outside[False])
    median, low, high = median_interval(np.array(differences))
    assert low is not None  # of so many pairs
    assert high is not None
    return Overhead(shape, caches, len(runs_us), float(np.median(runs_us)), median, low, high)


def bundle_overheads(bundle: Bundle, plan: Plan) -> list[Overhead]:
    """Overhead at every shape of the plan, after a run of the model and with the caches warm.

    Raises:
        BackendError: If ONNX Runtime cannot run the bundle.
    """
    found = []
    signature = bundle.manifest.signature
    shapes, notes = shapes_of([signature], plan)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    names = [spec.name for spec in signature.outputs]
    executable = OnnxRuntime().load(bundle, RunOptions(threads=plan.threads or usable_cpus()))
    assert isinstance(executable, OnnxExecutable)
    inference, native = executable.inference, executable.native
    assert inference._sess is native
    with Session(bundle, executable, load_s=0.0) as session:
        for shape in shapes:
            feed = shape.feed_for(signature, plan.seed)
            replay = Replay(inference.run(names, feed))
            for caches, inside in ((COLD, native), (WARM, replay)):
                watch = Stopwatch(inside, time.perf_counter_ns, native)
                executable.native = inference._sess = watch
                found.append(
                    measure_overhead(
                        lambda feed=feed: session.predict(feed),  # type: ignore[misc]
                        lambda feed=feed: inference.run(names, feed),  # type: ignore[misc]
                        watch,
                        shape=str(shape),
                        caches=caches,
                        seconds=plan.seconds,
                        rng=np.random.default_rng(plan.seed),
                    )
                )
    return found


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8), show_default=True)
@click.option("--length", "lengths", multiple=True, type=int, default=(128,), show_default=True)
@click.option("--seconds", default=10.0, help="Per row.", show_default=True)
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@save_option
@json_option
def overhead(
    bundle: Path | None,
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    seconds: float,
    threads: int | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure what Session.predict costs beyond a bare call of ONNX Runtime."""
    machine, created = this_machine(), now()
    with told_errors():
        opened = chosen_bundle(bundle)
        plan = Plan(batches=batches, lengths=lengths, seconds=seconds, threads=threads)
        found = bundle_overheads(opened, plan)
        document = {
            "bundle": opened.name,
            "rows": [encode(one) | {"verdict": one.verdict} for one in found],
        }
        if save is not None:
            save_result(save, "overhead", created, document, machine)
    if as_json:
        emit_json(document)
        return
    show_overheads(found)
    console().print(f"load average {machine.load_average:.1f} when it began", markup=False)


HEADS = ("shape", "", "run us", "overhead us", "95 %", "pairs", f"within {LIMIT_US:.0f} us")


def cells_of(one: Overhead) -> tuple[str, ...]:
    """What stands under ``HEADS``."""
    return (
        one.shape,
        one.caches,
        f"{one.run_us:.0f}" if one.caches == COLD else "-",
        f"{one.median_us:.1f}",
        span_text(one.low_us, one.high_us, ".1f"),
        str(one.pairs),
        one.verdict,
    )


def show_overheads(found: Sequence[Overhead]) -> None:
    """Print a table, one row per shape and state of the caches."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in HEADS:
        table.add_column(name, justify="left" if name in HEADS[:2] else "right")
    for one in found:
        table.add_row(*cells_of(one))
    console().print(table)


if __name__ == "__main__":
    overhead()
