import importlib

import pytest
import torch
from torch import nn

from tfx.export.patches import PATCHES, patched


def current(patch):
    module, _, path = patch.target.partition(":")
    value = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target)
def test_patch_is_applied_and_taken_back(patch):
    original = current(patch)
    with patched():
        assert current(patch) is not original
    assert current(patch) is original
    with pytest.raises(RuntimeError, match="planted"), patched():
        raise RuntimeError("planted")
    assert current(patch) is original


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target)
def test_patch_says_why_and_until_when(patch):
    assert len(patch.reason.split()) > 10
    assert "Until" in patch.reason


@pytest.mark.parametrize("causal", [False, True])
def test_encoder_gives_the_same_with_and_without_patches(causal):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    x, mask = torch.randn(2, 5, 8), nn.Transformer.generate_square_subsequent_mask(5)
    with torch.no_grad():
        expected = encoder(x, mask=mask, is_causal=causal)
        with patched():
            found = encoder(x, mask=mask, is_causal=causal)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
