"""The families that write text: one tiny configuration each, whose tokens are compared."""

from __future__ import annotations

from .families import Family

# Beginning and end of a text, and what fills a batch up: ids of the vocabulary below.
_TOKENS = {"vocab_size": 64, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
_SIZES = _TOKENS | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_SHARED = _SIZES | {"num_key_value_heads": 2}
_NARROW = _SHARED | {"head_dim": 8}
_GPT = _TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}

CAUSAL: tuple[Family, ...] = tuple(
    Family(name, f"{stem}{head}", config or f"{stem}Config", sizes)
    for name, stem, head, config, sizes in (
        ("GPT-2", "GPT2", "LMHeadModel", "", _GPT),
        ("GPT-J", "GPTJ", "ForCausalLM", "", _GPT | {"rotary_dim": 4}),
        ("GPT-NeoX", "GPTNeoX", "ForCausalLM", "", _SIZES),
        ("GPT-BigCode", "GPTBigCode", "ForCausalLM", "", _GPT),
        ("CodeGen", "CodeGen", "ForCausalLM", "", _GPT | {"rotary_dim": 4}),
        (
            "MPT",
            "Mpt",
            "ForCausalLM",
            "",
            _TOKENS | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
        ),
        ("Persimmon", "Persimmon", "ForCausalLM", "", _SIZES),
        ("StableLM", "StableLm", "ForCausalLM", "", _SHARED),
        ("Cohere", "Cohere", "ForCausalLM", "", _SHARED),
        ("Cohere 2", "Cohere2", "ForCausalLM", "", _SHARED | {"sliding_window": 6}),
        ("OLMo", "Olmo", "ForCausalLM", "", _SHARED),
        ("OLMo 2", "Olmo2", "ForCausalLM", "", _SHARED),
        ("Granite", "Granite", "ForCausalLM", "", _SHARED),
        ("StarCoder 2", "Starcoder2", "ForCausalLM", "", _SHARED | {"sliding_window": 6}),
        ("Qwen2", "Qwen2", "ForCausalLM", "", _SHARED),
        (
            "Qwen2-MoE",
            "Qwen2Moe",
            "ForCausalLM",
            "",
            _SHARED
            | _EXPERTS
            | {"num_experts": 4, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1},
        ),
        ("Qwen3-MoE", "Qwen3Moe", "ForCausalLM", "", _NARROW | _EXPERTS | {"num_experts": 4}),
        (
            "Mixtral",
            "Mixtral",
            "ForCausalLM",
            "",
            _SHARED | {"num_local_experts": 4, "num_experts_per_tok": 2},
        ),
        ("Gemma 2", "Gemma2", "ForCausalLM", "", _NARROW | {"sliding_window": 6}),
        ("Gemma 3", "Gemma3", "ForCausalLM", "Gemma3TextConfig", _NARROW | {"sliding_window": 6}),
        ("SmolLM3", "SmolLM3", "ForCausalLM", "", _SHARED),
        (
            "DeepSeek-V3",
            "DeepseekV3",
            "ForCausalLM",
            "",
            _SIZES
            | _MLA
            | _EXPERTS
            | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
        ),
        (
            "Llama 4",
            "Llama4",
            "ForCausalLM",
            "Llama4TextConfig",
            _NARROW
            | {
                "intermediate_size_mlp": 48,
                "num_local_experts": 4,
                "num_experts_per_tok": 1,
                "interleave_moe_layer_step": 2,
                "no_rope_layers": [1, 0],
                "attention_chunk_size": 8,
            },
        ),
        ("ERNIE 4.5", "Ernie4_5", "ForCausalLM", "", _NARROW),
        (
            "Phi-MoE",
            "Phimoe",
            "ForCausalLM",
            "",
            _SHARED | {"num_local_experts": 4, "num_experts_per_tok": 2},
        ),
    )
)

_TWO_SIDES = _TOKENS | {
    "decoder_start_token_id": 2,
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
_T5 = _TOKENS | {
    "decoder_start_token_id": 0,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 3,  # more than the decoder: a mix-up would show
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
# Of classes that are called otherwise.
_HEADS = {"Marian": "MTModel"}

PAIRS: tuple[Family, ...] = tuple(
    Family(name, f"{stem}{_HEADS.get(stem, 'ForConditionalGeneration')}", f"{stem}Config", sizes)
    for name, stem, sizes in (
        ("T5", "T5", _T5),
        ("mT5", "MT5", _T5),
        ("UMT5", "UMT5", _T5),
        ("LongT5, local", "LongT5", _T5 | {"local_radius": 4}),
        (
            "LongT5, transient-global",
            "LongT5",
            _T5
            | {
                "local_radius": 4,
                "global_block_size": 4,
                "encoder_attention_type": "transient-global",
            },
        ),
        (
            "Switch",
            "SwitchTransformers",
            _T5
            | {"num_experts": 4, "expert_capacity": 16}
            | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        ),
        ("BART", "Bart", _TWO_SIDES),
        ("mBART", "MBart", _TWO_SIDES),
        ("M2M", "M2M100", _TWO_SIDES),
        ("Marian", "Marian", _TWO_SIDES | {"decoder_start_token_id": 0}),
        ("PLBart", "PLBart", _TWO_SIDES),
        ("MVP", "Mvp", _TWO_SIDES),
        ("Blenderbot", "Blenderbot", _TWO_SIDES | {"encoder_no_repeat_ngram_size": 0}),
        ("Blenderbot-small", "BlenderbotSmall", _TWO_SIDES),
        (
            "LED",
            "LED",
            {name: value for name, value in _TWO_SIDES.items() if "position" not in name}
            | {
                "max_encoder_position_embeddings": 96,
                "max_decoder_position_embeddings": 96,
                "attention_window": 8,
            },
        ),
        ("Pegasus", "Pegasus", _TWO_SIDES | {"decoder_start_token_id": 0}),
        (
            "Pegasus-X",
            "PegasusX",
            _TWO_SIDES | {"decoder_start_token_id": 0, "block_size": 8, "num_global_tokens": 4},
        ),
        (
            "BigBird-Pegasus, full",
            "BigBirdPegasus",
            _TWO_SIDES | {"attention_type": "original_full"},
        ),
        (
            "BigBird-Pegasus, sparse",
            "BigBirdPegasus",
            _TWO_SIDES | {"block_size": 4, "num_random_blocks": 2},
        ),
        (
            "ProphetNet",
            "ProphetNet",
            _TOKENS
            | {
                "decoder_start_token_id": 2,
                "hidden_size": 32,
                "num_encoder_layers": 2,
                "num_decoder_layers": 2,
                "num_encoder_attention_heads": 4,
                "num_decoder_attention_heads": 4,
                "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 48,
                "max_position_embeddings": 96,
                "disable_ngram_loss": True,
            },
        ),
        (
            "FSMT",
            "FSMT",
            {name: value for name, value in _TWO_SIDES.items() if name != "vocab_size"}
            | {"src_vocab_size": 64, "tgt_vocab_size": 64, "langs": ["en", "de"]},
        ),
        (
            "NLLB-MoE",
            "NllbMoe",
            _TWO_SIDES | {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
        ),
    )
)
