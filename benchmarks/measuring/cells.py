"""A benchmark in cells, one family at one shape each, for a machine that is there for minutes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tfx.bundle import Bundle
from tfx.console import Progress

from .family import same_model
from .machine import Machine
from .report import BenchReport
from .runner import measure
from .worker import Start
from .workload import Plan, Way


@dataclass(frozen=True, slots=True)
class Deadline:
    """When nothing more is begun.

    Attributes:
        seconds: From now; infinity for never.
        clock: Seconds.
        began: On ``clock``.
    """

    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", self.clock())

    @property
    def left_s(self) -> float:
        """Seconds until then, 0 or more."""
        return max(0.0, self.began + self.seconds - self.clock())


@dataclass(frozen=True, slots=True)
class Cell:
    """Bundles of one model, at one shape.

    Attributes:
        bundles: At least one.
        batch: Size of the batch axis.
        length: Of the sequence axes.
    """

    bundles: tuple[Bundle, ...]
    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.bundles[0].name}: batch {self.batch}, length {self.length}"


def cells_of(bundles: Sequence[Bundle], plan: Plan) -> list[Cell]:
    """Every family at the first shape, then every one at the next: what is cut off is the largest.

    Args:
        bundles: Of any models.
        plan: Its batches and lengths, in order.
    """
    families: list[list[Bundle]] = []
    for bundle in bundles:
        for family in families:
            if same_model(family[0], bundle):
                family.append(bundle)
                break
        else:
            families.append([bundle])
    return [
        Cell(tuple(family), batch, length)
        for length in plan.lengths
        for batch in plan.batches
        for family in families
    ]


def measure_cells(
    bundles: Sequence[Bundle],
    plan: Plan,
    ways: Sequence[Way],
    machine: Machine,
    *,
    deadline: Deadline,
    progress: Progress,
    start: Start,
    keep: Callable[[BenchReport], None],
) -> BenchReport:
    """Measure as ``measure`` does, a cell at a time, until the deadline.

    Rows are interleaved with those of their cell alone: others are not compared with them.

    Args:
        bundles: Of any models.
        plan: Shapes and budget of each cell.
        ways: Backends and precisions.
        machine: What this runs on.
        deadline: No cell is begun after it.
        progress: Told of every step.
        start: Makes the worker of a row.
        keep: Given the report so far after each cell, also when interrupted.

    Returns:
        All rows; cells that were not reached are its ``unfinished``.
    """
    cells = cells_of(bundles, plan)
    left = [str(cell) for cell in cells]
    found = BenchReport(machine, plan, (), (), unfinished=tuple(left))
    for cell in cells:
        if not deadline.left_s:
            break
        one = dataclasses.replace(plan, batches=(cell.batch,), lengths=(cell.length,))
        before = found

        def keep_all(report: BenchReport, before: BenchReport = before) -> None:
            keep(_joined(before, report))

        report = measure(
            cell.bundles, one, ways, machine, progress=progress, start=start, keep=keep_all
        )
        left.remove(str(cell))
        found = dataclasses.replace(_joined(before, report), unfinished=tuple(left))
        keep(found)
    return found


def _joined(before: BenchReport, cell: BenchReport) -> BenchReport:
    """Both in one; sizes that a model does not take are clipped, and may come twice."""
    known = {(row.digest, row.way, row.title) for row in before.rows}
    rows = [row for row in cell.rows if (row.digest, row.way, row.title) not in known]
    probes = dict(before.probes)
    for title, times in cell.probes.items():
        probes[title] = (*probes.get(title, ()), *times)
    return dataclasses.replace(
        before,
        created=before.created or cell.created,
        notes=tuple(dict.fromkeys((*before.notes, *cell.notes))),
        rows=(*before.rows, *rows),
        probes=probes,
    )
