"""A loaded model to a portable graph: plan its inputs, trace it, name its axes, rewrite it."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfx.errors import ExportError, listing
from tfx.recipe import ExportRecipe
from tfx.runtime.generation.kv_cache import cache_specs
from tfx.signature import Signature

from .changes import require_attentions
from .checkpoint.loader import Loaded
from .tracing.architectures import InputPlan, plan_inputs
from .tracing.examples import plan_examples
from .tracing.sizes import fix_refused_axes
from .tracing.tracer import Traced, trace

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

RANDOM_OPERATORS = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)

# Model type -> what its code does that a graph whose axes vary cannot.
UNFIT = {
    "funnel": "its positions are a Python list as long as the text (modeling_funnel.py, "
    "get_position_embeds)",
    "reformer": "it looks up positions in a Python loop over the batch, and hashes by random "
    "numbers drawn in every run (modeling_reformer.py, AxialPositionEmbeddings, _hash_vectors)",
}


@dataclass(frozen=True, slots=True)
class PortableGraph:
    """A graph of the ONNX standard's operators alone.

    Attributes:
        model: The graph, its weights in memory.
        signature: What it takes and gives.
        examples: Input name to the tensor it was traced with.
        notes: What tracing could not keep, a sentence each.
    """

    model: ir.Model
    signature: Signature
    examples: Mapping[str, torch.Tensor]
    notes: tuple[str, ...]


def portable_graph(loaded: Loaded, recipe: ExportRecipe) -> PortableGraph:
    """Trace a model, and rewrite what came out with the operators that engines have fused.

    Raises:
        ExportError: If it cannot be traced, or the graph is not portable.
    """
    from .passes.decoding import scale_queries
    from .passes.shapes import name_axes
    from .tracing.signature import signature_of

    plan = _plan(loaded, recipe)
    if reason := UNFIT.get(getattr(loaded.config, "model_type", "")):
        raise ExportError(
            f"{loaded.source.class_name} is no graph of any size: {reason}",
            hint="Wrap it in a module of one size, if its outputs repeat: file.py:function.",
        )
    traced, dynamic, notes = _trace(loaded, plan, recipe)
    graph = traced.model
    if recipe.changes.attentions:
        require_attentions([value.name for value in graph.graph.outputs], loaded.source.class_name)
    names = name_axes(graph, dynamic)
    _rewrite(graph)
    _require_portable(graph)
    _require_same_twice(graph)
    limits, smallest = _bounds(plan, traced, names)
    signature = signature_of(graph, recipe, limits, smallest, text=loaded.examples is None)
    if cache_specs(signature):
        scale_queries(graph)
    return PortableGraph(graph, signature, plan.examples, notes)


def _trace(
    loaded: Loaded, plan: InputPlan, recipe: ExportRecipe
) -> tuple[Traced, Mapping[str, tuple[str, ...]], tuple[str, ...]]:
    """The graph, its axes' names where guesses are put right, and what there is to say."""
    from .passes.shapes import settle_axes

    traced = trace(loaded.module, plan.examples, plan.dynamic, opset=recipe.opset)
    if not plan.inferred:
        return traced, plan.dynamic, traced.notes
    dynamic, fixed = settle_axes(traced.model, plan.dynamic)
    kept, tried = fix_refused_axes(loaded.module, plan.examples, dynamic)
    if kept != dynamic:
        traced = trace(loaded.module, plan.examples, kept, opset=recipe.opset)
        kept, more = settle_axes(traced.model, kept)
        tried += more
    return traced, kept, (*traced.notes, *fixed, *tried)


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


def _rewrite(graph: ir.Model) -> None:
    from .passes.attention import expand_masks, expand_rotary_caches, raise_masks
    from .passes.cleanup import clean_metadata, simplify
    from .passes.pooling import keep_padding
    from .passes.shapes import complete_shapes
    from .rewrite.attention import fuse_attention
    from .rewrite.einsum import lower_einsums
    from .rewrite.flat_heads import flatten_heads
    from .rewrite.grouped_query import share_key_heads

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


def _require_same_twice(graph: ir.Model) -> None:
    drawn = sorted({node.op_type for node in graph.graph.all_nodes()} & RANDOM_OPERATORS)
    if drawn:
        raise ExportError(
            f"the model draws random numbers ({', '.join(drawn)}): no outputs can be compared",
            hint="Take them as an input, or leave them out in eval mode.",
        )


def _bounds(
    plan: InputPlan, traced: Traced, names: Mapping[str, str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Largest and smallest size of each axis: of the plan, within what tracing found."""
    limits, smallest = dict(plan.limits), dict(plan.smallest)
    for symbol, bound in traced.upper_bounds.items():
        if symbol in names:
            limits[names[symbol]] = min(bound, limits.get(names[symbol], bound))
    for symbol, bound in traced.lower_bounds.items():
        if symbol in names:
            smallest[names[symbol]] = max(bound, smallest.get(names[symbol], 1))
    return limits, smallest
