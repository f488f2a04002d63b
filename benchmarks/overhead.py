"""``python -m tfx.bench.overhead``: what ``Session.predict`` adds to ONNX Runtime's ``run``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from tfx.bundle import Bundle
from tfx.console import FOLDER, chosen_bundle, emit_json, json_option
from tfx.errors import TfxError
from tfx.runtime.session import open_session

from .clock import Clock, time_calls, warm_up
from .stats import median_interval
from .workload import Plan, shapes_of

BACKEND = "onnxruntime"
LIMIT_US = 50.0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Time of ``Session.predict`` minus time of ``InferenceSession.run``, on the same feed.

    Attributes:
        shape: Of the feed.
        pairs: Calls of each that were made, one of each by turns.
        run_us: Median time of the bare ``run``.
        median_us: Median difference of the two calls of a pair.
        low_us: Lower end of its 95 % bootstrap interval.
        high_us: Upper end.
    """

    shape: str
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
    *,
    shape: str,
    seconds: float,
    rng: np.random.Generator,
    clock: Clock = time.perf_counter_ns,
) -> Overhead:
    """Time two calls in pairs, in an order drawn anew for each pair.

    Args:
        checked: Calls ``Session.predict``.
        bare: Calls ``InferenceSession.run``.
        shape: For the result.
        seconds: Begin no pair after this; 30 pairs are made at least.
        rng: Draws the order, and the bootstrap.
        clock: Gives nanoseconds.
    """
    warm_up(checked, limit_s=seconds, clock=clock)
    differences: list[float] = []
    bare_ns: list[int] = []
    started = clock()
    while len(bare_ns) < 30 or (clock() - started) / 1e9 < seconds:
        if rng.integers(2):
            (first,), (second,) = time_calls(checked, 1, clock), time_calls(bare, 1, clock)
        else:
            (second,), (first,) = time_calls(bare, 1, clock), time_calls(checked, 1, clock)
        differences.append((first - second) / 1e3)
        bare_ns.append(second)
    median, low, high = median_interval(np.array(differences), rng)
    return Overhead(shape, len(bare_ns), float(np.median(bare_ns)) / 1e3, median, low, high)


def bundle_overheads(bundle: Bundle, plan: Plan) -> list[Overhead]:
    """Overhead at every shape of the plan.

    Both calls use one and the same ``InferenceSession``: two of them differ by more than the
    overhead, from where their weights happen to lie in memory.
    """
    found = []
    shapes, _ = shapes_of([bundle.manifest.signature], plan)
    with open_session(bundle, backend=BACKEND, threads=plan.threads) as session:
        executable: Any = session._executable
        inference = executable._session
        outputs = [spec.name for spec in bundle.manifest.signature.outputs]
        for shape in shapes:
            feed: Mapping[str, np.ndarray] = shape.feed_for(session.signature, plan.seed)
            found.append(
                measure_overhead(
                    lambda feed=feed: session.predict(feed),  # type: ignore[misc]
                    lambda feed=feed: inference.run(outputs, feed),  # type: ignore[misc]
                    shape=str(shape),
                    seconds=plan.seconds,
                    rng=np.random.default_rng(plan.seed),
                )
            )
    return found


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8), show_default=True)
@click.option("--length", "lengths", multiple=True, type=int, default=(128,), show_default=True)
@click.option("--seconds", default=10.0, help="Per shape.", show_default=True)
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@json_option
def overhead(
    bundle: Path | None,
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    seconds: float,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what Session.predict costs beyond ONNX Runtime's own run."""
    try:
        opened = chosen_bundle(bundle)
        plan = Plan(batches=batches, lengths=lengths, seconds=seconds, threads=threads)
        found = bundle_overheads(opened, plan)
    except TfxError as error:
        raise click.ClickException(f"{error}\n{error.hint}".rstrip()) from error
    if as_json:
        emit_json([{name: getattr(one, name) for name in _FIELDS} for one in found])
        return
    for one in found:
        click.echo(
            f"{one.shape}: {one.median_us:.1f} us over {one.run_us:.0f} us of run, 95 % interval "
            f"{one.low_us:.1f}..{one.high_us:.1f}, {one.pairs} pairs; "
            f"within {LIMIT_US:.0f} us: {one.verdict}"
        )


_FIELDS = ("shape", "pairs", "run_us", "median_us", "low_us", "high_us", "verdict")

if __name__ == "__main__":
    overhead()
