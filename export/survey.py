"""``python -m tfx.export.survey``: export every family and write down what came of it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import click

from tfx.bundle import Bundle
from tfx.chatter import quiet
from tfx.errors import TfxError
from tfx.extras import version_of
from tfx.recipe import ExportRecipe
from tfx.runtime.cpus import usable_cpus

from .families import FAMILIES, HANDWRITTEN, Family, build, source_of
from .pipeline import export_bundles
from .real_sizes import REAL_SIZES, write_config
from .wide import TASKS, Row, append_row, candidates, cast, read_rows, wide_table


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one graph of one family.

    Attributes:
        family: The family.
        part: "encoder", "decoder" or "".
        problem: Why there is no bundle; "" if there is one.
        attention: Attention nodes.
        softmax: Attentions that stayed spelled out.
        error: Largest scaled error against PyTorch.
        seconds: The whole export took, all parts together.
        cpu_s: Processor time of it, of all threads: does not grow with what else is running.
        parameters: Of the model.
        peak_bytes: Most memory the process of the export held; 0 where it had none of its own.
    """

    family: Family
    part: str
    problem: str = ""
    attention: int = 0
    softmax: int = 0
    error: float = 0.0
    seconds: float = 0.0
    cpu_s: float = 0.0
    parameters: int = 0
    peak_bytes: int = 0


def survey(
    families: Iterable[Family] = FAMILIES, on_family: Callable[[Family], None] = lambda _: None
) -> list[Finding]:
    """Export each family from a checkpoint folder, as a user would, into a temporary one.

    Args:
        families: Which.
        on_family: Called with each as its turn comes.
    """
    findings = []
    for family in families:
        on_family(family)
        findings += _try(family)
    return findings


def survey_real_sizes(
    families: Iterable[Family] = REAL_SIZES, on_family: Callable[[Family], None] = lambda _: None
) -> list[Finding]:
    """Export each family at its published size with random weights, in a process of its own.

    Args:
        families: Which.
        on_family: Called with each as its turn comes.
    """
    findings = []
    for family in families:
        on_family(family)
        started = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                findings += pool.submit(_try_real_size, family).result()
            except BrokenProcessPool:  # killed, most likely for its memory
                seconds = time.perf_counter() - started
                findings.append(Finding(family, "", "the process was killed", seconds=seconds))
    return findings


def real_size_table(findings: Iterable[Finding]) -> str:
    """The findings of real sizes as a Markdown table."""
    found = list(findings)
    head, rule, *rows = table(found).splitlines()
    lines = [f"{head} parameters | peak memory |", f"{rule}---|---|"]
    for row, one in zip(rows, found, strict=True):
        size = f"{one.parameters / 1e6:.0f} M" if one.parameters else ""
        peak = f"{one.peak_bytes / 1e9:.1f} GB" if one.peak_bytes else ""
        lines.append(f"{row} {size} | {peak} |")
    return "\n".join(lines)


def table(findings: Iterable[Finding]) -> str:
    """The findings as a Markdown table."""
    lines = [
        "| family | class | graph | status | Attention fused | largest error | export | CPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in findings:
        total = one.attention + one.softmax
        status = one.problem.splitlines()[0].replace("|", r"\|") if one.problem else "ok"
        fused = f"{one.attention} of {total}" if not one.problem else ""
        error = f"{one.error:.1e}" if not one.problem else ""
        lines.append(
            f"| {one.family.name} | `{one.family.class_name}` | {one.part or 'whole'} | {status} "
            f"| {fused} | {error} | {one.seconds:.1f} s | {one.cpu_s:.1f} s |"
        )
    return "\n".join(lines)


def _try(family: Family) -> list[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        if not family.config:
            return _export(family, source_of(family), Path(folder) / "bundle", family.recipe)
        source = Path(folder) / "source"
        with quiet():
            build(family).save_pretrained(source)
        return _export(family, str(source), Path(folder) / "bundle", family.recipe)


def _export(family: Family, source: str, target: Path, recipe: ExportRecipe) -> list[Finding]:
    started, cpu_started = time.perf_counter(), time.process_time()
    problem, bundles = "", []
    try:
        bundles = export_bundles(source, target, recipe)
    except TfxError as error:
        problem = str(error)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    findings = [_found(family, bundle) for bundle in bundles] or [Finding(family, "", problem)]
    return [replace(one, seconds=seconds, cpu_s=cpu_s) for one in findings]


def _try_real_size(family: Family) -> list[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        write_config(family, source)
        recipe = replace(family.recipe, random_weights=True)
        findings = _export(family, str(source), Path(folder) / "bundle", recipe)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024  # elsewhere it is in KiB
    return [replace(one, peak_bytes=peak_bytes) for one in findings]


def _found(family: Family, bundle: Bundle) -> Finding:
    manifest = bundle.manifest
    assert manifest.parity is not None
    return Finding(
        family,
        manifest.source.part,
        attention=manifest.facts["attention"],
        softmax=manifest.facts["softmax"],
        error=max(check.error for check in manifest.parity.checks),
        parameters=manifest.facts["parameters"],
    )


@click.command
@click.argument("names", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Markdown file to write.")
@click.option("--wide", is_flag=True, help="Every model type of transformers, not our families.")
@click.option("--real-size", is_flag=True, help="Published sizes, random weights: takes minutes.")
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), help="With --wide.")
@click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=1,
    help="Processes, with --wide; 0 to run nothing and show --rows.",
)
@click.option(
    "--rows",
    "store",
    type=click.Path(path_type=Path),
    help="With --wide: JSON lines to go on from and to add to.",
)
def main(
    names: tuple[str, ...],
    output: Path | None,
    wide: bool,
    real_size: bool,
    tasks: tuple[str, ...],
    jobs: int,
    store: Path | None,
) -> None:
    """Export every family (or those NAMES are part of) and print a table.

    With --wide: every model type transformers can build from a tiny configuration, or those
    called NAMES. With --real-size: the families at the size they are published in.
    """
    if wide and real_size:
        raise click.UsageError("--wide and --real-size exclude each other")
    if not wide and (tasks or store):
        raise click.UsageError("--task and --rows are for --wide")
    if wide:
        text = _wide_text(names, tasks, jobs, store)
    else:
        text = _real_sizes_text(names) if real_size else _families_text(names)
    if output is not None:
        output.write_text(text, encoding="utf-8")
    else:
        click.echo(text)


def _families_text(names: tuple[str, ...]) -> str:
    chosen = _chosen((*FAMILIES, *HANDWRITTEN), names)
    before = os.getloadavg()[0]
    findings = survey(chosen, _announce)
    busy = max(before, os.getloadavg()[0])
    return (
        "# Families\n\nTiny configurations with random weights, exported with dynamic batch and "
        "sequence, run on ONNX\nRuntime (CPU) and compared with PyTorch on padded feeds of several "
        f"shapes. Made with\n{_versions()} by\n`python -m tfx.export.survey -o docs/families.md`."
        "\n\nThe last columns are the whole export, both graphs of two together, loading and proof "
        f"included, on\n{usable_cpus()} CPUs that had up to {busy:.0f} processes to run (the load "
        "average), and its own\nshare of their time.\n\n"
        f"{table(findings)}\n"
    )


def _real_sizes_text(names: tuple[str, ...]) -> str:
    findings = survey_real_sizes(_chosen(REAL_SIZES, names), _announce)
    return (
        "# Real sizes\n\nFamilies at the size they are published in (`export/real_sizes.py`), with "
        "random weights, exported\neach in a process of its own and compared with PyTorch as in "
        f"[families.md](families.md). Made with\n{_versions()} by\n"
        "`python -m tfx.export.survey --real-size NAME... -o docs/real-sizes.md`."
        f"\n\n{real_size_table(findings)}\n"
    )


def _chosen(families: Iterable[Family], names: tuple[str, ...]) -> list[Family]:
    return [
        family
        for family in families
        if not names or any(name.lower() in family.name.lower() for name in names)
    ]


def _announce(family: Family) -> None:
    click.echo(f"{family.name} {family.class_name} ...", err=True)


def _wide_text(
    names: tuple[str, ...], tasks: tuple[str, ...], jobs: int, store: Path | None
) -> str:
    rows = candidates(tasks or TASKS, names)
    earlier = {(row.task, row.model_type): row for row in read_rows(store)} if store else {}
    pending = [row for row in rows if jobs and (row.task, row.model_type) not in earlier]

    def show(row: Row) -> None:
        click.echo(f"{row.task} {row.model_type}: {row.status} {row.reason}".rstrip(), err=True)
        if store is not None:
            append_row(store, row)

    found = earlier | {(row.task, row.model_type): row for row in cast(pending, jobs, show)}
    done = [found.get((row.task, row.model_type), row) for row in rows]
    return (
        "# The wide net\n\nEvery model type of transformers' auto classes, built from a tiny "
        "configuration\n(`export/tiny_configs.py`) with random weights, exported and compared with "
        'PyTorch as\n`tfx export` does it. "Forward runs" counts the types whose PyTorch forward '
        "runs on the inputs\nplanned for tracing; the share is of those. Types that were built and "
        "have no such inputs are in the\nlast column; those whose class or configuration cannot be "
        "built, in none.\n\nRows are gathered over hours and over several versions of tfx: a "
        "row that failed is tried again\nafter a fix, one that was ok is not. Made with\n"
        f"{_versions()} by\n"
        "`python -m tfx.export.survey --wide -o docs/wide-net.md`."
        f"\n\n{wide_table(done)}\n"
    )


def _versions() -> str:
    return ", ".join(
        f"{name} {version_of(name)}" for name in ("torch", "transformers", "onnxruntime")
    )


if __name__ == "__main__":
    main()
