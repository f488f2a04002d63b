"""``python -m tfx.bench.gpu``: all that needs a GPU, in one call: its tests, and its benchmark."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tfx.bundle import Bundle, open_bundle
from tfx.codec import decode, encode
from tfx.console import FOLDER, chosen_bundle, emit_json, progress, told_errors
from tfx.errors import BackendError
from tfx.runtime.cuda import describe_device, missing_gpu

from .gpu_peak import GpuPeak
from .measuring.cells import Deadline, measure_cells
from .measuring.flops import flops_of
from .measuring.machine import this_machine
from .measuring.report import BenchReport, Row, Status
from .measuring.worker import Loaded, ProcessWorker
from .measuring.workload import Plan, Shape, Way
from .pages.files import write_text

DEVICE = "cuda:0"
BATCHES = (1, 8, 32, 128)
LENGTHS = (128, 384)

WAYS = (
    Way("torch", "fp16"),
    Way("torch-compiled", "fp16"),
    Way("onnxruntime"),
    Way("onnxruntime-tensorrt"),
    Way("tensorrt"),
)

# ONNX Runtime on CUDA in float16 against PyTorch compiled in float16: batch and length, and at
# least how many times as fast.
TARGETS = (((1, 128), 1.3), ((32, 384), 1.0))

# A test, and an engine for the GPU, take no longer.
LIMIT_S = 900.0

GPU_MARK = "pytest.mark.gpu"

# Of the time that is left: what tests, and what all builds may take, so that rows are reached.
TESTS_SHARE, BUILDS_SHARE = 0.4, 0.5


class GpuWorker(ProcessWorker):
    """A worker whose session is on the GPU, and loads in the time that is left."""

    def __init__(
        self, bundle: Path, way: Way, shape: Shape, plan: Plan, deadline: Deadline
    ) -> None:
        super().__init__(bundle, way, shape, plan)
        self._job["device"] = DEVICE
        self._deadline = deadline

    def load(self) -> Loaded:
        """As any worker.

        Raises:
            BackendError: If it fails, or no time is left to begin.
        """
        limit_s, left_s = self.child.limit_s, self._deadline.left_s
        late = BackendError(
            f"not reached in {self._deadline.seconds:g} s", hint="Give it longer: --until."
        )
        if not left_s:
            raise late
        self.child.limit_s = min(limit_s, left_s)
        try:
            return super().load()
        except BackendError as error:
            if self._deadline.left_s:
                raise
            raise late from error
        finally:
            self.child.limit_s = limit_s


@dataclass(frozen=True, slots=True)
class Step:
    """What a command said.

    Attributes:
        command: As on a command line.
        code: Its exit code; None if it took too long, or was not reached.
        said: The end of what it printed.
    """

    command: str
    code: int | None
    said: str


@dataclass(frozen=True, slots=True)
class Share:
    """What part of the GPU's peak a row reached, from arrays of the host to arrays of the host.

    Attributes:
        row: Bundle and way.
        shape: Of the feed.
        tflops: 10^12 operations a second of the model's products.
        of_peak: Divided by the peak of float16; None where that is not known.
    """

    row: str
    shape: str
    tflops: float
    of_peak: float | None


@dataclass(frozen=True, slots=True)
class Target:
    """One target, and what came of it.

    Attributes:
        model: The float16 bundle.
        shape: Of the feed.
        wanted: At least so many times as fast as PyTorch compiled in float16.
        found: So many times it is; None where a row was not measured.
    """

    model: str
    shape: str
    wanted: float
    found: float | None


# Runs a command in the time that is left.
Run = Callable[[Sequence[str]], Step]


def run_command(arguments: Sequence[str], limit_s: float = LIMIT_S) -> Step:
    """Run ``python -m arguments`` and keep its last words, whatever comes of it."""
    command = [sys.executable, "-P", "-m", *arguments]
    if not limit_s:
        return Step(" ".join(arguments), None, "not reached: no time was left")
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        return Step(" ".join(arguments), None, text[-2000:])
    return Step(" ".join(arguments), done.returncode, done.stdout[-2000:])


def shares_of(
    report: BenchReport, bundles: Sequence[Bundle], peak: GpuPeak | None
) -> tuple[Share, ...]:
    """Operations a second of every row whose bundle has a graph to count them in."""
    graphs = {bundle.digest: bundle for bundle in bundles if bundle.manifest.engine is None}
    parents = {
        bundle.digest: bundle.manifest.parent.digest for bundle in bundles if bundle.manifest.parent
    }
    found = []
    for row in report.rows:
        bundle = graphs.get(row.digest) or graphs.get(parents.get(row.digest, ""))
        if bundle is None or row.measurement is None:
            continue
        seconds = row.measurement.latency.median_ms / 1e3
        tflops = flops_of(bundle, row.sizes).total / seconds / 1e12
        of_peak = None if peak is None else tflops / peak.tflops
        found.append(Share(row.name, row.title, tflops, of_peak))
    return tuple(found)


def targets_of(report: BenchReport) -> tuple[Target, ...]:
    """ONNX Runtime's speed beside compiled PyTorch's, for every float16 bundle."""
    found = []
    for row in report.rows:
        if row.backend != "onnxruntime" or not _is_half(row):
            continue
        for (batch, length), wanted in TARGETS:
            if row.sizes.get("batch") == batch and row.sizes.get("sequence") == length:
                other = _compiled(report, row)
                ratio = other.median_ms / row.median_ms if other and row.measurement else None
                found.append(Target(row.bundle, row.title, wanted, ratio))
    return tuple(found)


def _is_half(row: Row) -> bool:
    return row.bundle.endswith("fp16") or (
        row.measurement is not None and row.measurement.facts.precision == "float16"
    )


def _compiled(report: BenchReport, row: Row) -> Row | None:
    """The row of compiled PyTorch at the same shape, of the same family."""
    family = row.bundle.removesuffix("-fp16")
    for other in report.rows:
        if (other.backend, other.precision) != ("torch-compiled", "fp16"):
            continue
        same = other.bundle == row.bundle or other.bundle.startswith(family)
        if same and other.title == row.title and other.measurement is not None:
            return other
    return None


def run_tests(folder: Path, run: Run) -> Step:
    """Run the tests marked gpu, of the files that have any: reading the others takes a minute."""
    files = [str(one) for one in sorted(folder.rglob("test_*.py")) if GPU_MARK in one.read_text()]
    if not files:
        return Step("pytest", None, f"no file in {folder} has a test marked gpu")
    # Libraries of other versions warn of other things, and no test is about those.
    return run(["pytest", "-q", "-m", "gpu", "-W", "default", *files])


def build_here(bundle: Bundle, folder: Path, run: Run) -> Step:
    """Try TensorRT-RTX for the very GPU that is here; the step says what came of it."""
    return run(["tfx", "build", str(bundle.path), "--target", "tensorrt-rtx", "-o", str(folder)])


def peak_here(run: Run) -> tuple[GpuPeak | None, Step]:
    """The GPU's peak, measured in a process of its own."""
    step = run(["tfx.bench.gpu_peak"])
    if step.code != 0:
        return None, step
    return decode(GpuPeak, json.loads(step.said[step.said.index("{") :])), step


@click.command
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=FOLDER)
@click.option("--batch", "batches", multiple=True, type=int, default=BATCHES, show_default=True)
@click.option("--length", "lengths", multiple=True, type=int, default=LENGTHS, show_default=True)
@click.option("--rounds", default=10, show_default=True, help="Most rounds of a shape.")
@click.option("--seconds", default=5.0, show_default=True, help="Begin no round after this.")
@click.option(
    "--until", "until_s", default=math.inf, metavar="SECONDS", help="Begin nothing more after this."
)
@click.option("--limit", "limit_s", default=120.0, show_default=True, help="Seconds to load a row.")
@click.option("--tests", type=FOLDER, help="Also run the tests marked gpu in this folder.")
@click.option("--no-build", is_flag=True, help="Do not try TensorRT-RTX for this GPU.")
@click.option("--trust", is_flag=True, help="Run engines that were not built here.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    bundles: tuple[Path, ...],
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    rounds: int,
    seconds: float,
    until_s: float,
    limit_s: float,
    tests: Path | None,
    no_build: bool,
    trust: bool,
    output: Path | None,
) -> None:
    """Run the GPU tests, and measure BUNDLEs in every way that a GPU has.

    Bundles are made before, in as many precisions as wanted; a row that cannot run says why. With
    --until no test, build, row or shape is begun after so many seconds, and what was not reached is
    said; a shape that is begun is measured, so leave it --seconds more.
    """
    with told_errors():
        if not until_s > 0:
            raise click.UsageError(f"--until is {until_s:g}, expected more than 0 seconds")
        if reason := missing_gpu():
            raise BackendError(f"there is no GPU to measure on: {reason}")
        found = _everything(
            [chosen_bundle(path) for path in dict.fromkeys(bundles)],
            Plan(
                batches=batches,
                lengths=lengths,
                rounds=rounds,
                seconds=seconds,
                limit_s=limit_s,
                trust=trust,
            ),
            tests,
            Deadline(until_s),
            build=not no_build,
            keep=lambda document: _write(output, document),
        )
    emit_json(found)


def _write(path: Path | None, document: Mapping[str, Any]) -> None:
    if path is not None:
        write_text(path, json.dumps(document, indent=2) + "\n")


def _everything(
    bundles: Sequence[Bundle],
    plan: Plan,
    tests: Path | None,
    deadline: Deadline,
    *,
    build: bool,
    keep: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """All of it; what is known is kept after each part, for the lease of a GPU may end."""

    def measured(report: BenchReport) -> dict[str, Any]:
        targets = [dataclasses.asdict(one) for one in targets_of(report)]
        return {"bench": report.to_dict(), "targets": targets}

    def run(limit_s: float) -> Run:
        return lambda arguments: run_command(arguments, min(LIMIT_S, limit_s))

    document: dict[str, Any] = {"schema": 1, "gpu": encode(describe_device(0))}
    if tests is not None:
        document["tests"] = encode(run_tests(tests, run(TESTS_SHARE * deadline.left_s)))
        keep(document)
    peak, step = peak_here(run(deadline.left_s))
    document["peak"] = encode(peak or step)
    keep(document)
    with tempfile.TemporaryDirectory() as folder:
        chosen = list(bundles)
        graphs = [one for one in bundles if one.manifest.engine is None]
        if build and graphs:
            tried: list[Any] = []
            document["builds"] = tried
            building = Deadline(BUILDS_SHARE * deadline.left_s)
            for number, bundle in enumerate(graphs):
                path = Path(folder) / f"{number}" / f"{bundle.name}-rtx"
                path.parent.mkdir()
                step = build_here(bundle, path, run(building.left_s / (len(graphs) - number)))
                tried.append(encode(step))
                keep(document)
                if step.code == 0:
                    chosen.append(open_bundle(path))
        with progress() as shown:
            report = measure_cells(
                chosen,
                plan,
                WAYS,
                this_machine(),
                deadline=deadline,
                progress=shown,
                start=functools.partial(GpuWorker, deadline=deadline),
                keep=lambda so_far: keep(document | measured(so_far)),
            )
    document |= measured(report)
    keep(document)
    document["shares"] = [dataclasses.asdict(one) for one in shares_of(report, chosen, peak)]
    keep(document)
    if all(row.status is Status.NOT_RUN for row in report.rows):
        raise BackendError(
            "nothing could be measured", hint="Read the reasons in the file of --output."
        )
    return document


if __name__ == "__main__":
    main()
