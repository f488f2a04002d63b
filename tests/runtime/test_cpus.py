"""What the CPU is; CPUs this process may use: affinity cut by a container's quota."""

import os
import platform

import pytest

from tfx.runtime.cpus import Cpu, read_cpu, usable_cpus

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", ALLOWED),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("150000 100000\n", min(2, ALLOWED)),
        ("99900000 100000\n", ALLOWED),
        ("nonsense\n", ALLOWED),
        ("0 100000\n", ALLOWED),
    ],
)
def test_quota_of_cgroup_v2(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cpus(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("100000", 1), ("-1", ALLOWED)])
def test_quota_of_cgroup_v1(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cpus(tmp_path) == expected


def test_quota_of_a_group_inside(tmp_path):
    """A systemd unit's, which sees the whole tree; what is around it counts, what is beside not."""
    unit = tmp_path / "system.slice" / "a.service"
    unit.mkdir(parents=True)
    groups = tmp_path / "groups"
    groups.write_text("0::/system.slice/a.service\n")
    for folder in (unit, tmp_path / "system.slice"):
        (folder / "cpu.max").write_text("100000 100000\n")
        assert usable_cpus(tmp_path, groups) == 1
        (folder / "cpu.max").write_text("max 100000\n")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "cpu.max").write_text("100000 100000\n")
    assert usable_cpus(tmp_path, groups) == ALLOWED


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("4:cpu,cpuacct:/a", 1),
        ("3:cpuset:/a", ALLOWED),
        ("4:cpu:/elsewhere", ALLOWED),  # a container that is told its host's path
        ("4:cpu:/../cpu/a", ALLOWED),
        ("nonsense", ALLOWED),
    ],
)
def test_quota_of_a_group_inside_of_v1(tmp_path, line, expected):
    group = tmp_path / "cpu" / "a"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("100000")
    (group / "cpu.cfs_period_us").write_text("100000")
    groups = tmp_path / "groups"
    groups.write_text(line + "\n")
    assert usable_cpus(tmp_path, groups) == expected


def test_no_cgroup_at_all(tmp_path):
    assert usable_cpus(tmp_path) == ALLOWED


def test_affinity(tmp_path):
    if not hasattr(os, "sched_setaffinity") or ALLOWED < 2:
        pytest.skip("needs two CPUs to give one up")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_first_cpu_is_read(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: A CPU: fast\nflags\t: fpu avx2\n\n"
        "processor\t: 1\nmodel name\t: Another\n"
    )
    assert read_cpu(path) == Cpu("A CPU: fast", frozenset({"fpu", "avx2"}))


def test_arm_calls_flags_features(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nFeatures\t: fp asimddp i8mm\n")
    assert read_cpu(path) == Cpu(platform.processor(), frozenset({"fp", "asimddp", "i8mm"}))


def test_a_system_without_cpuinfo(tmp_path):
    assert read_cpu(tmp_path / "none") == Cpu(platform.processor(), frozenset())
