"""What was asked for between loading a model and tracing it: adapter, trimming, attention maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfx.errors import SourceError
from tfx.recipe import Changes

from .adapters import merge_adapter, read_adapter
from .trimming import drop_heads, keep_layers

if TYPE_CHECKING:
    import torch


def change_module(module: torch.nn.Module, changes: Changes) -> torch.nn.Module:
    """Apply ``changes`` to a model of transformers, in place, and return the model.

    Raises:
        BackendError: If an adapter is asked for and PEFT is not installed.
        SourceError: If the model cannot be changed so.
    """
    if changes.adapter:
        module = merge_adapter(module, read_adapter(changes.adapter))
    # Heads first: both count layers as they were.
    if changes.drop_heads:
        drop_heads(module, changes.drop_heads)
    if changes.layers:
        keep_layers(module, changes.layers)
    if changes.attentions:
        return_attentions(module)
    return module


def return_attentions(module: Any) -> None:
    """Make a model of transformers return its attention maps beside its outputs.

    Only its eager attention computes them; the numbers of the other outputs are the same but
    for rounding.

    Raises:
        SourceError: If the model has no eager attention.
    """
    try:
        module.set_attn_implementation("eager")
        for part in module.modules():  # CLIP's parts have configurations of their own
            if hasattr(part, "config"):
                part.config.output_attentions = True
    except (AttributeError, ValueError) as error:
        raise SourceError(
            f"{type(module).__name__} does not give attention maps: {error}",
            hint="Leave --attentions out.",
        ) from error
