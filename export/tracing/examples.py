"""The example inputs that a hand-written module comes with, as a plan to trace it by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfx.errors import ExportError
from tfx.extras import need
from tfx.runtime.pytorch.names import forward_names
from tfx.signature import BATCH, SEQUENCE

from .architectures import InputPlan

if TYPE_CHECKING:
    import torch


def plan_examples(
    module: torch.nn.Module, examples: Any, dynamic: Mapping[str, tuple[str, ...]]
) -> InputPlan:
    """Plan the inputs of a hand-written module from its example inputs.

    Where ``dynamic`` says nothing, every axis may vary: axis 0 of the first input is
    "batch", axis 1 "sequence"; an axis of another input with the same place and size has the
    same name, others are named ``{input}_dim{axis}``. Tracing shows which are fixed after all.

    Args:
        module: Its ``forward`` gives names to positional examples.
        examples: A tensor, a tuple of tensors, or a mapping from input name to tensor.
        dynamic: Input name to an axis name per dimension, "" for a fixed one.

    Raises:
        ExportError: If examples and ``dynamic`` do not fit the module's ``forward``.
    """
    named = _named_examples(module, examples)
    if not dynamic:
        return InputPlan(named, _guessed_axes(named), inferred=True)
    if unknown := sorted(dynamic.keys() - named.keys()):
        raise ExportError(
            f"dynamic axes of {', '.join(unknown)}: not an input, "
            f"expected some of {', '.join(named)}"
        )
    axes = {}
    for name, tensor in named.items():
        axes[name] = dynamic.get(name, ("",) * tensor.ndim)
        if len(axes[name]) != tensor.ndim:
            raise ExportError(
                f"dynamic axes of {name}: got {len(axes[name])} names, "
                f"expected {tensor.ndim} for shape {list(tensor.shape)}",
                hint='Use an empty name for a fixed axis: "batch,,".',
            )
    return InputPlan(named, axes)


def _named_examples(module: torch.nn.Module, examples: Any) -> dict[str, torch.Tensor]:
    torch = need("torch")
    accepted = forward_names(module)
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if isinstance(examples, tuple | list):
        if len(examples) > len(accepted):
            raise ExportError(
                f"got {len(examples)} example inputs, "
                f"{type(module).__name__}.forward takes {len(accepted)}",
                hint="Give one example for each input of forward().",
            )
        examples = dict(zip(accepted, examples, strict=False))
    if not isinstance(examples, Mapping) or not examples:
        raise ExportError(
            f"example inputs are {type(examples).__name__}, expected a tensor, a tuple of "
            "tensors or a mapping from input name to tensor"
        )
    problems = [
        f"{name}: got {type(value).__name__}, expected a tensor"
        for name, value in examples.items()
        if not isinstance(value, torch.Tensor)
    ]
    problems += [f"{name}: not an argument of forward" for name in examples if name not in accepted]
    if problems:
        raise ExportError("example inputs do not fit the module: " + "; ".join(problems))
    return dict(examples)


def _guessed_axes(examples: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, ...]]:
    first = next(iter(examples.values()))
    shared = dict(enumerate(zip((BATCH, SEQUENCE), first.shape, strict=False)))

    def label(name: str, axis: int, size: int) -> str:
        known, known_size = shared.get(axis, ("", 0))
        return known if size == known_size else f"{name}_dim{axis}"

    return {
        name: tuple(label(name, axis, size) for axis, size in enumerate(tensor.shape))
        for name, tensor in examples.items()
    }
