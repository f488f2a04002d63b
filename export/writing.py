"""``python -m tfx.export.writing``: which families write the tokens that transformers does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from tfx.bundle import Bundle
from tfx.chatter import quiet
from tfx.errors import TfxError
from tfx.extras import need
from tfx.recipe import GENERATING_DECODER, GENERATOR
from tfx.runtime.opening import open_session
from tfx.signature import SEQUENCE

from .families import Family, build
from .pipeline import export_bundles
from .writers import CAUSAL, PAIRS

# Of each weight matrix: transformers' own 0.02 makes tiny models write one token alone.
WEIGHT_STD = 0.3


@dataclass(frozen=True, slots=True)
class Written:
    """What came of one family.

    Attributes:
        family: Which.
        problem: Why it writes nothing: no bundle, or none with a cache; "" where it does.
        greedy: Texts of the likeliest tokens that are transformers'.
        beams: Texts of four beams that are.
        prompts: Texts of each kind.
    """

    family: Family
    problem: str = ""
    greedy: int = 0
    beams: int = 0
    prompts: int = 0

    @property
    def is_same(self) -> bool:
        """Whether every text is transformers'."""
        return not self.problem and self.greedy == self.beams == self.prompts


def write_checkpoint(family: Family, folder: Path) -> Any:
    """Save the tiny model of a family, with weights that make texts differ, and load it."""
    torch = need("torch")
    with quiet():
        model = build(family)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=WEIGHT_STD)
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder).eval()


def compare_texts(
    family: Family, *, prompts: int = 6, new_tokens: int = 16, cache: bool | None = None
) -> Written:
    """Export a family and write after the same prompts with it and with transformers.

    Args:
        family: Which.
        prompts: How many, of random tokens and lengths; tfx writes all in one batch.
        new_tokens: Most tokens of each text.
        cache: As of ``export_bundles``.
    """
    rng = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        model = write_checkpoint(family, source)
        try:
            bundles = export_bundles(str(source), Path(folder) / "made", cache=cache)
            bundle = bundles[-1]
            if bundle.manifest.source.part not in (GENERATOR, GENERATING_DECODER):
                return Written(family, "exported for one pass")
            shortest = bundles[0].manifest.signature.ranges[SEQUENCE].min
            lengths = shortest + rng.integers(0, 12, prompts)
            given = [rng.integers(4, 64, length).tolist() for length in lengths]
            same = {beams: _same(bundle, model, given, new_tokens, beams) for beams in (1, 4)}
        except TfxError as error:
            return Written(family, str(error).splitlines()[0])
    return Written(family, greedy=same[1], beams=same[4], prompts=prompts)


def table(found: Iterable[Written]) -> str:
    """The findings as a Markdown table."""
    lines = ["| family | class | likeliest tokens | 4 beams |", "|---|---|---|---|"]
    for one in found:
        said = [f"{count} of {one.prompts}" for count in (one.greedy, one.beams)]
        if one.problem:
            said = [one.problem.replace("|", r"\|"), ""]
        lines.append(f"| {one.family.name} | `{one.family.class_name}` | {said[0]} | {said[1]} |")
    return "\n".join(lines)


def _same(
    bundle: Bundle, model: Any, given: Sequence[list[int]], new_tokens: int, beams: int
) -> int:
    with open_session(bundle) as session:
        found = session.generate(given, max_new_tokens=new_tokens, num_beams=beams)
    return sum(
        list(ours.ids) == _theirs(model, prompt, new_tokens, beams)
        for prompt, ours in zip(given, found, strict=True)
    )


def _theirs(model: Any, prompt: list[int], new_tokens: int, beams: int) -> list[int]:
    torch = need("torch")
    ids = torch.tensor([prompt])
    with quiet(), torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            num_beams=beams,
            do_sample=False,
        )
    before = 1 if model.config.is_encoder_decoder else len(prompt)
    text: list[int] = found[0, before:].tolist()
    return text


@click.command
@click.argument("names", nargs=-1)
@click.option("--require-cache", is_flag=True, help="Say why, where there is none.")
def main(names: tuple[str, ...], require_cache: bool) -> None:
    """Export every family that writes (or those NAMES are part of), and print a table."""
    found = []
    for family in (*CAUSAL, *PAIRS):
        if names and not any(name.lower() in family.name.lower() for name in names):
            continue
        found.append(compare_texts(family, cache=True if require_cache else None))
        click.echo(table(found).splitlines()[-1], err=True)
    click.echo(table(found))
    if not all(one.is_same or one.problem for one in found):
        raise click.ClickException("tokens differ from transformers'")


if __name__ == "__main__":
    main()
