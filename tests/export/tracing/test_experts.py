"""All experts, weighted, give the numbers of a loop over those that were chosen."""

import pytest
import torch
import transformers
from torch import nn

from tfx.export.tiny_configs import build_tiny, tiny_config
from tfx.export.tracing.patches import patched
from tfx.runtime.pytorch.modules import without_cache

SWITCH = "SwitchTransformers"
NLLB = "NllbMoe"


def sparse_layer(name, **changes):
    """The first layer that routes, of a tiny model of this family."""
    config = tiny_config(getattr(transformers, f"{name}Config"), **changes)
    without_cache(config)
    model = build_tiny(getattr(transformers, f"{name}Model"), config)
    kinds = (f"{name}SparseMLP", f"{name}FFN")
    return next(layer for layer in model.modules() if type(layer).__name__ in kinds)


def states(layer, rows, length):
    width = next(layer.parameters()).shape[-1]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, length, width, generator=generator)


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


@torch.no_grad()
def assert_same(layer, given):
    expected = first(layer(given))
    with patched():
        found = first(layer(given))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    return expected


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (3, 7)])  # one expert, and several
@pytest.mark.parametrize("name", ["Dbrx", SWITCH, NLLB])
def test_all_experts_are_those_chosen(name, rows, length):
    layer = sparse_layer(name)
    assert_same(layer, states(layer, rows, length))


@torch.no_grad()
def test_what_is_too_much_for_an_expert_of_switch_is_left_out():
    layer = sparse_layer(SWITCH, expert_capacity=1, router_bias=True)
    nn.init.constant_(layer.router.classifier.bias[:1], 0.7)
    output = assert_same(layer, states(layer, 2, 9))
    dropped = (output == 0).all(-1)
    assert dropped.sum() >= 2 * (9 - 4)  # four experts, each one token of a row
    assert not dropped.all()


def test_a_switch_router_in_float32_gives_what_the_model_computes_in():
    layer = sparse_layer(SWITCH).to(torch.bfloat16)
    given = states(layer, 2, 5).to(torch.bfloat16)
    # The original casts its weights, so the replacement, which does not, comes first.
    with patched(), torch.no_grad():
        found = layer(given)
        assert layer.router.classifier.weight.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(found, layer(given), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {"moe_eval_capacity_token_fraction": 0.2},
        {"moe_eval_capacity_token_fraction": -1.0, "expert_capacity": 3},
        {"batch_prioritized_routing": True},
        {"normalize_router_prob_before_dropping": True, "moe_token_dropout": 0.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_experts_of_nllb_are_weighted_as_it_routes(changes):
    layer = sparse_layer(NLLB, **changes)
    assert assert_same(layer, states(layer, 2, 9)).abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", [SWITCH, NLLB])
def test_a_sparse_layer_can_be_traced(name):
    layer = sparse_layer(name)
    given = states(layer, 2, 9)
    expected = layer(given)
    with patched():
        program = torch.export.export(layer, (given,))
    torch.testing.assert_close(program.module()(given), expected, rtol=1e-4, atol=1e-5)
