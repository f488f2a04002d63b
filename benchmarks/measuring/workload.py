"""What is measured and for how long: shapes clipped to a signature, and the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tfx.errors import RecipeError, listing
from tfx.feeds import random_feed
from tfx.runtime.generation.decoder import longest, most_rows
from tfx.runtime.generation.kv_cache import CAPACITY
from tfx.signature import BATCH, SEQUENCE, Signature

from .scenario import Load

DEFAULT_BATCHES = (1, 8)
DEFAULT_LENGTHS = (128,)
DEFAULT_ROUNDS = 40
DEFAULT_SECONDS = 20.0
DEFAULT_LIMIT_S = 300.0
# Of the generation scenario: tokens of a prompt, and those written.
DEFAULT_PROMPTS = (128,)
DEFAULT_NEW_TOKENS = 64
# Processes of a row where runs are compared: at first, and how many times as many while the
# comparison is unsure.
GATE_PROCESSES = 3
GATE_TIMES = 5

# Sizes of a text that is generated: tokens of its prompt, and new ones.
PROMPT, NEW = "prompt", "new"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what a benchmark does, besides the bundles.

    Attributes:
        batches: Sizes of the batch axis; each is combined with every length.
        lengths: Sizes of the sequence axes; in the generation scenario, tokens of the prompts.
        rounds: Most rounds of a shape; in each, every row runs one block of calls.
        seconds: No round begins after this many seconds on a shape, once there were
            ``stats.LEAST_ROUNDS``. Each row's warm-up gets as long at most.
        limit_s: Seconds a row's process may take for one step: to load, to run one block; to
            warm up it has ``seconds`` more. After that it is killed.
        threads: CPU threads of one run; None for all this process may use.
        trust: Whether a factory's Python file may run.
        seed: Of the feeds, the order of rows in a round, and the bootstrap.
        data: File of samples that accuracy is measured on; "" to measure none.
        metric: What is measured on it; "auto" for the task's own.
        samples: At most so many of it, drawn with ``seed``; None for all.
        load: What rows are asked, and when.
        processes: Of each row, one after the other; rounds and seconds are divided among them.
    """

    batches: tuple[int, ...] = DEFAULT_BATCHES
    lengths: tuple[int, ...] = DEFAULT_LENGTHS
    rounds: int = DEFAULT_ROUNDS
    seconds: float = DEFAULT_SECONDS
    limit_s: float = DEFAULT_LIMIT_S
    threads: int | None = None
    trust: bool = False
    seed: int = 0
    data: str = ""
    metric: str = "auto"
    samples: int | None = None
    load: Load = field(default_factory=Load)
    processes: int = 1

    @property
    def process_seconds(self) -> float:
        """What one process of each row may take of ``seconds``."""
        return self.seconds / self.processes

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, expected 1 or more"
            for name, values in (
                ("batch", self.batches),
                ("length", self.lengths),
                ("rounds", (self.rounds,)),
                ("processes", (self.processes,)),
                ("threads", () if self.threads is None else (self.threads,)),
                ("samples", () if self.samples is None else (self.samples,)),
            )
            for value in values
            if value < 1
        ]
        problems += [
            f"{name} is {value}, expected more than 0, and finite"
            for name, value in (("seconds", self.seconds), ("limit", self.limit_s))
            if not 0 < value < math.inf
        ]
        problems += self.load.problems
        if self.seed < 0:
            problems.append(f"seed is {self.seed}, expected 0 or more")
        if problems:
            raise RecipeError(listing("nothing can be measured like this:", problems))


@dataclass(frozen=True, slots=True)
class Way:
    """How a row runs its bundle.

    Attributes:
        backend: Name in ``BACKENDS``.
        precision: As in ``RunOptions``; "" for the bundle's own.
    """

    backend: str
    precision: str = ""

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}".rstrip()


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of every dynamic axis of a feed.

    Attributes:
        sizes: Axis name to size, e.g. ``{"batch": 8, "sequence": 128}``.
        load: What is asked of it, as ``Load`` says; "" for feeds of this one shape.
    """

    sizes: Mapping[str, int]
    load: str = ""

    def __str__(self) -> str:
        # Lengths that are drawn or read are not those of the axis.
        sizes = ", ".join(
            f"{axis} {size}"
            for axis, size in self.sizes.items()
            if "lengths of" not in self.load or SEQUENCE not in axis
        )
        return "; ".join(part for part in (self.load, sizes or "fixed shape") if part)

    @property
    def batch(self) -> int:
        """Samples per call; 1 where there is no batch axis."""
        return self.sizes.get(BATCH, 1)

    def feed_for(self, signature: Signature, seed: int) -> dict[str, np.ndarray]:
        """The feed of this shape: right-padded, and the same for one signature and seed.

        Raises:
            FeedError: If the sizes do not fit the signature.
        """
        return random_feed(signature, self.sizes, np.random.default_rng(seed), padding="right")


def shapes_of(
    signatures: Sequence[Signature], plan: Plan
) -> tuple[tuple[Shape, ...], tuple[str, ...]]:
    """The shapes to measure: what the plan asks for, clipped to what all signatures admit.

    The axis "batch" takes the batches, every axis with "sequence" in its name the lengths, as
    does a cache, so that it is filled at once; any other one the size it is tuned for.

    Args:
        signatures: Of the bundles that are compared; a shape must fit all of them.
        plan: Batches and lengths.

    Returns:
        Shapes without duplicates, and a sentence for every size that was clipped.
    """
    if plan.load.writes:
        return _written_shapes(signatures, plan)
    axes = dict.fromkeys(
        axis
        for signature in signatures
        for spec in signature.inputs
        for axis in spec.shape
        if isinstance(axis, str)
    )
    shapes: dict[tuple[int, ...], Shape] = {}
    notes: dict[str, None] = {}
    # Lengths that are drawn or read are one workload: the longest is what they are drawn up to.
    lengths = (max(plan.lengths),) if plan.load.mixed else plan.lengths
    for batch in plan.batches:
        for length in lengths:
            sizes = {}
            for axis in axes:
                is_length = SEQUENCE in axis or axis == CAPACITY
                asked = batch if axis == BATCH else length if is_length else None
                sizes[axis], note = _size(signatures, axis, asked)
                if note:
                    notes[note] = None
            shapes.setdefault(tuple(sizes.values()), Shape(sizes, str(plan.load)))
    return tuple(shapes.values()), tuple(notes)


def _written_shapes(
    signatures: Sequence[Signature], plan: Plan
) -> tuple[tuple[Shape, ...], tuple[str, ...]]:
    """Shapes of the generation scenario; prompt and new tokens share what a cache may hold."""
    notes: dict[str, None] = {}

    def clipped(name: str, asked: int, most: int, why: str) -> int:
        if asked > most:
            notes[f"{name} {asked} was clipped to {most}: the bundles admit {why}"] = None
        return min(asked, most)

    room = min(longest(signature) for signature in signatures)
    rows = min(most_rows(signature) for signature in signatures)
    total = f"{room} tokens in all"
    new = clipped(NEW, plan.load.new_tokens, max(room // 2, 1), total)
    shapes: dict[tuple[int, int], Shape] = {}
    for asked in plan.batches:
        batch = clipped(BATCH, asked, rows, f"1..{rows}")
        for length in plan.lengths:
            prompt = clipped(PROMPT, length, room - new, total)
            sizes = {BATCH: batch, PROMPT: prompt, NEW: new}
            shapes.setdefault((batch, prompt), Shape(sizes, str(plan.load)))
    return tuple(shapes.values()), tuple(notes)


def _size(signatures: Sequence[Signature], axis: str, asked: int | None) -> tuple[int, str]:
    ranges = [signature.ranges[axis] for signature in signatures if axis in signature.ranges]
    if asked is None:
        return (ranges[0].opt if ranges else 1), ""
    low = max((sizes.min for sizes in ranges), default=asked)
    high = min((sizes.max for sizes in ranges), default=asked)
    size = min(max(asked, low), high)
    if size == asked:
        return size, ""
    return size, f"{axis} {asked} was clipped to {size}: the bundles admit {low}..{high}"
