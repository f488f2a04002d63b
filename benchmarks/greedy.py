"""``python -m tfx.bench.greedy``: whether a bundle writes what transformers' ``generate`` does.

Prompts of random tokens and lengths, the likeliest token each time, in float32. tfx writes them in
batches, transformers each alone. Where a token differs, it is said by how much transformers'
logits prefer its own: rounding decides where that is next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import FOLDER, chosen_bundle, emit_json, json_option, told_errors
from tfx.dtypes import DType
from tfx.errors import FeedError
from tfx.runtime.generation.decoder import is_generator, longest
from tfx.runtime.opening import open_session
from tfx.runtime.pytorch.checkpoint import checkpoint_folder

LONGEST_PROMPT = 32

# Two logits nearer than this to each other, of the largest one, are called a tie.
TIE = 1e-5


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a text is another than transformers'.

    Attributes:
        prompt: Index.
        place: Of its first other token.
        theirs: What transformers wrote there; -1 for nothing.
        ours: What tfx did.
        margin: Theirs over ours, in transformers' logits, as a share of the largest.
    """

    prompt: int
    place: int
    theirs: int
    ours: int
    margin: float

    @property
    def is_tie(self) -> bool:
        """Whether rounding decides between the two."""
        return abs(self.margin) < TIE


@dataclass(frozen=True, slots=True)
class Agreement:
    """What came of all prompts on one backend.

    Attributes:
        backend: Which.
        prompts: How many.
        new_tokens: Most tokens of each.
        tokens: That transformers wrote.
        differences: One for each text that is not the same; empty is what is wanted.
    """

    backend: str
    prompts: int
    new_tokens: int
    tokens: int
    differences: tuple[Difference, ...]


def compare_greedy(
    bundle: Bundle, backend: str, *, prompts: int = 20, new_tokens: int = 64, seed: int = 0
) -> Agreement:
    """Write after the same prompts with tfx and with transformers.

    Args:
        bundle: With a cache, of float32, made from a checkpoint that is on this machine.
        backend: What tfx runs it on.
        prompts: How many.
        new_tokens: Most tokens of each text; an end token ends it before.
        seed: Of the prompts.

    Raises:
        FeedError: If the bundle has no cache, is not of float32, or has too few positions.
        SourceError: If the checkpoint is not there.
    """
    manifest = bundle.manifest
    if not is_generator(manifest.signature) or manifest.precision is not DType.FLOAT32:
        raise FeedError(
            f"{bundle.name} is no graph with a cache in float32",
            hint="Export a causal language model, without --no-cache.",
        )
    room = longest(manifest.signature) - new_tokens
    if room < 1:
        raise FeedError(
            f"{new_tokens} new tokens are asked for, {bundle.name} takes "
            f"{longest(manifest.signature)} with the prompt",
            hint="Ask for fewer new tokens, or shorter prompts.",
        )
    (tokens,) = (spec for spec in manifest.signature.inputs if spec.name == "input_ids")
    most = tokens.values.max if tokens.values else 1
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, min(room, LONGEST_PROMPT), prompts, endpoint=True)
    given = [rng.integers(0, most, length, endpoint=True).tolist() for length in lengths]
    with open_session(bundle, backend=backend) as session:
        found = session.generate(given, max_new_tokens=new_tokens)
    model = _source(bundle)
    differences, count = [], 0
    for index, (prompt, ours) in enumerate(zip(given, found, strict=True)):
        theirs = _greedy(model, prompt, new_tokens)
        count += len(theirs)
        if list(ours.ids) != theirs:
            differences.append(_difference(model, index, prompt, list(ours.ids), theirs))
    return Agreement(backend, prompts, new_tokens, count, tuple(differences))


def _source(bundle: Bundle) -> Any:
    import torch
    import transformers

    folder = checkpoint_folder(bundle.manifest.source)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _greedy(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    import torch

    given = torch.tensor([prompt])
    with torch.inference_mode():
        found = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
        )
    ids: list[int] = found[0, len(prompt) :].tolist()
    return ids


def _difference(
    model: Any, index: int, prompt: list[int], ours: list[int], theirs: list[int]
) -> Difference:
    import torch

    shared = min(len(ours), len(theirs))
    place = next((at for at in range(shared) if ours[at] != theirs[at]), shared)
    other, own = (one[place] if place < len(one) else -1 for one in (theirs, ours))
    if -1 in (other, own):  # one has ended
        return Difference(index, place, other, own, 1.0)
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *theirs[:place]]])).logits[0, -1]
    margin = float((logits[other] - logits[own]) / logits.abs().max())
    return Difference(index, place, other, own, margin)


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--backend", "backends", multiple=True, default=("onnxruntime", "openvino"))
@click.option("--prompts", default=20, show_default=True, type=click.IntRange(1))
@click.option("--new-tokens", default=64, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, help="Of the prompts.  [default: 0]")
@json_option
def greedy(
    bundle: Path | None,
    backends: tuple[str, ...],
    prompts: int,
    new_tokens: int,
    seed: int,
    as_json: bool,
) -> None:
    """Compare the tokens that BUNDLE writes with those of transformers' generate."""
    with told_errors():
        opened = chosen_bundle(bundle)
        found = [
            compare_greedy(opened, backend, prompts=prompts, new_tokens=new_tokens, seed=seed)
            for backend in dict.fromkeys(backends)
        ]
    if as_json:
        emit_json([encode(one) for one in found])
    else:
        for one in found:
            click.echo(
                f"{opened.name} on {one.backend}: {one.prompts - len(one.differences)} of "
                f"{one.prompts} texts are transformers', {one.tokens} tokens"
            )
            for other in one.differences:
                said = "a tie" if other.is_tie else f"{other.margin:.1e} of the largest logit"
                click.echo(
                    f"  prompt {other.prompt}, token {other.place}: {other.ours}, expected "
                    f"{other.theirs}; {said}"
                )
    if any(not other.is_tie for one in found for other in one.differences):
        raise click.ClickException("tokens differ from transformers'")


if __name__ == "__main__":
    greedy()
