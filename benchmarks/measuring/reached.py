"""What rows reach of the most that this machine multiplies and reads, as ``peaks`` measures it.

Of a row's time two parts cannot go: its products at the peak of its type, and the weights (of a
text that is written, the cache too) read from memory once a call. A row that has 80 % of either
has little left to gain; one with 10 % of both spends its time on something else. Weights that stay
in the CPU's cache from call to call are read faster than memory is: then the share is above 100 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BundleError
from tfx.runtime.generation.kv_cache import CAPACITY, KEPT
from tfx.signature import BATCH, SEQUENCE

from ..peaks import Peaks
from .family import OF_SOURCE
from .flops import flops_of
from .report import BenchReport, Measurement, Reached, Row
from .weights import Weights, weights_of
from .workload import NEW, PROMPT


@dataclass(frozen=True, slots=True)
class Work:
    """What one call cannot go without.

    Attributes:
        flops: Of its products.
        weights: That it reads.
    """

    flops: int
    weights: Weights


# Counts the work of a bundle at some sizes; tests give another.
Counting = Callable[[Bundle, Mapping[str, int]], Work]


def work_of(bundle: Bundle, sizes: Mapping[str, int]) -> Work:
    """Count a bundle's work of a call.

    Raises:
        BundleError: If its graph cannot be counted.
    """
    return Work(flops_of(bundle, sizes).total, weights_of(bundle))


def with_reached(
    report: BenchReport, bundles: Sequence[Bundle], peaks: Peaks, count: Counting = work_of
) -> BenchReport:
    """A report with what each measured row reaches of the peaks, or a note why it does not say.

    Args:
        report: Of these bundles.
        bundles: Those it measured.
        peaks: Of this machine.
        count: Counts the work of a call.
    """
    known = {bundle.digest: bundle for bundle in bundles}
    notes = dict.fromkeys(report.notes)
    counted: dict[tuple[str, str], Work] = {}
    rows = []
    for row in report.rows:
        reached = None
        if row.measurement is not None and report.plan.load.mixed:
            notes["shares of the peaks are not known where lengths are drawn or read"] = None
        elif row.measurement is not None:
            bundle = known[row.digest]
            key = row.digest, row.title
            try:
                if key not in counted:
                    counted[key] = count(bundle, _call_sizes(bundle, row.sizes))
                reached = _reached(row, row.measurement, counted[key], peaks)
            except BundleError as error:
                notes[f"{row.bundle} has no share of the peaks: {error}"] = None
        rows.append(dataclasses.replace(row, reached=reached))
    return dataclasses.replace(report, rows=tuple(rows), notes=tuple(notes), peaks=peaks)


def _call_sizes(bundle: Bundle, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of one call's axes; of a text that is written, of the token halfway."""
    if PROMPT not in sizes:
        return dict(sizes)
    usual = {axis: spread.opt for axis, spread in bundle.manifest.signature.ranges.items()}
    here = {BATCH: sizes[BATCH], SEQUENCE: 1, CAPACITY: _context(sizes), KEPT: 1}
    return usual | here


def _context(sizes: Mapping[str, int]) -> int:
    return sizes[PROMPT] + sizes[NEW] // 2


def _reached(row: Row, found: Measurement, work: Work, peaks: Peaks) -> Reached:
    precision = str(found.facts.precision)
    read_bytes = work.weights.bytes_in(precision, of_source=row.backend in OF_SOURCE)
    if (writing := found.writing) is None:
        calls_per_s = found.throughput_per_s / row.sizes.get(BATCH, 1)
    else:
        calls_per_s = 1000 / found.latency.median_ms
        read_bytes += writing.cache_bytes_per_token * row.sizes[BATCH] * _context(row.sizes)
    gb_per_s = read_bytes * calls_per_s / 1e9
    return Reached(
        gflops=work.flops * calls_per_s / 1e9,
        gemm_share=peaks.share_of_named(work.flops, 1 / calls_per_s, precision),
        gb_per_s=gb_per_s,
        memory_share=gb_per_s / max(one.gb_per_s for one in peaks.memory),
    )


def limits_said(report: BenchReport) -> list[str]:
    """The peaks that the shares of a report's rows are of, in one sentence; none without them."""
    if report.peaks is None or not any(row.reached for row in report.rows):
        return []
    kinds = {row.measurement.facts.precision for row in report.rows if row.measurement}
    best = [report.peaks.best(dtype) for dtype in DType if str(dtype) in kinds]
    products = ", ".join(
        f"{one.gflops:.0f} GFLOP/s in {one.dtype} ({one.engine})" for one in best if one is not None
    )
    memory = max(one.gb_per_s for one in report.peaks.memory)
    return [
        "GEMM and memory are shares of this machine's measured peaks: matrix products at "
        f"{products or 'no known speed'}; weights read at {memory:.0f} GB/s, above 100 % where "
        "they stay in the CPU's cache"
    ]
