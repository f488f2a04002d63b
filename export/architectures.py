"""What to feed a model while it is traced: example inputs, axis names, largest sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfx.errors import ExportError
from tfx.extras import need
from tfx.runtime.backends.torch_eager import forward_names

if TYPE_CHECKING:
    import torch

BATCH, SEQUENCE = "batch", "sequence"

# Sizes of the example inputs. Different primes, so that tracing cannot take one axis for the
# other, and above 1, which PyTorch would treat as a size of its own.
EXAMPLE_BATCH, EXAMPLE_SEQUENCE = 3, 13

# Position ids that start after the padding token's (fairseq's convention, which these models
# kept): a table of 514 rows has room for 512 positions.
OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "xlm-roberta"}
)


@dataclass(frozen=True, slots=True)
class InputPlan:
    """How a model is traced.

    Attributes:
        examples: Input name to example tensor, in the order of the graph's inputs.
        dynamic: Input name to an axis name per dimension, "" for a fixed one.
        limits: Axis name to the largest size the configuration admits.
        inferred: Whether axis names are guesses: an axis that turns out fixed is no error.
    """

    examples: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, tuple[str, ...]]
    limits: Mapping[str, int] = field(default_factory=dict)
    inferred: bool = False


def plan_inputs(module: torch.nn.Module, config: Any) -> InputPlan:
    """Plan the inputs of a transformers model.

    Raises:
        ExportError: If it is of a kind that has no plan here.
    """
    name = type(module).__name__
    if config.is_encoder_decoder:
        raise ExportError(
            f"{name} is an encoder-decoder, which cannot be exported as one graph",
            hint="Export its encoder from a factory: file.py:function.",
        )
    main = getattr(module, "main_input_name", "")
    if main not in _PLANS:
        raise ExportError(
            f"{name} takes {main or 'unknown inputs'}, expected one of {', '.join(_PLANS)}",
            hint="Write a factory that returns the module and example inputs: file.py:function.",
        )
    return _PLANS[main](module, config)


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


def _plan_text(module: torch.nn.Module, config: Any) -> InputPlan:
    import torch

    shape = (EXAMPLE_BATCH, EXAMPLE_SEQUENCE)
    accepted = forward_names(module)
    ids = torch.arange(shape[0] * shape[1]).reshape(shape) % config.vocab_size
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, EXAMPLE_SEQUENCE // 2 :] = 0
    examples = {"input_ids": ids}
    if "attention_mask" in accepted:
        examples["attention_mask"] = mask
    if "token_type_ids" in accepted and getattr(config, "type_vocab_size", 0) > 1:
        examples["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
    axes = dict.fromkeys(examples, (BATCH, SEQUENCE))
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return InputPlan(examples, axes)
    if config.model_type in OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    return InputPlan(examples, axes, {SEQUENCE: positions})


def _plan_image(module: torch.nn.Module, config: Any) -> InputPlan:
    import torch

    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    pixels = torch.zeros(EXAMPLE_BATCH, config.num_channels, height, width)
    return InputPlan({"pixel_values": pixels}, {"pixel_values": (BATCH, "", "", "")})


# A model's `main_input_name` -> how it is fed.
_PLANS: dict[str, Callable[[torch.nn.Module, Any], InputPlan]] = {
    "input_ids": _plan_text,
    "pixel_values": _plan_image,
}


def _named_examples(module: torch.nn.Module, examples: Any) -> dict[str, torch.Tensor]:
    torch = need("torch")
    accepted = forward_names(module)
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if isinstance(examples, tuple | list):
        if len(examples) > len(accepted):
            raise ExportError(
                f"got {len(examples)} example inputs, "
                f"{type(module).__name__}.forward takes {len(accepted)}"
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
