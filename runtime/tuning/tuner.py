"""Measure the ways to run a bundle on this machine, and choose the fastest that is right."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.errors import BackendError
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
from .plan import TuningPlan
from .shapes import default_shapes, label_of
from .texts import compared_feed
from .worker import ProcessWorker, Worker, feed_of, scratch_folder, write_feeds


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
    shapes = plan.shapes or default_shapes(bundle.manifest.signature)
    backends = plan.backends or GRAPH_BACKENDS
    threads = sorted(set(plan.threads or thread_counts(usable_cpus())), reverse=True)
    family = {one.digest: one for one in family_of(bundle)} | {bundle.digest: bundle}
    ways, dismissed = candidates_of(
        bundle,
        descendants(bundle, family.values()),
        backends=backends,
        threads=threads,
        max_drop=plan.max_drop,
    )
    conditions, created, started = conditions_here(), now_utc(), clock()
    with _contest(bundle, family, shapes, plan, progress, start, clock) as contest:
        contest.first_round(ways)
        if plan.torch and REFERENCE not in backends:
            contest.add_reference(
                Candidate(bundle.name, bundle.digest, REFERENCE, "fp32", threads[0])
            )
        rounds = contest.final_rounds(sleep)
        trials = contest.decide(ways)
    return Tuning(
        bundle=str(bundle.path.resolve()),
        digest=bundle.digest,
        created=created,
        conditions=conditions,
        shapes={label_of(sizes): sizes for sizes in shapes},
        weights=dict(Counter(map(label_of, shapes))),
        trials=(*trials, *dismissed),
        rounds=rounds,
        duration_s=round((clock() - started) / 1e9, 1),
        notes=_notes(bundle),
    )


@contextlib.contextmanager
def _contest(
    bundle: Bundle,
    family: Mapping[str, Bundle],
    shapes: Sequence[Mapping[str, int]],
    plan: TuningPlan,
    progress: Progress,
    start: Start | None,
    clock: Clock,
) -> Iterator[Contest]:
    """A contest on feeds of all shapes, which its candidates' processes find in a file."""
    feeds = {label_of(sizes): feed_of(bundle, sizes, plan.seed) for sizes in shapes}
    writes = is_generator(bundle.manifest.signature)
    with scratch_folder() as folder:
        file = folder / "feeds.npz"
        write_feeds(file, list(feeds.values()))

        def process(path: Path, candidate: Candidate) -> Worker:
            return ProcessWorker(path, candidate, file, limit_s=plan.limit_s, trust=plan.trust)

        with Contest(
            text_view(bundle),
            family,
            {label: compared_feed(feed) if writes else feed for label, feed in feeds.items()},
            Counter(map(label_of, shapes)),
            plan,
            progress=progress,
            start=start or process,
            clock=clock,
        ) as contest:
            yield contest


def _notes(bundle: Bundle) -> tuple[str, ...]:
    """What a reader of the times must know."""
    notes = []
    if bundle.manifest.source.random_weights:
        notes.append("its weights are random: what a lower precision costs is not that of a model")
    if is_generator(bundle.manifest.signature):
        notes.append("each time is of a whole text: its prompt is read, new tokens are written")
    return tuple(notes)


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
