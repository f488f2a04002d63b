"""A text that is written, watched token by token: when each is there, and what memory it takes.

Imported by ``generators.py`` in whatever environment has the library: the standard library and
NumPy only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Prompts ``int64[batch, sequence]`` and how many tokens to write -> the text.
Write = Callable[[np.ndarray, int], "Text"]


@dataclass(frozen=True)
class Job:
    """What a peer is given.

    Attributes:
        checkpoint: Folder of the model, as transformers reads it.
        model: The bundle's ONNX graph, for what has no exporter of its own.
        folder: Empty, for what the peer writes; of this one alone.
        threads: CPU threads.
        room: Most tokens of prompt and text together.
        layers: Of keys and values in the graph.
        kind: Element type that the graph multiplies in.
        bundle: For tfx: a bundle's folder.
        backend: For tfx.
        precision: For tfx.
    """

    checkpoint: str
    model: str
    folder: str
    threads: int
    room: int
    layers: int = 0
    kind: str = "float32"
    bundle: str = ""
    backend: str = ""
    precision: str = ""


@dataclass(frozen=True)
class Text:
    """Tokens that were written, and what it took.

    Attributes:
        ids: ``[batch, count]``.
        times_s: From the start to each token of all rows; only the last where it is not seen.
        cpu_s: Processor time of all threads.
        copies: How often the whole cache was copied; None where it is not known.
        cpu_times_s: As ``times_s``, of processor time.
        resident_mb: At each of them; None where Linux does not say.
    """

    ids: list[list[int]]
    times_s: list[float]
    cpu_s: float
    copies: int | None = None
    cpu_times_s: list[float] = field(default_factory=list)
    resident_mb: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Ready:
    """A peer that is loaded.

    Attributes:
        versions: Of the library, and of the engine under it.
        precision: Element type it multiplies in.
        write: Runs it.
        note: What a reader must know.
    """

    versions: str
    precision: str
    write: Write
    note: str = ""


class Watch:
    """Notes when tokens are there, and how much memory is taken then.

    Attributes:
        times_s: Of each token so far.
        cpu_times_s: The same in processor time.
        resident_mb: At each of them.
    """

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.cpu_times_s: list[float] = []
        self.resident_mb: list[float | None] = []
        self._cpu, self._started = time.process_time(), time.perf_counter()

    def mark(self) -> None:
        """A token of every row is there."""
        self.times_s.append(time.perf_counter() - self._started)
        self.cpu_times_s.append(time.process_time() - self._cpu)
        self.resident_mb.append(resident_mb("VmRSS"))

    def text(self, ids: Any, copies: int | None = None) -> Text:
        """The text, which ends here."""
        cpu_s = time.process_time() - self._cpu
        if not self.times_s:
            self.mark()
        rows = np.asarray(ids).tolist()
        return Text(rows, self.times_s, cpu_s, copies, self.cpu_times_s, self.resident_mb)


def resident_mb(field: str, status: Path = Path("/proc/self/status")) -> float | None:
    """A size of this process that Linux counts in kB, in MB; None where it does not say."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(sizes[0]) * 1024 / 1e6 if sizes else None


def forget_peak(path: Path = Path("/proc/self/clear_refs")) -> None:
    """Let Linux count the peak of this process from here."""
    with contextlib.suppress(OSError):
        path.write_text("5")
