"""``tfx profile``: a bundle and a shape in, where its time goes out."""

from __future__ import annotations

from pathlib import Path

import click

from tfx.codec import encode
from tfx.console import FOLDER, chosen_bundle, console, emit_json, json_option
from tfx.runtime.backend import BACKENDS, PRECISIONS


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    default="onnxruntime",
    show_default=True,
    help="What to run it on.",
)
@click.option("--precision", type=click.Choice(list(PRECISIONS)), help="As in tfx bench.")
@click.option("--batch", default=1, show_default=True, help="Batch size.")
@click.option("--length", default=128, show_default=True, help="Length.")
@click.option("--runs", default=20, show_default=True, help="Counted, after some that are not.")
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@click.option("--trust", is_flag=True, help="Let the factory's Python file run.")
@json_option
def profile(
    bundle: Path | None,
    backend: str,
    precision: str | None,
    batch: int,
    length: int,
    runs: int,
    threads: int | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Show where a bundle's time goes: by operator and by layer.

    As ONNX Runtime's, OpenVINO's or PyTorch's own profiler tells it. Without BUNDLE: the newest of
    the current folder.
    """
    from .measuring.profile import profile_bundle, show_profile
    from .measuring.workload import Plan, shapes_of

    opened = chosen_bundle(bundle)
    plan = Plan(batches=(batch,), lengths=(length,), threads=threads)
    (shape,), notes = shapes_of([opened.manifest.signature], plan)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    found = profile_bundle(
        opened,
        backend,
        shape,
        threads=threads,
        precision=precision or "",
        runs=runs,
        trust=trust,
    )
    if as_json:
        emit_json(encode(found))
    else:
        show_profile(console(), found)
