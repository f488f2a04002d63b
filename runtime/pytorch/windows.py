"""Attention in a window of tokens, for models that find its rows by the length of the cache."""

from __future__ import annotations

import sys
from typing import Any

_GPT_NEO = "transformers.models.gpt_neo.modeling_gpt_neo"


def count_windows_by_place(model: Any) -> None:
    """Let GPT-Neo's local layers read a cache whose last places are not written yet, in place.

    They take the new tokens for the last of the cache's (modeling_gpt_neo.py,
    ``GPTNeoSelfAttention._attn``), so that in a cache with room left the window is elsewhere.
    Here it ends at the token's own place. Without such a cache nothing changes, and other models
    are left as they are. Until transformers has this window in the mask, as its other models do.
    """
    import torch

    if (module := sys.modules.get(_GPT_NEO)) is None:
        return  # nobody has a model of it

    class WindowByPlace(module.GPTNeoSelfAttention):  # type: ignore[misc, name-defined]
        def forward(
            self,
            hidden_states: Any,
            attention_mask: Any = None,
            layer_past: Any = None,
            **options: Any,
        ) -> Any:
            cache = layer_past.layers[self.layer_id] if layer_past is not None else None
            if (places := getattr(cache, "places", None)) is None:
                return super().forward(hidden_states, attention_mask, layer_past, **options)
            query, key, value = (
                self._split_heads(part(hidden_states), self.num_heads, self.head_dim)
                for part in (self.q_proj, self.k_proj, self.v_proj)
            )
            key, value = layer_past.update(key, value, self.layer_id)
            columns = torch.arange(key.shape[2], device=places.device)
            gone = places[:, None] - columns >= self.config.window_size  # [sequence, capacity]
            # The mask hides what is ahead; a row that sees nothing stays finite.
            mask = attention_mask.masked_fill(gone, torch.finfo(attention_mask.dtype).min)
            attend = torch.nn.functional.scaled_dot_product_attention
            mixed = attend(query, key, value, attn_mask=mask, scale=1.0)
            merged = self._merge_heads(mixed, self.num_heads, self.head_dim)
            return self.out_proj(merged), None

    for layer in model.modules():
        if type(layer) is module.GPTNeoSelfAttention and layer.attention_type == "local":
            layer.__class__ = WindowByPlace
