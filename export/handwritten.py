"""Attention as people write it by hand: factories that the table of families exports.

Each is exported as a user's own is, by ``file.py:function``, its axes inferred from the examples.
"""

from __future__ import annotations

import math
from typing import Any

WIDTH, HEADS, LONGEST = 16, 2, 64

# Function of this file -> how the table calls it.
FACTORIES = {
    "transformer": "nn.Transformer, causal",
    "encoder": "nn.TransformerEncoder, padded",
    "multihead": "nn.MultiheadAttention, cross",
    "sinusoidal": "Self-attention, sinusoidal positions, masked_fill(-1e9)",
    "learned": "Self-attention, learned positions, masked_fill(-inf)",
    "relative": "Self-attention, relative bias, added mask",
    "rotary": "Self-attention, rotary positions, causal",
    "cross": "Cross-attention, boolean mask",
}


def transformer() -> tuple[Any, dict[str, Any]]:
    """``nn.Transformer``: three attentions, a causal mask for the target."""
    import torch
    from torch import nn

    class Translator(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.Transformer(WIDTH, HEADS, 1, 1, 32, dropout=0.0, batch_first=True)

        def forward(self, src: Any, tgt: Any, tgt_mask: Any) -> Any:
            return self.core(src, tgt, tgt_mask=tgt_mask)

    mask = nn.Transformer.generate_square_subsequent_mask(5)
    return Translator(), {
        "src": torch.randn(3, 7, WIDTH),
        "tgt": torch.randn(3, 5, WIDTH),
        "tgt_mask": mask,
    }


def encoder() -> tuple[Any, dict[str, Any]]:
    """``nn.TransformerEncoder`` of two layers with a padding mask."""
    import torch
    from torch import nn

    class Encoder(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
            self.core = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Any, hidden: Any) -> Any:
            return self.core(x, src_key_padding_mask=hidden)

    return Encoder(), {"x": torch.randn(3, 7, WIDTH), "hidden": ~_kept()}


def multihead() -> tuple[Any, dict[str, Any]]:
    """``nn.MultiheadAttention`` of queries to other keys, some of them padding."""
    import torch
    from torch import nn

    class Mixer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, queries: Any, keys: Any, hidden: Any) -> Any:
            return self.core(queries, keys, keys, key_padding_mask=hidden, need_weights=False)[0]

    return Mixer(), {
        "queries": torch.randn(3, 5, WIDTH),
        "keys": torch.randn(3, 7, WIDTH),
        "hidden": ~_kept(),
    }


def sinusoidal() -> tuple[Any, dict[str, Any]]:
    """Sines and cosines added to the input; padding filled with -1e9."""
    return _spelled("sinusoidal", "-1e9"), _text()


def learned() -> tuple[Any, dict[str, Any]]:
    """A table of positions added to the input; padding filled with minus infinity."""
    return _spelled("learned", "-inf"), _text()


def relative() -> tuple[Any, dict[str, Any]]:
    """A bias by distance for each head; padding by an added mask."""
    return _spelled("relative", "added"), _text()


def rotary() -> tuple[Any, dict[str, Any]]:
    """Queries and keys turned by position; no look ahead."""
    import torch

    return _spelled("rotary", "causal"), {"x": torch.randn(3, 7, WIDTH)}


def cross() -> tuple[Any, dict[str, Any]]:
    """Queries of one length to keys of another, seen where a boolean mask is true."""
    import torch

    return _spelled("none", "where"), {
        "x": torch.randn(3, 5, WIDTH),
        "keep": _kept(),
        "memory": torch.randn(3, 7, WIDTH),
    }


def _kept() -> Any:
    """``bool[3, 7]``: true for a token; rows of 7, 4 and 1 of them."""
    import torch

    return torch.arange(7)[None] < torch.tensor([7, 4, 1])[:, None]


def _text() -> dict[str, Any]:
    import torch

    return {"x": torch.randn(3, 7, WIDTH), "keep": _kept()}


def _spelled(positions: str, mask: str) -> Any:
    """One attention as MatMul, mask, Softmax, MatMul."""
    import torch
    from torch import nn

    class Spelled(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.table = nn.Embedding(LONGEST, WIDTH)
            self.bias = nn.Embedding(2 * LONGEST - 1, HEADS)

        def forward(self, x: Any, keep: Any = None, memory: Any = None) -> Any:
            places = torch.arange(x.shape[1])
            if positions == "sinusoidal":
                x = x + _waves(places)
            elif positions == "learned":
                x = x + self.table(places)
            given = x if memory is None else memory
            query, key, value = (
                layer(one).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for layer, one in ((self.query, x), (self.key, given), (self.value, given))
            )
            if positions == "rotary":
                query, key = _turned(query, places), _turned(key, places)
            scores = query @ key.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)
            if positions == "relative":
                apart = places[None] - places[:, None] + LONGEST - 1
                scores = scores + self.bias(apart).permute(2, 0, 1)
            mixed = self._masked(scores, keep, places).softmax(-1) @ value
            return self.out(mixed.transpose(1, 2).flatten(2))

        def _masked(self, scores: Any, keep: Any, places: Any) -> Any:
            if mask == "causal":
                return scores.masked_fill(places[None] > places[:, None], -torch.inf)
            seen = keep[:, None, None]
            if mask == "added":
                return scores + (1.0 - seen.float()) * -10000.0
            if mask == "where":
                return torch.where(seen, scores, torch.finfo(scores.dtype).min)
            return scores.masked_fill(~seen, float(mask))

    return Spelled()


def _waves(places: Any) -> Any:
    """Sines in one half and cosines in the other, ``[sequence, WIDTH]``."""
    import torch

    angles = places[:, None] / 100.0 ** (torch.arange(WIDTH // 2) / (WIDTH // 2))
    return torch.cat([angles.sin(), angles.cos()], -1)


def _turned(heads: Any, places: Any) -> Any:
    """Each half of a head turned against the other, by an angle that grows with position."""
    import torch

    half = heads.shape[-1] // 2
    angles = places[:, None] / 100.0 ** (torch.arange(half) / half)
    cos, sin = (torch.cat([one, one], -1) for one in (angles.cos(), angles.sin()))
    left, right = heads.chunk(2, -1)
    return heads * cos + torch.cat([-right, left], -1) * sin
