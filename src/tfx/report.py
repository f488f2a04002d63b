"""Measurements and verdicts, with the conditions they were made under."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one output is from the reference, over all feeds compared.

    Attributes:
        name: Output name.
        max_abs: Largest absolute difference of two elements.
        max_rel: ``max_abs`` of a feed over the largest magnitude of its reference; worst feed.
        min_cosine: Smallest cosine similarity of two vectors along the last axis.
    """

    name: str
    max_abs: float
    max_rel: float
    min_cosine: float


@dataclass(frozen=True, slots=True)
class Check:
    """One claim about numbers that was tried, e.g. "padded = unpadded".

    Attributes:
        name: The claim.
        cases: Feeds, or rows of feeds, it was tried on.
        error: Largest ``scaled_error`` seen (tfx.runtime.compare).
        tolerance: Largest one allowed.
    """

    name: str
    cases: int
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the claim holds; NaN never does."""
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The proof a bundle carries: its outputs against a reference, on the same feeds.

    Attributes:
        reference: What was compared with, e.g. "torch 2.13.0 eager float32".
        backend: What ran the bundle, e.g. "onnxruntime 1.31.1 CPUExecutionProvider".
        shapes: Axis sizes of each feed, e.g. "batch 8, sequence 33, padded both".
        outputs: Error of each output.
        checks: Claims that were tried.
    """

    reference: str
    backend: str
    shapes: tuple[str, ...]
    outputs: tuple[OutputError, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def max_abs(self) -> float:
        """Largest absolute error of any output."""
        return max(output.max_abs for output in self.outputs)
