"""The ways to run a family of bundles that are worth measuring, and why others are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BundleError

from ..backend import find_backend

# What the others are compared with. It runs the source, so it is chosen only where it is named.
REFERENCE = "torch"

# Types that a backend can compute in besides the bundle's own, most exact first. What this CPU
# does not multiply, the backend refuses.
LOWER_PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "openvino": ("fp16", "bf16"),
    "torch": ("bf16",),
    "torch-compiled": ("bf16",),
}

# A bundle of these is lowered already.
HALVES = (DType.FLOAT16, DType.BFLOAT16)

# A child that was made without a budget may lose this much of the metric it was proved by.
DEFAULT_DROP = 0.01


class Outcome(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    LOST = "slower"  # measured beside the chosen one
    DROPPED = "clearly slower"  # in the first round
    REFERENCE = "reference"  # measured beside the chosen one, and not to be chosen
    WRONG = "wrong"
    OVER_BUDGET = "over budget"
    NOT_RUN = "not run"


# Of these the outputs are right, the accuracy is within the budget, and a time is known.
ELIGIBLE = (Outcome.CHOSEN, Outcome.LOST, Outcome.DROPPED)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to run one bundle of a family.

    Attributes:
        bundle: The folder's name, beside the bundle that is tuned.
        digest: Of that bundle.
        backend: Name in ``BACKENDS``.
        precision: As in ``RunOptions``; "" for the bundle's own.
        threads: CPU threads of one run.
    """

    bundle: str
    digest: str
    backend: str
    precision: str
    threads: int

    def __str__(self) -> str:
        way = f"{self.backend} {self.precision}".rstrip()
        return f"{self.bundle} on {way}, threads {self.threads}"


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate, and what became of it.

    Attributes:
        candidate: What was tried.
        outcome: What became of it.
        reason: Why it was not chosen, or that it was.
        medians_ms: Shape to median time of a call; empty where it was not timed.
        score_ms: Weighted geometric mean of ``medians_ms``; None where it was not timed.
        computes_in: Element type of its matrix products, by the engine's own word; "" where it
            was not loaded.
        cosine: Smallest cosine of a vector of its outputs with that of the bundle that is tuned;
            None where it was not compared.
    """

    candidate: Candidate
    outcome: Outcome
    reason: str = ""
    medians_ms: Mapping[str, float] = field(default_factory=dict)
    score_ms: float | None = None
    computes_in: str = ""
    cosine: float | None = None


def thread_counts(usable: int) -> tuple[int, ...]:
    """All CPUs a process may use, half of them and a quarter: most first.

    Half is what is left where two logical CPUs share a core; small models run no faster on many.
    """
    return tuple(dict.fromkeys(max(1, usable // part) for part in (1, 2, 4)))


def descendants(bundle: Bundle, family: Iterable[Bundle]) -> list[Bundle]:
    """The bundles of a family that were made from ``bundle``, directly or not, in their order."""
    others = list(family)
    found = {bundle.digest}
    grew = True
    while grew:
        made = {one.digest for one in others if (p := one.manifest.parent) and p.digest in found}
        grew = not made <= found
        found |= made
    return [one for one in others if one.digest in found - {bundle.digest}]


def over_budget(bundle: Bundle, max_drop: float | None) -> str:
    """Why the accuracy that a bundle was proved by is too low, or "".

    Of a bundle that was made within a budget, its metric counts; of others every one that was
    measured. One without any is judged by its outputs alone, when it runs.

    Args:
        bundle: A child.
        max_drop: Largest loss allowed; None for what the bundle was made with, or else
            ``DEFAULT_DROP``.
    """
    made = bundle.manifest.quantization
    if made is None:
        return ""
    asked = made.recipe.max_drop
    budget = next(drop for drop in (max_drop, asked, DEFAULT_DROP) if drop is not None)
    # The search puts the metric of its budget first.
    counts = made.accuracy if asked is None else made.accuracy[:1]
    return "; ".join(
        f"its {proof.metric} dropped by {proof.drop:.4f} on {proof.data}, {budget:g} is allowed"
        for proof in counts
        if not proof.drop <= budget
    )


def is_proved(bundle: Bundle, backend: str) -> bool:
    """Whether a bundle's manifest says what its precision cost on this backend."""
    made = bundle.manifest.quantization
    proofs = made.accuracy if made else ()
    return any(proof.backend.partition(" ")[0] == backend for proof in proofs)


def candidates_of(
    bundle: Bundle,
    children: Sequence[Bundle],
    *,
    backends: Sequence[str],
    threads: Sequence[int],
    max_drop: float | None,
) -> tuple[list[Candidate], list[Trial]]:
    """What to measure, with the most threads and the least lowered first, and what not.

    Args:
        bundle: The bundle that is tuned.
        children: Bundles made from it.
        backends: Names in ``BACKENDS``.
        threads: Thread counts to try, most first.
        max_drop: As in ``over_budget``.

    Raises:
        BackendError: If there is no such backend.
    """
    works: list[str] = []
    dismissed: list[Trial] = []

    def dismiss(one: Bundle, backend: str, outcome: Outcome, reason: str) -> None:
        ruled_out = Candidate(one.name, one.digest, backend, "", threads[0])
        dismissed.append(Trial(ruled_out, outcome, reason))

    for backend in backends:
        if reason := find_backend(backend).missing():
            dismiss(bundle, backend, Outcome.NOT_RUN, reason)
        else:
            works.append(backend)
    ways: list[tuple[Bundle, str, str]] = []
    for one in (bundle, *children):
        reason, outcome = _unfit(one), Outcome.NOT_RUN
        if not reason and one is not bundle:
            reason, outcome = over_budget(one, max_drop), Outcome.OVER_BUDGET
        if reason:
            for backend in works:
                dismiss(one, backend, outcome, reason)
            continue
        ways += [(one, backend, "") for backend in works]
        if one.manifest.precision not in HALVES:
            lower = ((name, type_) for name in works for type_ in LOWER_PRECISIONS.get(name, ()))
            ways += [(one, name, type_) for name, type_ in lower]
    # All ways with the most threads first: where the time is short, no way is left out.
    found = [
        Candidate(one.name, one.digest, backend, precision, count)
        for count in threads
        for one, backend, precision in ways
    ]
    return found, dismissed


def _unfit(bundle: Bundle) -> str:
    if bundle.manifest.engine is not None:
        return "it holds an engine, which runs on the backend tensorrt alone"
    try:
        bundle.verify()
    except BundleError as error:
        return error.with_hint
    return ""
