"""``python -m tfx.bench.quantization``: what int8 costs in accuracy, and gains in size and time.

The project's standing comparison: real models on real data, and BERT-base with random weights
for speed. Every step is the ``tfx`` command a user would type, in a process of its own, so that
its time and peak memory are those of the command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tfx.codec import encode
from tfx.console import FOLDER, console, emit_json, json_option, told_errors
from tfx.errors import DataError

from .measuring.machine import this_machine
from .pages.stored import now, save_option, save_result

# Shapes of the comparison in speed: one request, and a full batch.
SHAPES = ((1, 128), (16, 128))


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and the data it is calibrated and measured on.

    Attributes:
        model: What ``tfx export`` takes; relative to the folder of models, or an alias.
        calibration: File of the data folder.
        evaluation: File of the data folder.
    """

    model: str
    calibration: str
    evaluation: str


CASES = {
    "minilm-sst2": Case("minilm-sst2", "sst2/train.tsv", "sst2/dev.tsv"),
    # One file for both: ranges come from 512 of its pairs, and the others are measured.
    "minilm": Case("minilm", "stsb/dev.tsv", "stsb/dev.tsv"),
}


@dataclass(frozen=True, slots=True)
class Run:
    """A command that was run.

    Attributes:
        seconds: Of the whole process.
        peak_bytes: Its largest resident memory.
        document: What it printed as JSON.
    """

    seconds: float
    peak_bytes: int
    document: Any


def run_command(arguments: Sequence[str], folder: Path) -> Run:
    """Run ``tfx`` with ``--json`` in a folder.

    Args:
        arguments: After ``tfx``.
        folder: Where it runs.

    Raises:
        DataError: If it fails; says what it said.
    """
    command = [sys.executable, "-P", "-m", "tfx", *arguments, "--json"]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        out.seek(0)
        said.seek(0)
        if process.returncode:
            last = said.read().decode(errors="replace").strip().splitlines()[-2:]
            raise DataError(f"tfx {' '.join(arguments)} failed: {' '.join(last)}")
        # In kilobytes on Linux (getrusage(2)).
        return Run(seconds, usage.ru_maxrss * 1024, json.loads(out.read()))


def measure_case(name: str, data: Path, models: Path, folder: Path) -> dict[str, Any]:
    """Export, quantize and measure one model.

    Returns:
        Accuracy as the manifest has it, share of the size, seconds and peak memory of
        ``tfx quantize``.
    """
    case = CASES[name]
    local = models / case.model
    source = str(local) if local.is_dir() else case.model
    run_command(["export", source, "-o", name], folder)
    child = f"{name}-int8"
    files = ["--calibrate", str(data / case.calibration), "--eval", str(data / case.evaluation)]
    done = run_command(["quantize", name, "--int8", "-o", child, *files], folder)
    quantization = done.document["quantization"]
    return {
        "model": name,
        "accuracy": quantization["accuracy"],
        "calibration_samples": quantization["calibration"]["samples"],
        "size_share": weights_bytes(folder / child) / weights_bytes(folder / name),
        "quantize_s": done.seconds,
        "quantize_peak_bytes": done.peak_bytes,
    }


def measure_speed(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Time BERT-base with random weights in float32, bfloat16 and int8, in one run.

    Returns:
        A row per shape, backend, precision: median in ms.
    """
    run_command(["export", "bert-base", "--random-weights"], folder)
    run_command(["quantize", "bert-base", "--int8", "--calibrate", "random"], folder)
    plan = ["--backend", "onnxruntime", "--backend", "openvino"]
    plan += ["--precision", "fp32", "--precision", "bf16", "--seconds", str(seconds)]
    rows = []
    for batch, length in SHAPES:
        shape = ["--batch", str(batch), "--length", str(length)]
        report = run_command(["bench", "bert-base", "bert-base-int8", *plan, *shape], folder)
        rows += [
            {
                "shape": f"{batch}x{length}",
                "bundle": row["bundle"],
                "backend": row["backend"],
                "precision": row["measurement"]["facts"]["precision"],
                "p50_ms": row["measurement"]["latency"]["median_ms"],
            }
            for row in report.document["rows"]
            if row.get("measurement")
        ]
    return rows


def weights_bytes(bundle: Path) -> int:
    """Size of a bundle's portable graph and its weights."""
    return sum(path.stat().st_size for path in bundle.glob("model.onnx*"))


@click.command
@click.option("--data", type=FOLDER, required=True, help="Has sst2/ and stsb/.")
@click.option("--models", type=FOLDER, required=True, help="Has minilm-sst2/.")
@click.option("--seconds", default=20.0, show_default=True, help="For each shape's timing.")
@click.option("--no-speed", is_flag=True, help="Leave BERT-base's timing out.")
@save_option
@json_option
def quantization(
    data: Path, models: Path, seconds: float, no_speed: bool, save: Path | None, as_json: bool
) -> None:
    """Measure what int8 costs in accuracy, and gains in size and time."""
    machine, created = this_machine(), now()
    with told_errors():
        with tempfile.TemporaryDirectory(prefix="tfx-bench-") as name:
            folder = Path(name)
            cases = [measure_case(one, data.resolve(), models.resolve(), folder) for one in CASES]
            speed = [] if no_speed else measure_speed(folder, seconds)
        document = {"machine": encode(machine), "cases": cases, "speed": speed}
        if save is not None:
            save_result(save, "quantization", created, document, machine)
    if as_json:
        emit_json(document)
        return
    show(cases, speed)
    console().print(str(machine), markup=False)


def show(cases: Sequence[dict[str, Any]], speed: Sequence[dict[str, Any]]) -> None:
    """Print two tables: what it costs, and what it gains."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), title="int8 beside float32", title_justify="left")
    for title in (
        "model",
        "metric",
        "float32",
        "int8",
        "drop, 95 %",
        "samples",
        "size",
        "s",
        "MiB",
    ):
        table.add_column(title, justify="left" if title in ("model", "metric") else "right")
    for case in cases:
        for one in case["accuracy"]:
            table.add_row(
                case["model"],
                one["metric"],
                f"{one['parent']:.4f}",
                f"{one['value']:.4f}",
                f"{one['drop']:+.4f} ({one['drop_low']:+.4f} to {one['drop_high']:+.4f})",
                str(one["samples"]),
                f"{case['size_share']:.3f}x",
                f"{case['quantize_s']:.0f}",
                f"{case['quantize_peak_bytes'] / (1 << 20):.0f}",
            )
    console().print(table)
    if not speed:
        return
    times = Table(box=None, padding=(0, 2, 0, 0), title="BERT-base", title_justify="left")
    for title in ("shape", "backend", "precision", "p50 ms", "beside float32 there"):
        times.add_column(
            title, justify="right" if title[0] in "pb" and title != "backend" else "left"
        )
    own = {
        (row["shape"], row["backend"]): row["p50_ms"]
        for row in speed
        if row["precision"] == "float32"
    }
    for row in speed:
        ratio = own.get((row["shape"], row["backend"]), float("nan")) / row["p50_ms"]
        times.add_row(
            row["shape"],
            row["backend"],
            row["precision"],
            f"{row['p50_ms']:.1f}",
            f"{ratio:.2f}x",
        )
    console().print(times)


if __name__ == "__main__":
    quantization()
