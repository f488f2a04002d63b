"""``python -m tfx.bench.results``: the page of stored results, and how figures moved.

The page (``docs/results.md``) is made of what the standing comparisons and ``tfx bench`` stored in
a folder, so that no number of it was typed. Of each machine, command and family the newest is
shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfx.console import FOLDER, told_errors
from tfx.errors import DataError

from .measuring.accuracy import shown_accuracy
from .measuring.machine import Machine
from .measuring.report import BenchReport, Row, report_from
from .pages.figures import ms_text
from .pages.files import write_text
from .pages.sections import Section, Sheet
from .pages.sheets import FORMS, section_of, speed_text
from .pages.stored import Stored, read_stored

if TYPE_CHECKING:
    from rich.console import Console

HEAD = """# Results

Made by `make results` from the files of `benchmarks/results`; edit neither. Each command keeps one
with `--save benchmarks/results`. Speed and ratios are medians against a row of the same rounds,
with 95 % intervals; the [schema of tfx bench](../benchmarks/measuring/report.py) says
how its numbers are measured.
"""


def read_results(folder: Path) -> list[Stored]:
    """Results of a folder and those below, oldest first.

    A file is what a command stored with ``--save``, or a report of ``tfx bench --output``.

    Raises:
        DataError: If a file is something else, or damaged.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        try:
            stored = read_stored(document)
            if stored is None:
                report = report_from(document)
                stored = Stored("bench", report.created, report.machine, document)
        except DataError as error:
            raise DataError(f"{path}: {error}", hint=error.hint) from error
        found.append(stored)
    return sorted(found, key=lambda one: one.created)


def reports_of(results: Iterable[Stored]) -> list[BenchReport]:
    """The reports of ``tfx bench`` among results, those that other commands wrap included.

    Raises:
        DataError: If one is damaged.
    """
    found = []
    for stored in results:
        for one in (stored.result, stored.result.get("report")):
            if isinstance(one, dict) and {"schema", "machine", "rows", "plan"} <= one.keys():
                found.append(report_from(one))
                break
    return found


def page_of_results(results: Sequence[Stored]) -> str:
    """The newest result of each machine, command and family, as Markdown.

    Raises:
        DataError: If one is not what its command prints.
    """
    newest: dict[tuple[str, str, tuple[str, ...]], tuple[Stored, Section]] = {}
    for stored in results:
        section = _section_of(stored)
        newest[_where(stored.machine), stored.command, section.subject] = stored, section
    order = list(FORMS)
    shown = sorted(
        newest.items(),
        key=lambda one: order.index(one[0][1]) if one[0][1] in order else len(order),
    )
    parts = [HEAD]
    for where in sorted({where for where, _, _ in newest}):
        parts.append(f"## {where}\n")
        parts += [_text_of(*found) for key, found in shown if key[0] == where]
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
                    speed_text(row),
                    shown_accuracy(row.accuracy) if row.accuracy else "",
                    f"{row.digest[:8]}",
                )
        out.print(table)
    out.print(
        "note: p50 moves with the machine too; speed is against PyTorch in the same rounds, or "
        "against the fastest row where that did not run; tfx bench --baseline judges a change"
    )


def _where(machine: Machine) -> str:
    """A machine as the page names it: what its kernel was at the time does not count."""
    return (
        f"{machine.cpu or 'unknown CPU'}, {machine.usable_cpus} of {machine.cores} CPUs usable, "
        f"{machine.memory_mb / 1000:.0f} GB"
    )


def _section_of(stored: Stored) -> Section:
    try:
        return section_of(stored)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"the result of {stored.command} of {stored.created} is not what it prints: "
            f"{type(error).__name__}: {error}",
            hint="Measure again with --save.",
        ) from error


def _text_of(stored: Stored, section: Section) -> str:
    machine = stored.machine
    lines = [f"### {section.title}, {stored.created[:10]}\n"]
    for sheet in section.sheets:
        lines += [f"{sheet.title}:\n"] if sheet.title else []
        lines += [*_table_of(sheet), ""]
    lines += [f"- {note}" for note in section.notes]
    lines += [""] if section.notes else []
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    lines.append(
        f"Load average {machine.load_average} at the start; {machine.os}, Python {machine.python}, "
        f"{versions}.\n"
    )
    return "\n".join(lines)


def _table_of(sheet: Sheet) -> list[str]:
    return [
        _line(sheet.heads),
        _line(["---", *("---:" for _ in sheet.heads[1:])]),
        *map(_line, sheet.lines),
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@click.command
@click.argument("folder", type=FOLDER, default="benchmarks/results")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="docs/results.md")
@click.option("--check", is_flag=True, help="Write nothing; fail if the page is not up to date.")
def results(folder: Path, output: Path, check: bool) -> None:
    """Write the page of the results that FOLDER holds."""
    with told_errors():
        page = page_of_results(read_results(folder))
        if not check:
            write_text(output, page)
            return
        if not output.is_file() or output.read_text(encoding="utf-8") != page:
            raise DataError(
                f"{output} is not what {folder} makes of it", hint="Run it without --check."
            )


if __name__ == "__main__":
    results()
