"""Measure the ways to run a bundle on this machine, and choose the fastest that is right."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.errors import BackendError, FeedError, RecipeError, listing
from tfx.signature import BATCH, SEQUENCE, Signature
from tfx.workspace import family_of

from ..backend import GRAPH_BACKENDS
from ..clock import Clock
from ..cpus import usable_cpus
from ..generation.decoder import is_generator
from ..generation.kv_cache import text_view
from .candidates import (
    REFERENCE,
    Candidate,
    candidates_of,
    descendants,
    thread_counts,
)
from .choices import Tuning, alone, conditions_here, now_utc, store_choice, stored_choice
from .contest import Contest, Start
from .texts import NEW, compared_feed, default_texts, text_label, text_sizes
from .worker import ProcessWorker, Worker, feed_of, write_feeds

# Batch and length of what is measured unless a caller names others: one text, and a batch.
DEFAULT_SHAPES = ((1, 128), (16, 128))

DEFAULT_SECONDS = 120.0
DEFAULT_LIMIT_S = 60.0
# What the first open_session(backend="auto") may take, where it may tune at all.
FIRST_USE_SECONDS = 30.0

# Outputs that no data has shown to be good enough must be this near to the tuned bundle's own.
MIN_COSINE = 0.995


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """What is measured, and for how long.

    Attributes:
        shapes: Axis sizes; one that is given twice counts twice. Empty for what the signature
            suggests.
        backends: Names in ``BACKENDS`` to choose from; empty for ``GRAPH_BACKENDS``.
        threads: Thread counts; empty for ``thread_counts`` of what this process may use.
        max_drop: Largest loss of accuracy of a child; None for what it was made with.
        min_cosine: Smallest cosine to the tuned bundle's outputs of what is lower than it and
            carries no proof of its accuracy.
        seconds: How long it may take; loading that has begun is not cut short.
        limit_s: Seconds a candidate's process may take for one step.
        torch: Also time PyTorch, to say how much faster the choice is.
        trust: Whether a factory's Python file may run.
        seed: Of the feeds and the order in a round.
    """

    shapes: tuple[Mapping[str, int], ...] = ()
    backends: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    max_drop: float | None = None
    min_cosine: float = MIN_COSINE
    seconds: float = DEFAULT_SECONDS
    limit_s: float = DEFAULT_LIMIT_S
    torch: bool = True
    trust: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, expected more than 0, and finite"
            for name, value in (("seconds", self.seconds), ("limit", self.limit_s))
            if not 0 < value < math.inf
        ]
        problems += [
            f"threads is {count}, expected 1 or more" for count in self.threads if count < 1
        ]
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            problems.append(f"max_drop is {self.max_drop}, expected 0 or more and below 1")
        if not -1 <= self.min_cosine <= 1:
            problems.append(f"min_cosine is {self.min_cosine}, expected -1 to 1")
        if self.seed < 0:
            problems.append(f"seed is {self.seed}, expected 0 or more")
        if problems:
            raise RecipeError(listing("nothing can be tuned like this:", problems))


def shape_of(text: str, signature: Signature) -> dict[str, int]:
    """Read a shape: ``16x128`` is batch x length, ``batch=16,sequence=128`` names any axes.

    Axes that are not named have the size they are tuned for. Of a bundle with a cache it is
    ``1x128+64``: batch x prompt + new tokens.

    Raises:
        FeedError: If it is neither, or names an axis that the model has not.
    """
    if is_generator(signature):
        return text_sizes(text, signature)
    sizes = {axis: _tuned_for(signature, axis) for axis in signature.axes}
    hint = f"Give BATCHxLENGTH, or sizes of: {', '.join(sizes) or 'nothing, the shape is fixed'}."
    try:
        if "=" in text:
            pairs = [part.split("=") for part in text.split(",")]
            asked = {name.strip(): int(size) for name, size in pairs}
        else:
            batch, length = map(int, text.split("x"))
            asked = {
                axis: batch if axis == BATCH else length
                for axis in sizes
                if axis == BATCH or SEQUENCE in axis
            }
    except ValueError as error:
        raise FeedError(f"shape is {text!r}, expected one like 16x128", hint=hint) from error
    if unknown := sorted(asked.keys() - sizes.keys()):
        raise FeedError(f"shape {text!r}: no axis called {', '.join(unknown)}", hint=hint)
    return sizes | asked


def default_shapes(signature: Signature) -> tuple[dict[str, int], ...]:
    """One text and a batch of them, as near as the signature admits."""
    if is_generator(signature):
        return default_texts(signature)
    found = []
    for batch, length in DEFAULT_SHAPES:
        sizes = {}
        for axis in signature.axes:
            wanted = batch if axis == BATCH else length if SEQUENCE in axis else None
            limits = signature.ranges.get(axis)
            if wanted is None:
                wanted = _tuned_for(signature, axis)
            sizes[axis] = limits.nearest(wanted) if limits else wanted
        if sizes not in found:
            found.append(sizes)
    return tuple(found)


def label_of(sizes: Mapping[str, int]) -> str:
    """What a shape is called: ``16x128`` where it has a batch and one length, else all sizes."""
    if NEW in sizes:
        return text_label(sizes)
    if list(sizes) == [BATCH, SEQUENCE]:
        return f"{sizes[BATCH]}x{sizes[SEQUENCE]}"
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items()) or "fixed shape"


def tune(
    bundle: Bundle,
    plan: TuningPlan,
    *,
    progress: Progress,
    start: Start | None = None,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Tuning:
    """Measure every way to run a bundle and those made from it, and choose one.

    Each candidate loads in a process of its own, is checked against the outputs that its bundle
    carries and those of the tuned bundle, and is timed at once. Those not clearly slower are then
    timed in interleaved rounds. One choice serves all shapes: the least weighted geometric mean
    of the medians (docs/decisions/0013).

    Args:
        bundle: A bundle with a graph.
        plan: Shapes, candidates and budget.
        progress: Told of every step.
        start: Makes the worker of a candidate.
        clock: Nanoseconds, for the budget.
        sleep: Waits, in seconds.

    Raises:
        BackendError: If it holds an engine, or nothing runs it right.
        BundleError: If it is damaged.
        FeedError: If a shape does not fit its signature.
    """
    if bundle.manifest.engine is not None:
        raise BackendError(
            f"{bundle.path} holds an engine, and runs on the backend tensorrt alone",
            hint="Tune the bundle it was built from.",
        )
    bundle.verify()
    asked = plan.shapes or default_shapes(bundle.manifest.signature)
    shapes = {label_of(sizes): sizes for sizes in asked}
    weights = Counter(map(label_of, asked))
    feeds = {label: feed_of(bundle, sizes, plan.seed) for label, sizes in shapes.items()}
    writes = is_generator(bundle.manifest.signature)
    compared = {label: compared_feed(feed) if writes else feed for label, feed in feeds.items()}
    paths = {one.digest: one for one in family_of(bundle)} | {bundle.digest: bundle}
    counts = sorted(set(plan.threads or thread_counts(usable_cpus())), reverse=True)
    backends = plan.backends or GRAPH_BACKENDS
    ways, dismissed = candidates_of(
        bundle,
        descendants(bundle, paths.values()),
        backends=backends,
        threads=counts,
        max_drop=plan.max_drop,
    )
    conditions, created, started = conditions_here(), now_utc(), clock()
    with tempfile.TemporaryDirectory(prefix="tfx-tune-") as folder:
        file = Path(folder) / "feeds.npz"
        write_feeds(file, list(feeds.values()))

        def process(path: Path, candidate: Candidate) -> Worker:
            return ProcessWorker(path, candidate, file, limit_s=plan.limit_s, trust=plan.trust)

        with Contest(
            text_view(bundle),
            paths,
            compared,
            weights,
            min_cosine=plan.min_cosine,
            seconds=plan.seconds,
            seed=plan.seed,
            progress=progress,
            start=start or process,
            clock=clock,
        ) as contest:
            contest.first_round(ways)
            if plan.torch and REFERENCE not in backends:
                contest.add_reference(
                    Candidate(bundle.name, bundle.digest, REFERENCE, "fp32", counts[0])
                )
            rounds = contest.final_rounds(sleep)
            trials = contest.decide(ways)
    spent_s = (clock() - started) / 1e9
    notes: tuple[str, ...] = ()
    if bundle.manifest.source.random_weights:
        notes = ("its weights are random: what a lower precision costs is not that of a model",)
    if writes:
        notes = (*notes, "each time is of a whole text: its prompt is read, new tokens are written")
    return Tuning(
        bundle=str(bundle.path.resolve()),
        digest=bundle.digest,
        created=created,
        conditions=conditions,
        shapes=shapes,
        weights=dict(weights),
        trials=(*trials, *dismissed),
        rounds=rounds,
        duration_s=round(spent_s, 1),
        notes=notes,
    )


def tune_bundle(
    bundle: Bundle, plan: TuningPlan, *, progress: Progress, fresh: bool = True
) -> tuple[Tuning, BackendError | None]:
    """Measure as ``tune`` does, while no other process tunes, and keep the choice.

    Args:
        bundle: A bundle with a graph.
        plan: Shapes, candidates and budget.
        progress: Told of every step.
        fresh: Measure also where another process has just kept a choice.

    Returns:
        What was found, and why it could not be kept, or None.

    Raises:
        TfxError: As ``tune``; also if another process tunes for too long.
    """
    with alone() as waited:
        if waited and not fresh:
            with contextlib.suppress(BackendError):
                return stored_choice(bundle), None
        tuning = tune(bundle, plan, progress=progress)
        try:
            store_choice(bundle, tuning)
        except BackendError as error:
            return tuning, error
        return tuning, None


def _tuned_for(signature: Signature, axis: str) -> int:
    limits = signature.ranges.get(axis)
    return limits.opt if limits else 1
