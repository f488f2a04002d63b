"""What to feed a model while it is traced: example inputs, axis names, largest sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfx.errors import ExportError
from tfx.recipe import DECODER, ENCODER, GENERATING_DECODER, GENERATING_ENCODER, GENERATOR
from tfx.runtime.generation.kv_cache import (
    CAPACITY,
    KEPT,
    KEPT_TOKENS,
    MASK,
    PAST,
    POSITION,
)
from tfx.runtime.pytorch.generators import cache_sizes
from tfx.runtime.pytorch.names import forward_names
from tfx.runtime.pytorch.pairs import cross_of, pair_sizes
from tfx.signature import BATCH, SEQUENCE, UNBOUNDED

if TYPE_CHECKING:
    import torch

# The two batches of a model that compares every text with every image.
OWN_BATCHES = ("texts", "images")

# Sizes of the example inputs. Different primes, so that tracing cannot take one axis for the
# other, and above 1, which PyTorch would treat as a size of its own.
EXAMPLE_BATCH, EXAMPLE_SEQUENCE = 3, 13

# What configurations call their number of positions: all, LED's encoder, MPT.
POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
TARGET_POSITIONS = ("max_target_positions", "max_decoder_position_embeddings")

# Position ids that start after the padding token's (fairseq's convention, which these models
# kept): a table of 514 rows has room for 512 positions.
OFFSET_POSITIONS = frozenset(
    (
        *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke"),
        *("markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
        "xmod",
    )
)

# Models that turn the size of an image into Python numbers, which tracing keeps as they are.
FIXED_IMAGES = frozenset({"deformable_detr"})


@dataclass(frozen=True, slots=True)
class InputPlan:
    """How a model is traced.

    Attributes:
        examples: Input name to example tensor, in the order of the graph's inputs.
        dynamic: Input name to an axis name per dimension, "" for a fixed one.
        limits: Axis name to the largest size the configuration admits.
        smallest: Axis name to the smallest size the model takes, where that is not 1.
        inferred: Whether axis names are guesses: an axis that turns out fixed is no error.
    """

    examples: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, tuple[str, ...]]
    limits: Mapping[str, int] = field(default_factory=dict)
    smallest: Mapping[str, int] = field(default_factory=dict)
    inferred: bool = False


def plan_inputs(
    module: torch.nn.Module,
    config: Any,
    part: str = "",
    image_size: tuple[int, ...] = (),
    max_sequence: int = 0,
) -> InputPlan:
    """Plan the inputs of a transformers model.

    Args:
        module: The model, or a part of it (``tfx.runtime.pytorch.parts``).
        config: Its configuration.
        part: Which part it is; "" for a whole model.
        image_size: Height and width to fix where the model takes any; empty for the default.
        max_sequence: Longest sequence asked for; 0 for all there are positions for. Matters
            here to models whose code differs by length.

    Raises:
        ExportError: If it is of a kind that has no plan here.
    """
    if part == DECODER:
        return _plan_decoder(module, config, max_sequence)
    if part == GENERATING_DECODER:
        return _plan_cached_decoder(module, config, max_sequence)
    if part == GENERATOR:
        return _plan_generator(module, config)
    if part in (ENCODER, GENERATING_ENCODER):
        module = module.encoder
    name = type(module).__name__
    main = getattr(module, "main_input_name", "")
    if main not in _PLANS:
        raise ExportError(
            f"{name} takes {main or 'unknown inputs'}, expected one of {', '.join(_PLANS)}",
            hint="Write a factory that returns the module and example inputs: file.py:function.",
        )
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        return _plan_image_and_text(module, config)
    if main == "pixel_values" and not hasattr(config, "image_size"):
        return _plan_free_image(module, config, image_size)
    if image_size:
        raise ExportError(
            f"--image-size is for models that take any size, {name} does not",
            hint="Leave it out.",
        )
    plan = _PLANS[main](module, config)
    if main == "input_ids" and getattr(config, "attention_type", "") == "block_sparse":
        return _plan_block_sparse(plan, config, max_sequence)
    return plan


def _plan_text(module: torch.nn.Module, config: Any) -> InputPlan:
    import torch

    shape = (EXAMPLE_BATCH, EXAMPLE_SEQUENCE)
    accepted = forward_names(module)
    # Canine has no vocabulary: it hashes any code point.
    vocabulary = getattr(config, "vocab_size", 128)
    ids = torch.arange(shape[0] * shape[1]).reshape(shape) % vocabulary
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, EXAMPLE_SEQUENCE // 2 :] = 0
    examples = {"input_ids": ids}
    if "attention_mask" in accepted:
        examples["attention_mask"] = mask
    if "token_type_ids" in accepted and getattr(config, "type_vocab_size", 0) > 1:
        examples["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
    axes = dict.fromkeys(examples, (BATCH, SEQUENCE))
    limit = positions_of(config)
    return InputPlan(examples, axes, {SEQUENCE: limit} if limit else {})


def positions_of(config: Any) -> int:
    """Tokens that a text model has positions for; 0 for any number."""
    positions = next((size for name in POSITIONS if (size := getattr(config, name, None))), None)
    if not isinstance(positions, int) or positions < 1:
        return 0
    if config.model_type in OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    return positions


def _plan_generator(module: torch.nn.Module, config: Any) -> InputPlan:
    """Tokens that go into the middle of a cache, after some and before places left over."""
    import torch

    whole: Any = module.model
    generator = torch.Generator().manual_seed(0)
    batch, length, kept, capacity = EXAMPLE_BATCH, EXAMPLE_SEQUENCE - 6, 5, EXAMPLE_SEQUENCE
    mask = torch.ones(batch, capacity, dtype=torch.long)
    mask[1, :2] = 0
    examples = {
        "input_ids": torch.arange(batch * length).reshape(batch, length) % config.vocab_size,
        MASK: mask,
        POSITION: torch.arange(length) + 2,
        KEPT_TOKENS: torch.arange(kept) + 1,
    }
    axes: dict[str, tuple[str, ...]] = {
        "input_ids": (BATCH, SEQUENCE),
        MASK: (BATCH, CAPACITY),
        POSITION: (SEQUENCE,),
        KEPT_TOKENS: (KEPT,),
    }
    for layer, (heads, *sizes) in enumerate(cache_sizes(whole)):
        for name, size in zip(PAST, sizes, strict=True):
            shape = (batch, heads, capacity, size)
            examples[name.format(layer)] = torch.randn(shape, generator=generator)
            axes[name.format(layer)] = (BATCH, "", CAPACITY, "")
    limit = positions_of(config)
    return InputPlan(examples, axes, dict.fromkeys((SEQUENCE, KEPT, CAPACITY), limit or UNBOUNDED))


def _plan_block_sparse(plan: InputPlan, config: Any, max_sequence: int) -> InputPlan:
    """BigBird: any length while it attends to all of it, one length where it is sparse.

    Up to five blocks and two more per random one its code attends fully, whatever the
    configuration says; beyond, the blocks are cut out with sizes that tracing keeps.
    """
    import torch

    full = (5 + 2 * config.num_random_blocks) * config.block_size
    positions = plan.limits.get(SEQUENCE, max_sequence)
    if max_sequence <= full:
        return dataclasses.replace(plan, limits={SEQUENCE: min(full, positions or full)})
    if max_sequence > positions:
        raise ExportError(
            f"--max-seq is {max_sequence}, the model has positions for {positions}",
            hint=f"Ask for {positions} or less.",
        )
    # All rows but one padded: to lengths on both sides of the middle.
    ids = torch.arange(EXAMPLE_BATCH * max_sequence).reshape(EXAMPLE_BATCH, max_sequence)
    examples = {"input_ids": ids % config.vocab_size}
    for name in plan.examples.keys() - examples.keys():
        fill = torch.ones if name == "attention_mask" else torch.zeros
        examples[name] = fill(EXAMPLE_BATCH, max_sequence, dtype=torch.long)
    if "attention_mask" in examples:
        examples["attention_mask"][1, max_sequence // 3 :] = 0
        examples["attention_mask"][2, max_sequence * 3 // 4 :] = 0
    examples = {name: examples[name] for name in plan.examples}
    return InputPlan(examples, dict.fromkeys(examples, (BATCH, "")))


def _plan_decoder(module: torch.nn.Module, config: Any, max_sequence: int) -> InputPlan:
    """The target so far, and what the encoder made of the example inputs of the whole model."""
    import torch

    from tfx.runtime.pytorch.parts import part_of, speaks

    whole: Any = module.model
    encoder = part_of(whole, ENCODER)
    source = plan_inputs(encoder, config, ENCODER, (), max_sequence)
    with torch.no_grad():
        states = encoder(**source.examples)["last_hidden_state"]
    # A length of its own, so that tracing cannot take it for the encoder's.
    length = EXAMPLE_SEQUENCE - 2
    target, more = "input_ids", {}
    if speaks(whole):
        target = "input_values"
        generator = torch.Generator().manual_seed(0)
        shape = (EXAMPLE_BATCH, length, config.num_mel_bins)
        begun = torch.randn(shape, generator=generator)
        more["speaker_embeddings"] = torch.randn(
            EXAMPLE_BATCH, config.speaker_embedding_dim, generator=generator
        )
    else:
        begun = torch.arange(EXAMPLE_BATCH * length).reshape(EXAMPLE_BATCH, length)
        begun = begun % config.vocab_size
    examples = {target: begun, "encoder_hidden_states": states, **more}
    # Whisper's encoder always gives 1500 frames; others as many as their input is long.
    varies = any(axis not in ("", BATCH) for axes in source.dynamic.values() for axis in axes)
    encoder_axis = f"encoder_{SEQUENCE}" if varies else ""
    axes: dict[str, tuple[str, ...]] = {
        target: (BATCH, SEQUENCE, "")[: begun.ndim],
        "encoder_hidden_states": (BATCH, encoder_axis, ""),
        **dict.fromkeys(more, (BATCH, "")),
    }
    if "attention_mask" in source.examples:
        examples["encoder_attention_mask"] = source.examples["attention_mask"]
        axes["encoder_attention_mask"] = (BATCH, encoder_axis)
    limits = {}
    if SEQUENCE in source.limits:
        limits[encoder_axis] = source.limits[SEQUENCE]
    known = (getattr(config, name, None) for name in TARGET_POSITIONS)
    positions = next(filter(None, known), source.limits.get(SEQUENCE))
    if positions:
        limits[SEQUENCE] = positions
    return InputPlan(examples, axes, limits)


def _plan_cached_decoder(module: torch.nn.Module, config: Any, max_sequence: int) -> InputPlan:
    """Tokens that go into the middle of a cache, beside what is made of the encoder's states."""
    import torch

    whole: Any = module.model
    plain = _plan_decoder(module, config, max_sequence)
    generator = torch.Generator().manual_seed(0)
    length, capacity, states = 7, 11, "encoder_hidden_states"
    examples = dict(plain.examples)
    axes: dict[str, tuple[str, ...]] = dict(plain.dynamic)
    examples["input_ids"] = examples["input_ids"][:, :length]
    examples |= {POSITION: torch.arange(length) + 2, KEPT_TOKENS: torch.arange(5) + 1}
    axes |= {POSITION: (SEQUENCE,), KEPT_TOKENS: (KEPT,)}
    for layer, (heads, *sizes) in enumerate(pair_sizes(whole)):
        for name, size in zip(PAST, sizes, strict=True):
            shape = (EXAMPLE_BATCH, heads, capacity, size)
            examples[name.format(layer)] = torch.randn(shape, generator=generator)
            axes[name.format(layer)] = (BATCH, "", CAPACITY, "")
    with torch.no_grad():
        cross = cross_of(whole, examples.pop(states))
    axes |= dict.fromkeys(cross, (BATCH, "", axes.pop(states)[1], ""))
    places = plain.limits.get(SEQUENCE, UNBOUNDED)
    limits = {**plain.limits, **dict.fromkeys((SEQUENCE, KEPT, CAPACITY), places)}
    return InputPlan(examples | cross, axes, limits)


def _plan_image(module: torch.nn.Module, config: Any) -> InputPlan:
    import torch

    name = "pixel_values"
    frames = getattr(config, "num_frames", None)
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    shape: tuple[int, ...] = (getattr(config, "num_channels", 3), height, width)
    if frames is not None:  # a video: [batch, frames, channels, height, width]
        shape = (frames, *shape)
    pixels = torch.zeros(EXAMPLE_BATCH, *shape)
    return InputPlan({name: pixels}, {name: (BATCH, *[""] * len(shape))})


def _plan_free_image(
    module: torch.nn.Module, config: Any, image_size: tuple[int, ...]
) -> InputPlan:
    """Images of any size, padded to the largest of the batch (DETR and its kin)."""
    import torch

    fixed = bool(image_size) or config.model_type in FIXED_IMAGES
    # Multiples of 32, the stride of the backbones, and different from each other.
    height, width = image_size or ((480, 640) if fixed else (96, 128))
    sides = ("", "") if fixed else ("height", "width")
    pixels = torch.zeros(EXAMPLE_BATCH, getattr(config, "num_channels", 3), height, width)
    examples = {"pixel_values": pixels}
    axes: dict[str, tuple[str, ...]] = {"pixel_values": (BATCH, "", *sides)}
    if "pixel_mask" in forward_names(module):
        mask = torch.ones(EXAMPLE_BATCH, height, width, dtype=torch.long)
        mask[1, height * 2 // 3 :] = 0
        examples["pixel_mask"], axes["pixel_mask"] = mask, (BATCH, *sides)
    if fixed:
        return InputPlan(examples, axes)
    # 1333 is the longest side these models were trained and are evaluated with.
    limits = {"height": 1333, "width": 1333}
    return InputPlan(examples, axes, limits, smallest={"height": 64, "width": 64})


def _plan_audio(module: torch.nn.Module, config: Any) -> InputPlan:
    """Raw samples, ``[batch, samples]``."""
    import torch

    # Samples one output frame looks at: the receptive field of the convolutions.
    field = 1
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        field = (field - 1) * stride + kernel
    # Position convolutions pad by half their width and need no more; 12 frames to be safe.
    samples = field + 12 * math.prod(config.conv_stride) + 1
    examples = {"input_values": torch.zeros(EXAMPLE_BATCH, samples)}
    axes: dict[str, tuple[str, ...]] = {"input_values": (BATCH, "samples")}
    # Models with group normalization were trained without a mask (transformers' docs say so).
    if config.feat_extract_norm == "layer":
        mask = torch.ones(EXAMPLE_BATCH, samples, dtype=torch.long)
        mask[1, samples * 2 // 3 :] = 0
        examples["attention_mask"], axes["attention_mask"] = mask, (BATCH, "samples")
    # Half a minute at 16 kHz; attention over more is better done in pieces.
    return InputPlan(examples, axes, {"samples": 480_000}, {"samples": field})


def _plan_spectrogram(module: torch.nn.Module, config: Any) -> InputPlan:
    """Log-mel features of 30 seconds, ``[batch, mel bins, frames]``: Whisper's encoder."""
    import torch

    frames = 2 * config.max_source_positions  # its second convolution has stride 2
    features = torch.zeros(EXAMPLE_BATCH, config.num_mel_bins, frames)
    return InputPlan({"input_features": features}, {"input_features": (BATCH, "", "")})


def _plan_series(module: torch.nn.Module, config: Any) -> InputPlan:
    """A window of several series, ``[batch, time, channels]``."""
    import torch

    if "future_so_far" in forward_names(module):
        return _plan_forecast(config)
    values = torch.zeros(EXAMPLE_BATCH, config.context_length, config.num_input_channels)
    return InputPlan({"past_values": values}, {"past_values": (BATCH, "", "")})


def _plan_forecast(config: Any) -> InputPlan:
    """The past with its lags, the future so far, and what is known about both."""
    import torch

    past = config.context_length + max(config.lags_sequence)
    ahead, several = (
        config.prediction_length,
        () if config.input_size == 1 else (config.input_size,),
    )
    features = config.num_time_features + config.num_dynamic_real_features
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(EXAMPLE_BATCH, *shape, generator=generator)

    observed = torch.ones(EXAMPLE_BATCH, past, *several)
    observed[1, : past // 3] = 0
    examples = {
        "past_values": noise(past, *several),
        "past_time_features": noise(past, features),
        "past_observed_mask": observed,
        "future_so_far": noise(ahead, *several),
        "future_time_features": noise(ahead, features),
    }
    if count := config.num_static_categorical_features:
        kinds = [torch.arange(EXAMPLE_BATCH) % size for size in config.cardinality[:count]]
        examples["static_categorical_features"] = torch.stack(kinds, dim=1)
    if count := config.num_static_real_features:
        examples["static_real_features"] = noise(count)
    axes = {name: (BATCH, *[""] * (one.ndim - 1)) for name, one in examples.items()}
    return InputPlan(examples, axes)


def _plan_image_and_text(module: torch.nn.Module, config: Any) -> InputPlan:
    """Texts against images, each with a batch of its own: CLIP and its kin."""
    text = _plan_text(module, config.text_config)
    image = _plan_image(module, config.vision_config)
    texts, images = OWN_BATCHES
    axes = {name: (texts, *shape[1:]) for name, shape in text.dynamic.items()}
    axes |= {name: (images, *shape[1:]) for name, shape in image.dynamic.items()}
    return InputPlan({**text.examples, **image.examples}, axes, text.limits)


# A model's `main_input_name` -> how it is fed.
_PLANS: dict[str, Callable[[torch.nn.Module, Any], InputPlan]] = {
    "input_ids": _plan_text,
    "pixel_values": _plan_image,
    "input_values": _plan_audio,
    "input_features": _plan_spectrogram,
    "past_values": _plan_series,
}
