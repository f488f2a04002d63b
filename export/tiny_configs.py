"""Tiny configurations of any model type transformers has, made from a table of sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfx.errors import ExportError

if TYPE_CHECKING:
    import torch

VOCABULARY = 99
HIDDEN, HEADS, KEY_HEADS, INTERMEDIATE, POSITIONS = 64, 4, 2, 48, 64
HEAD_DIM = HIDDEN // HEADS

# Field of a configuration -> a small value. Sizes that may differ do, where a mix-up would show.
SIZES: Mapping[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "model_dim", "d_embed"), HIDDEN
    ),
    "projection_dim": 24,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    **dict.fromkeys(("out_hidden_size", "projector_hidden_size"), HIDDEN),
    **dict.fromkeys(
        (
            *("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "n_layer"),
            *("n_layers", "num_decoder_layers", "depth", "num_encoder_layers", "num_blocks"),
            *("encoder_num_hidden_layers", "decoder_num_hidden_layers"),
        ),
        2,
    ),
    **dict.fromkeys(
        (
            *("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"),
            *("num_heads", "n_head", "n_heads", "attention_heads", "mamba_n_heads"),
            *("num_encoder_attention_heads", "num_decoder_attention_heads", "mamba_num_heads"),
        ),
        HEADS,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "num_kv_heads", "linear_num_key_heads", "linear_num_value_heads"),
        KEY_HEADS,
    ),
    **dict.fromkeys(("head_dim", "d_kv", "dim_head", "attention_head_dim"), HEAD_DIM),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "index_head_dim"), HEAD_DIM),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim"), HEAD_DIM),
    "qk_rope_head_dim": 8,
    "qk_head_dim": HEAD_DIM + 8,
    "rotary_dim": 8,
    "query_pre_attn_scalar": HEAD_DIM,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(
        (
            *("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff"),
            *("hidden_dim", "mlp_dim", "ffn_hidden_size", "dff", "dim_ff", "dense_ffn_hidden_size"),
        ),
        INTERMEDIATE,
    ),
    **dict.fromkeys(
        (
            *("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_size"),
            *("shared_intermediate_size", "expert_ffn_hidden_size", "expert_dim"),
        ),
        40,
    ),
    **dict.fromkeys(
        (
            *("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
            "attention_num_experts",
        ),
        4,
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_selected_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "num_mtp_layers"), 1),
    **dict.fromkeys(("vocab_size", "src_vocab_size", "tgt_vocab_size", "n_vocab"), VOCABULARY),
    **dict.fromkeys(
        (
            *("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "max_len"),
            *("max_text_positions", "max_target_positions", "seq_length", "max_seq_len"),
        ),
        POSITIONS,
    ),
    "max_source_positions": 50,
    **dict.fromkeys(("sliding_window", "attention_window", "window", "local_attention"), 8),
    "index_topk": 4,
    "index_n_heads": 16,  # of few, all may be cut off at 0 for several keys: a tie
    # Mamba: heads * head dim = expand * hidden.
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_state_size"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_headdim"), 2 * HIDDEN // HEADS),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    "image_size": 64,  # what strides of 2 in five stages leave is still an image
    "patch_size": 8,
    "mm_tokens_per_image": 4,
    "num_mel_bins": 20,
    "num_frames": 2,
    "tubelet_size": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}

# Fields that are set even where they are None by default: not every class derives them.
REQUIRED = frozenset({"head_dim", "num_experts_per_tok", "num_key_value_heads", "vocab_size"})

# Fields that hold a number per stage: their lengths stay.
STAGES: Mapping[str, int] = {"depths": 1, "conv_dim": 32, "num_conv_layers": 1}

_SERIES = {"context_length": 16, "prediction_length": 6, "num_time_features": 2}
_WINDOWS = {"image_size": 128, "window_size": 4, "embed_dim": 24}

# What one type needs that the table cannot know.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "autoformer": _SERIES,
    "bit": {"num_groups": 8},
    "canine": {"local_transformer_stride": 8},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "esmc": {"num_key_value_heads": HEADS},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "informer": _SERIES,
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "luke": {"entity_vocab_size": 50, "entity_emb_size": 24},
    "mobilevitv2": {"image_size": 128, "patch_size": 2},
    "mamba2": {"head_dim": 2 * HIDDEN // HEADS},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "dbrx": {"attn_config": {"kv_n_heads": KEY_HEADS, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "lilt": {"hidden_size": 48},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "perceiver": {"num_latents": 12, "d_latents": HIDDEN, "d_model": HIDDEN},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [24, 40], "is_decoder": True},
    "squeezebert": {"embedding_size": HIDDEN},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "donut-swin": _WINDOWS,
    "maskformer-swin": _WINDOWS,
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "t5": {"decoder_start_token_id": 0},
    "time_series_transformer": _SERIES,
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}

# A model above this is no tiny one: the table missed a field.
MAX_PARAMETERS = 60_000_000


def tiny_config(config_class: Any, **changes: Any) -> Any:
    """A small configuration of a class of transformers.

    Fields the class has and ``SIZES`` knows become small, token ids get into the vocabulary,
    configurations inside it become small too. Every kind of layer it has appears once.

    Args:
        config_class: A ``PreTrainedConfig``.
        changes: Fields that are known better.

    Raises:
        ExportError: If the class refuses the sizes.
    """
    try:
        return config_class(**_small_fields(config_class) | changes)
    except Exception as error:  # transformers' own checks raise a dozen kinds
        raise ExportError(f"no tiny {config_class.__name__}: {error}") from error


def build_tiny(model_class: Any, config: Any, seed: int = 0) -> torch.nn.Module:
    """A model with random weights that make every part of it count.

    Weights as they are initialised (0.02) leave attention almost uniform and outputs near 0,
    where a lost mask would not be seen. Here each matrix keeps the size of what it is given.

    Args:
        model_class: Of transformers.
        config: Of that class.
        seed: Of the weights.

    Raises:
        ExportError: If it is not small.
    """
    import torch

    with torch.device("meta"):
        try:
            count = sum(weight.numel() for weight in model_class(config).parameters())
        except (RuntimeError, NotImplementedError):
            count = 0  # its constructor computes with weights; the memory limit still holds
    if count > MAX_PARAMETERS:
        raise ExportError(
            f"{model_class.__name__} is not tiny: {count} parameters",
            hint="Add the field that makes it large to the sizes of this module.",
        )
    torch.manual_seed(seed)
    module: torch.nn.Module = model_class(config).eval()
    with torch.no_grad():
        for weight in module.parameters():
            if not weight.is_floating_point():
                continue
            if weight.ndim > 1:
                # Embeddings too: rows of size 1 would be 8 times larger than what follows.
                weight.normal_(std=1 / math.sqrt(max(1, math.prod(weight.shape[1:]))))
            else:  # biases of 0 and scales of 1 would hide one that is lost
                weight.add_(torch.randn_like(weight) * 0.1)
    return module


def _small_fields(config_class: Any) -> dict[str, Any]:
    fields = {field.name: _default(field) for field in dataclasses.fields(config_class)}
    whole = _default_config(config_class)
    stages = bool(fields.keys() & {"depths", "num_encoder_blocks"})
    small: dict[str, Any] = {}
    for name, default in fields.items():
        # Patches of convolutional stages are small already, and the stages are fitted to them.
        value = None if stages and name == "patch_size" else _small(name, default)
        if value is not None:
            small[name] = value
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        small["num_key_value_heads"] = HEADS  # latent attention has keys for every head
    small |= _tokens(fields)
    small |= _nested(config_class, whole)
    small |= _layer_types(fields, small, whole)
    return small | dict(SPECIAL.get(config_class.model_type, {}))


def _default(field: dataclasses.Field[Any]) -> Any:
    if callable(field.default_factory):
        return field.default_factory()
    return field.default


def _default_config(config_class: Any) -> Any:
    """The configuration by default; None for one that does not stand on its own."""
    try:
        return config_class()
    except Exception:  # noqa: BLE001  transformers' own checks raise a dozen kinds
        return None


def _small(name: str, default: Any) -> Any:
    """The small value of one field; None to leave it."""
    if name in STAGES and isinstance(default, list | tuple):
        return type(default)(STAGES[name] for _ in default)
    if name in ("rope_parameters", "rope_scaling") and isinstance(default, dict):
        return _small_rope(default)
    if name not in SIZES:
        return None
    if isinstance(default, bool):
        return None
    if isinstance(default, list | tuple):
        same = name in ("image_size", "patch_size")
        return type(default)(SIZES[name] for _ in default) if same else None
    # What is not set by default is derived from the rest, or is switched off.
    return SIZES[name] if isinstance(default, int) or name in REQUIRED else None


def _small_rope(rope: dict[str, Any]) -> dict[str, Any]:
    if "mrope_section" not in rope:
        return rope
    pairs = int(HEAD_DIM * rope.get("partial_rotary_factor", 1.0)) // 2
    sections = [max(1, pairs // 3)] * (len(rope["mrope_section"]) - 1)
    return rope | {"mrope_section": [pairs - sum(sections), *sections]}


def _tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of special tokens beyond the vocabulary, brought into it from its end."""
    tokens: dict[str, Any] = {}
    for name, default in fields.items():
        if not name.endswith(("_token_id", "_token_index")):
            continue
        ids = default if isinstance(default, list | tuple) else [default]
        if any(isinstance(one, int) and one >= VOCABULARY for one in ids):
            tokens[name] = VOCABULARY - 1 - len(tokens)
    if "pad_token_id" in fields and fields["pad_token_id"] is None:
        tokens["pad_token_id"] = 0  # classification by decoders looks for it
    return tokens


def _nested(config_class: Any, whole: Any) -> dict[str, Any]:
    nested = {}
    for name in getattr(config_class, "sub_configs", {}):
        inner = getattr(whole, name, None)
        if inner is not None and name != "backbone_config":
            nested[name] = tiny_config(type(inner)).to_dict()
    return nested


def _layer_types(fields: Mapping[str, Any], small: Mapping[str, Any], whole: Any) -> dict[str, Any]:
    """One layer of each kind, where layers differ."""
    if "num_hidden_layers" not in small or whole is None:
        return {}
    changes: dict[str, Any] = {}
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        kinds = getattr(whole, name, None)
        if name in fields and isinstance(kinds, list | tuple):
            changes[name] = list(dict.fromkeys(kinds))
    if not changes:
        return {}
    count = max(2, *(len(kinds) for kinds in changes.values()))
    for name, kinds in changes.items():
        changes[name] = [kinds[index % len(kinds)] for index in range(count)]
    return changes | {"num_hidden_layers": count}
