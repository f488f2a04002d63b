"""``python -m tfx.bench.peaks``: the most this machine multiplies and moves, measured.

"Fast" is a share of something. Of matrix products the peak is the best of the engines that are
here, each on products large enough to be bound by arithmetic; a model that reached it would spend
no time on anything else. Of memory it is what NumPy copies between arrays that no cache holds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import psutil

from tfx.codec import DecodeError, decode, encode
from tfx.console import console, emit_json, json_option, told_errors
from tfx.dtypes import DType
from tfx.errors import BackendError, DataError, SignatureError
from tfx.extras import version_of
from tfx.runtime.clock import Clock
from tfx.runtime.cpus import usable_cpus

from .measuring.gemm import PRODUCTS, Call, Size
from .measuring.machine import Machine, this_machine
from .pages.files import write_text

# Which of them an engine is best at differs. The smallest takes milliseconds, so that some calls
# end between two turns of whatever else runs.
SIZES = (Size(512, 1024, 1024), Size(512, 1024, 4096), Size(1536, 1536, 1536))
# Of each product, at least so many calls; the fastest counts.
LEAST_CALLS = 5
DEFAULT_SECONDS = 0.3

# Arrays are so many times the largest cache, and at least so large; a copy has two of them.
CACHES = 4
LEAST_BYTES, MOST_BYTES = 64 << 20, 512 << 20
UNKNOWN_CACHE = 32 << 20
# A triad in NumPy is two steps; blocks this long keep what the first one wrote in the cache.
BLOCK = 16 << 10


@dataclass(frozen=True, slots=True)
class GemmPeak:
    """The fastest matrix product of one engine.

    Attributes:
        engine: A library, e.g. "openvino".
        version: Of it.
        dtype: Element type of the product.
        threads: CPU threads it ran on.
        size: The product that was fastest, ``mxkxn``.
        gflops: 10^9 operations a second; a multiplication and an addition are two.
    """

    engine: str
    version: str
    dtype: DType
    threads: int
    size: str
    gflops: float


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast memory is read and written.

    Attributes:
        kind: "copy", ``a = b``; or "triad", ``a = b + 3 c``, counted as two reads and a write.
        threads: How many did it at once.
        gb_per_s: 10^9 bytes a second.
    """

    kind: str
    threads: int
    gb_per_s: float


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a machine can do at most.

    Attributes:
        fingerprint: Of the machine and the libraries: numbers of another one do not count.
        load_average: Of the last minute when this began; a busy machine's peaks are too low.
        products: Of each engine, type and number of threads.
        memory: One and all threads.
        not_run: Engine and type, e.g. "openvino bfloat16", to why it has no peak.
    """

    fingerprint: str
    load_average: float
    products: tuple[GemmPeak, ...]
    memory: tuple[Bandwidth, ...]
    not_run: Mapping[str, str] = field(default_factory=dict)

    def best(self, dtype: DType, threads: int | None = None) -> GemmPeak | None:
        """The fastest engine's in a type; None where there is none.

        Args:
            dtype: Element type of the products.
            threads: As measured, 1 or all; None for the fastest of both.
        """
        fitting = [
            one
            for one in self.products
            if one.dtype is dtype and (threads is None or one.threads == threads)
        ]
        return max(fitting, key=lambda one: one.gflops, default=None)

    def share(
        self, flops: float, seconds: float, dtype: DType, threads: int | None = None
    ) -> float | None:
        """What part of the peak in a type was reached; None where there is no such peak.

        Args:
            flops: Operations done, as ``flops_of`` counts them.
            seconds: They took.
            dtype: Type that the products were done in.
            threads: As in ``best``.
        """
        peak = self.best(dtype, threads)
        return None if peak is None else flops / seconds / 1e9 / peak.gflops

    def share_of_named(self, flops: float, seconds: float, precision: str) -> float | None:
        """``share`` of a type by its name; one that is the name of a library's own has no peak."""
        try:
            return self.share(flops, seconds, DType.parse(precision))
        except SignatureError:
            return None


def fingerprint_of(machine: Machine) -> str:
    """A short name of a machine and its libraries: what peaks depend on, but for other work."""
    parts = dataclasses.replace(machine, load_average=0.0)
    # What varies between two starts of one machine is not in it.
    text = json.dumps(encode(parts) | {"memory_mb": round(machine.memory_mb, -3)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measure_peaks(
    machine: Machine, *, seconds: float = DEFAULT_SECONDS, sizes: Sequence[Size] = SIZES
) -> Peaks:
    """Measure every engine here, in this process: their libraries stay loaded.

    Args:
        machine: This one.
        seconds: Of each product, engine, type and number of threads.
        sizes: Products to try.
    """
    threads = sorted({1, usable_cpus()})
    products, not_run = [], {}
    for (engine, dtype), make in PRODUCTS.items():
        try:
            for count in threads:
                size, gflops = _fastest(make, dtype, sizes, count, seconds)
                version = version_of(engine) or ""
                products.append(GemmPeak(engine, version, dtype, count, str(size), gflops))
        except BackendError as error:
            not_run[f"{engine} {dtype}"] = str(error)
    memory = [
        Bandwidth(kind, count, measure_bandwidth(kind, count, array_bytes(), seconds))
        for kind in TRAFFIC
        for count in threads
    ]
    return Peaks(
        fingerprint_of(machine), machine.load_average, tuple(products), tuple(memory), not_run
    )


def _fastest(
    make: Callable[[DType, Size, int], Call],
    dtype: DType,
    sizes: Sequence[Size],
    threads: int,
    seconds: float,
) -> tuple[Size, float]:
    found = []
    for size in sizes:
        call = make(dtype, size, threads)
        call()  # what is packed or allocated on the first
        found.append((size.flops / best_time(call, seconds) / 1e9, size))
    gflops, size = max(found, key=lambda one: one[0])
    return size, gflops


def best_time(call: Call, seconds: float, clock: Clock = time.perf_counter_ns) -> float:
    """Seconds of the fastest of ``LEAST_CALLS`` calls or more, for about ``seconds``."""
    times: list[int] = []
    while len(times) < LEAST_CALLS or sum(times) < seconds * 1e9:
        started = clock()
        call()
        times.append(clock() - started)
    return min(times) / 1e9


def measure_bandwidth(kind: str, threads: int, size_bytes: int, seconds: float) -> float:
    """10^9 bytes a second that ``threads`` move at once; see ``Bandwidth``.

    Args:
        kind: A key of ``TRAFFIC``.
        threads: Each has its own part of the arrays.
        size_bytes: Of one array; a multiple of 8.
        seconds: For how long to try.
    """
    step, arrays = TRAFFIC[kind]
    whole = [np.full(size_bytes // 8, index, np.float64) for index in range(arrays)]
    parts = list(zip(*(np.array_split(one, threads) for one in whole), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        taken = best_time(lambda: list(pool.map(lambda part: step(*part), parts)), seconds)
    return arrays * whole[0].nbytes / taken / 1e9


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    np.copyto(target, source)


def _triad(target: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    for start in range(0, len(target), BLOCK):
        block = slice(start, start + BLOCK)
        np.multiply(right[block], 3.0, out=target[block])
        np.add(target[block], left[block], out=target[block])


# Kind -> what is done, and how many arrays go through memory.
TRAFFIC: Mapping[str, tuple[Callable[..., None], int]] = {"copy": (_copy, 2), "triad": (_triad, 3)}


def array_bytes(sys_folder: Path = Path("/sys")) -> int:
    """Size of an array that no cache holds, and that this machine has room for."""
    caches = []
    for path in sys_folder.glob("devices/system/cpu/cpu0/cache/index*/size"):
        text = path.read_text().strip()
        scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        if (digits := text.rstrip("KM")).isdecimal():
            caches.append(int(digits) * scale)
    wanted = CACHES * max(caches, default=UNKNOWN_CACHE)
    room = psutil.virtual_memory().available // 8
    return int(min(max(wanted, LEAST_BYTES), MOST_BYTES, room)) // 8 * 8


@functools.cache
def machine_peaks(seconds: float = DEFAULT_SECONDS) -> Peaks:
    """This machine's peaks, measured once in the life of this process, in a process of their own.

    So the caller has none of the libraries loaded, and no thread pool of theirs.

    Raises:
        DataError: If the process fails; says what it said.
    """
    command = [sys.executable, "-P", "-m", "tfx.bench.peaks", "--json", "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise DataError(f"the peaks were not measured: {' '.join(last) or done.returncode}")
    return decode(Peaks, json.loads(done.stdout))


def stored_peaks(path: Path | None, measure: Callable[[], Peaks] = machine_peaks) -> Peaks:
    """Peaks from a file of this machine; else measured, and written to it.

    Args:
        path: Where one run of several commands keeps them; None to keep them nowhere.
        measure: Measures them.

    Raises:
        DataError: If the file holds something else, or cannot be written.
    """
    if path is not None and path.exists():
        try:
            found = decode(Peaks, json.loads(path.read_text()))
        except (OSError, ValueError, DecodeError) as error:
            raise DataError(
                f"{path} holds no peaks: {error}", hint="Delete it, to measure again."
            ) from error
        if found.fingerprint == fingerprint_of(this_machine()):
            return found
    peaks = measure()
    if path is not None:
        write_text(path, json.dumps(encode(peaks), indent=2) + "\n")
    return peaks


@click.command
@click.option("--seconds", default=DEFAULT_SECONDS, show_default=True, help="For each product.")
@json_option
def peaks(seconds: float, as_json: bool) -> None:
    """Measure the most this machine multiplies and moves."""
    machine = this_machine()
    with told_errors():
        found = measure_peaks(machine, seconds=seconds)
    if as_json:
        emit_json(encode(found))
        return
    show_peaks(found)
    console().print(str(machine), markup=False)


def show_peaks(peaks: Peaks) -> None:
    """Print two tables: products and memory."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("product", "engine", "threads", "GFLOP/s", "best at"):
        table.add_column(title, justify="right" if title in ("threads", "GFLOP/s") else "left")
    for one in sorted(peaks.products, key=lambda one: (one.threads, one.dtype, -one.gflops)):
        engine = f"{one.engine} {one.version}"
        table.add_row(one.dtype, engine, str(one.threads), f"{one.gflops:.0f}", one.size)
    for name, reason in peaks.not_run.items():
        engine, _, dtype = name.partition(" ")
        table.add_row(dtype, engine, "", "-", f"not run: {reason}")
    console().print(table)
    memory = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("memory", "threads", "GB/s"):
        memory.add_column(title, justify="left" if title == "memory" else "right")
    for row in peaks.memory:
        memory.add_row(row.kind, str(row.threads), f"{row.gb_per_s:.1f}")
    console().print(memory)


if __name__ == "__main__":
    peaks()
