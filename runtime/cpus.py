"""What the CPU is, and how many of it this process may really use."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CGROUP = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
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


def usable_cpus(cgroup: Path = CGROUP, groups: Path = GROUPS) -> int:
    """CPUs this process may run on at once: its affinity, cut by the quota of its control groups.

    A container limited to 2 CPUs on a 64-core host still sees 64: a thread pool of that
    size is throttled by the kernel and runs slower than one of 2. So is a systemd unit with a
    ``CPUQuota``.

    Args:
        cgroup: Where the cgroup file system is mounted (v2 ``cpu.max``, v1 ``cpu.cfs_*``).
        groups: What says which groups the process is in. A container sees its own as the root.

    Returns:
        At least 1; a quota of 1.5 CPUs counts as 2.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [quota for folder in _folders(cgroup, groups) if (quota := _quota(folder))]
    return max(1, min([cpus or 1, *quotas]))


def _folders(cgroup: Path, groups: Path) -> set[Path]:
    """Folders of the groups a process is in, and of those around them, which limit it as well."""
    found = {cgroup, cgroup / "cpu"}
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        lines = []  # not Linux
    for line in lines:  # "0::/system.slice/a.service" of v2, "4:cpu,cpuacct:/docker/a" of v1
        controllers, _, path = line.partition(":")[2].partition(":")
        inside = PurePosixPath(path.lstrip("/"))
        if ".." in inside.parts or not {"", "cpu"} & {*controllers.split(",")}:
            continue  # outside of what is mounted here
        mounted = cgroup / "cpu" if controllers else cgroup
        found |= {mounted / group for group in (inside, *inside.parents)}
    return found


def _quota(folder: Path) -> int | None:
    try:
        if (v2 := folder / "cpu.max").is_file():
            quota, period = v2.read_text().split()
        elif (v1 := folder / "cpu.cfs_quota_us").is_file():
            quota, period = v1.read_text(), v1.with_name("cpu.cfs_period_us").read_text()
        else:
            return None
        if quota.strip() == "max" or int(quota) <= 0:
            return None
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None  # an unreadable quota is no reason not to run
