import importlib

import pytest
import torch
import transformers
from torch import nn

from tfx.export.tiny_configs import build_tiny, tiny_config
from tfx.export.tracing.patches import PATCHES, patched


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


@pytest.mark.parametrize("length", [5, 8, 21])
@pytest.mark.parametrize("marked", [None, [0], [0, 3]], ids=["local", "first", "two"])
def test_longformer_gives_the_same_at_any_length(length, marked):
    model = build_tiny(transformers.LongformerModel, tiny_config(transformers.LongformerConfig))
    assert set(model.config.attention_window) == {8}
    ids = torch.arange(2 * length).reshape(2, length) + 5
    feed = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    feed["attention_mask"][1, length - 2 :] = 0
    if marked is not None:
        feed["global_attention_mask"] = torch.zeros_like(ids)
        feed["global_attention_mask"][:, marked] = 1
    with torch.no_grad():
        expected = model(**feed).last_hidden_state
        with patched():
            found = model(**feed).last_hidden_state
    kept = feed["attention_mask"].bool()
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-5, atol=1e-5)


def test_led_gives_the_same_at_any_length():
    model = build_tiny(transformers.LEDModel, tiny_config(transformers.LEDConfig))
    ids = torch.arange(2 * 13).reshape(2, 13) + 5
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.no_grad():
        expected = model.get_encoder()(ids, attention_mask=mask).last_hidden_state
        with patched():
            found = model.get_encoder()(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask == 1], expected[mask == 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_one_head_of_keys_serves_all_queries(shared):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8) for heads in (4, 1 if shared else 4, 4))
    value = value[:, : key.shape[1]]
    expected = nn.functional.scaled_dot_product_attention(query, key, value)
    with patched():
        found = nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mbart", "plbart"])
def test_the_last_token_comes_first_in_a_batch_of_any_size(name):
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    ids = torch.tensor([[5, 6, 7, 2], [8, 2, 1, 1], [-100, -100, 9, 3]])
    for rows in (ids, ids[1:2]):
        expected = module.shift_tokens_right(rows.clone(), 1)
        with patched():
            found = module.shift_tokens_right(rows, 1)
        assert torch.equal(found, expected)
