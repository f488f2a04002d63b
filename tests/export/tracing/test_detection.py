"""Lighter code for DETR and its kin gives the numbers of the code it stands in for."""

import importlib

import pytest
import torch

from tfx.export.tracing.patches import PATCHES, patched

NORMS = [patch.target for patch in PATCHES if patch.target.endswith("FrozenBatchNorm2d.forward")]
SINES = [patch.target for patch in PATCHES if "build_sine" in patch.target]
SAMPLERS = [patch.target for patch in PATCHES if "MultiScaleDeformable" in patch.target]


def owner(target):
    module, _, path = target.partition(":")
    return getattr(importlib.import_module(module), path.partition(".")[0])


def noise(*sizes):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(len(sizes)))


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("target", NORMS)
def test_a_frozen_norm_is_a_batch_norm(target):
    norm = owner(target)(5)
    for name, buffer in norm.named_buffers():
        buffer.copy_(noise(5).abs() + 0.1 if name == "running_var" else noise(5) - 0.3)
    images = noise(2, 5, 3, 4)
    expected = norm(images)
    with patched():
        assert_close(norm(images), expected)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("target", SINES)
def test_positions_of_both_axes_at_once(target, normalize):
    mask = torch.zeros(2, 6, 9, dtype=torch.bool)
    mask[0], mask[1, :4, :5] = True, True
    kind = owner(target)

    def positions():
        return kind(8, normalize=normalize)(torch.Size([2, 16, 6, 9]), "cpu", torch.float32, mask)

    expected = positions()
    with patched():
        found = positions()
    # Of padding, too: where no pixel of a line is seen the angle is -0.5 / 1e-6, and what is made
    # of it reaches the outputs.
    assert_close(found, expected)
    assert not torch.equal(found[0], found[1])


def test_positions_without_a_mask_are_left_as_they_are():
    kind = owner(SINES[0])
    arguments = (torch.Size([2, 16, 6, 9]), "cpu", torch.float32, 8)
    expected = kind.build_sine_position_embedding(*arguments)
    with patched():
        assert torch.equal(kind.build_sine_position_embedding(*arguments), expected)


@pytest.mark.parametrize("target", SAMPLERS)
def test_levels_are_sampled_with_heads_in_front(target):
    shapes, heads, width, queries, points = [(4, 6), (2, 3)], 3, 5, 7, 2
    length = sum(high * wide for high, wide in shapes)
    arguments = (
        noise(2, length, heads, width),
        torch.tensor(shapes),
        shapes,
        torch.tensor([0, 24]),
        noise(2, queries, heads, len(shapes), points, 2).sigmoid() * 1.4 - 0.2,  # some outside
        noise(2, queries, heads, len(shapes), points).softmax(-1),
        64,
    )
    attention = owner(target)()
    expected = attention(*arguments)
    with patched():
        assert_close(attention(*arguments), expected)


@pytest.mark.parametrize("shapes", [[(4, 6), (2, 3)], [(1, 1)]])
def test_middles_of_the_pixels_of_all_levels(shapes):
    from transformers.models.deformable_detr import modeling_deformable_detr as module

    ratios = noise(2, len(shapes), 2).sigmoid()
    get = module.DeformableDetrEncoder.get_reference_points
    expected = get(shapes, ratios, "cpu")
    with patched():
        found = module.DeformableDetrEncoder.get_reference_points(shapes, ratios, "cpu")
    assert_close(found, expected)


def test_a_function_of_a_class_stays_one():
    from transformers.models.deformable_detr import modeling_deformable_detr as module

    encoder = module.DeformableDetrEncoder
    assert isinstance(vars(encoder)["get_reference_points"], staticmethod)
    with patched():
        assert isinstance(vars(encoder)["get_reference_points"], staticmethod)
    assert isinstance(vars(encoder)["get_reference_points"], staticmethod)


def test_every_kin_is_covered():
    assert len(NORMS) > 5
    assert len(SINES) > 3
    assert len(SAMPLERS) > 3
