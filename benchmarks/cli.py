"""``tfx bench``: bundles and a plan in, one measurement, its tables out."""

from __future__ import annotations

from pathlib import Path

import click

from tfx.console import FOLDER, console, json_option

from .options import Asked, Files, asked_options, file_options, gate_options, kept_options


@click.command
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1, type=FOLDER)
@asked_options
@click.option("--profile", is_flag=True, help="Also say what each row's time goes to.")
@click.option("--peaks", is_flag=True, help="Also say what share of this machine's peaks it is.")
@file_options
@gate_options
@kept_options
@json_option
def bench(
    bundles: tuple[Path, ...],
    asked: Asked,
    profile: bool,
    peaks: bool,
    files: Files,
    baselines: tuple[Path, ...],
    fail_on: str | None,
    history: Path | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure a family of bundles on every backend that works here.

    Without BUNDLE: the newest one and its family. Rows of a shape run in interleaved rounds, each
    in a process of its own, and are compared in speed, and in what they answer, with PyTorch, which
    runs once for bundles of one source. Bundles with a cache are measured by the text they write,
    beside transformers' generate. With --eval the task's metric stands beside the speed, as
    in tfx evaluate; without labels, how far answers agree with PyTorch's.
    """
    # Not needed for --help.
    from .command import gate_of, run_bench
    from .results import read_results, reports_of, show_history

    if history is not None:
        show_history(console(), reports_of(read_results(history)))
        return
    gate = gate_of(baselines, fail_on)
    run_bench(bundles, asked, files, gate, profile=profile, peaks=peaks, save=save, as_json=as_json)
