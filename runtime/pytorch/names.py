"""Names of what a PyTorch module takes, gives and holds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def forward_names(module: torch.nn.Module) -> list[str]:
    """Parameter names of ``forward``, in order."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(module.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def named_outputs(outputs: Any) -> dict[str, torch.Tensor]:
    """Flatten what a ``forward`` returned into names and tensors, in order.

    A mapping (transformers' ``ModelOutput``) gives its keys, nested ones joined by dots
    ("hidden_states.0"); a bare tensor is "output", a tuple "output.0", "output.1". What is
    no tensor is left out: ``other_outputs`` names it.
    """
    import torch

    return {name: value for name, value in _leaves(outputs) if isinstance(value, torch.Tensor)}


def other_outputs(outputs: Any) -> dict[str, str]:
    """The names of what a ``forward`` returned beside tensors, with the type of each.

    None is no output: modules give it in place of what was not asked for.
    """
    import torch

    return {
        name: type(value).__name__
        for name, value in _leaves(outputs)
        if value is not None and not isinstance(value, torch.Tensor)
    }


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path or 'output'}.{index}")
    else:
        yield path or "output", value


def named_weights(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer with its name; one that has two names, with each.

    Unlike ``state_dict`` this has the buffers that are not saved, such as rotary frequencies.
    """
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
