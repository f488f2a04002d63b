"""The machine a number was measured on: without it the number says nothing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tfx import __version__
from tfx.extras import DISTRIBUTION, version_of
from tfx.runtime.cpus import read_cpu, usable_cpus

# Instruction sets that decide which matrix kernels a library picks (Linux's names).
FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)

LIBRARIES = ("numpy", "torch", "transformers", "onnxruntime", "openvino", "tensorrt")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a measurement was made.

    Attributes:
        cpu: Model name; "" where the system does not say.
        flags: Those of ``FLAGS`` the CPU has.
        cores: Logical CPUs of the machine.
        affinity: Logical CPUs this process may run on.
        usable_cpus: What affinity and the container's quota leave.
        governor: Of CPU 0's frequency, e.g. "performance"; "" where it cannot be read, as in
            most virtual machines.
        load_average: Of the last minute, when the measurement began; near 0 on a quiet machine.
        memory_mb: Physical memory, in units of 10^6 bytes.
        os: Kernel and release.
        python: Version.
        versions: Distribution name to version, of those that are installed.
    """

    cpu: str
    flags: tuple[str, ...]
    cores: int
    affinity: int
    usable_cpus: int
    governor: str
    load_average: float
    memory_mb: int
    os: str
    python: str
    versions: Mapping[str, str]

    def __str__(self) -> str:
        governor = f", governor {self.governor}" if self.governor else ""
        return (
            f"{self.cpu or 'unknown CPU'}, {self.usable_cpus} of {self.cores} CPUs usable{governor}"
            f", {self.memory_mb / 1000:.0f} GB, {self.os}, Python {self.python}"
        )


def this_machine(proc: Path = Path("/proc"), sys_folder: Path = Path("/sys")) -> Machine:
    """Describe the machine this process runs on.

    Args:
        proc: Where the proc file system is mounted.
        sys_folder: Where sysfs is mounted.
    """
    cpu = read_cpu(proc / "cpuinfo")
    versions = {name: version for name in LIBRARIES if (version := version_of(name))}
    governor = sys_folder / "devices/system/cpu/cpu0/cpufreq/scaling_governor"
    cores = os.cpu_count() or 1
    return Machine(
        cpu=cpu.model,
        flags=tuple(flag for flag in FLAGS if flag in cpu.flags),
        cores=cores,
        affinity=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        usable_cpus=usable_cpus(),
        governor=_text(governor),
        load_average=round(os.getloadavg()[0], 2),
        memory_mb=round(psutil.virtual_memory().total / 1e6),
        os=f"{platform.system()} {platform.release()}",
        python=".".join(map(str, sys.version_info[:3])),
        versions={DISTRIBUTION: __version__} | versions,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # not every system has the file; "" says so in the report
