"""Sound as a model's input: the numbers of transformers' own feature extractors."""

import numpy as np
import pytest
from support.sounds import tone
from transformers import SpeechT5FeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.models.whisper import feature_extraction_whisper

from tfx.errors import FeedError
from tfx.processing import AudioFeatures, AudioPreparation
from tfx.runtime.audio import audio_feed, mel_filters

WAVE = AudioPreparation(normalize=True, mask="attention_mask")
MEL = AudioPreparation("input_features", AudioFeatures.LOG_MEL, seconds=2)


@pytest.fixture
def sounds(rng):
    return [
        (rng.normal(size=20000) * 0.1).astype(np.float32),
        tone(440, 2, 16000),
        np.zeros(500, np.float32),
        rng.uniform(-1, 1, 777).astype(np.float32),
    ]


def whispers(sounds, **settings):
    extractor = WhisperFeatureExtractor(**settings)
    return extractor(sounds, sampling_rate=extractor.sampling_rate, return_tensors="np")[
        "input_features"
    ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"feature_size": 128}, {"n_fft": 512, "hop_length": 128}, {"sampling_rate": 24000}],
    ids=["whisper", "large-v3", "other frames", "24 kHz"],
)
def test_log_mel_features_are_whispers(settings, sounds, monkeypatch):
    given = {"feature_size": 80, "n_fft": 400, "hop_length": 160, "sampling_rate": 16000}
    given |= settings | {"chunk_length": 3}
    said = AudioPreparation(
        "input_features",
        AudioFeatures.LOG_MEL,
        rate=given["sampling_rate"],
        seconds=3,
        fft=given["n_fft"],
        hop=given["hop_length"],
        mel_bins=given["feature_size"],
    )
    sounds = [one[: 3 * said.rate] for one in sounds]
    found = audio_feed(sounds, said)["input_features"]
    assert found.dtype == np.float32
    # In float32, as PyTorch computes them, what is close to silence is further off.
    np.testing.assert_allclose(found, whispers(sounds, **given), atol=1e-4)
    monkeypatch.setattr(feature_extraction_whisper, "is_torch_available", lambda: False)
    np.testing.assert_allclose(found, whispers(sounds, **given), atol=1e-6)


@pytest.mark.parametrize("bins", [80, 128])
def test_mel_filters_are_whispers(bins):
    theirs = WhisperFeatureExtractor(feature_size=bins).mel_filters.T
    np.testing.assert_allclose(mel_filters(bins, 400, 16000), theirs, atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("cls", [Wav2Vec2FeatureExtractor, SpeechT5FeatureExtractor])
def test_samples_are_wav2vec2s(cls, normalize, sounds):
    extractor = cls(do_normalize=normalize, return_attention_mask=True, padding_value=0.25)
    theirs = extractor(sounds, sampling_rate=16000, padding=True, return_tensors="np")
    said = AudioPreparation(normalize=normalize, mask="attention_mask", padding=0.25)
    found = audio_feed(sounds, said)
    np.testing.assert_allclose(found["input_values"], theirs["input_values"], atol=1e-5)
    np.testing.assert_array_equal(found["attention_mask"], theirs["attention_mask"])
    assert found["attention_mask"].dtype == np.int64
    assert found["attention_mask"].sum(axis=1).tolist() == [len(one) for one in sounds]


def test_a_model_without_a_mask_gets_none(sounds):
    assert list(audio_feed(sounds, AudioPreparation())) == ["input_values"]


def test_longer_than_the_window():
    with pytest.raises(FeedError, match=r"a sound is 2\.1 s, the window 2 s") as caught:
        audio_feed([np.zeros(33600, np.float32)], MEL)
    assert caught.value.hint == "Cut it in pieces."


@pytest.mark.parametrize("said", [WAVE, MEL])
@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros((2, 8), np.float32), r"float32\[2, 8\], expected float32\[samples\]"),
        (np.zeros(8, np.int16), r"int16\[8\], expected float32\[samples\]"),
        (np.zeros(0, np.float32), r"float32\[0\], expected"),
        (np.array([0.0, np.inf]), "holds NaN or infinity"),
    ],
)
def test_what_is_no_sound(said, sound, message):
    with pytest.raises(FeedError, match=message):
        audio_feed([sound], said)
