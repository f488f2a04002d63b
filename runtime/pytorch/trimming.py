"""Take layers and attention heads out of a model of transformers, in place."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfx.errors import SourceError, listing
from tfx.extras import need
from tfx.recipe import spans

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Where a layer keeps its attention heads.

    Attributes:
        inputs: Paths in the layer of what makes queries, keys and values; one path where a
            single matrix makes all three, side by side.
        output: Path of what mixes the heads' results.
    """

    inputs: tuple[str, ...]
    output: str


_BERT = HeadLayout(
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
)
_VIT = HeadLayout(("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.o_proj")

# Model type -> where its heads are. Only families whose code derives the number of heads from
# the size of the projections; a test compares each with the whole model, heads zeroed.
HEAD_LAYOUTS: dict[str, HeadLayout] = {
    "bert": _BERT,
    "camembert": _BERT,
    "data2vec-text": _BERT,
    "deit": _VIT,
    "distilbert": HeadLayout(
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin"
    ),
    "electra": _BERT,
    "ernie": _BERT,
    "gpt2": HeadLayout(("attn.c_attn",), "attn.c_proj"),
    "roberta": _BERT,
    "vit": _VIT,
    "xlm-roberta": _BERT,
}

# What attention modules call their number of heads, and the width of all of them.
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
HEAD_WIDTHS = ("all_head_size", "split_size")


def keep_layers(module: torch.nn.Module, layers: Sequence[int]) -> None:
    """Keep only some layers of ``module``, and say so in its configuration.

    Args:
        module: A model of transformers with one stack of equal layers.
        layers: Which, ascending, from 0.

    Raises:
        SourceError: If it has no such stack, or these layers cannot stand without the others.
    """
    torch = need("torch")
    name, stack = layer_stack(module)
    count = len(stack)
    if outside := [layer for layer in layers if layer >= count]:
        raise SourceError(
            f"no layer {spans(outside)}: {type(module).__name__} has layers 0-{count - 1}",
            hint="Number layers from 0; 0-5 keeps the first six.",
        )
    removed = sorted(set(range(count)) - set(layers))
    holders = collections.Counter(name for layer in stack for name in layer.state_dict())
    alone = {index: [n for n in stack[index].state_dict() if holders[n] == 1] for index in removed}
    problems = [f"layer {index}: {', '.join(names)}" for index, names in alone.items() if names]
    if problems:  # T5's relative positions live in its first layer only
        raise SourceError(
            listing("layers hold weights that the kept ones may use:", problems),
            hint="Keep these layers.",
        )
    kept = torch.nn.ModuleList(stack[layer] for layer in layers)
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, kept)
    for index, layer in enumerate(kept):
        for part in layer.modules():  # where a cache keeps the layer's keys and values
            if hasattr(part, "layer_idx"):
                part.layer_idx = index
    for part in module.modules():
        if hasattr(part, "config"):
            trim_config(part.config, layers, count)


def trim_config(config: Any, layers: Sequence[int], count: int = 0) -> None:
    """Make a configuration that of the model with only ``layers``; nothing if it is already.

    Args:
        config: Of a model with one stack of layers.
        layers: Which of them stay.
        count: How many there were; 0 for as many as the configuration says.
    """
    count = count or config.num_hidden_layers
    if getattr(config, "num_hidden_layers", None) != count:
        return
    if isinstance(kinds := getattr(config, "layer_types", None), list) and len(kinds) == count:
        config.layer_types = [kinds[layer] for layer in layers]
    config.num_hidden_layers = len(layers)


def drop_heads(module: torch.nn.Module, pairs: Sequence[Sequence[int]]) -> None:
    """Take attention heads out of ``module``: their rows and columns leave the weights.

    Args:
        module: A model of transformers of a type in ``HEAD_LAYOUTS``.
        pairs: Which heads, as (layer, head), from 0.

    Raises:
        SourceError: If its type has no layout here, or there are no such heads.
    """
    config: Any = module.config
    layout = HEAD_LAYOUTS.get(config.model_type)
    if layout is None:
        raise SourceError(
            f"heads of {config.model_type} models cannot be dropped, only those of "
            + ", ".join(HEAD_LAYOUTS),
            hint="Leave --drop-heads out, or drop whole layers with --layers.",
        )
    _, stack = layer_stack(module)
    wanted: dict[int, list[int]] = collections.defaultdict(list)
    for layer, head in pairs:
        wanted[layer].append(head)
    problems = []
    for layer, heads in sorted(wanted.items()):
        if layer >= len(stack):
            problems.append(f"layer {layer}: there are layers 0-{len(stack) - 1}")
            continue
        count = _head_count(stack[layer], layout)
        if outside := [head for head in sorted(heads) if head >= count]:
            problems.append(f"layer {layer}: no head {spans(outside)}, expected 0-{count - 1}")
        elif len(heads) == count:
            problems.append(f"layer {layer}: all {count} heads, and attention needs one")
    if problems:
        raise SourceError(
            listing("heads cannot be dropped:", problems),
            hint="Number layers and heads from 0; take whole layers out with --layers.",
        )
    for layer, heads in wanted.items():
        _drop_from_layer(stack[layer], layout, heads)


def layer_stack(module: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """The one stack of layers with attention that a model is made of, with its path.

    Raises:
        SourceError: If there is none, or more than one.
    """
    torch = need("torch")
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(part, torch.nn.ModuleList) and not inside and _has_attention(part):
            found[name] = part
    count = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    if len(found) == 1:
        ((name, stack),) = found.items()
        if len(stack) == count and len({type(layer) for layer in stack}) == 1:
            return name, stack
    stacks = ", ".join(f"{name} ({len(stack)})" for name, stack in found.items()) or "none"
    raise SourceError(
        f"{type(module).__name__} is not one stack of equal layers: found {stacks}, "
        f"its configuration says {count}",
        hint="Leave --layers and --drop-heads out.",
    )


def _has_attention(layers: Any) -> bool:
    return len(layers) > 0 and all(
        any("attention" in type(part).__name__.lower() for part in layer.modules())
        for layer in layers
    )


def _head_size(layer: Any, layout: HeadLayout) -> int:
    attention = layer.get_submodule(layout.inputs[0].rpartition(".")[0])
    size: int = getattr(attention, "head_dim", 0) or attention.attention_head_size
    return size


def _head_count(layer: Any, layout: HeadLayout) -> int:
    weight = layer.get_submodule(layout.output).weight
    # The heads side by side are the input of the output projection.
    width = weight.shape[0 if _is_transposed(layer.get_submodule(layout.output)) else 1]
    return int(width) // _head_size(layer, layout)


def _drop_from_layer(layer: Any, layout: HeadLayout, heads: Sequence[int]) -> None:
    torch = need("torch")
    size, count = _head_size(layer, layout), _head_count(layer, layout)
    kept = [head for head in range(count) if head not in heads]
    columns = torch.cat([torch.arange(head * size, (head + 1) * size) for head in kept])
    # Queries, keys and values side by side in one matrix, each with all heads.
    blocks = 3 if len(layout.inputs) == 1 else 1
    rows = torch.cat([columns + block * count * size for block in range(blocks)])
    for path in layout.inputs:
        _select(layer.get_submodule(path), rows, outputs=True)
    _select(layer.get_submodule(layout.output), columns, outputs=False)
    attention = layer.get_submodule(layout.inputs[0].rpartition(".")[0])
    for name in HEAD_COUNTS:
        if hasattr(attention, name):
            setattr(attention, name, len(kept))
    for name in HEAD_WIDTHS:
        if hasattr(attention, name):
            setattr(attention, name, len(columns))


def _select(projection: Any, index: torch.Tensor, *, outputs: bool) -> None:
    """Keep only some outputs, or inputs, of a linear projection."""
    torch = need("torch")
    transposed = _is_transposed(projection)
    weight = projection.weight.detach().index_select(int(outputs == transposed), index)
    projection.weight = torch.nn.Parameter(weight, requires_grad=False)
    if outputs and projection.bias is not None:
        bias = projection.bias.detach().index_select(0, index)
        projection.bias = torch.nn.Parameter(bias, requires_grad=False)
    sizes = {"nf": outputs, "nx": not outputs}
    if not transposed:
        sizes = {"out_features": outputs, "in_features": not outputs}
    for name, changed in sizes.items():
        if changed and hasattr(projection, name):
            setattr(projection, name, len(index))


def _is_transposed(projection: Any) -> bool:
    """Whether a weight is ``[inputs, outputs]``: GPT-2's Conv1D."""
    return isinstance(projection, need("transformers").pytorch_utils.Conv1D)
