"""Tiny encoder-decoders of several families, as checkpoints in the Hugging Face layout."""

from pathlib import Path

import transformers

from .checkpoints import VOCABULARY, write_checkpoint

# [CLS], [SEP] and [PAD] of the tokenizer that write_checkpoint adds.
TOKENS = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
}
BART = TOKENS | {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 96,
    "forced_eos_token_id": None,
}

# Relative positions; learned ones; sinusoids; sinusoids of another kind; a head of its own size.
FAMILIES = {
    "t5": lambda **more: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            **(TOKENS | {"decoder_start_token_id": 0} | more),
            d_model=32,
            d_kv=6,
            d_ff=48,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
        )
    ),
    "bart": lambda **more: transformers.BartForConditionalGeneration(
        transformers.BartConfig(**(BART | more))
    ),
    "marian": lambda **more: transformers.MarianMTModel(
        transformers.MarianConfig(**(BART | {"decoder_start_token_id": 0} | more))
    ),
    "pegasus": lambda **more: transformers.PegasusForConditionalGeneration(
        transformers.PegasusConfig(**(BART | {"decoder_start_token_id": 0} | more))
    ),
    "mbart": lambda **more: transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(**(BART | more))
    ),
    "m2m_100": lambda **more: transformers.M2M100ForConditionalGeneration(
        transformers.M2M100Config(**(BART | more))
    ),
    "whisper": lambda **more: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **(
                {name: value for name, value in BART.items() if "position" not in name}
                | {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 96}
                | more
            )
        )
    ),
}


def write_pair(
    folder: Path, family: str = "t5", *, generation: dict | None = None, **sizes
) -> Path:
    """Save one of ``FAMILIES``, with a tokenizer.

    Args:
        folder: Folder to make.
        family: Which.
        generation: Fields of its ``generation_config.json`` beside those of its configuration.
        sizes: Fields of its configuration.
    """
    model = FAMILIES[family](**sizes)
    write_checkpoint(folder, type(model), model.config, std=0.3)
    if generation:
        settings = transformers.GenerationConfig.from_pretrained(folder)
        for name, value in generation.items():
            setattr(settings, name, value)
        settings.save_pretrained(folder)
    return folder
