"""``python -m tfx.quantize.engine_survey``: which families build as engines, in which precision."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from tfx.bundle import Bundle, is_bundle, open_bundle
from tfx.chatter import quiet
from tfx.console import FOLDER
from tfx.dtypes import DType
from tfx.errors import TfxError
from tfx.export.checkpoint.loader import parts_of
from tfx.export.engines.engine import Profile, build_engine, usual_profiles
from tfx.export.families import FAMILIES, Family, build
from tfx.export.pipeline import export_bundles
from tfx.extras import version_of
from tfx.quantization import PRECISIONS, RESTS, QuantizeRecipe
from tfx.recipe import GENERATING_PARTS, GENERATOR, EngineRecipe
from tfx.signature import UNBOUNDED, ShapeRange

from .lowering import proof_data
from .pipeline import quantize_bundle

# What a column is, in the order of the table; float32 is the export itself.
COLUMNS = ("fp32", "fp16", "int8", "bf16", "fp8", "int4")

# Where only weights and products are lowered the rest stays float32, attention too.
RECIPES = {
    "fp16": QuantizeRecipe(DType.FLOAT16),
    "int8": QuantizeRecipe(DType.INT8),
    "bf16": QuantizeRecipe(DType.BFLOAT16),
    "fp8": QuantizeRecipe(DType.FLOAT8_E4M3),
    "int4": QuantizeRecipe(DType.INT4),
}


def _wide(class_name: str, **sizes: int) -> Family:
    family = next(one for one in FAMILIES if one.class_name == class_name)
    return dataclasses.replace(family, name=f"{family.name}, wide", sizes={**family.sizes, **sizes})


_HEADS_OF_64 = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256}

# Heads as wide as those of most published models: attention can be one kernel. Floats around
# products are float16 here, as they must be for that.
WIDE = (
    _wide("BertModel", **_HEADS_OF_64),
    _wide("ModernBertForMaskedLM", **_HEADS_OF_64),
    _wide("GPT2LMHeadModel", n_embd=128, n_head=2),
    _wide("LlamaForCausalLM", **_HEADS_OF_64, num_key_value_heads=1),
    _wide("ViTForImageClassification", **_HEADS_OF_64),
)

SURVEYED = (*FAMILIES, *WIDE)

# Of an axis without limits.
TUNED, LARGEST = 16, 64


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one graph in one precision.

    Attributes:
        family: The family.
        part: As in a bundle's source: "" for a graph of one pass, "generator" for one with a
            cache, "encoder", "decoder", "generator-encoder", "generator-decoder".
        precision: A name in ``COLUMNS``.
        problem: Why there is no engine, one line; "" if there is one.
        step: What failed: "export", "quantize" or "build".
        attention: Attention layers of the graph.
        fused_kernels: Different fused attention kernels in the engine.
        seconds: The build took.
    """

    family: Family
    part: str
    precision: str
    problem: str = ""
    step: str = ""
    attention: int = 0
    fused_kernels: int = 0
    seconds: float = 0.0


def survey(
    families: Iterable[Family],
    recipe: EngineRecipe,
    work: Path,
    precisions: Sequence[str] = COLUMNS,
    on_attempt: Callable[[Attempt], None] = lambda _: None,
    earlier: Iterable[Attempt] = (),
) -> list[Attempt]:
    """Export each family, lower its precision, and build engines of the results.

    A family that writes text is exported twice: for one pass, and with its cache, whose engines
    have a profile for prompts and one for steps. All is built in this process, which halves the
    time; the library may end it, and what ``on_attempt`` was told is then all that is known.

    Args:
        families: Which.
        recipe: Library and GPUs.
        work: Folder for the bundles; those it holds already are not made again.
        precisions: Names in ``COLUMNS``.
        on_attempt: Called with each as it is known.
        earlier: Attempts of before; what was built is not built again.
    """
    built = {(_key(one.family), one.part, one.precision) for one in earlier if not one.problem}
    attempts = []
    for family in families:
        for attempt in _attempts(family, recipe, work, precisions, built):
            on_attempt(attempt)
            attempts.append(attempt)
    return attempts


def read_attempts(store: Path) -> list[Attempt]:
    """Attempts of earlier runs with these versions; the last of each graph and precision counts."""
    if not store.is_file():
        return []
    known = {(family.name, family.class_name): family for family in SURVEYED}
    found = {}
    for line in store.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        key = (fields.pop("family"), fields.pop("class_name"))
        if fields.pop("made_with", "") == _versions() and key in known:
            one = Attempt(known[key], **fields)
            found[key, one.part, one.precision] = one
    return list(found.values())


def append_attempt(store: Path, attempt: Attempt) -> None:
    """Add one attempt to a file of JSON lines."""
    family = attempt.family
    fields = {"made_with": _versions(), "family": family.name, "class_name": family.class_name}
    fields |= {
        field.name: getattr(attempt, field.name) for field in dataclasses.fields(attempt)[1:]
    }
    with store.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(fields) + "\n")


def _versions() -> str:
    return (
        f"tensorrt-rtx {version_of('tensorrt-rtx-cu12-bindings')}, torch {version_of('torch')}, "
        f"transformers {version_of('transformers')}"
    )


def table(attempts: Iterable[Attempt]) -> str:
    """The attempts as a Markdown table: a row a graph, a column a precision, reasons below."""
    rows: dict[tuple[str, str, str], dict[str, Attempt]] = {}
    for one in attempts:
        key = (one.family.name, one.family.class_name, one.part)
        rows.setdefault(key, {})[one.precision] = one
    columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
    reasons: dict[str, int] = {}
    lines = [
        f"| family | class | graph | {' | '.join(columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]
    for (name, class_name, part), row in rows.items():
        cells = [_cell(row.get(column), reasons) for column in columns]
        lines.append(f"| {name} | `{class_name}` | {part or 'whole'} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _cell(attempt: Attempt | None, reasons: dict[str, int]) -> str:
    if attempt is None:
        return ""
    if attempt.problem:
        text = f"{attempt.step}: {attempt.problem}"
        return f"no [{reasons.setdefault(text, len(reasons) + 1)}]"
    if not attempt.attention:
        return "yes"
    return "yes, fused" if attempt.fused_kernels else "yes, split"


def _attempts(
    family: Family,
    recipe: EngineRecipe,
    work: Path,
    precisions: Sequence[str],
    built: Container[tuple[tuple[str, str], str, str]],
) -> Iterator[Attempt]:
    exported = []
    for cache in (False, True):
        try:
            exported += _exported(family, work, cache=cache)
        except TfxError as error:
            for precision in precisions:
                part = GENERATOR if cache else ""
                yield Attempt(family, part, precision, _line(error, work), "export")
            if not cache:
                return
    for part, bundle in exported:
        for precision in precisions:
            if (_key(family), part, precision) in built:
                continue
            try:
                lowered = _lowered(bundle, precision, wide=family in WIDE)
            except TfxError as error:
                yield Attempt(family, part, precision, _line(error, work), "quantize")
                continue
            started = time.perf_counter()
            try:
                with quiet():
                    made = build_engine(lowered, bounded(recipe, lowered)).build
            except TfxError as error:
                yield Attempt(family, part, precision, _line(error, work, lowered), "build")
                continue
            yield Attempt(
                family,
                part,
                precision,
                attention=made.attention,
                fused_kernels=made.fused_kernels,
                seconds=time.perf_counter() - started,
            )


def bounded(recipe: EngineRecipe, bundle: Bundle) -> EngineRecipe:
    """A largest size for each axis that has none: positions that are relative, for one."""
    signature = bundle.manifest.signature
    sizes: Profile = {}
    for axis in {axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)}:
        known = signature.ranges.get(axis, ShapeRange(1, 1, UNBOUNDED))
        if known.max == UNBOUNDED:
            limits = ShapeRange(known.min, max(known.min, TUNED), max(known.min, LARGEST))
            sizes = {**sizes, axis: limits}
    if not sizes:
        return recipe
    profiles = tuple({**sizes, **usual} for usual in usual_profiles(signature))
    return dataclasses.replace(recipe, profiles=profiles)


def _exported(family: Family, work: Path, *, cache: bool) -> list[tuple[str, Bundle]]:
    """Its graphs of one pass, or those with a cache: none, where it writes no text."""
    folder = work / f"{family.name} {family.class_name}".lower().replace(" ", "-").replace("/", "-")
    source = folder / "source"
    if not source.is_dir():
        aside = folder / "source-partial"  # a run that was stopped leaves no half checkpoint
        with quiet():
            build(family).save_pretrained(aside)
        aside.rename(source)
    if cache and not {GENERATOR, *GENERATING_PARTS} & set(
        parts_of(str(source), family.recipe, cache=None)
    ):
        return []
    bundles = _bundles(source, folder / ("generator" if cache else "bundle"), family, cache=cache)
    return [(bundle.manifest.source.part, bundle) for bundle in bundles]


def _bundles(source: Path, path: Path, family: Family, *, cache: bool) -> list[Bundle]:
    """Those that are there already, or new ones; of two the encoder first."""
    there = [one for one in path.parent.glob(f"{path.name}*") if is_bundle(one)]
    there = [one for one in there if not one.name.endswith(tuple(PRECISIONS.values()))]
    if not there:
        return export_bundles(str(source), path, family.recipe, cache=cache)
    return [open_bundle(one, verify=False) for one in sorted(there, reverse=True)]


def _lowered(bundle: Bundle, precision: str, *, wide: bool) -> Bundle:
    if precision == "fp32":
        return bundle
    path = bundle.path.with_name(f"{bundle.path.name}-{precision}")
    if is_bundle(path):
        return open_bundle(path, verify=False)
    recipe = RECIPES[precision]
    if wide and recipe.precision not in RESTS:
        recipe = dataclasses.replace(recipe, rest=DType.FLOAT16)
    data = proof_data(bundle) if recipe.needs_calibration else None
    return quantize_bundle(bundle, path, recipe=recipe, data=data)


def _line(error: TfxError, work: Path, bundle: Bundle | None = None) -> str:
    """The message on one line, without what is of one row or one machine alone."""
    lines = str(error).splitlines()
    text = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[1].strip()}"
    for folder in dict.fromkeys((work.resolve(), work)):
        text = re.sub(rf"{re.escape(str(folder))}/(?:[^/\s]+/)?", "", text)
    if bundle is not None:
        text = text.replace(f" of {bundle.name}", "").replace(f" {bundle.name}", "")
    return text.replace("|", r"\|")


def _key(family: Family) -> tuple[str, str]:
    return family.name, family.class_name


def _is_done(family: Family, attempts: Iterable[Attempt], precisions: Sequence[str]) -> bool:
    """Whether no precision is missing or failed."""
    found = [one for one in attempts if _key(one.family) == _key(family)]
    parts = {one.part for one in found}
    good = {(one.part, one.precision) for one in found if not one.problem}
    wanted = {(part, precision) for part in parts for precision in precisions}
    return bool(parts) and wanted <= good


def _merged(earlier: Iterable[Attempt], found: Iterable[Attempt]) -> list[Attempt]:
    """Every attempt, later ones instead of earlier, in the order of the families."""
    again = list(found)
    tried = {_key(one.family) for one in again}
    # That a family did not export says nothing of the graphs it has now.
    before = [one for one in earlier if one.step != "export" or _key(one.family) not in tried]
    rows = {(_key(one.family), one.part, one.precision): one for one in (*before, *again)}
    order = {_key(family): place for place, family in enumerate(SURVEYED)}
    return sorted(rows.values(), key=lambda one: order[_key(one.family)])


@click.command
@click.argument("names", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Markdown file to write.")
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    default=("sm89", "sm120"),
    show_default=True,
    help="Compute capabilities that one engine is for.",
)
@click.option("--precision", "precisions", multiple=True, type=click.Choice(COLUMNS))
@click.option(
    "--rows",
    "store",
    type=click.Path(path_type=Path),
    help="JSON lines to go on from and to add to; what failed is tried again.",
)
@click.option("--work", type=FOLDER, help="Keep bundles here, and use those that are there.")
def main(
    names: tuple[str, ...],
    output: Path | None,
    gpus: tuple[str, ...],
    precisions: tuple[str, ...],
    store: Path | None,
    work: Path | None,
) -> None:
    """Build every family (or those NAMES are part of) with TensorRT-RTX and print a table."""
    chosen = [
        family
        for family in SURVEYED
        if not names or any(name.lower() in family.name.lower() for name in names)
    ]
    recipe = EngineRecipe(gpus=gpus)

    def show(attempt: Attempt) -> None:
        what = f"{attempt.step}: {attempt.problem}" if attempt.problem else "ok"
        graph = f"{attempt.family.name} {attempt.family.class_name} {attempt.part}".strip()
        click.echo(f"{graph} {attempt.precision}: {what}", err=True)
        if store is not None:
            append_attempt(store, attempt)

    asked = precisions or COLUMNS
    earlier = read_attempts(store) if store else []
    pending = [family for family in chosen if not _is_done(family, earlier, asked)]
    with contextlib.ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        found = survey(pending, recipe, work, asked, show, earlier)
    rows = _merged(earlier, found)
    known = {_key(one.family) for one in rows}
    left = "; ".join(dict.fromkeys(f.name for f in SURVEYED if _key(f) not in known))
    missing = f"\nNot tried yet: {left}." if left else ""
    text = (
        f"# TensorRT engines\n\nThe tiny models of [families.md](families.md), built for "
        f"{' and '.join(gpus)} at once, on a\nmachine without a GPU. None of these engines has "
        "been run. fp32 is the export itself; the others are\nwhat `tfx quantize` makes of it, "
        "int8, fp8 and int4 with the rest in float32, int8 and fp8 calibrated with\nthe feeds of "
        "their proof. An empty cell was not tried.\n\n"
        'A "generator" has a cache, and its engine two profiles: for prompts, and for steps of one '
        "token.\n\n"
        '"fused" and "split" say whether attention kernels of one piece were found in the engine. '
        'Heads are of 8,\ntoo small for any; those of the rows named "wide" are of 64, and '
        "their int8, fp8 and int4 have the rest\nin float16. A bare yes: no `Attention` in it, or "
        f"one spelled out for its soft cap. Made with\n{_versions()} by\n"
        f"`python -m tfx.quantize.engine_survey -o docs/tensorrt.md`.{missing}\n\n{table(rows)}\n"
    )
    if output is not None:
        output.write_text(text, encoding="utf-8")
    else:
        click.echo(text)


if __name__ == "__main__":
    main()
