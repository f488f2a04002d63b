"""Settings of ONNX Runtime that hold on a CPU and on a GPU."""

from __future__ import annotations

from typing import Any


def settings_of(ort: Any, threads: int) -> Any:
    """ONNX Runtime's ``SessionOptions`` for runs of all sizes beside other work.

    Args:
        ort: The library.
        threads: CPU threads of one run; its threads are pinned to no CPU, so that affinity and
            quota are the process's own.
    """
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 4  # fatal only: errors are raised, and would be printed too
    # A pattern is kept for each shape it sees. Over 400 runs of MiniLM with random shapes memory
    # grew by 114 MB with them and by 75 MB without, in the same time; the arena itself stays.
    settings.enable_mem_pattern = False
    # Its threads wait for work by spinning, for long enough to take the CPU from whatever else
    # runs: MiniLM 1x128 beside 10 busy processes on 2 CPUs took 102 ms and 41 ms of CPU time, and
    # 44 ms and 24 ms like this, which spans the gaps inside a run.
    settings.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    return settings
