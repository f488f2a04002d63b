"""Tiny causal language models of several families, as checkpoints in the Hugging Face layout."""

from pathlib import Path

import transformers

from .checkpoints import POSITIONS, VOCABULARY, write_checkpoint

# [SEP] and [CLS] of the tokenizer that write_checkpoint adds.
TOKENS = {"vocab_size": VOCABULARY, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
SIZES = TOKENS | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
SHARED = SIZES | {"num_key_value_heads": 2}

# Absolute positions; rotary ones and shared heads; a window shorter than the texts; window and
# none by turns; positions counted by the model itself; none at all; a window without rotary ones.
FAMILIES = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, **TOKENS)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHARED)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(head_dim=8, **SHARED)),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(sliding_window=6, **SHARED)
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            head_dim=8,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            **SHARED,
        )
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **SIZES)
    ),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **TOKENS)
    ),
    "gpt_neo": lambda: transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
            max_position_embeddings=POSITIONS,
            **TOKENS,
        )
    ),
}


def write_generator(folder: Path, family: str = "llama", **tokens) -> Path:
    """Save one of ``FAMILIES``, with a tokenizer; ``tokens`` go into its configuration."""
    model = FAMILIES[family]()
    for name, value in tokens.items():
        setattr(model.config, name, value)
    return write_checkpoint(folder, type(model), model.config, std=0.3)
