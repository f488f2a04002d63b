from tfx.bench.measuring.machine import Machine, this_machine

CPUINFO = """processor\t: 0
model name\t: Test CPU 3000
flags\t\t: fpu avx2 amx_int8 avx512_vnni unknown

processor\t: 1
model name\t: Another CPU
"""


def test_cpu_flags_and_governor_are_read(tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    governor = tmp_path / "devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("performance\n")
    found = this_machine(proc=tmp_path, sys_folder=tmp_path)
    assert found.cpu == "Test CPU 3000"
    assert found.flags == ("avx2", "avx512_vnni", "amx_int8")
    assert found.governor == "performance"
    assert "Test CPU 3000" in str(found)
    assert "governor performance" in str(found)


def test_a_machine_that_says_nothing_is_still_described(tmp_path):
    found = this_machine(proc=tmp_path, sys_folder=tmp_path)
    assert (found.flags, found.governor) == ((), "")
    assert found.usable_cpus >= 1
    assert found.memory_mb > 100


def test_versions_name_this_package_and_numpy():
    found = this_machine()
    assert isinstance(found, Machine)
    assert {"tfx-toolkit", "numpy"} <= found.versions.keys()
