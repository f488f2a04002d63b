"""What a benchmark found: rows with their conditions, as JSON.

The JSON document (``tfx bench --json``), with units in the names and no NaN in it::

    schema    2
    machine   cpu, flags, cores, affinity, usable_cpus, governor, load_average, memory_mb, os,
              python, versions
    created   when it began, ISO 8601 in UTC
    plan      batches, lengths (in the generation scenario, of the prompts), rounds, seconds,
              limit_s, threads, trust, seed, data, metric, samples, load (scenario, lengths,
              preprocessing, qps, new_tokens; what is usual is left out), processes: what was
              asked for
    notes     sentences a reader must know, e.g. of sizes that were clipped
    unfinished  what an interruption left undone; [] of a run that came to its end
    probes    by shape, as "batch 8, sequence 128": ms of a fixed product of matrices before each
              round, which tells how fast the machine itself was
    peaks     null where not asked for: what this machine multiplies and moves at most: fingerprint,
              load_average, products (engine, version, dtype, threads, size, gflops), memory (kind,
              threads, gb_per_s), not_run
    rows      one per bundle, backend and shape:
      bundle, digest, random_weights, backend, precision (asked for; "" is the bundle's own)
      sizes         axis to size, e.g. {"batch": 8, "sequence": 128}; of the generation scenario
                    batch, prompt and new
      status        "measured", "wrong" (outputs beyond the tolerance) or "not run"
      reason        why not run, or how wrong; "" if measured
      load          scenario and lengths, as a table's title has them; "" for feeds of one shape,
                    one after the other. Offline, a call answers all samples; of the server the
                    latency counts from a query's arrival, and throughput is what was answered
      model_bytes   what the backend reads of the bundle: graph and weights; null where it reads
                    the source instead
      measurement   null if not run, or wrong: nothing is timed that gives wrong answers
        facts             what really ran: backend, version, engine, device, precision, threads,
                          streams (left out: one), notes
        load_s, first_call_ms  see worker.py; of several processes the median of those after the
                          first that found the caches as the last one did
        loads_s           load_s of each process, in order: the first may have found no cache; left
                          out by older versions, whose load_s is the first's
        peak_memory_mb    null where not known: see worker.py
        warm_up           calls, duration_s, median_ms, settled
        rounds            blocks of calls the samples come from
        latency           samples, median_ms, p95_ms, p99_ms (null: too few samples), min_ms, max_ms
        throughput_per_s  samples of a batch per second: batch / median latency
        round_ms          median of each round, in order; rows of a shape share their rounds, but
                          one that took fewer processes has only the first of them
        round_min_ms      fastest call of each round, by which two runs are compared; left out
                          where calls differ (drawn lengths, queries that wait for each other), and
                          by older versions: there they are compared by round_ms
        process_rounds    how many of the rounds are of each process; left out by older versions,
                          which had one
        percentiles_ms    101 of them: 0 is the fastest call, 100 the slowest
        joules_per_call   of the CPU packages, all that ran on them included; left out where the
                          machine does not tell it
        writing           of the generation scenario, else left out: texts, first_ms (prompt to
                          first token), first_p95_ms, total_ms (of a text), tokens_per_s (of all
                          rows), row_tokens_per_s, same_tokens (share before the first that is not
                          PyTorch's), cache_bytes_per_token; latency, round_ms, percentiles_ms and
                          the comparison are then of the time from one token to the next
      agreement     null without a reference, or per output: name, max_abs, max_rel, min_cosine,
                    scaled_error (null: not finite, or another shape) and the tolerance it is
                    judged by: see TOLERANCES in tfx.runtime.compare
      no_reference  why there is no agreement; ""
      comparison    null for the baseline and for wrong rows, or against, speedup (baseline median
                    / median), low, high (95 % bootstrap interval: of the processes, or where there
                    is one, of its rounds) and verdict
      accuracy      null where not asked for, or not measured: metric, unit, better ("higher" or
                    "lower"), value, low, high (95 % bootstrap interval), samples, data,
                    data_digest, warnings, packed (what each sample adds: see accuracy.py), and
                    change: against, value, low, high: difference from PyTorch in float32 on the
                    same samples, null for itself
      no_accuracy   why there is none although it was asked for; ""
      spent         null where not asked for: what its time goes to by operator, as the engine's
                    own profiler tells it in runs of their own: ops (name, ms of a run, share,
                    nodes), runs, and reason, why there is nothing
      reached       null without peaks, or where it cannot be counted: gflops of its products,
                    gemm_share of the peak in its precision (null: there is none), gb_per_s of the
                    weights and cache it reads, memory_share of the peak
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from tfx.codec import DecodeError, decode, encode
from tfx.errors import DataError
from tfx.runtime.backend import RunFacts
from tfx.runtime.clock import WarmUp
from tfx.runtime.proof import compare_case
from tfx.runtime.stats import Comparison, Latency
from tfx.signature import Feed, Signature

from ..peaks import Peaks
from .accuracy import Accuracy
from .generation import Writing
from .machine import Machine
from .spent import Spent
from .workload import Plan, Shape, Way

SCHEMA_VERSION = 2


class Status(StrEnum):
    """What came of a row."""

    MEASURED = "measured"
    WRONG = "wrong"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of a row; the module's docstring says what each number means."""

    facts: RunFacts
    load_s: float
    first_call_ms: float
    peak_memory_mb: float | None
    warm_up: WarmUp
    rounds: int
    latency: Latency
    throughput_per_s: float
    round_ms: tuple[float, ...]
    percentiles_ms: tuple[float, ...]
    joules_per_call: float | None = None
    writing: Writing | None = None
    process_rounds: tuple[int, ...] = ()
    round_min_ms: tuple[float, ...] = ()
    loads_s: tuple[float, ...] = ()

    @property
    def processes(self) -> tuple[int, ...]:
        """Rounds of each process."""
        return self.process_rounds or (len(self.round_ms),)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an output is from PyTorch's, as JSON can hold it: None where not finite.

    Attributes:
        name: Output name.
        max_abs: As in ``OutputError``.
        max_rel: As in ``OutputError``.
        min_cosine: As in ``OutputError``.
        scaled_error: What decides (``tfx.runtime.compare``).
        tolerance: Largest ``scaled_error`` of an output that is not wrong.
    """

    name: str
    max_abs: float | None
    max_rel: float | None
    min_cosine: float | None
    scaled_error: float | None
    tolerance: float

    @property
    def wrong(self) -> str:
        """How the output is wrong, or ""."""
        if self.scaled_error is None:
            return f"{self.name} has another shape than PyTorch's, or is not finite"
        if self.scaled_error <= self.tolerance:
            return ""
        return (
            f"{self.name} has scaled error {self.scaled_error:.1e} against PyTorch's, expected at "
            f"most {self.tolerance:.0e}"
        )


@dataclass(frozen=True, slots=True)
class Reached:
    """What a row comes to beside the most that the machine does.

    Attributes:
        gflops: 10^9 operations a second, of its products.
        gemm_share: Of the peak in its precision; None where there is none.
        gb_per_s: 10^9 bytes of weights and cache a second.
        memory_share: Of the peak.
    """

    gflops: float
    gemm_share: float | None
    gb_per_s: float
    memory_share: float


@dataclass(frozen=True, slots=True)
class Row:
    """One bundle on one backend at one shape."""

    bundle: str
    digest: str
    random_weights: bool
    backend: str
    precision: str
    sizes: Mapping[str, int]
    status: Status
    reason: str
    measurement: Measurement | None
    agreement: tuple[Agreement, ...] | None
    no_reference: str
    comparison: Comparison | None
    load: str = ""
    model_bytes: int | None = None
    accuracy: Accuracy | None = None
    no_accuracy: str = ""
    spent: Spent | None = None
    reached: Reached | None = None

    @property
    def way(self) -> Way:
        """How it runs the bundle."""
        return Way(self.backend, self.precision)

    @property
    def name(self) -> str:
        """How other rows and messages call it."""
        return f"{self.bundle} on {self.way}"

    @property
    def median_ms(self) -> float:
        """Of a call; only of a row that was measured."""
        assert self.measurement is not None
        return self.measurement.latency.median_ms

    @property
    def title(self) -> str:
        """The shape it was measured at, as tables are called."""
        return str(Shape(self.sizes, self.load))


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Rows, and the conditions they were measured under."""

    machine: Machine
    plan: Plan
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    created: str = ""
    unfinished: tuple[str, ...] = ()
    probes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    peaks: Peaks | None = None

    def by_shape(self) -> dict[str, list[Row]]:
        """Rows of one table each, by its title."""
        shapes: dict[str, list[Row]] = {}
        for row in self.rows:
            shapes.setdefault(row.title, []).append(row)
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """The JSON document the module's docstring describes."""
        return {
            "schema": SCHEMA_VERSION,
            "created": self.created,
            "machine": encode(self.machine),
            "plan": _all_of(self.plan),
            "notes": list(self.notes),
            "unfinished": list(self.unfinished),
            "probes": encode(self.probes),
            "peaks": encode(self.peaks),
            "rows": [_all_of(row) for row in self.rows],
        }


def report_from(document: Any) -> BenchReport:
    """The report of a JSON document that ``to_dict`` gave.

    Raises:
        DataError: If it is none, or of another schema.
    """
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA_VERSION:
        raise DataError(
            f"no result of tfx bench: schema is {schema!r}, expected {SCHEMA_VERSION}",
            hint="Measure again with: tfx bench --output FILE",
        )
    try:
        return decode(BenchReport, {name: document[name] for name in document if name != "schema"})
    except DecodeError as error:
        raise DataError(
            f"no result of tfx bench: {error}", hint="Measure again with: tfx bench --output FILE"
        ) from error


def _all_of(value: Plan | Row) -> dict[str, Any]:
    """A dataclass as JSON; unlike ``encode``, with the defaults a reader need not know."""
    return {name: encode(getattr(value, name)) for name in type(value).__dataclass_fields__}


def percentiles_of(rounds: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Percentiles 0 to 100 of all calls, in ms: what a distribution is drawn from.

    Args:
        rounds: Nanoseconds per call, of each round; at least one call.
    """
    samples = np.concatenate([np.asarray(one, np.float64) for one in rounds]) / 1e6
    return tuple(round(float(value), 6) for value in np.percentile(samples, range(101)))


def agreement_of(
    signature: Signature,
    feed: Feed,
    reference: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    tolerance: float,
) -> tuple[Agreement, ...]:
    """Compare the outputs of one feed, padding left out, in the reference's order.

    Args:
        signature: Says which outputs have something per token.
        feed: What both were given.
        reference: PyTorch's outputs.
        actual: The row's.
        tolerance: Largest scaled error of an output that is not wrong.
    """
    found = []
    for name, array in reference.items():
        (error,), scaled = compare_case(signature, feed, {name: array}, actual)
        if math.isfinite(scaled):
            relative = error.max_rel if math.isfinite(error.max_rel) else None
            one = Agreement(name, error.max_abs, relative, error.min_cosine, scaled, tolerance)
        else:  # compare_outputs calls the cosine -1 then, which was not measured either
            one = Agreement(name, None, None, None, None, tolerance)
        found.append(one)
    return tuple(found)
