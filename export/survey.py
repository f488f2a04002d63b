"""``python -m tfx.export.survey``: export every family and write down what came of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
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


def survey(families: Iterable[Family] = FAMILIES) -> list[Finding]:
    """Export each family from a checkpoint folder, as a user would, into a temporary one."""
    return [finding for family in families for finding in _try(family)]


def table(findings: Iterable[Finding]) -> str:
    """The findings as a Markdown table."""
    lines = [
        "| family | class | graph | status | Attention fused | largest error | export |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in findings:
        total = one.attention + one.softmax
        status = one.problem.splitlines()[0] if one.problem else "ok"
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
            bundles = export_bundles(str(source), Path(folder) / "bundle", ExportRecipe())
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
def main(names: tuple[str, ...], output: Path | None) -> None:
    """Export every family (or those NAMES are part of) and print a table."""
    chosen = [
        family
        for family in FAMILIES
        if not names or any(name.lower() in family.name.lower() for name in names)
    ]
    findings = []
    for family in chosen:
        click.echo(f"{family.name} {family.class_name} ...", err=True)
        findings += _try(family)
    versions = ", ".join(
        f"{name} {version_of(name)}" for name in ("torch", "transformers", "onnxruntime")
    )
    text = (
        "# Families\n\nTiny configurations with random weights, exported with dynamic batch and "
        "sequence, run on ONNX\nRuntime (CPU) and compared with PyTorch on padded feeds of several "
        f"shapes. Made with {versions} by\n`python -m tfx.export.survey -o docs/families.md`.\n\n"
        + table(findings)
        + "\n"
    )
    if output is not None:
        output.write_text(text, encoding="utf-8")
    else:
        click.echo(text)


if __name__ == "__main__":
    main()
