"""What the CPU is, and how many of it this process may really use."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Cpu:
    """What the system says of its first CPU.

    Attributes:
        model: Name; "" where the system does not say.
        flags: Instruction sets and features, in Linux's names.
    """

    model: str
    flags: frozenset[str]


def read_cpu(cpuinfo: Path = CPUINFO) -> Cpu:
    """Read Linux's ``/proc/cpuinfo``; elsewhere the name is Python's and there are no flags.

    Args:
        cpuinfo: The file.
    """
    try:
        first = cpuinfo.read_text().strip().partition("\n\n")[0]
    except OSError:
        first = ""  # not every system has the file
    pairs = (line.partition(":") for line in first.splitlines())
    found = {key.strip(): value.strip() for key, _, value in pairs}
    flags = found.get("flags") or found.get("Features") or ""  # x86, Arm
    return Cpu(found.get("model name") or platform.processor(), frozenset(flags.split()))


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """CPUs this process may run on at once: its affinity, cut by the container's quota.

    A container limited to 2 CPUs on a 64-core host still sees 64: a thread pool of that
    size is throttled by the kernel and runs slower than one of 2.

    Args:
        cgroup: Where the cgroup file system is mounted (v2 ``cpu.max``, v1 ``cpu.cfs_*``).

    Returns:
        At least 1; a quota of 1.5 CPUs counts as 2.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cpus or 1, _quota(cgroup) or cpus or 1))


def _quota(cgroup: Path) -> int | None:
    try:
        if (v2 := cgroup / "cpu.max").is_file():
            quota, period = v2.read_text().split()
        elif (v1 := cgroup / "cpu" / "cpu.cfs_quota_us").is_file():
            quota, period = v1.read_text(), v1.with_name("cpu.cfs_period_us").read_text()
        else:
            return None
        if quota.strip() == "max" or int(quota) <= 0:
            return None
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return None  # an unreadable quota is no reason not to run
