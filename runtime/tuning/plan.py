"""What a tuning measures, and for how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tfx.errors import RecipeError, listing

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
