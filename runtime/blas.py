"""NumPy's OpenBLAS, kept from spinning while a session is opened."""

from __future__ import annotations

import importlib
import os
import sys

VARIABLE = "OPENBLAS_THREAD_TIMEOUT"

# A power of two, in cycles of the processor: 1 to 2 ms. Products that follow each other within it
# find the threads awake, as without it (2 to the 26th, 20 ms and more).
CYCLES_LOG2 = "22"


def import_numpy() -> None:
    """Import NumPy so that its threads wait for work by sleeping, sooner than they would.

    OpenBLAS starts its threads as it is imported, and they wait by spinning: tens of milliseconds
    of every other processor, which reads digests or is the other half of this one's core. It reads
    the variable once. What the environment says already holds, and where NumPy is imported
    already nothing changes.
    """
    if VARIABLE in os.environ or "numpy" in sys.modules:
        return
    os.environ[VARIABLE] = CYCLES_LOG2
    try:
        importlib.import_module("numpy")
    finally:
        del os.environ[VARIABLE]  # it is not for processes that this one starts
