"""The families that must export: one tiny configuration each, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.extras import need
from tfx.recipe import ExportRecipe

from . import handwritten

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture with one head.

    Attributes:
        name: As a table shows it.
        class_name: The transformers class.
        config: Its configuration class; "" for a function of ``handwritten.py``.
        sizes: Arguments of the configuration: small, and different from each other where a
            mix-up would show.
        unfused: Attentions that stay spelled out, with the reason; "" for none.
        max_sequence: As in the recipe: the length of a model that has one; 0 for any.
        image_size: As in the recipe: height and width of a model that has one; empty for its own.
    """

    name: str
    class_name: str
    config: str
    sizes: Mapping[str, Any]
    unfused: str = ""
    max_sequence: int = 0
    image_size: tuple[int, ...] = ()

    @property
    def recipe(self) -> ExportRecipe:
        """How it is exported."""
        return ExportRecipe(max_sequence=self.max_sequence, image_size=self.image_size)


_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
_OFFSET_TEXT = _TEXT | {"max_position_embeddings": 66, "type_vocab_size": 1}
_GROUPED = _TEXT | {"num_key_value_heads": 2}
_IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 30,
    "patch_size": 6,
}
_VIDEO = _IMAGE | {"image_size": 10, "patch_size": 2, "num_frames": 2}
_TWO_SIDES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
}
_TRANSLATION = _TWO_SIDES | {"vocab_size": 99, "max_position_embeddings": 64}
_AUDIO = {
    "hidden_size": 32,
    "conv_dim": (16, 16),
    "conv_kernel": (8, 8),
    "conv_stride": (4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 10,
    "hidden_sizes": [10, 20, 30, 40],
    "depths": [1, 1, 1, 1],
}
_DETECTION = _TWO_SIDES | {"use_timm_backbone": False, "backbone": None, "num_queries": 7}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_CLIP_TEXT = _TEXT | _SPECIAL | {"eos_token_id": 98}

FAMILIES: tuple[Family, ...] = (
    Family("BERT", "BertModel", "BertConfig", _TEXT),
    Family("BERT", "BertForSequenceClassification", "BertConfig", _TEXT),
    Family("BERT", "BertForTokenClassification", "BertConfig", _TEXT),
    Family("BERT", "BertForQuestionAnswering", "BertConfig", _TEXT),
    Family("BERT", "BertForMaskedLM", "BertConfig", _TEXT),
    Family("RoBERTa", "RobertaForSequenceClassification", "RobertaConfig", _OFFSET_TEXT),
    Family("XLM-R", "XLMRobertaForSequenceClassification", "XLMRobertaConfig", _OFFSET_TEXT),
    Family(
        "ELECTRA",
        "ElectraForSequenceClassification",
        "ElectraConfig",
        _TEXT | {"embedding_size": 16},
    ),
    Family(
        "DistilBERT",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 37,
            "vocab_size": 99,
            "max_position_embeddings": 64,
        },
    ),
    Family("ALBERT", "AlbertForMaskedLM", "AlbertConfig", _TEXT | {"embedding_size": 16}),
    Family(
        "DeBERTa-v2/v3",
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _TEXT
        | {
            "relative_attention": True,
            "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    Family("MPNet", "MPNetModel", "MPNetConfig", _OFFSET_TEXT),
    Family(
        "Cross-encoder", "BertForSequenceClassification", "BertConfig", _TEXT | {"num_labels": 1}
    ),
    Family(
        "ModernBERT",
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        _TEXT | _SPECIAL | {"local_attention": 16, "cls_token_id": 1, "sep_token_id": 2},
    ),
    Family(
        "GPT-2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64} | _SPECIAL,
    ),
    Family(
        "GPT-Neo",
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 99,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 64,
        }
        | _SPECIAL,
    ),
    Family("Llama", "LlamaForCausalLM", "LlamaConfig", _GROUPED),
    Family("Qwen3", "Qwen3ForCausalLM", "Qwen3Config", _GROUPED | {"head_dim": 8}),
    Family("Mistral", "MistralForCausalLM", "MistralConfig", _GROUPED | {"sliding_window": 8}),
    Family(
        "Gemma 2",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _GROUPED | {"head_dim": 8, "sliding_window": 8},
    ),
    Family("Gemma", "GemmaForCausalLM", "GemmaConfig", _GROUPED | {"head_dim": 8}),
    Family("Phi", "PhiForCausalLM", "PhiConfig", _TEXT | {"partial_rotary_factor": 0.5}),
    Family("Phi-3", "Phi3ForCausalLM", "Phi3Config", _GROUPED | _SPECIAL),
    Family(
        "OPT",
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 99,
            "max_position_embeddings": 64,
        },
    ),
    Family(
        "BLOOM",
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99},
    ),
    Family("Falcon", "FalconForCausalLM", "FalconConfig", _TEXT),
    Family(
        "T5",
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "d_model": 32,
            "d_ff": 37,
            "d_kv": 8,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 99,
            "decoder_start_token_id": 0,
        },
    ),
    Family("BART", "BartForConditionalGeneration", "BartConfig", _TRANSLATION),
    Family(
        "Marian",
        "MarianMTModel",
        "MarianConfig",
        _TRANSLATION | {"pad_token_id": 98, "decoder_start_token_id": 98},
    ),
    Family("Pegasus", "PegasusForConditionalGeneration", "PegasusConfig", _TRANSLATION),
    Family(
        "LED",
        "LEDForConditionalGeneration",
        "LEDConfig",
        {key: value for key, value in _TRANSLATION.items() if key != "max_position_embeddings"}
        | {
            "attention_window": 8,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 48,
        },
    ),
    Family("ViT", "ViTForImageClassification", "ViTConfig", _IMAGE),
    Family("DeiT", "DeiTForImageClassification", "DeiTConfig", _IMAGE),
    Family(
        "Swin",
        "SwinForImageClassification",
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    Family(
        "Swin v2",
        "Swinv2ForImageClassification",
        "Swinv2Config",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        unfused="cosines of queries and keys, each head with a scale of its own",
    ),
    Family(
        "BEiT",
        "BeitForImageClassification",
        "BeitConfig",
        _IMAGE | {"use_relative_position_bias": True},
    ),
    Family(
        "DETR",
        "DetrForObjectDetection",
        "DetrConfig",
        _DETECTION | {"backbone_config": _BACKBONE | {"out_features": ["stage4"]}},
    ),
    Family(
        "Deformable DETR",
        "DeformableDetrForObjectDetection",
        "DeformableDetrConfig",
        _DETECTION
        | {
            # Its layers are long: one that reads all levels of the image is enough.
            "encoder_layers": 1,
            "backbone_config": _BACKBONE | {"out_features": ["stage2", "stage3", "stage4"]},
        },
        unfused="deformable attention weighs a few sampled points: no product with keys",
        image_size=(96, 128),
    ),
    Family(
        "CLIP",
        "CLIPModel",
        "CLIPConfig",
        {"text_config": _CLIP_TEXT, "vision_config": _IMAGE, "projection_dim": 16},
    ),
    Family("CLIP", "CLIPTextModelWithProjection", "CLIPTextConfig", _CLIP_TEXT),
    Family("CLIP", "CLIPVisionModelWithProjection", "CLIPVisionConfig", _IMAGE),
    Family(
        "Whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {key: value for key, value in _TRANSLATION.items() if key != "max_position_embeddings"}
        | _SPECIAL
        | {
            "num_mel_bins": 20,
            "max_source_positions": 30,
            "max_target_positions": 40,
            "decoder_start_token_id": 1,
        },
    ),
    Family(
        "wav2vec2",
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        _AUDIO
        | {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 37,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "vocab_size": 33,
        },
    ),
    Family(
        "SpeechT5",
        "SpeechT5ForSpeechToText",
        "SpeechT5Config",
        {key: value for key, value in _TRANSLATION.items() if key != "d_model"}
        | _AUDIO
        | {"max_text_positions": 40},
    ),
    Family(
        "SpeechT5",
        "SpeechT5ForTextToSpeech",
        "SpeechT5Config",
        {key: value for key, value in _TRANSLATION.items() if key != "d_model"}
        | _AUDIO
        | {
            "max_text_positions": 64,
            "max_speech_positions": 80,
            "num_mel_bins": 20,
            "speaker_embedding_dim": 16,
            "speech_decoder_prenet_units": 24,
            "speech_decoder_postnet_units": 24,
            "speech_decoder_postnet_layers": 3,  # the first, one between, and the last differ
            "reduction_factor": 2,
            # Two of each are in the SpeechT5 that listens.
            "encoder_layers": 1,
            "decoder_layers": 1,
        },
    ),
    Family(
        "VideoMAE", "VideoMAEForVideoClassification", "VideoMAEConfig", _VIDEO | {"tubelet_size": 2}
    ),
    Family("TimeSformer", "TimesformerForVideoClassification", "TimesformerConfig", _VIDEO),
    Family(
        "Longformer",
        "LongformerForSequenceClassification",
        "LongformerConfig",
        _OFFSET_TEXT | {"attention_window": 8},
    ),
    Family(
        "BigBird, full",
        "BigBirdModel",
        "BigBirdConfig",
        _TEXT | {"attention_type": "original_full"},
    ),
    Family(
        "BigBird, sparse",
        "BigBirdModel",
        "BigBirdConfig",
        # A layer is five attentions already.
        _TEXT | {"block_size": 4, "num_random_blocks": 1, "num_hidden_layers": 1},
        unfused="the blocks in the middle add several products of queries and keys",
        max_sequence=62,
    ),
    Family(
        "PatchTST",
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {
            "d_model": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 37,
            "context_length": 32,
            "prediction_length": 8,
            "patch_length": 8,
            "patch_stride": 8,
            "num_input_channels": 3,
        },
    ),
    Family(
        "Time Series Transformer",
        "TimeSeriesTransformerForPrediction",
        "TimeSeriesTransformerConfig",
        _TWO_SIDES
        | {
            "context_length": 16,
            "prediction_length": 6,
            "lags_sequence": [1, 2, 5],
            "num_time_features": 2,
            "num_static_categorical_features": 1,
            "cardinality": [5],
            "embedding_dimension": [3],
            "num_static_real_features": 1,
        },
    ),
    Family(
        "PatchTSMixer",
        "PatchTSMixerForPrediction",
        "PatchTSMixerConfig",
        {
            "d_model": 32,
            "num_layers": 2,
            "context_length": 32,
            "prediction_length": 8,
            "patch_length": 8,
            "patch_stride": 8,
            "num_input_channels": 3,
        },
        unfused="a gate's softmax: no product with keys",
    ),
)

HANDWRITTEN = tuple(
    Family(f"By hand: {name}", factory, config="", sizes={})
    for factory, name in handwritten.FACTORIES.items()
)


def source_of(family: Family) -> str:
    """What ``tfx export`` takes for a row of ``HANDWRITTEN``."""
    return f"{Path(handwritten.__file__).resolve()}:{family.class_name}"


def build(family: Family, seed: int = 0) -> torch.nn.Module:
    """The tiny model of a family, in eval mode, the same for the same seed."""
    transformers = need("transformers")
    need("torch").manual_seed(seed)
    config = getattr(transformers, family.config)(**family.sizes)
    module: torch.nn.Module = getattr(transformers, family.class_name)(config)
    return module.eval()
