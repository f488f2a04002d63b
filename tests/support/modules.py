"""Hand-written modules and factories, in memory and as source text."""

from pathlib import Path

import torch
from torch import nn

FACTORIES = """
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x, padding_mask):
        return self.encoder(x, src_key_padding_mask=padding_mask)


def encoder():
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 5:] = True
    return Encoder(), {"x": torch.randn(2, 7, 16), "padding_mask": mask}


def linear():
    return nn.Linear(4, 3), torch.randn(2, 4)


def half():
    return nn.Linear(4, 3).half(), torch.randn(2, 4)


def brain():
    return nn.Linear(4, 3).bfloat16(), torch.randn(2, 4)


def failing():
    raise RuntimeError("no data here")


def bare():
    return nn.Linear(4, 3)


def swapped():
    return torch.randn(2, 4), nn.Linear(4, 3)


def three():
    return nn.Linear(4, 3), torch.randn(2, 4), "more"


constant = 3
"""


def write_factories(folder: Path) -> Path:
    """``FACTORIES`` as a file; the functions are encoder, linear, half, failing, bare, ..."""
    path = folder / "factories.py"
    path.write_text(FACTORIES, encoding="utf-8")
    return path


class SelfAttention(nn.Module):
    """One SDPA block over ``x`` with an additive mask: ``[batch, 1, queries, keys]``."""

    def __init__(self, hidden: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x, mask):
        batch, sequence, hidden = x.shape
        parts = self.qkv(x).reshape(batch, sequence, 3, self.heads, hidden // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, sequence, hidden))


class Seq2Seq(nn.Module):
    """``nn.Transformer`` with a causal target mask."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Transformer(16, 2, 1, 1, dim_feedforward=32, dropout=0.0, batch_first=True)

    def forward(self, src, tgt, tgt_mask):
        return self.core(src, tgt, tgt_mask=tgt_mask)


class ManyOutputs(nn.Module):
    """A mapping with a nested tuple, None and a number: what flat names must survive."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.layer(x)
        return {"logits": hidden, "states": (x * 2.0, hidden + 1.0), "none": None, "scale": 2}


class Pair(nn.Module):
    """A tuple of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x), x.sum(-1)


class FixedSize(nn.Module):
    """Axis 1 of ``x`` can only be 6."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x + self.bias


class Branching(nn.Module):
    """Its code branches on values of a tensor."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


def causal_mask(size: int) -> torch.Tensor:
    """``float32[size, size]``: 0 on and below the diagonal, -inf above."""
    return nn.Transformer.generate_square_subsequent_mask(size)
