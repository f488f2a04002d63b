"""Whisper's windows and tokens: those of transformers' ``generate``, on tiny random models."""

import numpy as np
import pytest
import torch
from support.speech import END, START, WHISPER_BINS, whisper_model
from support.transcribing import features, generated, same, transcriber
from transformers import WhisperFeatureExtractor

from tfx.errors import FeedError
from tfx.processing import Dictation
from tfx.runtime.speech.wishes import Wishes


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Threads cost more than they bring where every product is tiny.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("seed", "times"), [(0, 1.0), (1, 2.0)])
def test_a_short_sound_is_written_as_transformers_does(seed, times, rng):
    model, heard = whisper_model(seed, times), features(rng, 100)
    for stamps in (False, True):
        for language, task in (("en", "transcribe"), ("de", "translate"), (None, "transcribe")):
            theirs = generated(model, heard, language=language, task=task, return_timestamps=stamps)
            wishes = Wishes(language=language, task=task, timestamps=stamps)
            ((found, ours),) = transcriber(model).listen([heard], wishes)
            same(ours, theirs)
            assert language is None or found == language


@pytest.mark.parametrize(
    ("seed", "times"), [(0, 1.0), (0, 1.5), (1, 1.5), (2, 2.0), (3, 1.0), (3, 2.0)]
)
def test_a_long_sound_is_written_as_transformers_does(seed, times, rng):
    model, heard = whisper_model(seed, times), features(rng, 337)
    theirs = generated(model, heard, language="en", task="transcribe", return_timestamps=True)
    ((_, ours),) = transcriber(model).listen([heard], Wishes(language="en"))
    same(ours, theirs)
    assert len(ours) >= 4


@pytest.mark.parametrize("language", ["en", None])
def test_sounds_together_are_written_as_each_alone(language, rng):
    model = whisper_model(3, 1.5)
    sounds = [features(rng, frames) for frames in (100, 337, 60, 100, 210)]
    one, wishes = transcriber(model), Wishes(language=language)
    found = one.listen(sounds, wishes)
    alone = [transcriber(model).listen([heard], wishes)[0] for heard in sounds]
    assert [(spoken, [part.tokens for part in parts]) for spoken, parts in found] == [
        (spoken, [part.tokens for part in parts]) for spoken, parts in alone
    ]
    # Three at a time at most; those with times and those without apart.
    assert one._scribe.heard_rows[:2] == [3, 2]
    theirs = generated(
        model, sounds[1], language=language, task="transcribe", return_timestamps=True
    )
    same(found[1][1], theirs)


def test_without_times_windows_do_not_overlap(rng):
    model, heard = whisper_model(1), features(rng, 230)
    said = Dictation(START, END, window=100)
    ((_, found),) = transcriber(model, said).listen([heard], Wishes(max_new_tokens=5))
    assert [(one.start_s, one.end_s) for one in found] == [(0, 1), (1, 2), (2, pytest.approx(2.3))]
    assert [len(one.tokens) for one in found] == [5, 5, 5]


def sound(rng, seconds):
    return (rng.normal(size=int(seconds * 16000)) * 0.1).astype(np.float32)


def test_a_transcript_has_text_language_and_parts(rng):
    model, heard = whisper_model(0), sound(rng, 2.5)
    done = []
    one = transcriber(model)
    (found,) = one.transcribe([heard], Wishes(timestamps=True), done.append)
    assert found.language in ("en", "de")
    assert " ".join(part.text for part in found.segments if part.text) == found.text
    assert all(0 <= part.start_s <= part.end_s for part in found.segments)
    assert {int(word) for word in found.text.split()} <= set(range(END))
    assert sum(done) == pytest.approx(2.5)
    (again,) = one.transcribe([heard])
    assert again.segments == ()
    assert again.text == found.text


def test_features_of_a_long_sound_are_transformers(rng):
    heard = sound(rng, 2.5)
    extractor = WhisperFeatureExtractor(feature_size=WHISPER_BINS, chunk_length=1)
    theirs = extractor(
        heard, sampling_rate=16000, return_tensors="np", truncation=False, padding="longest"
    )["input_features"][0]
    ours = transcriber(whisper_model())._features(heard)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"language": "xx"}, "language is 'xx', the model knows de, en"),
        ({"task": "sing"}, "task is 'sing', expected one of transcribe, translate"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected 1 or more"),
    ],
)
def test_what_no_model_does(wishes, message, rng):
    with pytest.raises(FeedError, match=message):
        transcriber(whisper_model()).transcribe([sound(rng, 0.5)], Wishes(**wishes))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"language": "en"}, "language is 'en', the model knows one language alone"),
        ({"task": "translate"}, "task is 'translate', and the model does only transcribe"),
        ({"timestamps": True}, "timestamps are asked of a model that knows no times"),
    ],
)
def test_what_a_model_of_one_language_does_not(wishes, message, rng):
    plain = transcriber(whisper_model(), Dictation(START, END, window=100))
    with pytest.raises(FeedError, match=message):
        plain.transcribe([sound(rng, 0.5)], Wishes(**wishes))
    assert plain.transcribe([sound(rng, 0.5)])[0].language == ""
