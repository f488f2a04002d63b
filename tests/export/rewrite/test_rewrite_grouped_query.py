"""Repeated key heads: traced, rewritten, and run by ONNX Runtime before and after."""

import numpy as np
import pytest
import torch
from support.graphs import operators, run_ort
from torch import nn

from tfx.export.passes.cleanup import simplify
from tfx.export.passes.shapes import complete_shapes, name_axes
from tfx.export.rewrite.grouped_query import share_key_heads
from tfx.export.tracing.tracer import trace

AXES = {
    "q": ("batch", "", "queries", ""),
    "k": ("batch", "", "keys", ""),
    "v": ("batch", "", "keys", ""),
}


def repeated(x, group):
    batch, heads, length, dim = x.shape
    whole = x[:, :, None].expand(batch, heads, group, length, dim)
    return whole.reshape(batch, heads * group, length, dim)


def tiled(x, group):
    """The other order: head i reads key head i % heads."""
    batch, heads, length, dim = x.shape
    whole = x[:, None].expand(batch, group, heads, length, dim)
    return whole.reshape(batch, heads * group, length, dim)


def broadcast(x, group):
    return x.expand(x.shape[0], group, x.shape[2], x.shape[3])


class Attention(nn.Module):
    def __init__(self, keys, values):
        super().__init__()
        self.keys, self.values = keys, values

    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, self.keys(k), self.values(v))


def traced(module, heads, value_heads=None):
    examples = {
        "q": torch.randn(3, 4, 5, 8),
        "k": torch.randn(3, heads, 7, 8),
        "v": torch.randn(3, value_heads or heads, 7, 8),
    }
    model = trace(module.eval(), examples, AXES, opset=23).model
    name_axes(model, AXES)
    complete_shapes(model)
    return model, {name: tensor.numpy() for name, tensor in examples.items()}


@pytest.mark.parametrize(
    ("heads", "repeat"),
    [
        (2, lambda x: repeated(x, 2)),
        (1, lambda x: repeated(x, 4)),
        (1, lambda x: broadcast(x, 4)),
    ],
    ids=["grouped", "one head", "multi-query"],
)
def test_fires_and_keeps_the_numbers(heads, repeat):
    model, feed = traced(Attention(repeat, repeat), heads)
    (before,) = run_ort(model, feed)
    assert share_key_heads(model) == 1
    simplify(model)
    assert operators(model) == ["Attention"]
    (after,) = run_ort(model, feed)
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "value_heads", "keys", "values"),
    [
        (4, 4, lambda x: x, lambda x: x),
        (2, 2, lambda x: tiled(x, 2), lambda x: tiled(x, 2)),
        (2, 4, lambda x: repeated(x, 2), lambda x: x),
        (2, 1, lambda x: repeated(x, 2), lambda x: repeated(x, 4)),
    ],
    ids=["nothing repeated", "tiled", "keys only", "different heads"],
)
def test_near_misses_stay(heads, value_heads, keys, values):
    model, feed = traced(Attention(keys, values), heads, value_heads)
    before = operators(model)
    assert share_key_heads(model) == 0
    assert operators(model) == before
    run_ort(model, feed)
