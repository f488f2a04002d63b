"""Tiny speech checkpoints, with random weights and real feature extractors and vocabularies."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

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


# Token ids of a tiny Whisper: words, then the end, and what follows it in the real ones.
WORDS = 80
END, START, EN, DE, TRANSLATE, TRANSCRIBE, NO_TIMES = range(WORDS, WORDS + 7)
ZERO = NO_TIMES + 1  # the first of 51 times, 0.00 to 1.00
WHISPER_WINDOW_S, WHISPER_BINS = 1, 20
WHISPER = {
    "vocab_size": ZERO + 51,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "num_mel_bins": WHISPER_BINS,
    "max_source_positions": 50,
    "max_target_positions": 40,
    "decoder_start_token_id": START,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
}
WHISPER_GENERATION = {
    "decoder_start_token_id": START,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": EN, "<|de|>": DE},
    "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE},
    "no_timestamps_token_id": NO_TIMES,
    "max_initial_timestamp_index": 10,
    "suppress_tokens": [3, 7, START, EN, DE, TRANSLATE, TRANSCRIBE],
    "begin_suppress_tokens": [5, END],
    "max_length": 40,
}


def whisper_model(seed: int = 0, times: float = 1.0, **generation):
    """A tiny random Whisper, in eval mode.

    Args:
        seed: Of its weights.
        times: What the embeddings of times are multiplied with: above 1 they are written more.
        generation: Replaces values of ``WHISPER_GENERATION``; None leaves one out.
    """
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
        model.get_output_embeddings().weight[ZERO:] *= times
    said = {
        key: value for key, value in (WHISPER_GENERATION | generation).items() if value is not None
    }
    model.generation_config = transformers.GenerationConfig(**said)
    return model.eval()


def write_whisper_tokenizer(folder: Path) -> None:
    """Words "w0 " to "w79 ", then the tokens from ``END`` on, which are special."""
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>"]
    special += ["<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    special += [f"<|{time / 50:.2f}|>" for time in range(51)]
    names = [*(f"w{word}" for word in range(WORDS)), *special]
    tokenizer = Tokenizer(
        models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="w0")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)


def whisper(folder: Path, seed: int = 0, times: float = 1.0, **generation) -> Path:
    """A checkpoint of ``whisper_model``, with its feature extractor and a tokenizer."""
    whisper_model(seed, times, **generation).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(
        feature_size=WHISPER_BINS, chunk_length=WHISPER_WINDOW_S
    ).save_pretrained(folder)
    write_whisper_tokenizer(folder)
    return folder
