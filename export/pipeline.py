"""The steps of an export: load, trace, clean, write, prove; all of it or nothing."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import functools
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.bundle import Bundle, Staging, create_bundle, open_bundle
from tfx.chatter import quiet
from tfx.dtypes import DType
from tfx.errors import BundleError, ExportError, listing
from tfx.extras import need, version_of
from tfx.manifest import Manifest, Parent, Step
from tfx.processing import Processing
from tfx.recipe import GENERATING_DECODER, GENERATING_ENCODER, GENERATOR, ExportRecipe
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.cpus import usable_cpus
from tfx.runtime.generation.kv_cache import DECODED, cache_specs, stepwise, text_signature
from tfx.runtime.proof import FILE_NAME as PROOF_FILE
from tfx.runtime.proof import Run, store_cases
from tfx.runtime.pytorch.generators import reader_of
from tfx.runtime.pytorch.modules import run_module

from .changes import require_attentions
from .checkpoint.generation import read_generation
from .checkpoint.loader import Loaded, find_source, load, name_of, parts_of
from .checkpoint.targets import read_target
from .pairs import decoder_reference
from .proof import Reference, example_cases, is_text, prove, reference, text_cases, torch_arrays
from .tracing.architectures import InputPlan, plan_examples, plan_inputs
from .tracing.thrift import unscanned
from .tracing.tracer import trace

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

MODEL_FILE = "model.onnx"
CONFIG_FILE = "config.json"

# Above this the weights go to a file of their own: a protobuf message ends at 2 GB, and to
# build one holds its weights twice more in memory.
EXTERNAL_BYTES = 128 << 20

# Distributions whose version may change what an export writes.
TOOLS = ("tfx-toolkit", "torch", "transformers", "onnx", "onnxscript", "onnx-ir", "optimum")


def export_bundle(
    model: str | torch.nn.Module,
    path: str | os.PathLike[str] | None = None,
    recipe: ExportRecipe | None = None,
    *,
    examples: Any = None,
    force: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a PyTorch model to a bundle: a portable ONNX graph with proof that it is right.

    The graph uses only operators of the ONNX standard, with one ``Attention`` (opset 23) per
    scaled-dot-product attention; its outputs are compared with PyTorch before the bundle
    appears at ``path``.

    Args:
        model: An alias (``tfx.models.KNOWN_MODELS``), a folder in the Hugging Face layout, a hub
            id, ``file.py:factory``, or a module in memory.
        path: Where the bundle goes; None for a folder named after the model.
        recipe: Task, opset, ranges; None for the defaults.
        examples: Example inputs of a module in memory: a tensor, a tuple, or a mapping from
            input name to tensor.
        force: Replace a bundle that is there.
        on_step: Called with a few words as each step begins.

    Raises:
        SourceError: If the model cannot be loaded.
        ExportError: If it cannot be traced, or the graph is not portable.
        ParityError: If the graph's outputs differ from PyTorch's.
        BundleError: If ``path`` is taken or cannot be written.
    """
    recipe = recipe or ExportRecipe()
    if isinstance(model, str):
        find_source(model, recipe)  # a name that cannot be is said before anything is made
    target = Path(path or name_of(model))
    with create_bundle(target, force=force) as staging:
        _fill(staging, model, recipe, examples, on_step)
        on_step("writing the bundle")
    return open_bundle(target, verify=False)


def export_bundles(
    model: str,
    path: str | os.PathLike[str] | None = None,
    recipe: ExportRecipe | None = None,
    *,
    cache: bool | None = False,
    force: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Bundle]:
    """Export a model in as many bundles as it has graphs.

    An encoder-decoder becomes two, ``PATH-encoder`` and ``PATH-decoder``; the second takes
    what the first gives. Both are whole and proved before either is put in place. Any other
    model becomes one, as by ``export_bundle``, whose arguments and errors these are; ``cache``
    says whether a causal language model brings its cache, to generate with (None: one that can).
    """
    recipe = recipe or ExportRecipe()
    parts = parts_of(model, recipe, cache=cache)
    target = Path(path or name_of(model))
    if len(parts) == 1:
        recipe = dataclasses.replace(recipe, part=parts[0])
        return [export_bundle(model, target, recipe, force=force, on_step=on_step)]
    if not target.name or target.name == "..":
        raise BundleError(
            f"{target} is no name to add -encoder and -decoder to",
            hint="Name a folder that is to be made: -o NAME.",
        )
    halves = [part.removeprefix("generator-") for part in parts]
    targets = [target.with_name(f"{target.name}-{half}") for half in halves]
    encoder = None
    with contextlib.ExitStack() as stack:
        stagings = [stack.enter_context(create_bundle(one, force=force)) for one in targets]
        for part, half, staging in zip(parts, halves, stagings, strict=True):
            _fill(
                staging,
                model,
                dataclasses.replace(recipe, part=part),
                None,
                functools.partial(_step_of, half, on_step),
                encoder,
            )
            if part == GENERATING_ENCODER:
                encoder = Parent(targets[0].name, staging.digest)
    return [open_bundle(one, verify=False) for one in targets]


def _step_of(part: str, on_step: Callable[[str], None], step: str) -> None:
    on_step(f"{part}: {step}")


def _fill(
    staging: Staging,
    model: str | torch.nn.Module,
    recipe: ExportRecipe,
    examples: Any,
    on_step: Callable[[str], None],
    encoder: Parent | None = None,
) -> None:
    with unscanned():
        draft = _write_graph(staging, model, recipe, examples, on_step)
        # The module, its trace and the graph's weights are gone by now: ONNX Runtime makes its
        # own copy, and three at once would not fit where the model itself does.
        gc.collect()
    on_step("comparing with PyTorch")
    manifest = _proven(staging, draft)
    staging.finish(dataclasses.replace(manifest, encoder=encoder))


@dataclasses.dataclass(frozen=True, slots=True)
class _Draft:
    """A manifest without proof, and what PyTorch gave to prove it with."""

    manifest: Manifest
    known: Reference


def _write_graph(
    staging: Staging,
    model: str | torch.nn.Module,
    recipe: ExportRecipe,
    examples: Any,
    on_step: Callable[[str], None],
) -> _Draft:
    from .checkpoint.processing import read_processing
    from .passes.attention import expand_masks, expand_rotary_caches, raise_masks
    from .passes.cleanup import clean_metadata, simplify
    from .passes.pooling import keep_padding
    from .passes.shapes import complete_shapes, name_axes, settle_axes
    from .rewrite.attention import fuse_attention
    from .rewrite.einsum import lower_einsums
    from .rewrite.flat_heads import flatten_heads
    from .rewrite.grouped_query import share_key_heads
    from .tracing.signature import signature_of

    on_step("loading the model")
    loaded = load(model, recipe, examples)
    plan = _plan(loaded, recipe)
    on_step("tracing")
    traced = trace(loaded.module, plan.examples, plan.dynamic, opset=recipe.opset)
    graph, dynamic = traced.model, plan.dynamic
    notes = [*loaded.notes, *traced.notes]
    if recipe.changes.attentions:
        require_attentions([value.name for value in graph.graph.outputs], loaded.source.class_name)
    if plan.inferred:
        dynamic, fixed = settle_axes(graph, dynamic)
        notes += fixed
    names = name_axes(graph, dynamic)
    clean_metadata(graph)
    complete_shapes(graph)
    lower_einsums(graph)
    fuse_attention(graph)
    share_key_heads(graph)
    expand_masks(graph)
    raise_masks(graph)
    flatten_heads(graph)
    expand_rotary_caches(graph)
    keep_padding(graph)
    simplify(graph)
    _require_portable(graph)
    limits = dict(plan.limits)
    for symbol, bound in traced.upper_bounds.items():
        if symbol in names:
            limits[names[symbol]] = min(bound, limits.get(names[symbol], bound))
    smallest = dict(plan.smallest)
    for symbol, bound in traced.lower_bounds.items():
        if symbol in names:
            smallest[names[symbol]] = max(bound, smallest.get(names[symbol], 1))
    known = loaded.examples is None
    signature = signature_of(graph, recipe, limits, smallest, text=known)
    on_step("writing the graph")
    _save(graph, staging.path)
    processing = Processing()
    if loaded.config is not None:
        _save_config(loaded.config, staging.path)
    if loaded.folder is not None:
        with quiet():
            processing, more = read_processing(
                loaded.folder,
                loaded.config,
                loaded.task,
                signature,
                staging.path,
                loaded.source.part,
            )
        notes += more
    if recipe.part in (GENERATOR, GENERATING_DECODER):
        with quiet():
            said = read_generation(loaded.config, loaded.folder, staging.path)
            if recipe.part == GENERATING_DECODER:
                target, more = read_target(loaded.config, loaded.folder)
                said = dataclasses.replace(said, target=target)
                notes += more
        processing = dataclasses.replace(processing, generation=said)
    on_step("running PyTorch on the feeds to compare")
    rng = np.random.default_rng(recipe.seed)
    # Of a graph with a cache whole texts are compared, and PyTorch runs them without one.
    compared, module = text_signature(signature), loaded.module
    if recipe.part == GENERATOR:
        module = reader_of(module)
    # Another number of threads sums in another order: the proof's last bits would differ.
    threads = usable_cpus()
    with quiet():
        if recipe.part == GENERATING_DECODER:
            given = decoder_reference(module, compared, rng, threads)
        else:
            if known and is_text(compared):
                cases = text_cases(compared, rng)
            else:
                cases = example_cases(compared, torch_arrays(plan.examples), rng)
            run = functools.partial(run_module, module, threads=threads)
            given = reference(run, compared, cases)
    store_cases(staging.path / PROOF_FILE, compared, given.cases, given.outputs, rng)
    operators = collections.Counter(node.op_type for node in graph.graph.all_nodes())
    manifest = Manifest(
        name=loaded.name,
        step=Step.EXPORT,
        task=loaded.task,
        precision=DType.FLOAT32,
        model=MODEL_FILE,
        signature=signature,
        source=loaded.source.seen_from(staging.path.parent),
        recipe=recipe,
        processing=processing,
        parity=None,
        tools={
            tool: version
            for tool in (*TOOLS, *(["peft"] if recipe.changes.adapter else []))
            if (version := version_of(tool))
        },
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        facts={
            "parameters": sum(weight.numel() for weight in loaded.module.parameters()),
            "nodes": sum(operators.values()),
            "attention": operators["Attention"],
            "softmax": operators["Softmax"],
        },
        notes=(*notes, *given.notes),
    )
    return _Draft(manifest, given)


def _proven(staging: Staging, draft: _Draft) -> Manifest:
    bundle = Bundle(staging.path, draft.manifest, digest="")
    executable = get_backend("onnxruntime").load(bundle, RunOptions(threads=usable_cpus()))
    try:
        signature = draft.manifest.signature
        run: Run = executable.run
        if cache_specs(signature):
            run = stepwise(run, signature, DECODED)
        parity = prove(
            draft.known,
            run,
            text_signature(signature),
            reference_name=f"torch {version_of('torch')} eager float32",
            backend=str(executable.facts),
        )
    finally:
        executable.close()
    return dataclasses.replace(draft.manifest, parity=parity)


def _plan(loaded: Loaded, recipe: ExportRecipe) -> InputPlan:
    if loaded.examples is not None:
        if recipe.task != "auto" or recipe.image_size:
            raise ExportError(
                f"--task and --image-size are for transformers models, {loaded.name} is not one",
                hint="Leave them out.",
            )
        return plan_examples(loaded.module, loaded.examples, recipe.dynamic)
    if recipe.dynamic:
        raise ExportError(
            f"--dynamic is for hand-written modules, {loaded.name} has known axes",
            hint="Leave it out; bound the axes with --max-batch and --max-seq.",
        )
    return plan_inputs(
        loaded.module,
        loaded.config,
        loaded.source.part,
        recipe.image_size,
        recipe.max_sequence,
    )


def _require_portable(graph: ir.Model) -> None:
    foreign = collections.Counter(
        f"{node.domain}::{node.op_type}"
        for node in graph.graph.all_nodes()
        if node.domain not in ("", "ai.onnx")
    )
    if foreign:
        raise ExportError(
            listing(
                "the graph needs operators outside the ONNX standard:",
                (f"{name} ({count} times)" for name, count in sorted(foreign.items())),
            ),
            hint="Replace the PyTorch operators they come from.",
        )


def _save(graph: ir.Model, folder: Path) -> None:
    ir = need("onnx_ir")
    size = sum(
        value.const_value.nbytes
        for value in graph.graph.initializers.values()
        if value.const_value is not None
    )
    external = f"{MODEL_FILE}.data" if size > EXTERNAL_BYTES else None
    ir.save(graph, folder / MODEL_FILE, external_data=external)


def _save_config(config: Any, folder: Path) -> None:
    document = config.to_diff_dict()
    document.pop("_name_or_path", None)  # may be a path of this machine
    text = json.dumps(document, indent=2, sort_keys=True, default=str)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
