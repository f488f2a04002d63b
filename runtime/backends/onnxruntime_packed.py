"""Graphs with their weights packed for ONNX Runtime's kernels, kept in the user's cache."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.feeds import trial_feed

from ..backend import PRECISIONS
from ..cache import Unfit, entry_for, keep, limit_mb, reopened, wanted

# Files of an entry.
GRAPH, WEIGHTS = "graph.onnx", "weights.bin"

# Smaller graphs load as fast from the bundle.
LEAST_BYTES = 16_000_000

# Weights as they are, most of them packed too, and what was computed from constants.
GROWTH = 2.5

# Kernels whose packed weights are read back as they were. Those of products of integers and of
# convolutions (1.31.1) crash the process, in some later run.
READ_BACK = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm"})

# A weight's entry in the graph: the key "prepacked_0", and after tag and length of its value
# "MatMul+<hash>|<offset>;<size>;<checksum>".
PACKED = re.compile(rb"prepacked_\d+\x12(?:.{1,2}?([A-Za-z]\w*)\+)?", re.DOTALL)

# Stands for a kernel whose name is written in another way: it may be one that crashes.
UNKNOWN = "an unknown kernel"


def packed_entry(bundle: Bundle, graph: Path, version: str, *conditions: str) -> Path | None:
    """The cache's folder for a graph; None where nothing is to be kept.

    Args:
        bundle: Whose graph it is.
        graph: Its file.
        version: Of ONNX Runtime.
        conditions: What else the packed graph depends on.
    """
    size = bundle.size_bytes
    if bundle.manifest.precision not in PRECISIONS.values():  # else its products are of integers
        return None
    if size < LEAST_BYTES or size * GROWTH > limit_mb() * 1e6:
        return None
    return entry_for(bundle, f"onnxruntime {version}", "packed", graph.name, *conditions)


def packed_session(ort: Any, entry: Path, settings: Any, provider: str) -> Any:
    """The session of an entry, its weights mapped; None if there is none that can be read.

    Args:
        ort: The library.
        entry: From ``packed_entry``.
        settings: Of the session; changed.
        provider: The execution provider.
    """
    return reopened(
        entry, lambda folder: _read_back(ort, folder, settings, provider), mapped=WEIGHTS
    )


def _read_back(ort: Any, folder: Path, settings: Any, provider: str) -> Any:
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # they were
    return ort.InferenceSession(str(folder / GRAPH), settings, providers=[provider])


def keep_packed(
    ort: Any,
    bundle: Bundle,
    entry: Path,
    *,
    graph: Path,
    settings: tuple[Any, Any],
    provider: str,
    without: tuple[str, ...],
    session: Any,
) -> None:
    """Write an entry, if it is asked for a second time and gives the numbers of ``session``.

    What is opened once, as the candidates of a search are, leaves nothing.

    Args:
        ort: The library.
        bundle: Whose graph it is.
        entry: From ``packed_entry``.
        graph: The graph's file.
        settings: Of a session that writes, and of one that reads; changed.
        provider: The execution provider.
        without: Optimizers that are left out.
        session: Made from the graph.
    """
    if not wanted(entry):
        return
    writing, reading = settings

    def write(folder: Path) -> None:
        folder.mkdir()
        writing.optimized_model_filepath = str(folder / GRAPH)
        for key, value in (
            ("optimized_model_external_initializers_file_name", WEIGHTS),
            ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
            ("save_external_prepacked_constant_initializers", "1"),
        ):
            writing.add_session_config_entry(f"session.{key}", value)
        try:
            bundle.verify()  # its digest names the entry, and it may have been opened without
            ort.InferenceSession(
                str(graph), writing, providers=[provider], disabled_optimizers=without
            )
            if others := kernels_in(folder / GRAPH) - READ_BACK:
                raise Unfit(f"it packs weights of {', '.join(sorted(others))}")
            same = _agree(bundle, session, _read_back(ort, folder, reading, provider))
        except OSError:
            raise
        except Exception as error:  # its pybind exceptions share no public base
            raise Unfit(str(error)) from error
        if not same:
            raise Unfit("it gives other numbers when it is read again")
        for name in (GRAPH, WEIGHTS):
            _sync(folder / name)

    keep(entry, write)


def kernels_in(graph: Path) -> set[str]:
    """Types of the nodes that a graph holds packed weights of; ``UNKNOWN`` for one not read."""
    return {name.decode() or UNKNOWN for name in PACKED.findall(graph.read_bytes())}


def _agree(bundle: Bundle, session: Any, again: Any) -> bool:
    feed = trial_feed(bundle.manifest.signature)
    return all(
        np.array_equal(one, other, equal_nan=True)
        for one, other in zip(session.run(None, feed), again.run(None, feed), strict=True)
    )


def _sync(path: Path) -> None:
    if not path.exists():  # no weight is large enough to be outside the graph
        return
    with path.open("rb") as stream:
        os.fsync(stream.fileno())  # a power cut must not leave zeros where weights were
