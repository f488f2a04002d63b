"""Contestants that write token by token, by turns; of tfx, and of other libraries."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.console import Progress
from tfx.errors import BackendError, BundleError, FeedError
from tfx.runtime.generation.decoder import is_generator, longest
from tfx.runtime.generation.kv_cache import cache_specs
from tfx.runtime.pytorch.checkpoint import checkpoint_folder
from tfx.signature import Signature

from ..environments import Environment
from ..measuring.family import same_model
from . import generators
from .contestants import Contestant, PeerProcess, PeerRun
from .generators import PEERS

BACKENDS = ("onnxruntime", "openvino")
SCRIPT = Path(generators.__file__)


def contestants_of(
    bundles: Sequence[Bundle],
    backends: Sequence[str],
    precisions: Sequence[str],
    chosen: Sequence[str],
    environments: Mapping[str, Environment],
    threads: int,
    room: int,
) -> list[Contestant]:
    """Rows of tfx, each bundle on each backend; then the peers, which read the first's source.

    Args:
        bundles: Of one model, with a cache.
        backends: Names in ``BACKENDS``.
        precisions: Names in ``PRECISIONS``; "" for the bundle's own.
        chosen: Keys of ``PEERS``.
        environments: By name; one that is not named is this one.
        threads: CPU threads of each.
        room: Most tokens of prompt and text together.

    Raises:
        FeedError: If a bundle has no cache, or not so many positions.
        BundleError: If a bundle is of another model than the first.
        SourceError: If the checkpoint that peers read is not on this machine.
    """
    first = bundles[0]
    for bundle in bundles:
        signature = bundle.manifest.signature
        if not is_generator(signature):
            raise FeedError(
                f"{bundle.name} has no cache to generate with",
                hint="Export a causal language model again, without --no-cache.",
            )
        if room > longest(signature):
            raise FeedError(
                f"{room} tokens are asked for, {bundle.name} takes {longest(signature)}",
                hint="Ask for fewer tokens.",
            )
        if not same_model(first, bundle):
            raise BundleError(
                f"{first.name} and {bundle.name} are not of one model",
                hint="Name bundles made from one another.",
            )
    job = {
        "checkpoint": str(checkpoint_folder(first.manifest.source).absolute()) if chosen else "",
        "model": str(first.model.absolute()),
        "threads": threads,
        "room": room,
        "layers": len(cache_specs(first.manifest.signature)) // 2,
        "kind": str(first.manifest.precision),
    }
    found = []
    for bundle in bundles:
        for backend in backends:
            for precision in precisions:
                own = {"bundle": str(bundle.path.absolute()), "backend": backend}
                name = " ".join(filter(None, (bundle.name, "on", backend, precision)))
                fields = job | own | {"precision": precision}
                found.append(Contestant(name, True, sys.executable, "tfx", fields, SCRIPT))
    for name in chosen:
        kind = PEERS[name].environment
        environment = environments.get(kind)
        problem = environment.problem if environment else ""
        if kind and environment is None:
            problem = "no environment: make one with python -m tfx.bench.environments, name --peers"
        python = environment.python if environment else sys.executable
        found.append(Contestant(name, False, python, name, job, SCRIPT, problem))
    return found


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
        """Write ``count`` tokens after each prompt.

        Raises:
            BackendError: If it fails, or writes another number of them.
        """
        found = self.process.ask(do="write", prompt=prompt, count=count)
        lengths = [len(row) for row in found["ids"]]
        if lengths != [count] * len(prompt):
            raise BackendError(
                f"it wrote {' and '.join(map(str, lengths))} tokens, expected {count} in each of "
                f"{len(prompt)} rows"
            )
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
