"""What a session runs, and what it has done so far."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .backend import RunFacts


@dataclass(frozen=True, slots=True)
class SessionReport:
    """What a session really runs, and what it has done so far.

    Attributes:
        bundle: Path of the bundle.
        digest: Its digest.
        facts: Backend, engine, device, precision and threads.
        load_s: Seconds from the call of ``open_session`` to a session ready to run.
        texts: Texts answered.
        truncated: How many of them were longer than the model takes, and cut.
        windowed: How many were as long, and read in windows.
    """

    bundle: str
    digest: str
    facts: RunFacts
    load_s: float
    texts: int = 0
    truncated: int = 0
    windowed: int = 0

    def after(self, texts: int, truncated: int, windowed: int) -> SessionReport:
        """The report once so many more texts are answered."""
        return replace(
            self,
            texts=self.texts + texts,
            truncated=self.truncated + truncated,
            windowed=self.windowed + windowed,
        )
