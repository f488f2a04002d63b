"""Texts that went wrong are drawn again: when, as transformers decides it, and how often."""

import pytest
import torch
from support.speech import END, START, whisper_model
from support.transcribing import features, transcriber
from transformers import WhisperForConditionalGeneration

from tfx.errors import FeedError
from tfx.processing import Dictation
from tfx.runtime.speech.fallback import Fallback, compression_ratio
from tfx.runtime.speech.wishes import Wishes

# Random models write what no threshold lets through, or everything.
NEVER = {"compression_ratio": 1e9, "log_probability": -1e9}
ALWAYS = {"compression_ratio": 0.0}
PLAIN = Dictation(START, END, window=100)


@pytest.mark.parametrize("vocabulary", [138, 51865, 70000])
def test_the_ratio_of_transformers(vocabulary, rng):
    for tokens in ([5] * 50, rng.integers(0, vocabulary, 40).tolist(), [1]):
        theirs = WhisperForConditionalGeneration._retrieve_compression_ratio(
            torch.tensor(tokens), vocabulary
        )
        assert compression_ratio(tokens, vocabulary) == theirs


def tried(model, heard, fallback):
    """What is written without times, and which windows were, each time."""
    one = transcriber(model, PLAIN)
    starts, run = [], one._scribe.start

    def noted(ids, windows):
        if ids.shape[1] == 1:  # what a text begins with
            starts.append(list(windows))
        return run(ids, windows)

    one._scribe.start = noted
    return one.listen(heard, Wishes(max_new_tokens=8, fallback=fallback)), starts


def test_a_good_text_is_kept(rng):
    model, heard = whisper_model(1, 0.0), [features(rng, 100)]
    found, starts = tried(model, heard, Fallback((0.0, 1.0), **NEVER))
    assert found == transcriber(model, PLAIN).listen(heard, Wishes(max_new_tokens=8))
    assert starts == [[0]]


def test_a_wrong_text_is_drawn_again_and_the_last_is_kept(rng):
    model, heard = whisper_model(1, 0.0), [features(rng, 100), features(rng, 80)]
    found, starts = tried(model, heard, Fallback((0.0, 0.5, 1.0), **ALWAYS))
    assert starts == [[0, 1]] * 3
    assert found != transcriber(model, PLAIN).listen(heard, Wishes(max_new_tokens=8))
    again, _ = tried(model, heard, Fallback((0.0, 0.5, 1.0), **ALWAYS))
    assert again == found
    other, _ = tried(model, heard, Fallback((0.0, 0.5, 1.0), seed=1, **ALWAYS))
    assert other != found
    alone, _ = tried(model, heard[1:], Fallback((0.0, 0.5, 1.0), **ALWAYS))
    assert alone == found[1:]


def test_the_mean_is_of_every_token(rng):
    told = []

    class Noting(Fallback):
        def refuses(self, tokens, vocabulary, log_probability):
            told.append((tokens, log_probability))
            return False

    model, heard = whisper_model(3, 0.0), features(rng, 100)
    wishes = Wishes(max_new_tokens=8, fallback=Noting((0.0,)))
    transcriber(model, PLAIN).listen([heard], wishes)
    ((tokens, mean),) = told
    with torch.no_grad():
        logits = model(
            torch.from_numpy(heard[None]), decoder_input_ids=torch.tensor([[START, *tokens[:-1]]])
        ).logits
    chances = logits[0].log_softmax(-1)[range(len(tokens)), tokens]
    assert mean == pytest.approx(float(chances.mean()), rel=1e-4)


@pytest.mark.parametrize("temperatures", [(), (0.0, -0.1), (float("nan"),), (float("inf"),)])
def test_temperatures_that_are_none(temperatures):
    with pytest.raises(FeedError, match=r"temperatures are .*, expected one or more of 0 or above"):
        Fallback(temperatures)


def test_times_that_do_not_go_on_end(rng):
    # At a high temperature, and without times, two times of 0 may be all that is written.
    model = whisper_model(1, 0.0)
    one = transcriber(model)
    zero = one._writing.no_times + 1
    one._write = lambda *_: [[zero, zero]]
    ((_, found),) = one.listen([features(rng, 100)], Wishes(language="en"))
    assert len(found) == 1


def test_thresholds_that_are_none():
    with pytest.raises(FeedError) as caught:
        Fallback(compression_ratio=float("nan"), log_probability=float("nan"), seed=-1)
    assert str(caught.value).splitlines() == [
        "a text cannot be tried again like this:",
        "  compression_ratio is nan, expected a number",
        "  log_probability is nan, expected a number",
        "  seed is -1, expected 0 or more",
    ]
    assert caught.value.hint == "Leave out what is to be as transformers has it."
