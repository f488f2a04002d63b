"""``tfx tune``."""

from __future__ import annotations

from pathlib import Path

import click

from tfx.codec import encode
from tfx.console import FOLDER, chosen_bundle, console, emit_json, json_option, progress

SHAPE_HELP = "BATCHxLENGTH or axis=size,...; twice counts twice.  [default: 1x128, 16x128]"


@click.command
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1, type=FOLDER)
@click.option("--shape", "shapes", multiple=True, help=SHAPE_HELP)
@click.option("--backend", "backends", multiple=True, help="Choose from these; also torch.")
@click.option(
    "--threads", multiple=True, type=click.IntRange(1), help="Thread counts; default: some."
)
@click.option("--max-drop", type=float, help="Accuracy a child may lose; default: as it was made.")
@click.option("--min-cosine", type=float, help="To the bundle's outputs, where none was measured.")
@click.option("--seconds", type=float, help="How long it may take.  [default: 120]")
@click.option("--limit", "limit_s", type=float, help="Seconds one may take to load.  [default: 60]")
@click.option("--torch/--no-torch", default=True, help="Time PyTorch beside them.  [default: yes]")
@click.option("--trust", is_flag=True, help="Let the factory's Python file run.")
@click.option("--show", is_flag=True, help="Show the stored choice, and measure nothing.")
@json_option
def tune(
    bundles: tuple[Path, ...],
    shapes: tuple[str, ...],
    backends: tuple[str, ...],
    threads: tuple[int, ...],
    torch: bool,
    trust: bool,
    show: bool,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Find the fastest way to run a bundle here that is still right.

    Tries backends, precisions and thread counts, and the bundles made from BUNDLE within an
    accuracy budget, each in a process of its own. What is chosen is what --backend auto runs, on
    this machine and with these versions. Without BUNDLE: the newest of the current folder.
    """
    from .choices import stored_choice
    from .plan import TuningPlan
    from .shapes import shape_of
    from .table import show_tuning
    from .tuner import tune_bundle

    given = {name: value for name, value in limits.items() if value is not None}
    found, problems = [], []
    for opened in [chosen_bundle(path) for path in dict.fromkeys(bundles)] or [chosen_bundle(None)]:
        if show:
            tuning = stored_choice(opened)
        else:
            plan = TuningPlan(
                shapes=tuple(shape_of(text, opened.manifest.signature) for text in shapes),
                backends=tuple(dict.fromkeys(backends)),
                threads=threads,
                torch=torch,
                trust=trust,
                **given,  # type: ignore[arg-type]
            )
            with progress() as shown:
                tuning, problem = tune_bundle(opened, plan, progress=shown)
            problems += [problem] if problem else []
        found.append(tuning)
        if not as_json:
            show_tuning(console(), tuning)
    if as_json:
        emit_json([encode(tuning) for tuning in found])
    if problems:
        raise problems[0]
