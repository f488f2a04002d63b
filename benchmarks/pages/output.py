"""Files of a benchmark: JSON, CSV and HTML, written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from tfx.errors import DataError

from ..measuring.report import BenchReport, Row, report_from
from .files import write_text
from .html import page_of

log = logging.getLogger(__name__)

# Columns of the CSV file, in its order; empty where a row has no such number.
COLUMNS = (
    "bundle", "backend", "precision", "sizes", "preprocessing", "status", "reason",
    "median_ms", "p95_ms", "p99_ms", "min_ms", "max_ms", "samples", "rounds", "processes",
    "throughput_per_s",
    "first_ms", "first_p95_ms", "row_tokens_per_s", "same_tokens",
    "load_s", "first_call_ms", "peak_memory_mb", "model_bytes",
    "joules_per_call", "gflops", "gemm_share", "gb_per_s", "memory_share",
    "speedup", "speedup_low", "speedup_high", "verdict", "against", "scaled_error",
    "metric", "accuracy", "accuracy_low", "accuracy_high", "change", "change_low", "change_high",
    "digest",
)  # fmt: skip


@contextlib.contextmanager
def sole_writer(paths: Iterable[Path]) -> Iterator[None]:
    """Keep other benchmarks from writing the same files meanwhile: the last would win.

    A hidden file beside each is locked, and removed in the end. The lock goes with the process,
    also where it is killed.

    Raises:
        DataError: If another one writes one of them.
    """
    with contextlib.ExitStack() as held:
        for path in {path.absolute() for path in paths}:
            held.enter_context(_locked(path))
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_name(f".{path.name}.lock")
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    except (ImportError, OSError) as error:  # another system; or writing fails, and says so then
        log.info("does not look for others that write %s: %s", path, error)
        yield
        return
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"another tfx bench writes {path}",
                hint="Name another file, or wait until it is done.",
            ) from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def write_json(path: Path, report: BenchReport) -> None:
    """Write a report as ``tfx bench --json`` prints it.

    Raises:
        DataError: If it cannot be written.
    """
    write_text(
        path,
        json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )


def write_csv(path: Path, report: BenchReport) -> None:
    """Write a line a row, with ``COLUMNS``.

    Raises:
        DataError: If it cannot be written.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    preprocessing = "included" if report.plan.load.preprocessing else "not included"
    writer.writerows(_cells(row) | {"preprocessing": preprocessing} for row in report.rows)
    write_text(path, stream.getvalue())


def write_html(path: Path, report: BenchReport) -> None:
    """Write a page that needs no other file.

    Raises:
        DataError: If it cannot be written.
    """
    write_text(path, page_of(report))


def read_report(path: Path) -> BenchReport:
    """Read what ``write_json`` wrote.

    Raises:
        DataError: If it is something else; names the file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON: {error}",
            hint="Give a file that tfx bench --output FILE.json wrote.",
        ) from error
    try:
        return report_from(document)
    except DataError as error:
        raise DataError(f"{path}: {error}", hint=error.hint) from error


def _cells(row: Row) -> dict[str, object]:
    cells: dict[str, object] = {
        "bundle": row.bundle,
        "backend": row.backend,
        "precision": row.precision,
        "sizes": row.title,
        "status": str(row.status),
        "reason": row.reason,
        "model_bytes": row.model_bytes,
        "digest": row.digest,
    }
    if (found := row.measurement) is not None:
        latency = found.latency
        cells |= {name: getattr(latency, name) for name in type(latency).__dataclass_fields__}
        for name in (
            "rounds", "throughput_per_s", "load_s", "first_call_ms", "peak_memory_mb",
            "joules_per_call",
        ):  # fmt: skip
            cells[name] = getattr(found, name)
        cells["processes"] = len(found.processes)
        if (writing := found.writing) is not None:
            for name in ("first_ms", "first_p95_ms", "row_tokens_per_s", "same_tokens"):
                cells[name] = getattr(writing, name)
    if row.reached is not None:
        for name in ("gflops", "gemm_share", "gb_per_s", "memory_share"):
            cells[name] = getattr(row.reached, name)
    if (speed := row.comparison) is not None:
        cells |= {
            "speedup": speed.speedup,
            "speedup_low": speed.low,
            "speedup_high": speed.high,
            "verdict": str(speed.verdict),
            "against": speed.against,
        }
    if row.agreement:
        errors = [one.scaled_error for one in row.agreement]
        if None not in errors:
            cells["scaled_error"] = max(error for error in errors if error is not None)
    if (about := row.accuracy) is not None:
        cells |= {
            "metric": about.metric,
            "accuracy": about.value,
            "accuracy_low": about.low,
            "accuracy_high": about.high,
        }
        if (change := about.change) is not None:
            cells |= {
                "change": change.value,
                "change_low": change.low,
                "change_high": change.high,
            }
    return cells
