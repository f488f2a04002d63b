"""``python -m tfx.bench.opening``: how long a process waits for its first session.

Each round starts a fresh process for each backend, in an order drawn anew; the files are in the
page cache, what an engine keeps between processes is in the user's cache, and every module is
compiled, as pip installs it, whatever ``PYTHONDONTWRITEBYTECODE`` says: a round that is not counted
comes first. ``open`` is the wall time of ``open_session`` with every import it needs;
``import`` that of ``import tfx`` alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import FOLDER, chosen_bundle, console, emit_json, json_option, told_errors
from tfx.errors import BackendError
from tfx.runtime.backend import GRAPH_BACKENDS, find_backend
from tfx.runtime.stats import median_interval

from .measuring import opened
from .measuring.machine import Machine, this_machine
from .pages.figures import span_text
from .pages.stored import now, save_option, save_result

TARGET_MS = 300.0
LIMIT_S = 300.0

# Of open_session, in the order they come: what its caller waits for.
PARTS = ("modules", "library", "digests", "load", "rest")

Opening = Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """Openings on one backend; milliseconds are medians over the processes.

    Attributes:
        backend: Name in ``BACKENDS``.
        ran: What really ran.
        processes: How many.
        import_ms: Of ``import tfx``.
        open_ms: Of ``open_session``, imports included.
        low_ms: Lower end of its 95 % interval; None of fewer than 6 processes.
        high_ms: Its upper end.
        fastest_ms: The fastest process.
        first_ms: Of the first text, with its tokenizer.
        second_ms: Of the second.
        processor_ms: Processor time of the whole process.
        memory_mb: The most that was resident, in units of 10^6 bytes.
        parts_ms: What ``open_ms`` is made of: "modules" are NumPy and ours, "library" is the
            backend's, "digests" what was left to wait for of sha256, "load" the model.
    """

    backend: str
    ran: str
    processes: int
    import_ms: float
    open_ms: float
    low_ms: float | None
    high_ms: float | None
    fastest_ms: float
    first_ms: float
    second_ms: float
    processor_ms: float
    memory_mb: float
    parts_ms: dict[str, float]

    @property
    def verdict(self) -> str:
        """Whether it opens within ``TARGET_MS``, as far as the interval allows to say."""
        if self.low_ms is None or self.high_ms is None:
            return "cannot say"
        if self.high_ms <= TARGET_MS:
            return "yes"
        return "no" if self.low_ms > TARGET_MS else "cannot say"


def opened_in_a_process(
    bundle: Path, backend: str, *, verify: bool, bytecode: Path
) -> dict[str, Any]:
    """What ``measuring.opened`` says of one opening.

    Args:
        bundle: Its folder.
        backend: A name in ``BACKENDS``.
        verify: Whether the files' sha256 is compared.
        bytecode: Folder that compiled modules are read from, and written to where they lack.

    Raises:
        BackendError: If it fails, or says nothing.
    """
    # By its path: -m would import tfx before the clock runs.
    command = [sys.executable, "-P", opened.__file__, str(bundle), backend]
    # An empty value is as if it were not set.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(bytecode)}
    try:
        ended = subprocess.run(
            [*command, *([] if verify else ["unverified"])],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env={**os.environ, **compiled},
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"{backend} did not open {bundle} in {LIMIT_S:g} s", hint="Leave this backend out."
        ) from error
    try:
        found: dict[str, Any] = json.loads(ended.stdout)
    except ValueError as error:
        last = (ended.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise BackendError(
            f"{backend} ended with exit status {ended.returncode}: {last}"
        ) from error
    if "error" in found:
        raise BackendError(found["error"], hint=found["hint"])
    return found


def measure_openings(
    backends: Sequence[str], opening: Opening, *, rounds: int, seed: int = 0
) -> list[Row]:
    """Open on each backend, in rounds.

    Args:
        backends: Names in ``BACKENDS``.
        opening: Opens on one of them in a fresh process.
        rounds: How many; one more comes first, which fills caches.
        seed: Of the order.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in backends}
    for number in range(rounds + 1):
        for name in rng.permutation(list(backends)):
            document = opening(str(name))
            if number:
                found[str(name)].append(document)
    return [_row(name, documents) for name, documents in found.items()]


def _row(backend: str, found: Sequence[dict[str, Any]]) -> Row:
    def median_of(name: str) -> float:
        return float(np.median([one[name] for one in found]))

    whole = np.array([one["open"] for one in found])
    middle, low, high = median_interval(whole)
    return Row(
        backend=backend,
        ran=found[-1]["ran"],
        processes=len(found),
        import_ms=median_of("import"),
        open_ms=middle,
        low_ms=low,
        high_ms=high,
        fastest_ms=float(whole.min()),
        first_ms=median_of("first"),
        second_ms=median_of("second"),
        processor_ms=median_of("processor"),
        memory_mb=median_of("memory_mb"),
        parts_ms={
            part: float(np.median([one["parts"].get(part, 0.0) for one in found])) for part in PARTS
        },
    )


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option(
    "--backend", "backends", multiple=True, help="Default: those of graphs that are here."
)
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--no-verify", is_flag=True, help="Do not compare the files' sha256.")
@click.option("--seed", default=0, show_default=True)
@save_option
@json_option
def opening(
    bundle: Path | None,
    backends: tuple[str, ...],
    rounds: int,
    no_verify: bool,
    seed: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure how long a fresh process takes to open a bundle that answers texts."""
    machine, created = this_machine(), now()
    with told_errors():
        chosen: Bundle = chosen_bundle(bundle)
        names = backends or [one for one in GRAPH_BACKENDS if not find_backend(one).missing()]
        with tempfile.TemporaryDirectory(prefix="tfx-opening-") as bytecode:
            rows = measure_openings(
                list(dict.fromkeys(names)),
                lambda name: opened_in_a_process(
                    chosen.path, name, verify=not no_verify, bytecode=Path(bytecode)
                ),
                rounds=rounds,
                seed=seed,
            )
        document = {
            "machine": encode(machine),
            "bundle": chosen.name,
            "rows": [encode(row) for row in rows],
        }
        if save is not None:
            save_result(save, "opening", created, document, machine)
    if as_json:
        emit_json(document)
    else:
        show_openings(rows, machine)


HEADS = (
    "backend",
    *(f"{name} ms" for name in ("import", "open")),
    "95 %",
    "least ms",
    *(f"{part} ms" for part in PARTS),
    *(f"{name} ms" for name in ("first", "second", "CPU")),
    "MB",
    f"in {TARGET_MS:.0f} ms",
)


def cells_of(row: Row) -> tuple[str, ...]:
    """What stands under ``HEADS``."""
    return (
        row.backend,
        f"{row.import_ms:.0f}",
        f"{row.open_ms:.0f}",
        span_text(row.low_ms, row.high_ms, ".0f"),
        f"{row.fastest_ms:.0f}",
        *(f"{row.parts_ms[part]:.0f}" for part in PARTS),
        f"{row.first_ms:.0f}",
        f"{row.second_ms:.1f}",
        f"{row.processor_ms:.0f}",
        f"{row.memory_mb:.0f}",
        row.verdict,
    )


def show_openings(rows: Sequence[Row], machine: Machine) -> None:
    """Print a table, one row for each backend, and what each opening is made of."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for index, name in enumerate(HEADS):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*cells_of(row))
    out = console()
    out.print(table)
    for row in rows:
        out.print(f"{row.backend}: {row.ran}; {row.processes} processes", markup=False)
    out.print(f"load average {machine.load_average:.1f} when it began", markup=False)


if __name__ == "__main__":
    opening()
