"""Contestants that write token by token, by turns; of tfx, and of other libraries."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfx.console import Progress
from tfx.signature import Signature

from .throughput import Contestant, PeerProcess, PeerRun


def random_prompt(signature: Signature, batch: int, length: int, seed: int) -> np.ndarray:
    """Token ids drawn alike, of all that a bundle takes: ``int64[batch, length]``."""
    (tokens,) = (spec for spec in signature.inputs if spec.name == "input_ids")
    most = tokens.values.max if tokens.values else 1
    return np.random.default_rng(seed).integers(0, most, (batch, length), endpoint=True)


@dataclass(slots=True, eq=False)
class WritingRun(PeerRun):
    """One that writes.

    Attributes:
        texts: What it wrote, as ``tfx.bench.peers.generators.Text`` with the peak in MB.
    """

    texts: list[Mapping[str, Any]] = field(default_factory=list)

    def write(self, prompt: list[list[int]], count: int, *, keep: bool) -> None:
        """Write ``count`` tokens after each prompt."""
        found = self.process.ask(do="write", prompt=prompt, count=count)
        if keep:
            self.texts.append(found)


def write_by_turns(
    contestants: Sequence[Contestant],
    prompt: np.ndarray,
    new_tokens: int,
    *,
    rounds: int,
    limit_s: float,
    progress: Progress,
    rng: np.random.Generator,
) -> list[WritingRun]:
    """Let all write the same, in an order drawn anew each round; one that fails says why.

    Args:
        contestants: At least one.
        prompt: ``int64[batch, sequence]``.
        new_tokens: Tokens written.
        rounds: Texts of each; a short one comes before, to warm up.
        limit_s: Seconds each may take for anything.
        progress: Told of every step.
        rng: Draws the order.
    """
    given = prompt.tolist()
    with tempfile.TemporaryDirectory(prefix="tfx-bench-") as name:
        runs = []
        for index, who in enumerate(contestants):
            folder = Path(name, str(index))
            folder.mkdir()
            process = PeerProcess(who.python, who.script, limit_s)
            runs.append(WritingRun(who, process, folder, who.problem))
        try:
            for run in runs:
                progress.step(f"loading {run.who.name}")
                run.attempt(run.load)
                run.attempt(lambda run=run: run.write(given, 2, keep=False))  # type: ignore[misc]
            progress.step("everybody writes", rounds)
            for _ in range(rounds):
                for index in rng.permutation(len(runs)):
                    run = runs[index]
                    run.attempt(lambda run=run: run.write(given, new_tokens, keep=True))
                progress.advance()
        finally:
            for run in runs:
                run.process.close()
    return runs
