"""The tables of a benchmark on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..measuring.accuracy import shown_accuracy, shown_change
from ..measuring.report import BenchReport, Measurement, Row, Status
from .figures import ms_text, ratio_text, share_text, significant
from .notes import notes_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# What a narrow terminal does without, first to go first.
LEAST_NEEDED = (
    "calls", "load", "error", "p95", "memory", "MB", "disk", "GEMM", "J", "same", "per s", "p99",
    "first",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its head.
        cell: What it says of a row.
    """

    name: str
    cell: Callable[[Row, Measurement], str]


def show_report(out: Console, report: BenchReport) -> None:
    """Print one table per shape, then what did not run, verdicts and conditions."""
    shapes = report.by_shape()
    left_out: dict[str, None] = {}
    for title, rows in shapes.items():
        left_out |= dict.fromkeys(_show_shape(out, title, rows))
    failed: dict[str, list[str]] = {}
    for row in report.rows:
        if row.status is not Status.MEASURED:
            what = "is WRONG" if row.status is Status.WRONG else "not run"
            failed.setdefault(f"{row.name} {what}: {row.reason}", []).append(row.title)
    for line, titles in failed.items():
        everywhere = len(titles) == len(shapes)
        out.print(line if everywhere else f"{'; '.join(titles)}: {line}", markup=False)
    if left_out:
        out.print(f"note: too narrow for the columns {', '.join(left_out)}", markup=False)
    for note in notes_of(report):
        out.print(f"note: {note}", markup=False)
    out.print(f"{report.machine}", markup=False)
    versions = ", ".join(f"{name} {number}" for name, number in report.machine.versions.items())
    out.print(f"{versions}", markup=False)


def _show_shape(out: Console, title: str, rows: list[Row]) -> list[str]:
    """Print a table; the columns it has no room for."""
    from rich.measure import Measurement as Width

    several = len({row.bundle for row in rows}) > 1
    # A title of one bundle's table names it, so that the table has room for numbers.
    out.print(title if several else f"{rows[0].bundle}: {title}", style="bold", markup=False)
    measured = [row for row in rows if row.measurement is not None]
    measured.sort(key=lambda row: row.measurement.latency.median_ms)  # type: ignore[union-attr]
    columns = _columns(measured, several)
    left_out: list[str] = []
    if measured:
        table = _table(columns, measured)
        for name in LEAST_NEEDED:
            if Width.get(out, out.options.update(max_width=9999), table).maximum <= out.width:
                break
            if any(column.name == name for column in columns):
                columns = [column for column in columns if column.name != name]
                left_out.append(name)
                table = _table(columns, measured)
        out.print(table)
    out.print()
    return left_out


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for column in columns:
        words = column.name in ("bundle", "backend", "")
        justify = "left" if words else "right"
        table.add_column(column.name, justify=justify, overflow="fold", no_wrap=not words)  # type: ignore[arg-type]
    for row in rows:
        found = row.measurement
        assert found is not None  # rows not measured have no line
        table.add_row(*(column.cell(row, found) for column in columns))
    return table


def _columns(rows: Sequence[Row], several: bool) -> list[Column]:
    writes = any(row.measurement and row.measurement.writing for row in rows)
    columns = [Column("bundle", lambda row, found: row.bundle)] if several else []
    columns += [
        Column("backend", lambda row, found: str(row.way)),
        Column("calls", lambda row, found: str(found.latency.samples)),
        *([Column("first", first_text)] if writes else []),
        Column("p50", lambda row, found: ms_text(found.latency.median_ms)),
    ]
    # Few runs are long enough for these, and their columns would take the room of the others.
    latencies = [row.measurement.latency for row in rows if row.measurement]
    if any(latency.p95_ms is not None for latency in latencies):
        columns.append(Column("p95", lambda row, found: ms_text(found.latency.p95_ms)))
    if any(latency.p99_ms is not None for latency in latencies):
        columns.append(Column("p99", lambda row, found: ms_text(found.latency.p99_ms)))
    columns += [
        Column("per s", lambda row, found: significant(found.throughput_per_s)),
        Column("load", lambda row, found: f"{found.load_s:.1f}s"),
        Column("MB", lambda row, found: _mb(found.peak_memory_mb)),
    ]
    if any(row.model_bytes is not None for row in rows):
        columns.append(
            Column(
                "disk",
                lambda row, found: _mb(None if row.model_bytes is None else row.model_bytes / 1e6),
            )
        )
    if any(row.measurement and row.measurement.joules_per_call is not None for row in rows):
        columns.append(Column("J", lambda row, found: ms_text(found.joules_per_call)))
    if any(row.reached for row in rows):
        columns.append(Column("GEMM", lambda row, found: gemm_text(row)))
        columns.append(Column("memory", lambda row, found: memory_text(row)))
    if writes:
        columns.append(Column("same", same_text))
    columns.append(Column("error", lambda row, found: error_text(row)))
    columns.append(Column("speed, 95 %", lambda row, found: _speed(row)))
    columns.append(Column("", lambda row, found: _verdict(row)))
    metrics = {row.accuracy.metric for row in rows if row.accuracy}
    if metrics or any(row.no_accuracy for row in rows):
        name = metrics.pop() if len(metrics) == 1 else "metric"
        columns.append(Column(name, lambda row, found: _accuracy(row)))
        if any(row.accuracy and row.accuracy.change for row in rows):
            columns.append(Column("change", lambda row, found: _change(row)))
    return columns


def _speed(row: Row) -> str:
    if (found := row.comparison) is None:
        return "1.00x"
    return f"{ratio_text(found.speedup)}x {ratio_text(found.low)}-{ratio_text(found.high)}"


def _verdict(row: Row) -> str:
    return "baseline" if row.comparison is None else str(row.comparison.verdict)


def _accuracy(row: Row) -> str:
    return shown_accuracy(row.accuracy) if row.accuracy else "-"


def _change(row: Row) -> str:
    return shown_change(row.accuracy) if row.accuracy else ""


def error_text(row: Row) -> str:
    """The largest scaled error of a row's outputs; "-" where it has none."""
    if row.agreement is None:
        return "-"
    errors = [one.scaled_error for one in row.agreement]
    return "-" if None in errors else f"{max(e for e in errors if e is not None):.0e}"


def gemm_text(row: Row) -> str:
    """The share of the machine's peak that a row's products reach; "-" where not known."""
    return share_text(row.reached.gemm_share if row.reached else None)


def memory_text(row: Row) -> str:
    """The same of the weights it reads."""
    return share_text(row.reached.memory_share if row.reached else None)


def first_text(row: Row, found: Measurement) -> str:
    """Milliseconds to the first token; "-" for a row that writes none."""
    return ms_text(found.writing.first_ms) if found.writing else "-"


def same_text(row: Row, found: Measurement) -> str:
    """How many of the tokens are PyTorch's, in percent; "-" where it is not known."""
    same = found.writing.same_tokens if found.writing else None
    return "-" if same is None else f"{same:.0%}"


def _mb(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
