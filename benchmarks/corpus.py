"""``python -m tfx.bench.corpus``: texts like those ``tfx.bench.text`` embeds, and none of them.

What calibrates a bundle that is to be measured there, or chooses what of it stays in floats, must
not be what it is measured on.
"""

from __future__ import annotations

from pathlib import Path

import click

from tfx.console import FOLDER, told_errors

from .pages.files import write_text
from .peers.sentences import read_sentences
from .text import SENTENCES


@click.command
@click.option("--data", type=FOLDER, required=True, help="Has sst2/ and text/.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="A text a line."
)
@click.option(
    "--count", type=click.IntRange(1), default=1500, show_default=True, help="Texts to write."
)
@click.option(
    "--besides",
    type=click.IntRange(0),
    default=SENTENCES,
    show_default=True,
    help="As --sentences of tfx.bench.text: texts that are left out.",
)
@click.option("--seed", default=0, help="As that of tfx.bench.text.  [default: 0]")
def corpus(data: Path, output: Path, count: int, besides: int, seed: int) -> None:
    """Write real texts of mixed length that the comparison of texts does not embed."""
    with told_errors():
        texts = read_sentences(data, count, seed, skip=besides)
        write_text(output, "".join(f"{text}\n" for text in texts))


if __name__ == "__main__":
    corpus()
