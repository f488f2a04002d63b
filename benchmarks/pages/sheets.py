"""Stored results as tables of text: a section for each command, whatever its JSON looks like.

Commands whose documents want words of their own have a function in ``FORMS``; of any other the
lists of rows are shown as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tfx.codec import decode

from ..measuring.accuracy import shown_accuracy, shown_change
from ..measuring.report import BenchReport, Row, Status, report_from
from .figures import ms_text, significant, span_text
from .sections import Section, Sheet
from .standing import (
    contexts_section,
    decoding_section,
    opening_section,
    overhead_section,
    planted_section,
)
from .stored import Stored
from .table import error_text

Document = Mapping[str, Any]
MEBIBYTE = 1 << 20


def section_of(stored: Stored) -> Section:
    """The tables of a stored result.

    Raises:
        DataError: If a report of ``tfx bench`` in it is damaged.
        KeyError, TypeError: If it is not what its command prints.
    """
    return FORMS.get(stored.command, _plain)(stored)


def _bench(stored: Stored) -> Section:
    report = report_from(stored.result)
    names = sorted({row.name for row in report.rows} | {row.title for row in report.rows})
    sheets = []
    for title, rows in report.by_shape().items():
        measured = [row for row in rows if row.measurement is not None]
        measured.sort(key=lambda row: row.measurement.latency.median_ms)  # type: ignore[union-attr]
        if measured:
            sheets.append(_bench_sheet(title, measured))
    return Section("tfx bench", tuple(names), tuple(sheets), tuple(_failed(report)))


def _bench_sheet(title: str, rows: Sequence[Row]) -> Sheet:
    heads = ["row", "p50 ms", "per s", "speed, 95 %", "verdict", "error"]
    metrics = {row.accuracy.metric for row in rows if row.accuracy}
    if metrics:
        heads += [metrics.pop() if len(metrics) == 1 else "metric", "change"]
    return Sheet(title, tuple(heads), tuple(_bench_cells(row, len(heads)) for row in rows))


def _bench_cells(row: Row, count: int) -> tuple[str, ...]:
    found = row.measurement
    assert found is not None
    cells = [
        row.name,
        ms_text(found.latency.median_ms),
        significant(found.throughput_per_s),
        speed_text(row),
        str(row.comparison.verdict) if row.comparison else "baseline",
        error_text(row),
    ]
    about = row.accuracy
    cells += [shown_accuracy(about), shown_change(about)] if about else ["-", ""]
    return tuple(cells[:count])


def speed_text(row: Row) -> str:
    """A row's speed against its baseline's, with its interval."""
    if (speed := row.comparison) is None:
        return "1.00x"
    return f"{speed.speedup:.2f}x {speed.low:.2f}-{speed.high:.2f}"


def _failed(report: BenchReport) -> Iterable[str]:
    for row in report.rows:
        if row.status is not Status.MEASURED:
            yield f"{row.name}, {row.title}, {row.status}: {row.reason}"


def _cpu(stored: Stored) -> Section:
    heads = ("row", "runs in", "p50 ms", "GFLOP/s", "of peak", "cosine", "speed, 95 %")
    rows = stored.result["rows"]
    sheets = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        ran = [row for row in rows if row["shape"] == shape and row.get("median_ms")]
        ran.sort(key=lambda row: row["median_ms"])
        lines = (
            (
                row["name"],
                row["precision"],
                significant(row["median_ms"]),
                _whole(row.get("gflops")),
                _percent(row.get("peak_share")),
                _digits(row.get("min_cosine"), 4),
                _compared(row.get("comparison"), "1.00x"),
            )
            for row in ran
        )
        sheets.append(Sheet(shape, heads, tuple(lines)))
    failed = [
        f"{row['name']}, {row['shape']}, not timed: {row.get('reason', '')}"
        for row in rows
        if not row.get("median_ms")
    ]
    return Section(
        "One model on this CPU: `python -m tfx.bench.cpu`",
        _names(rows, "name", "shape"),
        tuple(sheets),
        (*stored.result["verdicts"], *failed),
    )


def _text(stored: Stored) -> Section:
    from ..text import TextReport, notes_of

    report = decode(TextReport, dict(stored.result))
    ran = [row for row in report.rows if row.sentences_per_s is not None]
    ran.sort(key=lambda row: -(row.sentences_per_s or 0))
    lines = tuple(
        (
            row.name,
            row.precision,
            f"{row.batch} at once" if row.own else str(row.batch),
            _whole(row.sentences_per_s),
            _whole(row.tokens_per_s),
            _percent(row.peak_share),
            _digits(row.min_cosine, 4),
            _digits(row.mean_cosine, 4),
            "-"
            if (one := row.comparison) is None
            else f"{one.speedup:.2f}x {one.low:.2f}-{one.high:.2f}",
        )
        for row in ran
    )
    heads = "row", "runs in", "batch", "texts/s", "tokens/s", "of peak", "cosine", "mean", "ratio"
    title = (
        f"{report.texts:,} texts of {report.tokens / report.texts:.0f} tokens on average, the "
        f"longest {report.longest}; {report.threads} threads"
    )
    failed = [f"{row.name} not run: {row.reason}" for row in report.rows if row.reason]
    return Section(
        "Real texts beside other libraries: `python -m tfx.bench.text`",
        tuple(sorted(row.name for row in report.rows if row.own)),
        (Sheet(title, heads, lines),),
        (*notes_of(report), *failed),
    )


def _clients(stored: Stored) -> Section:
    rows = stored.result["rows"]
    # Older files have the least and the most of up to 5 rounds, and do not say how many.
    spread = "95 %" if "rounds" in stored.result else "range"
    heads = ("way", "clients", "answers/s", "p50 ms", "p99 ms", f"times, {spread}", "CPU", "lost")
    lines = tuple(
        (
            row["way"],
            str(row["clients"]),
            _whole(row["per_second"]),
            _digits(row["p50_ms"], 1),
            _digits(row["p99_ms"], 1),
            f"{row['speedup']:.2f} {span_text(row['low'], row['high'], '.2f')}",
            f"{row['processor_ratio']:.2f}",
            f"{row['lost'] + row['wrong']} of {row['asked']}",
        )
        for row in rows
    )
    ran = f"{stored.result.get('bundle', '')} on {stored.result['ran']}"
    return Section(
        "Many callers: `python -m tfx.bench.clients`",
        (ran, *_names(rows, "way", "clients")),
        (Sheet(ran, heads, lines),),
        (
            f"times: of one by one, median of the rounds and its {spread}",
            "CPU: processor time of an answer one by one, over this way's",
        ),
    )


def _soak(stored: Stored) -> Section:
    one = stored.result["soak"]
    heads = ("asked", "runs", "shapes", "s", "first MB", "last MB", "MB per 10,000, 95 %", "memory")
    memory = one["resident_mb"]
    line = (
        one["how"],
        f"{one['predicts']:,}",
        f"{one['shapes']:,}",
        _whole(one["seconds"]),
        _whole(memory[0]),
        _whole(memory[-1]),
        f"{one['slope_mb']:+.2f} ({one['low_mb']:+.2f} to {one['high_mb']:+.2f})",
        str(stored.result["verdict"]),
    )
    ran = f"{stored.result.get('bundle', '')} on {one['ran']}"
    return Section(
        "Memory over many runs: `python -m tfx.bench.soak`",
        (ran, one["how"]),
        (Sheet(ran, heads, (line,)),),
        (),
    )


def _quantization(stored: Stored) -> Section:
    names = ("model", "metric", "on", "float32", "int8", "drop, 95 %")
    heads = (*names, "samples", "size", "s", "MiB")
    cases = stored.result["cases"]
    lines = tuple(
        (
            case["model"],
            one["metric"],
            one["data"],
            f"{one['parent']:.4f}",
            f"{one['value']:.4f}",
            f"{one['drop']:+.4f} ({one['drop_low']:+.4f} to {one['drop_high']:+.4f})",
            f"{one['samples']:,}",
            f"{case['size_share']:.3f}x",
            _whole(case["quantize_s"]),
            _whole(case["quantize_peak_bytes"] / MEBIBYTE),
        )
        for case in cases
        for one in case["accuracy"]
    )
    sheets = [Sheet("int8 beside float32", heads, lines)]
    if speed := stored.result["speed"]:
        own = {
            (row["shape"], row["backend"]): row["p50_ms"]
            for row in speed
            if row["precision"] == "float32"
        }
        times = tuple(
            (
                row["shape"],
                row["backend"],
                row["precision"],
                significant(row["p50_ms"]),
                _ratio(own.get((row["shape"], row["backend"])), row["p50_ms"]),
            )
            for row in speed
        )
        columns = ("shape", "backend", "runs in", "p50 ms", "beside float32 there")
        sheets.append(Sheet("BERT-base, random weights", columns, times))
    return Section(
        "What int8 costs and gains: `python -m tfx.bench.quantization`",
        _names(cases, "model"),
        tuple(sheets),
        (
            "size: of graph and weights, beside float32's",
            "s and MiB: of the whole command `tfx quantize`, calibration and evaluation included",
        ),
    )


def _plain(stored: Stored) -> Section:
    """Each list of objects as a table of its plain values; what is single as a note."""
    sheets, notes = [], []
    for name, value in stored.result.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            sheets.append(_plain_sheet(name, value))
        elif isinstance(value, str | int | float) and name not in ("machine", "created"):
            notes.append(f"{_words(name)}: {_plain_cell(value)}")
    names = [line[0] for sheet in sheets for line in sheet.lines]
    bundle = stored.result.get("bundle", "")
    return Section(
        f"`python -m tfx.bench.{stored.command}`",
        tuple(sorted({str(bundle), *names})),
        tuple(sheets),
        tuple(notes),
    )


def _plain_sheet(title: str, rows: Sequence[Document]) -> Sheet:
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if _shown(value))
    lines = tuple(tuple(_plain_cell(row.get(key)) for key in keys) for row in rows)
    return Sheet(_words(title), tuple(map(_words, keys)), lines)


def _shown(value: object) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, dict) and "speedup" in value)


def _plain_cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"-{significant(-value)}" if value < 0 else significant(value)
        case dict():
            return _compared(value, "-")
    return str(value)


def _words(key: str) -> str:
    return key.replace("_per_s", "/s").replace("_", " ")


def _compared(found: Any, missing: str) -> str:
    if not found:
        return missing
    return f"{found['speedup']:.2f}x {found['low']:.2f}-{found['high']:.2f}"


def _names(rows: Iterable[Document], *keys: str) -> tuple[str, ...]:
    return tuple(sorted({str(row[key]) for row in rows for key in keys}))


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _digits(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio(over: float | None, under: float) -> str:
    return "-" if over is None else f"{over / under:.2f}x"


# How the document of each command becomes a section, in the order of the page.
FORMS: dict[str, Callable[[Stored], Section]] = {
    "cpu": _cpu,
    "text": _text,
    "bench": _bench,
    "quantization": _quantization,
    "decoding": decoding_section,
    "contexts": contexts_section,
    "clients": _clients,
    "opening": opening_section,
    "overhead": overhead_section,
    "soak": _soak,
    "planted": planted_section,
}
