"""A bundle shown to a person: what it takes, where it comes from, what proves it."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfx.bundle import Bundle
from tfx.codec import encode
from tfx.console import console, emit_json
from tfx.dtypes import DType
from tfx.errors import BundleError, listing
from tfx.extras import need
from tfx.manifest import FILE_NAME, Manifest
from tfx.processing import AudioFeatures, AudioPreparation, ImagePreparation
from tfx.quantization import Quantization, RangeMethod
from tfx.report import ParityReport

from .fusion import AttentionPattern, attention_patterns

if TYPE_CHECKING:
    from rich.console import Console

# ONNX calls two types otherwise than everything else here.
OUR_NAMES = {"float": "float32", "double": "float64"}

# Nodes kept in higher precision that are named; a model may keep hundreds.
SHOWN_KEPT = 8


def tell_bundles(bundles: Sequence[Bundle], *, as_json: bool) -> None:
    """Print the bundles that a command made.

    Args:
        bundles: One or more.
        as_json: As one JSON document, a list where they are several; else to be read.
    """
    if not as_json:
        for bundle in bundles:
            show_bundle(console(), bundle)
        return
    documents = [
        {"bundle": str(bundle.path), "digest": bundle.digest} | bundle.manifest.to_dict()
        for bundle in bundles
    ]
    emit_json(documents[0] if len(documents) == 1 else documents)


def show_bundle(out: Console, bundle: Bundle) -> None:
    """Print source, signature, processing, proof and notes of a bundle."""
    from rich.markup import escape

    manifest = bundle.manifest
    path = escape(str(bundle.path))
    out.print(f"[bold]{path}[/]  {_size(bundle.size_bytes)}, {manifest.precision}")
    for title, value in _facts(manifest).items():
        out.print(f"  {title:<10} {value}", markup=False)
    out.print(_indented(str(manifest.signature)), markup=False)
    if manifest.quantization is not None:
        out.print("  precision")
        for line in _quantization_lines(manifest.quantization):
            out.print(f"    {line}", markup=False)
    if manifest.parity is not None:
        show_parity(out, manifest.parity)
    for note in manifest.notes:
        out.print(f"  note: {note}", markup=False)


def _quantization_lines(how: Quantization) -> Iterator[str]:
    """What was lowered, by which data, what was kept, and what it cost."""
    recipe = how.recipe
    method = ""
    if how.calibration and recipe.needs_calibration and recipe.method is not None:
        which = f" {recipe.percentile:g}" if recipe.method is RangeMethod.PERCENTILE else ""
        method = f", {recipe.method}{which} ranges"
    smooth = f", SmoothQuant {how.smooth:.1f}" if how.smooth else ""
    ranges = ", ranges of each run" if recipe.dynamic else ""
    rest = "" if recipe.rest is DType.FLOAT32 else f", the rest {recipe.rest}"
    yield f"{recipe.precision}: {how.quantized:,} nodes{rest}{method}{ranges}{smooth}"
    if (data := how.calibration) is not None:
        # Ranges of each run and weights alone take nothing from data: it only judged them.
        free = not recipe.needs_calibration and not recipe.precision.is_floating
        verb = "judged" if free else "calibrated"
        tokens = f", {data.tokens:,} tokens" if data.tokens else ""
        yield f"{verb} on {data.samples:,} samples of {data.name}{tokens}"
        yield from (f"warning: {warning}" for warning in data.warnings)
    for one in how.kept[:SHOWN_KEPT]:
        yield (
            f"kept {one.name} ({one.group}): {one.reason}"
            if one.group
            else (f"kept {one.name}: {one.reason}")
        )
    if len(how.kept) > SHOWN_KEPT:
        yield f"and {len(how.kept) - SHOWN_KEPT} more kept; all are in {FILE_NAME}"
    for cost in how.accuracy:
        yield f"{cost}, {cost.samples:,} samples of {cost.data}"


def show_parity(out: Console, parity: ParityReport) -> None:
    """Print errors per output, and each claim with the verdict on it."""
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    out.print("  proof")
    out.print(f"    {parity.backend} against {parity.reference}", markup=False)
    errors = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("output", "max abs", "max rel", "min cosine"):
        errors.add_column(title, justify="left" if title == "output" else "right", overflow="fold")
    for output in parity.outputs:
        errors.add_row(
            escape(output.name),
            f"{output.max_abs:.1e}",
            f"{output.max_rel:.1e}",
            f"{output.min_cosine:.7f}",
        )
    claims = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("claim", "feeds", "scaled error", "allowed", ""):
        claims.add_column(
            title, justify="left" if title in ("claim", "") else "right", overflow="fold"
        )
    for check in parity.checks:
        claims.add_row(
            check.name,
            str(check.cases),
            f"{check.error:.1e}",
            f"{check.tolerance:.0e}",
            "ok" if check.passed else "FAILED",
        )
    out.print(Padding(errors, (0, 0, 0, 4), expand=False))
    out.print(Padding(claims, (0, 0, 0, 4), expand=False))


def graph_facts(bundle: Bundle) -> dict[str, Any]:
    """Count what is in the graph: operators, element types of weights, each attention.

    Raises:
        BundleError: As by ``fusion_of``.
    """
    graph = _read_graph(bundle)
    operators = collections.Counter(node.op_type for node in graph.graph.all_nodes())
    weights: collections.Counter[str] = collections.Counter()
    for value in graph.graph.initializers.values():
        if value.const_value is not None:
            name = value.const_value.dtype.name.lower()
            weights[OUR_NAMES.get(name, name)] += value.const_value.nbytes
    return {
        "opset": graph.opset_imports.get("", 0),
        "operators": dict(operators.most_common()),
        "weight_bytes": dict(weights.most_common()),
        "fusion": encode(attention_patterns(graph)),
    }


def fusion_of(bundle: Bundle) -> tuple[AttentionPattern, ...]:
    """Every attention of a bundle's graph, fused or not.

    Raises:
        BundleError: If the graph cannot be read, or keeps weights in files the manifest does
            not list.
    """
    return attention_patterns(_read_graph(bundle))


def _read_graph(bundle: Bundle) -> Any:
    if bundle.manifest.engine is not None:
        raise BundleError(
            f"{bundle.path} holds an engine, which has no graph to read",
            hint="Inspect its parent for the graph.",
        )
    ir = need("onnx_ir")
    try:
        graph = ir.load(bundle.model)
    except Exception as error:  # protobuf and onnx_ir raise many kinds
        raise BundleError(f"cannot read {bundle.model}: {error}") from error
    listed = {entry.path for entry in bundle.manifest.files}
    if foreign := sorted(_weight_files(graph) - listed):
        raise BundleError(
            listing(
                f"{bundle.model} is not safe to read:",
                (f"{path!r}: holds weights and is not listed in {FILE_NAME}" for path in foreign),
            ),
            hint="Do not use this bundle; ask where it came from.",
        )
    return graph


def _weight_files(model: Any) -> set[str]:
    """The locations that tensors of a graph name; no file is opened for it."""
    ir = need("onnx_ir")
    tensors = [
        value.const_value for graph in model.graphs() for value in graph.initializers.values()
    ]
    nodes = itertools.chain(
        model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())
    )
    for attribute in (one for node in nodes for one in node.attributes.values()):
        if attribute.type == ir.AttributeType.TENSOR:
            tensors.append(attribute.value)
        elif attribute.type == ir.AttributeType.TENSORS:
            tensors += attribute.value or ()
    return {str(one.location) for one in tensors if isinstance(one, ir.ExternalTensor)}


def show_graph(out: Console, facts: Mapping[str, Any]) -> None:
    """Print what ``graph_facts`` counted."""
    out.print(f"  graph      opset {facts['opset']}")
    counts = ", ".join(f"{count} {name}" for name, count in facts["operators"].items())
    out.print(f"    operators  {counts}", markup=False)
    weights = ", ".join(f"{_size(size)} {name}" for name, size in facts["weight_bytes"].items())
    out.print(f"    weights    {weights}", markup=False)
    fusion = facts["fusion"]
    count = sum(one["fused"] for one in fusion)
    out.print(f"    attention  {count} fused into one node each")
    for one in fusion:
        if not one["fused"]:
            where = one["scope"] or "the model"
            out.print(f"    not fused  {where} ({one['node']}): {one['reason']}", markup=False)


def show_fusion(out: Console, patterns: Sequence[AttentionPattern]) -> None:
    """Print each attention on a line of its own, and how many are fused."""
    count = sum(pattern.fused for pattern in patterns)
    out.print(f"{count} of {len(patterns)} attentions fused into one node each")
    for pattern in patterns:
        out.print(f"  {pattern}", markup=False, soft_wrap=True)


def _facts(manifest: Manifest) -> dict[str, str]:
    facts = {"source": str(manifest.source)}
    if manifest.task:
        facts["task"] = manifest.task
    if manifest.parent is not None:
        facts["parent"] = f"{manifest.parent.name} ({manifest.parent.digest[:12]})"
    facts["made"] = f"{manifest.created[:19]} UTC with " + ", ".join(
        f"{name} {version}" for name, version in manifest.tools.items()
    )
    if "parameters" in manifest.facts:
        facts["parameters"] = f"{manifest.facts['parameters']:,}"
    if (engine := manifest.engine) is not None:
        facts["engine"] = str(engine)
        facts["profiles"] = "; ".join(
            ", ".join(
                f"{axis} {sizes.min}..{sizes.opt}..{sizes.max}" for axis, sizes in one.items()
            )
            for one in engine.profiles
        )
    elif "attention" in manifest.facts:
        facts["attention"] = (
            f"{manifest.facts['attention']} fused nodes, "
            f"{manifest.facts.get('softmax', 0)} Softmax left"
        )
    processing = manifest.processing
    if (tokens := processing.tokenization) is not None:
        facts["text"] = f"{tokens.file}, up to {tokens.max_length} tokens"
    if (images := processing.images) is not None:
        facts["images"] = _image_steps(images)
    if (audio := processing.audio) is not None:
        facts["sound"] = _audio_steps(audio)
    if (embedding := processing.embedding) is not None:
        facts["embedding"] = " + ".join(embedding.pooling) + (
            " pooling, normalized" if embedding.normalize else " pooling"
        )
    if (labels := processing.classification) is not None:
        shown = ", ".join(labels.labels[:5]) + (", ..." if len(labels.labels) > 5 else "")
        facts["labels"] = f"{len(labels.labels)}: {shown}"
    return facts


def _image_steps(images: ImagePreparation) -> str:
    steps = []
    if images.resize:
        edge = "shorter edge " if len(images.resize) == 1 else ""
        steps.append(f"{edge}{' x '.join(map(str, images.resize))}, {images.resample}")
    if images.crop:
        steps.append(f"the middle {' x '.join(map(str, images.crop))}")
    if images.mean:
        steps.append("normalized")
    return ", ".join(steps) or "as they are"


def _audio_steps(audio: AudioPreparation) -> str:
    steps = [f"{audio.rate:,} samples a second"]
    if audio.features is AudioFeatures.LOG_MEL:
        steps.append(f"{audio.mel_bins} log-mel bands of {audio.seconds} s")
    if audio.normalize:
        steps.append("normalized")
    return ", ".join(steps)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _size(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"
