"""``python -m tfx.bench.results``: the page of stored results, and how figures moved.

The page (``docs/results.md``) is made of the reports of ``tfx bench`` in a folder, those that other
standing comparisons wrap included, so that no number of it was typed. Of each machine and family
the newest report is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfx.console import FOLDER
from tfx.errors import DataError, TfxError

from .accuracy import shown_accuracy, shown_change
from .output import write_text
from .report import BenchReport, Row, report_from
from .table import ms_text, significant

if TYPE_CHECKING:
    from rich.console import Console

HEAD = """# Results

Made by `python -m tfx.bench.results` from the files of `benchmarks/results`; edit neither.
[The schema](../benchmarks/report.py) says how each number is measured. Speed is against PyTorch in
float32 in the same rounds, with a 95 % bootstrap interval.
"""


def read_results(folder: Path) -> list[BenchReport]:
    """Reports of a folder and those below, oldest first.

    A file is a report of ``tfx bench``, or an object with one under ``report``; other JSON files
    are of other comparisons and left out.

    Raises:
        DataError: If a file is not JSON, or a report is damaged or of another schema.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        if (report := _report_in(document)) is None:
            continue
        try:
            found.append(report_from(report))
        except DataError as error:
            raise DataError(f"{path}: {error}", hint=error.hint) from error
    return sorted(found, key=lambda report: report.created)


def page_of_results(reports: Sequence[BenchReport]) -> str:
    """The newest report of each machine and family, as Markdown."""
    newest: dict[tuple[str, tuple[str, ...]], BenchReport] = {}
    for report in reports:
        names = tuple(sorted({row.title for row in report.rows} | _names(report)))
        newest[str(report.machine), names] = report
    parts = [HEAD]
    for machine in dict.fromkeys(machine for machine, _ in newest):
        parts.append(f"## {machine}\n")
        for (where, _), report in newest.items():
            if where == machine:
                parts.append(_section(report))
    if len(parts) == 1:
        parts.append("No results are stored yet.\n")
    return "\n".join(parts)


def show_history(out: Console, reports: Sequence[BenchReport]) -> None:
    """Print each row's figures over time, a table a row that was measured.

    Raises:
        DataError: If there are no reports.
    """
    from rich.table import Table

    rows: dict[tuple[str, str, str], list[tuple[str, Row]]] = {}
    for report in reports:
        for row in report.rows:
            if row.measurement is not None:
                key = str(report.machine), row.name, row.title
                rows.setdefault(key, []).append((report.created, row))
    if not rows:
        raise DataError(
            "no results of tfx bench here", hint="Write some with: tfx bench --output FOLDER/a.json"
        )
    for machine in dict.fromkeys(machine for machine, _, _ in rows):
        out.print(machine, style="bold", markup=False)
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        table.add_column("row", overflow="fold")
        for head in ("when", "p50", "", "speed, 95 %", "metric", ""):
            table.add_column(head, justify="right", no_wrap=True)
        for (where, name, title), found in rows.items():
            if where != machine:
                continue
            table.add_row(f"{name}, {title}")
            before = None
            for created, row in found:
                assert row.measurement is not None
                now = row.measurement.latency.median_ms
                moved = "" if before is None else f"{now / before - 1:+.1%}"
                before = now
                table.add_row(
                    "",
                    created[:16].replace("T", " "),
                    ms_text(now),
                    moved,
                    _speed(row),
                    shown_accuracy(row.accuracy) if row.accuracy else "",
                    f"{row.digest[:8]}",
                )
        out.print(table)
    out.print(
        "note: p50 moves with the machine too; speed is relative to PyTorch in the same rounds; "
        "tfx bench --baseline judges a change"
    )


def _report_in(document: Any) -> Any:
    if not isinstance(document, dict):
        return None
    nested = document.get("report")
    for one in (document, nested):
        if isinstance(one, dict) and {"schema", "machine", "rows", "plan"} <= one.keys():
            return one
    return None


def _names(report: BenchReport) -> set[str]:
    return {row.name for row in report.rows}


def _section(report: BenchReport) -> str:
    when = report.created[:10]
    lines = []
    for title, rows in report.by_shape().items():
        measured = [row for row in rows if row.measurement is not None]
        if not measured:
            continue
        measured.sort(key=lambda row: row.measurement.latency.median_ms)  # type: ignore[union-attr]
        lines.append(f"### {title}, {when}\n")
        heads = ["row", "p50 ms", "per s", "speed", "verdict", "error"]
        with_accuracy = any(row.accuracy for row in measured)
        heads += ["accuracy", "change"] if with_accuracy else []
        lines.append(_line(heads))
        lines.append(_line(["---", *("---:" for _ in heads[1:])]))
        lines += [_line(_cells(row, with_accuracy)) for row in measured]
        lines.append("")
    versions = ", ".join(f"{name} {number}" for name, number in report.machine.versions.items())
    lines.append(f"Load average {report.machine.load_average} at the start; {versions}.\n")
    return "\n".join(lines)


def _cells(row: Row, with_accuracy: bool) -> list[str]:
    found = row.measurement
    assert found is not None
    errors = [one.scaled_error for one in row.agreement or ()]
    known = [error for error in errors if error is not None]
    cells = [
        row.name,
        ms_text(found.latency.median_ms),
        significant(found.throughput_per_s),
        _speed(row),
        str(row.comparison.verdict) if row.comparison else "baseline",
        f"{max(known):.0e}" if known else "-",
    ]
    if with_accuracy:
        about = row.accuracy
        cells += [shown_accuracy(about), shown_change(about)] if about else ["-", ""]
    return cells


def _speed(row: Row) -> str:
    if (speed := row.comparison) is None:
        return "1.00x"
    return f"{speed.speedup:.2f}x {speed.low:.2f}-{speed.high:.2f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@click.command
@click.argument("folder", type=FOLDER, default="benchmarks/results")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="docs/results.md")
@click.option("--check", is_flag=True, help="Write nothing; fail if the page is not up to date.")
def results(folder: Path, output: Path, check: bool) -> None:
    """Write the page of the results that FOLDER holds."""
    try:
        page = page_of_results(read_results(folder))
        if not check:
            write_text(output, page)
            return
        if not output.is_file() or output.read_text(encoding="utf-8") != page:
            raise DataError(
                f"{output} is not what {folder} makes of it", hint="Run it without --check."
            )
    except TfxError as error:
        raise click.ClickException(f"{error}\n{error.hint}".rstrip()) from error


if __name__ == "__main__":
    results()
