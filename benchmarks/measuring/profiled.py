"""Where the time of each row goes, beside how long it takes: a run of its own, after the timing.

An engine that counts its nodes' time is slower for it, and compiles the model once more. So a row
is profiled in a process of its own when all times are taken, by what ``tfx profile`` uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tfx.bundle import Bundle, open_bundle
from tfx.codec import decode, encode
from tfx.console import Progress
from tfx.errors import BackendError, TfxError
from tfx.runtime.child import Child, serve

from .family import said
from .profile import PROFILERS, Profile, profile_bundle
from .report import BenchReport
from .spent import KINDS, REST, Spent
from .workload import Plan, Shape, Way

if TYPE_CHECKING:
    from rich.console import Console

RUNS = 10


class Profiling(Protocol):
    """Profiles one row; tests give another."""

    def __call__(self, bundle: Bundle, way: Way, shape: Shape, plan: Plan) -> Spent:
        """Run it with the engine's counters on.

        Raises:
            TfxError: If it cannot be.
        """
        ...


def profile_row(bundle: Bundle, way: Way, shape: Shape, plan: Plan) -> Spent:
    """Profile a row in a process of its own, within ``Plan.limit_s``.

    Raises:
        BackendError: If the backend has no profiler, fails, or takes too long.
    """
    if way.backend not in PROFILERS:
        raise BackendError(
            f"{way.backend} does not say where its time goes", hint="Name another backend."
        )
    child = Child("tfx.bench.measuring.profiled", plan.limit_s)
    try:
        child.start()
        found = child.ask(
            do="profile",
            bundle=str(bundle.path),
            way=encode(way),
            sizes=dict(shape.sizes),
            threads=plan.threads,
            trust=plan.trust,
            seed=plan.seed,
        )
    finally:
        child.close()
    return decode(Spent, found)


def with_profiles(
    report: BenchReport,
    bundles: Sequence[Bundle],
    *,
    progress: Progress,
    keep: Callable[[BenchReport], None] = lambda report: None,
    profiling: Profiling = profile_row,
) -> BenchReport:
    """A report with what the time of each measured row went to; what has it already is kept.

    Args:
        report: That came to its end.
        bundles: Those it measured.
        progress: Told of every row.
        keep: Given the report after each row.
        profiling: Profiles a row.
    """
    known = {bundle.digest: bundle for bundle in bundles}
    plan = report.plan
    for index, row in enumerate(report.rows):
        if row.measurement is None or row.spent is not None:
            continue
        progress.step(f"{row.title}: where the time of {row.name} goes")
        try:
            if plan.load.scenario == "generation":
                raise BackendError(
                    "of text that is generated, nothing counts each token's nodes",
                    hint="Name a bundle that was exported with --no-cache.",
                )
            shape = Shape(row.sizes, row.load)
            spent = profiling(known[row.digest], row.way, shape, plan)
        except TfxError as error:
            spent = Spent(reason=said(error))
        rows = list(report.rows)
        rows[index] = dataclasses.replace(row, spent=spent)
        report = dataclasses.replace(report, rows=tuple(rows))
        keep(report)
    return report


def show_spent(out: Console, report: BenchReport) -> None:
    """Print a line a row: the share of each kind of operator, and the operator that takes most."""
    from rich.table import Table

    for title, rows in report.by_shape().items():
        known = [row for row in rows if row.spent is not None and row.spent.ops]
        if not known:
            continue
        out.print(f"{title}: where the time goes", style="bold", markup=False)
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        table.add_column("row", overflow="fold")
        shown = [
            kind
            for kind in (*KINDS, REST)
            if any(one.name == kind for row in known for one in row.spent.kinds)  # type: ignore[union-attr]
        ]
        for kind in shown:
            table.add_column(kind, justify="right")
        table.add_column("most")
        for row in sorted(known, key=lambda row: row.median_ms):
            assert row.spent is not None
            shares = {one.name: one.share for one in row.spent.kinds}
            most = row.spent.ops[0]
            table.add_row(
                row.name,
                *(f"{shares[kind]:.0%}" if kind in shares else "-" for kind in shown),
                f"{most.name} {most.share:.0%}",
            )
        out.print(table)
        out.print()


def reasons_of(report: BenchReport) -> list[str]:
    """Why rows do not say where their time goes, once each."""
    found = {
        f"{row.name} does not say where its time goes: {row.spent.reason}": None
        for row in report.rows
        if row.spent is not None and row.spent.reason
    }
    return list(found)


class Server:
    """The child's side: profiles what it is asked to."""

    def answer(self, question: Mapping[str, Any]) -> Any:
        """Profile a row; what it found, as JSON values.

        Raises:
            TfxError: If the backend cannot do it.
        """
        way = decode(Way, question["way"])
        found: Profile = profile_bundle(
            open_bundle(question["bundle"], verify=False),
            way.backend,
            Shape(question["sizes"]),
            threads=question["threads"],
            precision=way.precision,
            runs=RUNS,
            trust=question["trust"],
            seed=question["seed"],
        )
        return encode(Spent(found.ops, found.runs))


def main() -> None:
    """Answer questions from stdin until it ends."""
    serve(Server())


if __name__ == "__main__":
    main()
