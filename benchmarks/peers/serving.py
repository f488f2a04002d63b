"""Run by its path, with that of ``embedders.py`` or ``generators.py``: serves what is in there.

Whatever environment has the library runs it, so it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

J = TypeVar("J")
R = TypeVar("R")

SCRIPT = Path(__file__)


@dataclass(frozen=True)
class Peer(Generic[J, R]):
    """A row of a comparison.

    Attributes:
        environment: Which environment has the library; "" is this one.
        load: Makes it ready, for what a job says.
    """

    environment: str
    load: Callable[[J], R]


class Answering(Protocol):
    """What answers the parent's questions about one peer."""

    def answer(self, question: Mapping[str, Any]) -> Any:
        """Do what the parent asks and return what it is told, as JSON values."""
        ...


def said_versions(*distributions: str) -> str:
    """Names and versions of distributions that are installed."""
    said = []
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            said.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(said)


def set_environment(threads: int) -> None:
    """Set what libraries read when they are imported: threads as everybody has, and no hub."""
    os.environ.update(
        OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1"
    )


def serve(server: Answering) -> None:
    """Answer questions from stdin until it ends."""
    # Answers have a descriptor of their own: what libraries print must not mix with them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = {"ok": server.answer(json.loads(line))}
        # What a library raises must reach the table, whatever it is.
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}", "hint": ""}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main(script: Path) -> None:
    """Serve the ``Server`` of ``script``, which imports what lies beside it as in a package."""
    package = types.ModuleType("peers")
    package.__path__ = [str(script.parent)]
    sys.modules["peers"] = package
    serve(importlib.import_module(f"peers.{script.stem}").Server())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
