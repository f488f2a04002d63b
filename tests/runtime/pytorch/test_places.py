"""Models that take for granted that a cache ends with the newest token, behind one of places."""

import pytest
import torch
import transformers

from tfx.runtime.pytorch.generators import cache_of
from tfx.runtime.pytorch.places import bias_by_key, mask_by_place

CAPACITY = 9


def mpt():
    torch.manual_seed(0)
    config = transformers.MptConfig(
        d_model=16, n_layers=1, n_heads=2, max_seq_len=32, vocab_size=20
    )
    return transformers.MptForCausalLM(config).eval()


def places_cache(places):
    keys = torch.randn(2, 2, CAPACITY, 8, generator=torch.Generator().manual_seed(1))
    return cache_of([(keys, keys.flip(-1))], torch.tensor(places), CAPACITY)


@pytest.mark.parametrize("places", [[0, 1, 2], [5]])
@torch.no_grad()
def test_mpt_is_the_same_without_a_length_that_only_a_run_knows(places):
    model = mpt()
    attention = model.transformer.blocks[0].attn
    bias = model.transformer.build_mpt_alibi_tensor(2, 32)
    states = torch.randn(2, len(places), 16, generator=torch.Generator().manual_seed(2))
    expected = attention(states, bias, places_cache(places))[0]
    for _ in range(2):  # twice is as good as once
        bias_by_key(model)
    cache = places_cache(places)
    cache.get_seq_length = None  # whoever asks fails
    torch.testing.assert_close(attention(states, bias, cache)[0], expected)
    # Any other cache is asked, as before.
    grown = transformers.DynamicCache()
    attention(states, bias, grown)
    assert grown.get_seq_length() == len(places)


@torch.no_grad()
def test_a_step_of_led_sees_no_place_that_is_not_written():
    config = transformers.LEDConfig(
        **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20},
        **{"decoder_attention_heads": 2, "encoder_attention_heads": 2, "attention_window": 4},
    )
    torch.manual_seed(0)
    model = transformers.LEDForConditionalGeneration(config).eval()
    mask_by_place(model)
    attention = model.led.decoder.layers[0].self_attn
    states = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(2))
    found = []
    for noise in (0.0, 100.0):
        own = places_cache([4])
        own.layers[0].keys[:, :, 5:] += noise
        cache = transformers.EncoderDecoderCache(own, transformers.DynamicCache())
        found.append(attention(hidden_states=states, past_key_values=cache)[0])
    torch.testing.assert_close(*found)


def test_other_models_stay_as_they_are():
    model = torch.nn.Linear(2, 2)
    mask_by_place(model)
    bias_by_key(model)
    assert type(model) is torch.nn.Linear
