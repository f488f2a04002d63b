"""``python -m tfx.bench.soak``: thousands of runs of changing shapes, and what memory does.

Every run draws a batch and a length anew. Memory is what the process has resident; it is noted
every so often, and after a first part, in which caches and arenas fill, a line is laid through it.
Its slope has an interval, made of stretches: neighbours are alike, and no evidence each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import click
import numpy as np
import psutil

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import (
    FOLDER,
    chosen_bundle,
    console,
    emit_json,
    json_option,
    progress,
    told_errors,
)
from tfx.feeds import random_feed
from tfx.runtime.backend import PRECISIONS
from tfx.runtime.opening import open_session
from tfx.runtime.session import Session

from .clients import made_sentences
from .measuring.machine import Machine, this_machine
from .measuring.workload import Plan, shapes_of
from .pages.stored import now, save_option, save_result

# Of the notes, the first part in which memory may grow.
WARM_UP = 0.25
# Notes of memory in a run, and stretches that the slope is made of.
NOTES, STRETCHES = 200, 10
# Two-sided 95 % of Student's t with STRETCHES - 2 degrees of freedom.
STUDENT_T = 2.306
# Growth that matters: what 10,000 runs may add.
LIMIT_MB = 1.0


class Growth(StrEnum):
    """What the interval of a slope allows to say."""

    GROWS = "grows"
    STEADY = "does not grow"
    UNSURE = "cannot say"


@dataclass(frozen=True, slots=True)
class Soak:
    """What memory did over many runs.

    Attributes:
        how: What was asked: "arrays", "texts" or "async".
        ran: Backend, version, engine and precision.
        predicts: Runs.
        seconds: All of them took.
        shapes: Different shapes among them; 0 where the session chose them.
        resident_mb: Memory, noted at even distances; in units of 10^6 bytes.
        slope_mb: Growth over 10,000 runs, after the first part.
        low_mb: Lower end of its 95 % interval.
        high_mb: Upper end.
    """

    how: str
    ran: str
    predicts: int
    seconds: float
    shapes: int
    resident_mb: tuple[float, ...]
    slope_mb: float
    low_mb: float
    high_mb: float

    @property
    def verdict(self) -> Growth:
        """Whether memory grows by more than ``LIMIT_MB``, as far as the interval allows to say.

        It must have done so in this run too: what a short one still fills up says nothing.
        """
        seen = self.predicts * (1 - WARM_UP) / 10_000
        if self.low_mb * min(1.0, seen) > LIMIT_MB:
            return Growth.GROWS
        return Growth.STEADY if self.high_mb < LIMIT_MB else Growth.UNSURE


def slope_of(values: np.ndarray, each: float) -> tuple[float, float, float]:
    """Slope of a line through values at even distances, with its 95 % interval.

    Least squares through the means of ``STRETCHES`` stretches: their errors are nearly independent,
    those of the values are not.

    Args:
        values: ``[n]``, of at least ``STRETCHES``.
        each: Distance of two.

    Returns:
        Slope, lower end, upper end.
    """
    parts = np.array_split(np.asarray(values, np.float64), STRETCHES)
    means = np.array([part.mean() for part in parts])
    ends = np.cumsum([len(part) for part in parts])
    places = (ends - np.array([len(part) for part in parts]) / 2) * each
    away = places - places.mean()
    spread = float(away @ away)
    slope = float(away @ means) / spread
    rest = means - means.mean() - slope * away
    error = float(np.sqrt(rest @ rest / (STRETCHES - 2) / spread))
    return slope, slope - STUDENT_T * error, slope + STUDENT_T * error


def soak_session(
    ask: Callable[[np.random.Generator], object],
    predicts: int,
    *,
    seed: int = 0,
    resident: Callable[[], int] = lambda: int(psutil.Process().memory_info().rss),
    on_progress: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, int]:
    """Ask many times, and note the memory.

    Args:
        ask: Runs once, of a shape that it draws.
        predicts: How many times; at least ``4 * STRETCHES``.
        seed: Of the shapes.
        resident: Gives bytes.
        on_progress: Told how many more are done.

    Returns:
        Memory in units of 10^6 bytes, and how many runs lie between two notes.
    """
    rng = np.random.default_rng(seed)
    each = max(1, predicts // NOTES)
    noted = []
    for number in range(1, predicts + 1):
        ask(rng)
        if number % each == 0:
            noted.append(resident() / 1e6)
            on_progress(each)
    return np.array(noted), each


def soak_bundle(
    bundle: Bundle,
    *,
    how: str,
    predicts: int,
    batch: int,
    length: int,
    backend: str,
    precision: str,
    threads: int | None,
    seed: int,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Soak:
    """Run a bundle many times.

    Args:
        bundle: What to run.
        how: "arrays", "texts" or "async".
        predicts: Runs.
        batch: Largest.
        length: Largest; of texts about as many words.
        backend: A name in ``BACKENDS``, or "".
        precision: As ``open_session`` takes it.
        threads: As ``open_session`` takes it.
        seed: Of the shapes and values.
        on_progress: Told how many more runs are done.

    Raises:
        BackendError: If the backend cannot run it.
        FeedError: If it takes no text and was asked to.
    """
    with open_session(
        bundle, backend=backend, precision=precision, threads=threads, verify=False
    ) as session:
        seen: set[tuple[tuple[str, int], ...]] = set()
        ask = _arrays(session, batch, length, seen)
        if how != "arrays":
            ask = _texts(session, batch, length, seed, merged=how == "async")
        started = time.perf_counter()
        noted, each = soak_session(ask, predicts, seed=seed, on_progress=on_progress)
        seconds = time.perf_counter() - started
        ran = str(session.report.facts)
    slope, low, high = slope_of(noted[int(len(noted) * WARM_UP) :], each / 10_000)
    return Soak(how, ran, predicts, seconds, len(seen), tuple(noted.tolist()), slope, low, high)


def _arrays(
    session: Session, batch: int, length: int, seen: set[tuple[tuple[str, int], ...]]
) -> Callable[[np.random.Generator], object]:
    signature = session.signature
    (largest,), _ = shapes_of([signature], Plan(batches=(batch,), lengths=(length,)))
    ranges = signature.ranges
    limits = {
        axis: (ranges[axis].min if axis in ranges else 1, size)
        for axis, size in largest.sizes.items()
    }

    def ask(rng: np.random.Generator) -> object:
        sizes = {axis: int(rng.integers(low, high + 1)) for axis, (low, high) in limits.items()}
        seen.add(tuple(sorted(sizes.items())))
        return session.predict(random_feed(signature, sizes, rng, padding="right"))

    return ask


def _texts(
    session: Session, batch: int, length: int, seed: int, *, merged: bool
) -> Callable[[np.random.Generator], object]:
    words = " ".join(made_sentences(200, seed)).split(" ")

    def ask(rng: np.random.Generator) -> object:
        texts = [
            " ".join(rng.choice(words, rng.integers(1, length + 1)))
            for _ in range(rng.integers(1, batch + 1))
        ]
        if merged:
            return [one.result() for one in [session.predict_async(text) for text in texts]]
        return session.predict(texts)

    return ask


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--predicts", default=20_000, show_default=True, type=click.IntRange(40))
@click.option("--how", type=click.Choice(["arrays", "texts", "async"]), default="arrays")
@click.option("--batch", default=4, show_default=True, type=click.IntRange(1), help="Largest.")
@click.option("--length", default=32, show_default=True, type=click.IntRange(1), help="Largest.")
@click.option("--backend", default="", help="What to run it on; default: the first there is.")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), help="Default: the bundle's own.")
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@click.option("--seed", default=0, show_default=True)
@save_option
@json_option
def soak(
    bundle: Path | None,
    predicts: int,
    how: str,
    batch: int,
    length: int,
    backend: str,
    precision: str | None,
    threads: int | None,
    seed: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Run a bundle thousands of times with changing shapes, and watch its memory."""
    machine, created = this_machine(), now()
    with told_errors():
        opened = chosen_bundle(bundle)
        with progress() as shown:
            shown.step("running", predicts)
            found = soak_bundle(
                opened,
                how=how,
                predicts=predicts,
                batch=batch,
                length=length,
                backend=backend,
                precision=precision or "",
                threads=threads,
                seed=seed,
                on_progress=shown.advance,
            )
        document = {
            "machine": encode(machine),
            "bundle": opened.name,
            "soak": encode(found),
            "verdict": found.verdict.value,
        }
        if save is not None:
            save_result(save, "soak", created, document, machine)
    if as_json:
        emit_json(document)
    else:
        show_soak(found, machine)
    if found.verdict is Growth.GROWS:
        raise click.ClickException("memory grows from run to run")


def show_soak(found: Soak, machine: Machine) -> None:
    """Print memory over time, and what it says."""
    out = console()
    shapes = f" of {found.shapes:,} shapes" if found.shapes else ""
    out.print(
        f"{found.predicts:,} runs{shapes} ({found.how}) in {found.seconds:.0f} s on {found.ran}; "
        f"load average {machine.load_average:.1f} when it began",
        markup=False,
    )
    for part, memory in _tenths(found.resident_mb):
        out.print(f"  after {part:>3.0%}  {memory:8.1f} MB", markup=False)
    out.print(
        f"growth over 10,000 runs, after the first {WARM_UP:.0%}: {found.slope_mb:+.2f} MB "
        f"(95 % interval {found.low_mb:+.2f} to {found.high_mb:+.2f}), so memory: {found.verdict}",
        markup=False,
    )


def _tenths(resident_mb: Sequence[float]) -> list[tuple[float, float]]:
    count = len(resident_mb)
    places = sorted({max(1, round(count * part / 10)) for part in range(11)})
    return [(place / count, resident_mb[place - 1]) for place in places]


if __name__ == "__main__":
    soak()
