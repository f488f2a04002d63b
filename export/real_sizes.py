"""The families at the size they are published in, with random weights: too slow for tests."""

from __future__ import annotations

from pathlib import Path

from tfx.extras import need

from .families import Family

_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
_RESNET_50 = {
    "use_timm_backbone": False,
    "backbone": None,
    "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]},
}

# Sizes are those of the published config.json; where none are given, of the configuration's
# own defaults, which are these models.
REAL_SIZES: tuple[Family, ...] = (
    Family("BERT base", "BertForSequenceClassification", "BertConfig", {}),
    Family(
        "RoBERTa base",
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {"max_position_embeddings": 514, "type_vocab_size": 1},
    ),
    Family("DistilBERT base", "DistilBertForSequenceClassification", "DistilBertConfig", {}),
    Family("ALBERT base", "AlbertForMaskedLM", "AlbertConfig", _BASE),
    Family(
        "DeBERTa-v3 base",
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _BASE
        | {
            "relative_attention": True,
            "position_buckets": 256,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    Family("MPNet base", "MPNetModel", "MPNetConfig", {"max_position_embeddings": 514}),
    Family("ModernBERT base", "ModernBertForMaskedLM", "ModernBertConfig", {}),
    Family("GPT-2", "GPT2LMHeadModel", "GPT2Config", {}),
    Family(
        "GPT-Neo 125M",
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "hidden_size": 768,
            "num_layers": 12,
            "num_heads": 12,
            "attention_types": [[["global", "local"], 6]],
        },
    ),
    Family(
        "Llama (SmolLM2 135M)",
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    Family(
        "Qwen3 0.6B",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "tie_word_embeddings": True,
        },
    ),
    Family("T5 small", "T5ForConditionalGeneration", "T5Config", {}),
    Family(
        "BART base",
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "d_model": 768,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
        },
    ),
    Family(
        "Marian",
        "MarianMTModel",
        "MarianConfig",
        {
            "d_model": 512,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "encoder_ffn_dim": 2048,
            "decoder_ffn_dim": 2048,
            "max_position_embeddings": 512,
        },
    ),
    Family("ViT base", "ViTForImageClassification", "ViTConfig", {}),
    Family("DeiT base", "DeiTForImageClassification", "DeiTConfig", {}),
    Family("Swin tiny", "SwinForImageClassification", "SwinConfig", {}),
    Family("BEiT base", "BeitForImageClassification", "BeitConfig", {}),
    Family("DETR ResNet-50", "DetrForObjectDetection", "DetrConfig", _RESNET_50),
    Family("CLIP base", "CLIPModel", "CLIPConfig", {}),
    Family("Whisper tiny", "WhisperForConditionalGeneration", "WhisperConfig", {}),
    Family("wav2vec2 base", "Wav2Vec2ForCTC", "Wav2Vec2Config", {}),
    Family("SpeechT5", "SpeechT5ForSpeechToText", "SpeechT5Config", {}),
    Family("VideoMAE base", "VideoMAEForVideoClassification", "VideoMAEConfig", {}),
    Family("TimeSformer base", "TimesformerForVideoClassification", "TimesformerConfig", {}),
    Family(
        "Longformer base",
        "LongformerForSequenceClassification",
        "LongformerConfig",
        {"vocab_size": 50265, "max_position_embeddings": 4098, "type_vocab_size": 1},
    ),
    Family("BigBird base", "BigBirdModel", "BigBirdConfig", {"attention_type": "original_full"}),
    Family("PatchTST", "PatchTSTForPrediction", "PatchTSTConfig", {}),
)


def write_config(family: Family, folder: Path) -> None:
    """Write the configuration of a family, and no weights, as a checkpoint folder."""
    config = getattr(need("transformers"), family.config)(**family.sizes)
    config.architectures = [family.class_name]
    config.save_pretrained(folder)
