"""A checkpoint's feature extractor and CTC vocabulary: what is carried over, and what is not."""

import json

import pytest
import transformers
from support.speech import CTC_TOKENS, write_ctc_tokenizer

from tfx.dtypes import DType
from tfx.errors import SourceError
from tfx.export.checkpoint import audio
from tfx.export.checkpoint.audio import read_audio, read_transcription
from tfx.processing import AudioFeatures, AudioPreparation, Transcription
from tfx.signature import Signature, TensorSpec

WHISPER = {"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 2}
WAV2VEC2 = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True}
MEL = AudioPreparation("input_features", AudioFeatures.LOG_MEL, seconds=2)
LOGITS = ("batch", "frames", len(CTC_TOKENS))


def hears(*names, mel=(80, 200), logits=LOGITS):
    shapes = {
        "input_values": ("batch", "samples"),
        "attention_mask": ("batch", "samples"),
        "input_features": ("batch", *mel),
    }
    inputs = [TensorSpec(name, DType.FLOAT32, shapes.get(name, ("batch", 3))) for name in names]
    return Signature(tuple(inputs), (TensorSpec("logits", DType.FLOAT32, logits),), {})


@pytest.fixture
def checkpoint(tmp_path):
    def write(config, name="preprocessor_config.json"):
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("config", "signature", "said"),
    [
        (WHISPER, hears("input_features"), MEL),
        (
            WHISPER | {"feature_size": 128, "hop_length": 200, "n_fft": 512},
            hears("input_features", mel=(128, 160)),
            AudioPreparation(
                "input_features", AudioFeatures.LOG_MEL, seconds=2, fft=512, hop=200, mel_bins=128
            ),
        ),
        (
            WAV2VEC2,
            hears("input_values", "attention_mask"),
            AudioPreparation(normalize=True, mask="attention_mask"),
        ),
        (
            WAV2VEC2 | {"do_normalize": False, "sampling_rate": 8000, "padding_value": 1.0},
            hears("input_values"),
            AudioPreparation(rate=8000, padding=1.0),
        ),
        (
            {"feature_extractor_type": "SpeechT5FeatureExtractor"},
            hears("input_values", "attention_mask"),
            AudioPreparation(mask="attention_mask"),
        ),
    ],
    ids=["whisper", "whisper, other frames", "wav2vec2", "wav2vec2, as it is", "speecht5"],
)
def test_what_is_carried_over(config, signature, said, checkpoint):
    notes = []
    assert read_audio(checkpoint(config), signature, notes) == said
    assert notes == []


@pytest.mark.parametrize(
    ("config", "signature"),
    [
        (WHISPER | {"dither": 1.0}, hears("input_features")),
        (WHISPER, hears("input_features", mel=(80, 100))),
        (WHISPER, hears("input_features", mel=(40, 200))),
        (
            {"feature_extractor_type": "Speech2TextFeatureExtractor"},
            hears("input_features", mel=("frames", 80)),
        ),
    ],
    ids=["noise", "a shorter window", "other bands", "kaldi's bands"],
)
def test_what_is_not_known_is_not_carried_and_said(config, signature, checkpoint):
    notes = []
    assert read_audio(checkpoint(config), signature, notes) is None
    assert notes == [
        f"{config['feature_extractor_type']} does more than is known here: "
        "predict takes arrays, not sound"
    ]


def test_an_extractor_that_makes_something_else_is_not_carried(checkpoint, monkeypatch):
    other = audio.audio_feed

    def louder(sounds, said):
        return {name: array * 1.001 for name, array in other(sounds, said).items()}

    monkeypatch.setattr(audio, "audio_feed", louder)
    assert read_audio(checkpoint(WAV2VEC2), hears("input_values"), []) is None


def test_a_model_that_hears_nothing_is_left_alone(checkpoint):
    notes = []
    assert read_audio(checkpoint(WAV2VEC2), hears("input_ids"), notes) is None
    assert notes == []


def test_without_an_extractor_a_note_says_so(tmp_path):
    notes = []
    assert read_audio(tmp_path, hears("input_values"), notes) is None
    assert notes == ["the checkpoint has no feature extractor: predict takes arrays, not sound"]


def test_a_damaged_extractor(checkpoint):
    with pytest.raises(SourceError, match="cannot load the feature extractor of"):
        read_audio(checkpoint("{"), hears("input_values"), [])


CONFIG = transformers.Wav2Vec2Config(vocab_size=len(CTC_TOKENS))


@pytest.mark.parametrize("lower", [False, True])
def test_the_vocabulary_of_a_ctc_head(lower, tmp_path):
    write_ctc_tokenizer(tmp_path, do_lower_case=lower)
    notes = []
    said = read_transcription(tmp_path, CONFIG, hears("input_values"), notes)
    assert said == Transcription("logits", CTC_TOKENS, 0, "|", lower, hop=320)
    assert notes == []


def test_tokens_the_tokenizer_does_not_know_are_unknown(tmp_path):
    write_ctc_tokenizer(tmp_path)
    signature = hears("input_values", logits=("batch", "frames", len(CTC_TOKENS) + 2))
    said = read_transcription(tmp_path, CONFIG, signature, [])
    assert said.tokens == (*CTC_TOKENS, "<unk>", "<unk>")


def test_other_spelling_is_not_carried_and_said(tmp_path):
    write_ctc_tokenizer(tmp_path, replace_word_delimiter_char="_")
    notes = []
    assert read_transcription(tmp_path, CONFIG, hears("input_values"), notes) is None
    assert notes == [
        "Wav2Vec2CTCTokenizer does more than is known here: predict gives logits, not text"
    ]


def test_without_a_vocabulary_a_note_says_so(tmp_path):
    notes = []
    assert read_transcription(tmp_path, CONFIG, hears("input_values"), notes) is None
    assert notes == ["the checkpoint has no CTC vocabulary: predict gives logits, not text"]


def test_a_damaged_vocabulary(tmp_path):
    write_ctc_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[")
    with pytest.raises(SourceError, match="cannot load the tokenizer of"):
        read_transcription(tmp_path, CONFIG, hears("input_values"), [])


def test_what_is_no_ctc_is_left_alone(tmp_path):
    notes = []
    for signature in (hears("input_ids"), hears("input_values", logits=("batch", 5))):
        assert read_transcription(tmp_path, CONFIG, signature, notes) is None
    assert notes == []
