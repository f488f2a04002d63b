"""Tiny speech checkpoints, with random weights and real feature extractors and vocabularies."""

import json
from pathlib import Path

import transformers

from .checkpoints import write_checkpoint

# As wav2vec2's: blank first, "|" between words.
CTC_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLU'")

WAV2VEC2 = {
    "hidden_size": 32,
    "conv_dim": (16, 16),
    "conv_kernel": (8, 8),
    "conv_stride": (4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": len(CTC_TOKENS),
}
MASKED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def write_ctc_tokenizer(folder: Path, **settings) -> None:
    """The vocabulary of ``CTC_TOKENS``."""
    folder.mkdir(exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(CTC_TOKENS)}
    file = folder / "letters.json"
    file.write_text(json.dumps(vocabulary))
    transformers.Wav2Vec2CTCTokenizer(str(file), **settings).save_pretrained(folder)
    file.unlink()


def wav2vec2(folder: Path, cls=transformers.Wav2Vec2ForCTC, *, mask=True, **changes) -> Path:
    """A wav2vec2 with any of its heads, trained with a mask or not."""
    config = transformers.Wav2Vec2Config(**(WAV2VEC2 | (MASKED if mask else {}) | changes))
    write_checkpoint(folder, cls, config, tokenizer=False, std=0.2)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=mask).save_pretrained(folder)
    if cls is transformers.Wav2Vec2ForCTC:
        write_ctc_tokenizer(folder)
    return folder
