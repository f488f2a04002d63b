"""Who takes part in a comparison: a process each, in the environment that has its library."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfx.errors import BackendError, TfxError
from tfx.runtime.child import Child

from . import serving

# Characters of why a row did not run.
REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Contestant:
    """What is to be measured.

    Attributes:
        name: Of its row.
        own: Whether it is tfx.
        python: Interpreter that has its library.
        peer: Key of ``PEERS``; "tfx" for tfx.
        job: Fields of the script's ``Job``.
        script: What it runs: ``embedders.py`` or ``generators.py``.
        problem: Why it is not to be tried; "".
        batches: Batch sizes it may choose from; of tfx, how many batches at once. () where there
            is nothing to choose.
    """

    name: str
    own: bool
    python: str
    peer: str
    job: Mapping[str, Any]
    script: Path
    problem: str = ""
    batches: tuple[int, ...] = ()


class PeerProcess(Child):
    """The parent's side of a process that serves a script in an environment of its own."""

    def __init__(self, python: str, script: Path, limit_s: float) -> None:
        super().__init__("", limit_s)
        self.command = (python, "-P", str(serving.SCRIPT), str(script))

    def start(self) -> None:
        """Start the process.

        Raises:
            BackendError: If there is no such interpreter.
        """
        try:
            super().start()
        except OSError as error:
            raise BackendError(f"{self.command[0]}: {error.strerror}") from error


@dataclass(slots=True, eq=False)
class PeerRun:
    """A contestant while it is measured.

    Attributes:
        who: Which.
        process: Where it runs.
        folder: For its files.
        reason: Why it does not go on; "" as long as it does.
        loaded: What it said of itself once loaded.
    """

    who: Contestant
    process: PeerProcess
    folder: Path
    reason: str
    loaded: Mapping[str, Any] = field(default_factory=dict)

    def attempt(self, step: Callable[[], None]) -> None:
        """Do ``step`` unless an earlier one failed; keep why it fails."""
        if self.reason:
            return
        try:
            step()
        except TfxError as error:
            # Some libraries say it in a page; its beginning is what is wrong.
            self.reason = textwrap.shorten(str(error), REASON_LENGTH, placeholder=" ...")
            self.process.close()

    def load(self) -> None:
        """Start the process and load the model in it."""
        self.process.start()
        job = {**self.who.job, "folder": str(self.folder)}
        self.loaded = self.process.ask(do="load", peer=self.who.peer, job=job)
