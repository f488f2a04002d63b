"""What stands in for untraceable code gives the same numbers as it."""

import pytest
import torch
import transformers
from onnxscript.rewriter import pattern, rewrite
from support.graphs import graph_of, operators
from torch import nn

from tfx.export.tiny_configs import build_tiny, tiny_config
from tfx.export.tracing.patches import patched
from tfx.runtime.pytorch.modules import without_cache


def tiny(name, head, **changes):
    config = tiny_config(getattr(transformers, f"{name}Config"), **changes)
    without_cache(config)
    return build_tiny(getattr(transformers, f"{name}{head}"), config)


def texts(length, *, padded=True):
    ids = torch.arange(2 * length).reshape(2, length) % 90 + 3
    mask = torch.ones_like(ids)
    if padded:
        mask[1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def assert_same(model, inputs):
    expected = model(**inputs)[0]
    with patched():
        found = model(**inputs)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 13])
@pytest.mark.parametrize("name", ["Mamba", "FalconMamba", "Jamba"])
def test_a_scan_is_the_loop(name, length):
    assert_same(tiny(name, "ForCausalLM"), texts(length))


def test_a_scan_gives_its_last_state_too():
    from transformers.models.mamba import modeling_mamba

    sizes = [(2, 6, 5), (2, 6, 5), (6, 4), (2, 4, 5), (2, 4, 5)]
    tensors = [torch.randn(size, generator=torch.Generator().manual_seed(0)) for size in sizes]
    tensors[2] = -tensors[2].abs()
    options = {"delta_softplus": True, "return_last_state": True}
    expected = modeling_mamba.mamba_selective_scan(*tensors, **options)
    with patched():
        found = modeling_mamba.mamba_selective_scan(*tensors, **options)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_pairs_turn_as_complex_numbers_do():
    assert_same(tiny("Llama4Text", "Model"), texts(13))


@pytest.mark.parametrize("length", [2, 13])
def test_positions_are_counted(length):
    ids = texts(length)["input_ids"]
    ids[1, : length // 2] = 0  # padding, on the left
    assert_same(tiny("CpmAnt", "Model"), {"input_ids": ids})


@pytest.mark.parametrize("length", [8, 21, 32])
def test_blocks_of_characters_are_a_mask(length):
    assert_same(tiny("Canine", "Model", local_transformer_stride=8), texts(length))


def test_anchored_blocks_are_left_as_they_are():
    model = tiny("Canine", "Model", local_transformer_stride=8)
    for layer in model.initial_char_encoder.layer:
        layer.attention.always_attend_to_first_position = True
    assert_same(model, texts(21))


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool1d(4),
        nn.MaxPool1d(3, stride=2, padding=1),
        nn.MaxPool1d(2, stride=1, dilation=3, ceil_mode=True),
        nn.MaxPool1d((3,), stride=(2,)),
    ],
)
def test_a_flat_pool_is_the_pool(pool):
    values = torch.randn(2, 3, 17, generator=torch.Generator().manual_seed(0)) - 2
    expected = pool(values)
    with patched():
        assert torch.equal(pool(values), expected)


def test_a_pool_that_says_where_is_left_as_it_is():
    pool = nn.MaxPool1d(3, return_indices=True)
    values = torch.randn(1, 2, 9, generator=torch.Generator().manual_seed(0))
    with patched():
        found, places = pool(values)
    assert torch.equal(values.gather(2, places), found)


@pytest.mark.parametrize("length", [3, 9, 16])
def test_sums_of_blocks_are_those_of_one_hot(length):
    from transformers.models.longt5 import modeling_longt5

    states = torch.randn(2, length, 5, generator=torch.Generator().manual_seed(0))
    blocks = torch.arange(length).repeat(2, 1) // 4
    blocks[1, length // 2 :] = -1
    count = length // 4
    expected = modeling_longt5._create_global_aggregates(states, blocks, count)
    with patched():
        found = modeling_longt5._create_global_aggregates(states, blocks, count)
    torch.testing.assert_close(found, expected)


def test_a_pattern_of_two_outputs_is_found_where_it_was():
    def both(op, x, y):
        return op.Add(x, y), op.Sub(x, y)

    def merged(op, x, y):
        total = op.Sum(x, y)
        return total, op.Sub(total, op.Mul(y, op.Constant(value_float=2.0)))

    text = (
        "g (float[n] x, float[n] y) => (float[n] a, float[n] b, float[n] c) "
        "{ r = Relu(x) a = Add(r, y) b = Sub(r, y) c = Exp(a) }"
    )
    rule = pattern.RewriteRule(both, merged)
    before, after = graph_of(text), graph_of(text)
    rewrite(before, pattern_rewrite_rules=[rule])
    with patched():
        rewrite(after, pattern_rewrite_rules=[rule])
    assert "Sum" in operators(after)
    assert operators(after) == operators(before)
