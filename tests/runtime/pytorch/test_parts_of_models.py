"""Modules around models: what speaks and what forecasts."""

import pytest
import torch
import transformers

from tfx.export.checkpoint.loader import load
from tfx.export.families import FAMILIES, build
from tfx.export.tiny_configs import build_tiny, tiny_config
from tfx.recipe import ExportRecipe
from tfx.runtime.pytorch.parts import AVERAGED, notes_of, part_of, whole_of

BY_CLASS = {family.class_name: family for family in FAMILIES}


@pytest.fixture
def speaker():
    return build(BY_CLASS["SpeechT5ForTextToSpeech"])


@pytest.fixture
def forecaster():
    return build(BY_CLASS["TimeSeriesTransformerForPrediction"])


def spoken(model, seed=0):
    """Inputs of the decoder of ``model``, from its encoder."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 99, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    states = part_of(model, "encoder")(input_ids=ids, attention_mask=mask)["last_hidden_state"]
    return {
        "input_values": torch.randn(2, 5, model.config.num_mel_bins, generator=generator),
        "encoder_hidden_states": states,
        "speaker_embeddings": torch.randn(2, 16, generator=generator),
        "encoder_attention_mask": mask,
    }


@torch.no_grad()
def test_a_decoder_that_speaks_gives_the_same_each_time_and_upstream_does_not(speaker):
    given = spoken(speaker)
    prenet = speaker.speecht5.decoder.prenet
    one, other = (prenet(given["input_values"], given["speaker_embeddings"]) for _ in range(2))
    assert not torch.equal(one, other)
    decoder = part_of(speaker, "decoder")
    one, other = decoder(**given), decoder(**given)
    assert one.keys() == {"spectrogram", "frames", "stop_logits"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    # Each step of the decoder is two frames.
    assert one["spectrogram"].shape == one["frames"].shape == (2, 10, 20)
    assert one["stop_logits"].shape == (2, 10)


@torch.no_grad()
def test_what_is_drawn_is_averaged(speaker):
    prenet = speaker.speecht5.decoder.prenet
    values = torch.randn(1, 4, 24)
    torch.manual_seed(0)
    draws = torch.stack([prenet._consistent_dropout(values, 0.3) for _ in range(4000)])
    part_of(speaker, "decoder")
    average = prenet._consistent_dropout(values, 0.3)
    torch.testing.assert_close(draws.mean(0), average, rtol=0.1, atol=0.02)


@torch.no_grad()
def test_a_decoder_that_speaks_is_the_model(speaker):
    given = spoken(speaker)
    found = part_of(speaker, "decoder")(**given)["spectrogram"]
    whole = speaker(
        encoder_outputs=(given["encoder_hidden_states"],),
        attention_mask=given["encoder_attention_mask"],
        decoder_input_values=given["input_values"],
        speaker_embeddings=given["speaker_embeddings"],
    ).spectrogram
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize(("part", "said"), [("encoder", False), ("decoder", True)])
def test_the_note_says_what_is_averaged(part, said, speaker, tmp_path):
    speaker.save_pretrained(tmp_path / "from")
    loaded = load(str(tmp_path / "from"), ExportRecipe(part=part))
    assert (AVERAGED["SpeechT5ForTextToSpeech"] in loaded.notes) == said


def future(model, seed=0):
    """Inputs of a forecast for two series."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "past_values": torch.randn(2, 21, generator=generator),
        "past_time_features": torch.randn(2, 21, 2, generator=generator),
        "past_observed_mask": torch.ones(2, 21),
        "future_so_far": torch.randn(2, 6, generator=generator),
        "future_time_features": torch.randn(2, 6, 2, generator=generator),
        "static_categorical_features": torch.tensor([[1], [3]]),
        "static_real_features": torch.randn(2, 1, generator=generator),
    }


@torch.no_grad()
def test_a_forecast_is_the_models(forecaster):
    given = future(forecaster)
    found = whole_of(forecaster)(**given)
    given["future_values"] = given.pop("future_so_far")
    expected = forecaster(**given)
    assert found.keys() == {"params", "loc", "scale"}
    assert list(found["params"]) == ["df", "loc", "scale"]
    for one, other in zip(found["params"].values(), expected.params, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(found["loc"], expected.loc)
    torch.testing.assert_close(found["scale"], expected.scale)


@torch.no_grad()
def test_a_step_of_a_forecast_does_not_see_its_own_future(forecaster):
    given = future(forecaster)
    model = whole_of(forecaster)
    before = model(**given)["params"]["loc"]
    given["future_so_far"][:, 3:] += 100
    after = model(**given)["params"]["loc"]
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4:] - before[:, 4:]).abs().max() > 1e-3


def test_a_forecaster_without_a_head_gives_its_states(forecaster):
    found = whole_of(forecaster.model)(**future(forecaster))
    assert found.keys() == {"last_hidden_state", "loc", "scale"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["Bart", "MBart", "T5"])
def test_a_text_is_classified_at_its_last_end_token(name):
    config = tiny_config(getattr(transformers, f"{name}Config"))
    model = build_tiny(getattr(transformers, f"{name}ForSequenceClassification"), config)
    ids = torch.arange(3, 27).reshape(3, 8)
    ids[:, 2] = ids[0, 7] = ids[1, 5] = ids[2, 3] = config.eos_token_id
    ids[1, 6:] = ids[2, 4:] = config.pad_token_id
    given = {"input_ids": ids, "attention_mask": (ids != config.pad_token_id).long()}
    found = whole_of(model)(**given)
    assert found.keys() == {"logits"}
    torch.testing.assert_close(found["logits"], model(**given).logits)
    # One end token more or fewer: PyTorch refuses, here it is the last, or the first token.
    ids[0, 2] = 3
    with pytest.raises(ValueError, match="same number of <eos>"):
        model(**given)
    torch.testing.assert_close(whole_of(model)(**given)["logits"][1:], found["logits"][1:])


def test_the_note_says_where_a_text_is_classified():
    config = transformers.BartConfig()
    (note,) = notes_of("BartForSequenceClassification", config, "")
    assert "(id 2)" in note
    assert notes_of("BartForQuestionAnswering", config, "") == ()
    assert notes_of("BertForSequenceClassification", transformers.BertConfig(), "") == ()


def test_other_models_are_left_alone():
    model = transformers.BertModel(transformers.BertConfig(**BY_CLASS["BertModel"].sizes))
    assert whole_of(model) is model


def test_a_text_of_aimv2_is_read_forwards_padded_or_not():
    model = build_tiny(
        transformers.Aimv2TextModel, tiny_config(transformers.Aimv2Config).text_config
    )
    ids = torch.tensor([[11, 38, 37, 36, 17, 18]])
    padded, mask = torch.cat([ids, ids[:, :1]], 1), torch.ones(1, 7, dtype=torch.long)
    mask[0, 6] = 0
    with torch.no_grad():
        left_alone = model(ids, torch.ones_like(ids)).last_hidden_state
        expected = model(padded, mask).last_hidden_state[:, :6]
        actual = whole_of(model)(ids, torch.ones_like(ids)).last_hidden_state
    assert (left_alone - expected).abs().max() > 0.1  # or the change may go
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    (note,) = notes_of("Aimv2TextModel", model.config, "")
    assert note.startswith("texts are read forwards, as where one is padded; ")
