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
from tfx.errors import BundleError
from tfx.extras import need, version_of
from tfx.manifest import Manifest, Parent, Step
from tfx.processing import Processing
from tfx.recipe import GENERATING_DECODER, GENERATING_ENCODER, GENERATOR, ExportRecipe
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.cpus import usable_cpus
from tfx.runtime.generation.kv_cache import DECODED, cache_specs, stepwise, text_signature
from tfx.runtime.proof import PROOF_FILE, Run, store_cases
from tfx.runtime.pytorch.generators import reader_of
from tfx.runtime.pytorch.modules import run_module
from tfx.signature import Signature

from .checkpoint.generation import read_generation
from .checkpoint.loader import Loaded, find_source, load, name_of, parts_of
from .checkpoint.targets import read_target
from .pairs import decoder_reference
from .portable import PortableGraph, portable_graph
from .proof import Reference, example_cases, is_text, prove, reference, text_cases, torch_arrays
from .tracing.thrift import unscanned

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
    on_step("loading the model")
    loaded = load(model, recipe, examples)
    on_step("tracing")
    graph = portable_graph(loaded, recipe)
    on_step("writing the graph")
    _save(graph.model, staging.path)
    processing, notes = _carry_over(loaded, graph.signature, staging.path)
    on_step("running PyTorch on the feeds to compare")
    rng = np.random.default_rng(recipe.seed)
    known = _reference_of(loaded, graph, rng)
    compared = text_signature(graph.signature)
    store_cases(staging.path / PROOF_FILE, compared, known.cases, known.outputs, rng)
    tools = (*TOOLS, "peft") if recipe.changes.adapter else TOOLS
    manifest = Manifest(
        name=loaded.name,
        step=Step.EXPORT,
        task=loaded.task,
        precision=DType.FLOAT32,
        model=MODEL_FILE,
        signature=graph.signature,
        source=loaded.source.seen_from(staging.path.parent),
        recipe=recipe,
        processing=processing,
        parity=None,
        tools={tool: version for tool in tools if (version := version_of(tool))},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        facts=_facts(loaded.module, graph.model),
        notes=(*loaded.notes, *graph.notes, *notes, *known.notes),
    )
    return _Draft(manifest, known)


def _carry_over(
    loaded: Loaded, signature: Signature, folder: Path
) -> tuple[Processing, tuple[str, ...]]:
    """What the checkpoint says besides weights, its files written to ``folder``; and notes."""
    from .checkpoint.processing import read_processing

    processing = Processing()
    notes: tuple[str, ...] = ()
    part = loaded.source.part
    if loaded.config is not None:
        _save_config(loaded.config, folder)
    with quiet():
        if loaded.folder is not None:
            processing, notes = read_processing(
                loaded.folder, loaded.config, loaded.task, signature, folder, part
            )
        if part in (GENERATOR, GENERATING_DECODER):
            said = read_generation(loaded.config, loaded.folder, folder)
            if part == GENERATING_DECODER:
                target, more = read_target(loaded.config, loaded.folder)
                said, notes = dataclasses.replace(said, target=target), (*notes, *more)
            processing = dataclasses.replace(processing, generation=said)
    return processing, notes


def _reference_of(loaded: Loaded, graph: PortableGraph, rng: np.random.Generator) -> Reference:
    """What PyTorch gives for the feeds that the graph is compared on."""
    # Of a graph with a cache whole texts are compared, and PyTorch runs them without one.
    signature, module = text_signature(graph.signature), loaded.module
    # Another number of threads sums in another order: the proof's last bits would differ.
    threads = usable_cpus()
    with quiet():
        if loaded.source.part == GENERATING_DECODER:
            return decoder_reference(module, signature, rng, threads)
        if loaded.source.part == GENERATOR:
            module = reader_of(module)
        if loaded.examples is None and is_text(signature):
            cases = text_cases(signature, rng)
        else:
            cases = example_cases(signature, torch_arrays(graph.examples), rng)
        return reference(functools.partial(run_module, module, threads=threads), signature, cases)


def _facts(module: torch.nn.Module, graph: ir.Model) -> dict[str, int]:
    operators = collections.Counter(node.op_type for node in graph.graph.all_nodes())
    return {
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "nodes": sum(operators.values()),
        "attention": operators["Attention"],
        "softmax": operators["Softmax"],
    }


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
