"""Sections of the standing comparisons whose columns are those that they show on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tfx.codec import decode

from .figures import Figure, figures_of
from .sections import Section, Sheet
from .stored import Stored


def decoding_section(stored: Stored) -> Section:
    """Of ``python -m tfx.bench.decoding``."""
    from ..decoding import COLUMNS, DecodingReport, notes_of, ran, title_of

    report = decode(DecodingReport, dict(stored.result))
    rows = ran(report)
    return Section(
        "Writing beside other libraries: `python -m tfx.bench.decoding`",
        (f"batch {report.batch}", *sorted(row.name for row in report.rows if row.own)),
        (_figure_sheet(title_of(report), [row.name for row in rows], rows, COLUMNS),),
        tuple(notes_of(report)),
    )


def contexts_section(stored: Stored) -> Section:
    """Of ``python -m tfx.bench.contexts``."""
    from ..contexts import COLUMNS, ContextReport, notes_of, title_of

    report = decode(ContextReport, dict(stored.result))
    rows = [row for row in report.rows if not row.reason]
    return Section(
        "A token by how many come before it: `python -m tfx.bench.contexts`",
        (f"batch {report.batch}", *sorted({row.name for row in report.rows})),
        (_figure_sheet(title_of(report), [row.name for row in rows], rows, COLUMNS),),
        tuple(notes_of(report)),
    )


def opening_section(stored: Stored) -> Section:
    """Of ``python -m tfx.bench.opening``."""
    from ..opening import HEADS, Row, cells_of

    rows = [decode(Row, row) for row in stored.result["rows"]]
    bundle = str(stored.result["bundle"])
    return Section(
        "Opening in a fresh process: `python -m tfx.bench.opening`",
        (bundle,),
        (Sheet(bundle, HEADS, tuple(map(cells_of, rows))),),
        tuple(f"{row.backend}: {row.ran}, {row.processes} processes" for row in rows),
    )


def overhead_section(stored: Stored) -> Section:
    """Of ``python -m tfx.bench.overhead``."""
    from ..overhead import HEADS, Overhead, cells_of

    bundle = str(stored.result["bundle"])
    rows = [
        decode(Overhead, {name: value for name, value in one.items() if name != "verdict"})
        for one in stored.result["rows"]
    ]
    return Section(
        "What predict adds to ONNX Runtime's run: `python -m tfx.bench.overhead`",
        (bundle,),
        (Sheet(bundle, HEADS, tuple(map(cells_of, rows))),),
        ("the interval is of one process' pairs: another run of the same differs by more",),
    )


def planted_section(stored: Stored) -> Section:
    """Of ``python -m tfx.bench.planted``."""
    from ..planted import HEADS, Try, cells_of, verdicts_of

    result = stored.result
    tries = [
        decode(Try, {name: value for name, value in one.items() if name != "right"})
        for one in result["tries"]
    ]
    title = f"{result['bundle']} on {result['backend']}, --fail-on {result['limit']:.0%}"
    return Section(
        "Planted slowdowns: `python -m tfx.bench.planted`",
        (title,),
        (Sheet(title, HEADS, tuple(map(cells_of, tries))),),
        tuple(verdicts_of(tries)),
    )


def _figure_sheet(
    title: str, names: Sequence[str], rows: Sequence[object], columns: Sequence[Figure]
) -> Sheet:
    heads = ("row", *(head for head, _, _ in columns))
    lines = tuple((name, *figures_of(row, columns)) for name, row in zip(names, rows, strict=True))
    return Sheet(title, heads, lines)
