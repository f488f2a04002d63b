"""A benchmark as one HTML file that needs nothing else: no script, no font, no picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape

from tfx.codec import encode
from tfx.runtime.backend import BACKENDS
from tfx.runtime.stats import Verdict
from tfx.signature import BATCH, SEQUENCE

from ..measuring.accuracy import shown_accuracy, shown_change
from ..measuring.report import BenchReport, Row, Status
from ..measuring.workload import PROMPT
from .figures import ms_text, significant
from .html_time import time_section
from .notes import notes_of
from .plot import (
    Curve,
    Point,
    curves,
    legend_mark,
    log_scale,
    pareto,
    ruler,
    scatter,
    strip,
)
from .style import STYLE
from .table import error_text, first_text, gemm_text, memory_text, same_text

# Rows that a plot has room for numbers of; and lines.
MOST_NAMED = 12

# A number a row is called by in plots, where its name has no room.
Numbers = dict[str, int]


def page_of(report: BenchReport) -> str:
    """The report as an HTML document."""
    numbers = _numbers(report)
    names = list(dict.fromkeys(row.bundle for row in report.rows))
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    what = "speed and accuracy" if any(row.accuracy for row in report.rows) else "speed"
    title = f"{min(names, key=len, default='nothing')}{others}: {what}"
    sections = [_head(title, report), _summary(report)]
    for shape, rows in report.by_shape().items():
        measured = _measured(rows)
        if not measured:
            continue
        sections.append(f"<h2>{escape(shape)}</h2>")
        sections.append(_pareto_section(shape, measured, numbers))
        sections.append(_table(measured, numbers))
        sections.append(_distribution(shape, measured, numbers))
        sections.append(time_section(shape, measured, numbers))
    for axis in (BATCH, SEQUENCE, PROMPT):
        sections.append(_curves(report, axis, numbers))
    sections += [_failures(report), _notes(report), _conditions(report)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(title: str, report: BenchReport) -> str:
    when = report.created[:16].replace("T", " ")
    return (
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="soft">tfx bench, {escape(when)} UTC, on {escape(str(report.machine))}</p>'
        f"{_missing(report)}"
    )


def _missing(report: BenchReport) -> str:
    """How many rows have no numbers, at the top: tables have no line for them."""
    wrong = sum(row.status is Status.WRONG for row in report.rows)
    not_run = sum(row.status is Status.NOT_RUN for row in report.rows)
    counts = [
        f"{count} of {len(report.rows)} rows {what}"
        for count, what in ((wrong, "gave wrong outputs"), (not_run, "did not run"))
        if count
    ]
    link = '<a href="#not-measured">see why</a>'
    return f'<p class="bad">{" and ".join(counts)}: {link}</p>' if counts else ""


def _summary(report: BenchReport) -> str:
    """What most readers came for: the fastest rows, and the most samples per second."""
    measured = [row for rows in report.by_shape().values() for row in _measured(rows)]
    if not measured:
        return ""
    shape = measured[0].title
    here = [row for row in measured if row.title == shape]
    facts = [_fact(f"Least latency, {shape}", here[0])]
    kept = next((row for row in here if _keeps(row)), None)
    if kept is not None and kept is not here[0]:
        facts.append(_fact(f"Least latency without a sure loss of accuracy, {shape}", kept))
    most = max(measured, key=lambda row: row.measurement.throughput_per_s)  # type: ignore[union-attr]
    what = "tokens" if report.plan.load.writes else "samples"
    facts.append(_fact(f"Most {what} a second, {most.title}", most))
    return f'<ul class="facts">{"".join(facts)}</ul>'


def _fact(what: str, row: Row) -> str:
    assert row.measurement is not None
    ahead = row.comparison
    speed = f", {ahead.speedup:.2f}x {escape(ahead.against)}" if ahead else ""
    good = f"; {row.accuracy.metric} {row.accuracy.value:.4f}" if row.accuracy else ""
    rate = significant(row.measurement.throughput_per_s)
    return (
        f'<li><span class="soft">{escape(what)}</span><b>{escape(row.name)}</b>'
        f"{ms_text(row.measurement.latency.median_ms)} ms, {rate} per s{speed}{escape(good)}</li>"
    )


def _keeps(row: Row) -> bool:
    """Whether a row's accuracy is not surely below the reference's."""
    if row.accuracy is None:
        return False
    change = row.accuracy.change
    if change is None:
        return True
    return change.high >= 0 if row.accuracy.better == "higher" else change.low <= 0


def _pareto_section(shape: str, rows: Sequence[Row], numbers: Numbers) -> str:
    known = [row for row in rows if row.accuracy is not None]
    if len(known) < 2:
        return ""
    metric = known[0].accuracy.metric  # type: ignore[union-attr]
    points = []
    for row in known:
        found, about = row.measurement, row.accuracy
        assert found is not None
        assert about is not None
        if about.metric != metric:
            continue
        text = f"{row.name}: {ms_text(found.latency.median_ms)} ms, {metric} {about.value:.4f}"
        points.append(
            Point(
                found.latency.median_ms,
                about.value,
                str(numbers[row.name]),
                text,
                _series(row),
                about.low,
                about.high,
            )
        )
    higher = known[0].accuracy.better == "higher"  # type: ignore[union-attr]
    front = pareto(points) if higher else []
    best = ", ".join(point.text for point in front)
    few = ""
    if len(known) > MOST_NAMED:
        labels = {point.label for point in front[:MOST_NAMED]}
        known = [row for row in known if row.comparison is None or str(numbers[row.name]) in labels]
        labels |= {str(numbers[row.name]) for row in known}
        points = [point if point.label in labels else replace(point, label="") for point in points]
        few = "Numbered are those rows and the baseline; the table has all. "
    plot = scatter(
        points,
        x_name="median latency, ms",
        y_name=metric,
        title=f"{metric} against latency, {shape}",
        text="; ".join(point.text for point in points) + (f". Best: {best}" if best else ""),
        front=higher,
    )
    say = "Left is faster, up is better. " if higher else "Left is faster, down is better. "
    dashes = "Dashes join rows no other beats in both. " if higher else ""
    return (
        f"<figure>{plot}{_legend(known, numbers)}<figcaption>{say}{dashes}{few}"
        f"Vertical lines are 95 % intervals over {known[0].accuracy.samples:,} samples; "  # type: ignore[union-attr]
        "differences in pairs, in the table, are surer.</figcaption></figure>"
    )


def _legend(rows: Sequence[Row], numbers: Numbers) -> str:
    items = "".join(
        f"<li>{legend_mark(_series(row))} <b>{numbers[row.name]}</b> {escape(row.name)}</li>"
        for row in sorted(rows, key=lambda row: numbers[row.name])
    )
    return f'<ul class="legend">{items}</ul>'


def _table(rows: Sequence[Row], numbers: Numbers) -> str:
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("first ms", lambda row: _of(row, lambda found: first_text(row, found))),
        ("p50 ms", lambda row: _of(row, lambda found: ms_text(found.latency.median_ms))),
        ("p95 ms", lambda row: _of(row, lambda found: ms_text(found.latency.p95_ms))),
        ("p99 ms", lambda row: _of(row, lambda found: ms_text(found.latency.p99_ms))),
        ("per s", lambda row: _of(row, lambda found: significant(found.throughput_per_s))),
        ("speed", _speed),
        ("", _verdict),
    ]
    if any(row.accuracy for row in rows):
        metric = next(row.accuracy.metric for row in rows if row.accuracy)
        columns += [
            (metric, lambda row: shown_accuracy(row.accuracy) if row.accuracy else "-"),
            ("change", _change),
        ]
    columns += [
        ("GEMM", gemm_text),
        ("memory", memory_text),
        ("same", lambda row: _of(row, lambda found: same_text(row, found))),
        ("error", error_text),
        ("load s", lambda row: _of(row, lambda found: f"{found.load_s:.1f}")),
        ("first call ms", lambda row: _of(row, lambda found: ms_text(found.first_call_ms))),
        ("peak MB", lambda row: _of(row, lambda found: _whole(found.peak_memory_mb))),
        ("disk MB", lambda row: _whole(row.model_bytes and row.model_bytes / 1e6)),
        ("runs in", lambda row: _of(row, lambda found: found.facts.precision)),
    ]
    columns = [
        (name, cell) for name, cell in columns if any(cell(row) not in ("-", "") for row in rows)
    ]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in columns)
    body = "".join(
        f'<tr><th scope="row">{legend_mark(_series(row))} {numbers[row.name]} {escape(row.name)}'
        f"</th>{''.join(f'<td>{cell(row)}</td>' for _, cell in columns)}</tr>"
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="All numbers">'
        f'<table><thead><tr><th scope="col">row</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _of(row: Row, cell: Callable[..., str]) -> str:
    return cell(row.measurement) if row.measurement is not None else "-"


def _speed(row: Row) -> str:
    if (found := row.comparison) is None:
        return "1.00x"
    return f'{found.speedup:.2f}x <span class="soft">{found.low:.2f}–{found.high:.2f}</span>'  # noqa: RUF001


def _verdict(row: Row) -> str:
    if (found := row.comparison) is None:
        return "baseline"
    kinds = {Verdict.FASTER: "good", Verdict.SLOWER: "bad"}
    return f'<span class="{kinds.get(found.verdict, "soft")}">{found.verdict}</span>'


def _change(row: Row) -> str:
    if row.accuracy is None or row.accuracy.change is None:
        return ""
    worse = not _keeps(row)
    return f'<span class="{"bad" if worse else "soft"}">{shown_change(row.accuracy)}</span>'


def _distribution(shape: str, rows: Sequence[Row], numbers: Numbers) -> str:
    known = [row for row in rows if row.measurement and row.measurement.percentiles_ms]
    if not known:
        return ""
    scale = log_scale(
        value
        for row in known
        for value in (row.measurement.percentiles_ms[0], row.measurement.percentiles_ms[-1])  # type: ignore[union-attr]
    )
    lines = []
    for row in known:
        assert row.measurement is not None
        spread = row.measurement.percentiles_ms
        text = (
            f"{row.name}: fastest {ms_text(spread[0])} ms, median {ms_text(spread[50])} ms, "
            f"95 of 100 within {ms_text(spread[95])} ms, slowest {ms_text(spread[100])} ms"
        )
        lines.append(
            f'<div class="who">{legend_mark(_series(row))} {numbers[row.name]} {escape(row.name)}'
            f"</div><div>{strip(spread, scale, _series(row), text)}</div>"
            f'<div class="value">{ms_text(spread[50])} ms</div>'
        )
    call = "token" if any(row.measurement and row.measurement.writing for row in rows) else "call"
    axis = f'<div class="axis">{ruler(scale, f"ms per {call}")}</div>'
    return (
        f"<h3>Latency of all {call}s, {escape(shape)}</h3><figure>"
        f'<div class="strips">{"".join(lines)}{axis}</div>'
        "<figcaption>The line is the median, the dark bar the middle half, the light bar the "
        f"middle 90 %, the thin one all {call}s: none is left out.</figcaption></figure>"
    )


def _curves(report: BenchReport, axis: str, numbers: Numbers) -> str:
    """Latency along one axis, for each size of the others: where there are at least two sizes."""
    found: dict[tuple[tuple[str, int], ...], dict[str, list[tuple[int, Row]]]] = {}
    for row in report.rows:
        size = next((size for name, size in row.sizes.items() if axis in name), None)
        if size is None or row.measurement is None:
            continue
        others = tuple((name, value) for name, value in row.sizes.items() if axis not in name)
        found.setdefault(others, {}).setdefault(row.name, []).append((size, row))
    parts = []
    for others, rows in found.items():
        lines = []
        shown = []
        for name, pairs in rows.items():
            pairs.sort(key=lambda pair: pair[0])
            if len({size for size, _ in pairs}) < 2:
                continue
            values = tuple(
                row.measurement.latency.median_ms  # type: ignore[union-attr]
                for _, row in pairs
            )
            sizes = tuple(float(size) for size, _ in pairs)
            text = f"{name}: " + ", ".join(
                f"{ms_text(value)} ms at {size:g}"
                for size, value in zip(sizes, values, strict=True)
            )
            shown.append(pairs[0][1])
            lines.append(Curve(sizes, values, str(numbers[name]), text, _series(pairs[0][1])))
        if not lines:
            continue
        every = len(lines)
        fastest = sorted(range(every), key=lambda at: numbers[shown[at].name])[:MOST_NAMED]
        lines, shown = [lines[at] for at in fastest], [shown[at] for at in fastest]
        where = ", ".join(f"{name} {value}" for name, value in others)
        plot = curves(
            lines,
            x_name=axis,
            y_name="median latency, ms",
            title=f"Latency by {axis}" + (f", {where}" if where else ""),
            text="; ".join(line.text for line in lines),
        )
        title = f"<h3>{escape(where)}</h3>" if where else ""
        few = f"<figcaption>The {len(lines)} fastest of {every} rows.</figcaption>"
        caption = few if every > len(lines) else ""
        parts.append(f"{title}<figure>{plot}{_legend(shown, numbers)}{caption}</figure>")
    return f"<h2>Latency by {escape(axis)}</h2>{''.join(parts)}" if parts else ""


def _failures(report: BenchReport) -> str:
    reasons: dict[str, list[str]] = {}
    for row in report.rows:
        if row.status is not Status.MEASURED:
            reasons.setdefault(f"{row.name} ({row.status}): {row.reason}", []).append(row.title)
    shapes = len(report.by_shape())
    lines = [
        reason if len(where) == shapes else f"{reason} [{'; '.join(where)}]"
        for reason, where in reasons.items()
    ]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h2 id="not-measured">Not measured</h2><ul class="notes">{items}</ul>' if items else ""


def _notes(report: BenchReport) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes_of(report))
    return f'<h2>To know</h2><ul class="notes">{items}</ul>' if items else ""


def _conditions(report: BenchReport) -> str:
    machine = {name: _plain(value) for name, value in encode(report.machine).items()}
    plan = {
        name: _plain(encode(getattr(report.plan, name)))
        for name in type(report.plan).__dataclass_fields__
    }
    digests = {row.bundle: row.digest for row in report.rows}
    return (
        f"<h2>Machine</h2>{_list(machine)}<h2>Configuration</h2>{_list(plan)}"
        f"<h2>Bundles</h2>{_list(digests)}"
    )


def _list(values: dict[str, str]) -> str:
    items = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(value)}</dd>"
        for name, value in values.items()
        if value != ""
    )
    return f"<dl>{items}</dl>"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "default" if value is None else str(value)


def _measured(rows: Sequence[Row]) -> list[Row]:
    known = [row for row in rows if row.measurement is not None]
    return sorted(known, key=lambda row: row.measurement.latency.median_ms)  # type: ignore[union-attr]


def _numbers(report: BenchReport) -> Numbers:
    """A number for each row, fastest of the first shape first."""
    names = [row.name for rows in report.by_shape().values() for row in (*_measured(rows), *rows)]
    return {name: index for index, name in enumerate(dict.fromkeys(names), 1)}


def _series(row: Row) -> int:
    return list(BACKENDS).index(row.backend) if row.backend in BACKENDS else len(BACKENDS)


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
