"""``python -m tfx.export.survey``: export every family and write down what came of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from tfx.bundle import Bundle
from tfx.chatter import quiet
from tfx.errors import TfxError
from tfx.extras import version_of
from tfx.recipe import ExportRecipe

from .families import FAMILIES, Family, build
from .pipeline import export_bundles
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
    """

    family: Family
    part: str
    problem: str = ""
    attention: int = 0
    softmax: int = 0
    error: float = 0.0
    seconds: float = 0.0


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


def table(findings: Iterable[Finding]) -> str:
    """The findings as a Markdown table."""
    lines = [
        "| family | class | graph | status | Attention fused | largest error | export |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in findings:
        total = one.attention + one.softmax
        status = one.problem.splitlines()[0].replace("|", r"\|") if one.problem else "ok"
        fused = f"{one.attention} of {total}" if not one.problem else ""
        error = f"{one.error:.1e}" if not one.problem else ""
        lines.append(
            f"| {one.family.name} | `{one.family.class_name}` | {one.part or 'whole'} | {status} "
            f"| {fused} | {error} | {one.seconds:.1f} s |"
        )
    return "\n".join(lines)


def _try(family: Family) -> list[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        with quiet():
            build(family).save_pretrained(source)
        started = time.perf_counter()
        try:
            recipe = ExportRecipe(max_sequence=family.max_sequence)
            bundles = export_bundles(str(source), Path(folder) / "bundle", recipe)
        except TfxError as error:
            return [Finding(family, "", str(error), seconds=time.perf_counter() - started)]
        seconds = time.perf_counter() - started
        return [_found(family, bundle, seconds) for bundle in bundles]


def _found(family: Family, bundle: Bundle, seconds: float) -> Finding:
    manifest = bundle.manifest
    assert manifest.parity is not None
    return Finding(
        family,
        manifest.source.part,
        attention=manifest.facts["attention"],
        softmax=manifest.facts["softmax"],
        error=max(check.error for check in manifest.parity.checks),
        seconds=seconds,
    )


@click.command
@click.argument("names", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Markdown file to write.")
@click.option("--wide", is_flag=True, help="Every model type of transformers, not our families.")
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
    tasks: tuple[str, ...],
    jobs: int,
    store: Path | None,
) -> None:
    """Export every family (or those NAMES are part of) and print a table.

    With --wide: every model type transformers can build from a tiny configuration, or those
    called NAMES.
    """
    if not wide and (tasks or store):
        raise click.UsageError("--task and --rows are for --wide")
    text = _wide_text(names, tasks, jobs, store) if wide else _families_text(names)
    if output is not None:
        output.write_text(text, encoding="utf-8")
    else:
        click.echo(text)


def _families_text(names: tuple[str, ...]) -> str:
    chosen = [
        family
        for family in FAMILIES
        if not names or any(name.lower() in family.name.lower() for name in names)
    ]
    findings = survey(chosen, lambda one: click.echo(f"{one.name} {one.class_name} ...", err=True))
    return (
        "# Families\n\nTiny configurations with random weights, exported with dynamic batch and "
        "sequence, run on ONNX\nRuntime (CPU) and compared with PyTorch on padded feeds of several "
        f"shapes. Made with {_versions()} by\n`python -m tfx.export.survey -o docs/families.md`."
        f"\n\n{table(findings)}\n"
    )


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
        f"built, in none.\n\nMade with {_versions()} by\n"
        "`python -m tfx.export.survey --wide -o docs/wide-net.md`."
        f"\n\n{wide_table(done)}\n"
    )


def _versions() -> str:
    return ", ".join(
        f"{name} {version_of(name)}" for name in ("torch", "transformers", "onnxruntime")
    )


if __name__ == "__main__":
    main()
