"""Tiny encoder-decoders of several families, as checkpoints in the Hugging Face layout."""

import dataclasses
from pathlib import Path

import transformers

from tfx.export.families import Family, build
from tfx.export.writers import PAIRS

from .checkpoints import write_checkpoint

BY_NAME = {family.name: family for family in PAIRS}

# Relative positions; learned ones; sinusoids; sinusoids of another kind. Tokens are [CLS], [SEP]
# and [PAD] of the tokenizer that write_checkpoint adds.
FAMILIES = {
    "t5": BY_NAME["T5"],
    "bart": BY_NAME["BART"],
    "marian": BY_NAME["Marian"],
    "pegasus": BY_NAME["Pegasus"],
    "mbart": BY_NAME["mBART"],
    "m2m_100": BY_NAME["M2M"],
    "whisper": Family(
        "Whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {name: size for name, size in BY_NAME["BART"].sizes.items() if "position" not in name}
        | {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 96},
    ),
}


def write_pair(
    folder: Path, family: str = "t5", *, generation: dict | None = None, **sizes
) -> Path:
    """Save one of ``FAMILIES``, with a tokenizer.

    Args:
        folder: Folder to make.
        family: A key of ``FAMILIES``.
        generation: Fields of its ``generation_config.json`` beside those of its configuration.
        sizes: Fields of its configuration.
    """
    known = FAMILIES[family]
    model = build(dataclasses.replace(known, sizes=known.sizes | sizes))
    write_checkpoint(folder, type(model), model.config, std=0.3)
    if generation:
        settings = transformers.GenerationConfig.from_pretrained(folder)
        for name, value in generation.items():
            setattr(settings, name, value)
        settings.save_pretrained(folder)
    return folder
