"""Attention as people write it in PyTorch, traced as the pipeline does."""

import math

import numpy as np
import pytest
import torch
from support.attention import finished
from support.graphs import operators, run_ort
from torch import nn

from tfx.export.passes.shapes import complete_shapes, name_axes, settle_axes
from tfx.export.rewrite.attention import fuse_attention
from tfx.export.rewrite.einsum import lower_einsums
from tfx.export.tracing.examples import plan_examples
from tfx.export.tracing.tracer import trace

HIDDEN, HEADS = 16, 2


def exported(module, examples, dynamic=None):
    """A module as a graph with attention fused, and how many were and were not."""
    module.eval()
    plan = plan_examples(module, examples, dynamic or {})
    model = trace(module, plan.examples, plan.dynamic, opset=23).model
    axes = settle_axes(model, plan.dynamic)[0] if plan.inferred else plan.dynamic
    name_axes(model, axes)
    complete_shapes(model)
    lower_einsums(model)
    counts = fuse_attention(model)
    return finished(model), counts


def assert_same(module, model, feed):
    """PyTorch and ONNX Runtime agree."""
    with torch.no_grad():
        expected = module(**feed)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = run_ort(model, {name: tensor.numpy() for name, tensor in feed.items()})
    for one, other in zip(found, (e for e in expected if e is not None), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=2e-5)


def padding(batch, sequence):
    """``bool[batch, sequence]``, true for a token; the last row has one."""
    kept = torch.ones(batch, sequence, dtype=torch.bool)
    kept[-1, 1:] = False
    return kept


class Spelled(nn.Module):
    """Scores spelled out; subclasses say how they are masked.

    ``x`` is ``[batch, queries, hidden]``, ``keep`` ``[batch, queries]``.
    """

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.dropout = nn.Dropout(0.1)
        self.table = nn.Parameter(torch.randn(1, HEADS, 1, 1))

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)

    def forward(self, x, keep):
        q, k, v = (self.heads(part(x)) for part in (self.query, self.key, self.value))
        weights = torch.softmax(self.scores(q, k, keep), dim=-1)
        mixed = torch.matmul(self.dropout(weights), v)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def scores(self, q, k, keep):
        return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


class Filled(Spelled):
    def scores(self, q, k, keep):
        scores = super().scores(q, k, keep)
        return scores.masked_fill(~keep[:, None, None, :], float("-inf"))


class FilledWithLowest(Spelled):
    def scores(self, q, k, keep):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.masked_fill(~keep[:, None, None, :], torch.finfo(scores.dtype).min)


class Where(Spelled):
    def scores(self, q, k, keep):
        scores = q @ (k.transpose(-1, -2) * 0.3)
        return torch.where(keep[:, None, None, :], scores, torch.tensor(-1e9))


class WhereNumber(Spelled):
    def scores(self, q, k, keep):
        scores = super().scores(q, k, keep)
        return torch.where(keep[:, None, None, :], scores, torch.finfo(scores.dtype).min)


class Added(Spelled):
    def scores(self, q, k, keep):
        return super().scores(q, k, keep) + (1 - keep[:, None, None, :].float()) * -1e4


class Causal(Spelled):
    def scores(self, q, k, keep):
        scores = super().scores(q, k, keep)
        later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, float("-inf")) + (~keep[:, None, None, :]) * -1e4


class Relative(Spelled):
    def scores(self, q, k, keep):
        places = torch.arange(q.shape[2])
        distance = (places[:, None] - places[None, :]).abs().float()
        scores = q @ k.transpose(-1, -2) - self.table * distance
        return (scores * 0.5).masked_fill(~keep[:, None, None, :], -1e9)


class Capped(Spelled):
    def scores(self, q, k, keep):
        scores = torch.tanh(super().scores(q, k, keep) / 3) * 3
        return scores.masked_fill(~keep[:, None, None, :], -1e9)


class Flat(Spelled):
    """Heads in the batch axis, split for the mask (BART's way)."""

    def forward(self, x, keep):
        batch, length, _ = x.shape
        q, k, v = (
            self.heads(part(x)).reshape(batch * HEADS, length, -1)
            for part in (self.query, self.key, self.value)
        )
        scores = torch.bmm(q * 0.35, k.transpose(1, 2))
        scores = scores.view(batch, HEADS, length, length)
        scores = scores.masked_fill(~keep[:, None, None, :], -1e9)
        weights = self.dropout(scores.view(batch * HEADS, length, length).softmax(-1))
        mixed = torch.bmm(weights, v).view(batch, HEADS, length, -1)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, HIDDEN))


class Einsum(Spelled):
    def forward(self, x, keep):
        q, k, v = (
            part(x).unflatten(-1, (HEADS, -1)) for part in (self.query, self.key, self.value)
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.35
        scores = scores.masked_fill(~keep[:, None, None, :], -1e9)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        return self.out(mixed.flatten(2))


class OneHead(Spelled):
    def forward(self, x, keep):
        scores = self.query(x) @ self.key(x).mT / 4
        scores = scores.masked_fill(~keep[:, None, :], float("-inf"))
        return scores.softmax(-1) @ self.value(x)


@pytest.mark.parametrize(
    "cls",
    [
        Spelled,
        Filled,
        FilledWithLowest,
        Where,
        WhereNumber,
        Added,
        Causal,
        Relative,
        Capped,
        Flat,
        Einsum,
        OneHead,
    ],
)
def test_hand_written(cls):
    torch.manual_seed(0)
    module = cls()
    if cls is Spelled:  # takes no mask: its input would be unused
        module.forward = lambda x: Spelled.forward(module, x, None)
    named = {"x": ("batch", "sequence", ""), "keep": ("batch", "sequence")}
    names = ["x"] if cls is Spelled else ["x", "keep"]
    examples = {"x": torch.randn(3, 7, HIDDEN), "keep": padding(3, 7)}
    model, counts = exported(module, {n: examples[n] for n in names}, {n: named[n] for n in names})
    assert counts == (1, {})
    assert "Softmax" not in operators(model)
    for batch, sequence in ((3, 7), (1, 5), (4, 1), (2, 12)):
        feed = {"x": torch.randn(batch, sequence, HIDDEN), "keep": padding(batch, sequence)}
        assert_same(module, model, {name: feed[name] for name in names})


class Cross(nn.Module):
    """Queries and keys of different lengths, values wider than both."""

    def forward(self, q, k, v):
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.4
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def test_cross_attention():
    axes = {"q": ("batch", "", "queries", ""), "k": ("batch", "", "keys", "")}
    axes["v"] = axes["k"]

    def feed(batch, queries, keys):
        return {
            "q": torch.randn(batch, 2, queries, 4),
            "k": torch.randn(batch, 2, keys, 4),
            "v": torch.randn(batch, 2, keys, 6),
        }

    model, counts = exported(Cross(), feed(3, 5, 7), axes)
    assert counts == (1, {})
    for sizes in ((3, 5, 7), (1, 9, 2), (2, 1, 1)):
        assert_same(Cross(), model, feed(*sizes))


class Torch(nn.Module):
    """PyTorch's own module, with any of its options."""

    def __init__(self, *, batch_first, need_weights, average=True):
        super().__init__()
        self.inner = nn.MultiheadAttention(HIDDEN, HEADS, dropout=0.1, batch_first=batch_first)
        self.options = {"need_weights": need_weights, "average_attn_weights": average}

    def forward(self, x, masked):
        return self.inner(x, x, x, key_padding_mask=masked, **self.options)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(batch_first, need_weights):
    torch.manual_seed(0)
    module = Torch(batch_first=batch_first, need_weights=need_weights)
    order = ("batch", "sequence", "") if batch_first else ("sequence", "batch", "")

    def feed(batch, sequence):
        shape = (batch, sequence) if batch_first else (sequence, batch)
        return {"x": torch.randn(*shape, HIDDEN), "masked": ~padding(batch, sequence)}

    model, (fused, reasons) = exported(
        module, feed(3, 7), {"x": order, "masked": ("batch", "sequence")}
    )
    found = operators(model)
    if need_weights:  # their mean is an output: they cannot go
        assert (found.count("Attention"), found.count("Softmax")) == (0, 1)
        assert (fused, sum(reasons.values())) == (0, 1)
    else:
        assert (found.count("Attention"), found.count("Softmax")) == (1, 0)
    for batch, sequence in ((3, 7), (1, 5), (2, 12)):
        assert_same(module, model, feed(batch, sequence))


class OnlyResult(Torch):
    """Asks for the weights, as is the default, and drops them."""

    def forward(self, x, masked):
        return super().forward(x, masked)[0]


@pytest.mark.parametrize("average", [True, False])
def test_multihead_attention_whose_weights_nobody_wants(average):
    torch.manual_seed(0)
    module = OnlyResult(batch_first=True, need_weights=True, average=average)
    model, counts = exported(
        module,
        {"x": torch.randn(3, 7, HIDDEN), "masked": ~padding(3, 7)},
        {"x": ("batch", "sequence", ""), "masked": ("batch", "sequence")},
    )
    assert counts == (1, {})
    for batch, sequence in ((3, 7), (1, 5)):
        feed = {"x": torch.randn(batch, sequence, HIDDEN), "masked": ~padding(batch, sequence)}
        assert_same(module, model, feed)
