"""Streams of texts: order, how far ahead is read, what stops them, and what they leave behind."""

import itertools
import threading
import time

import numpy as np
import pytest
from support.bundles import write_bundle
from support.texts import MEAN, tokenizer_json, write_classifier, write_reader, write_text_bundle

import tfx
from tfx.errors import BackendError, FeedError
from tfx.runtime.backend import best_streams
from tfx.runtime.text import stream
from tfx.runtime.text.tokenizer import TextError

TEXTS = [" ".join(["good"] * n + ["film"]) for n in (3, 1, 9, 0, 5, 12, 2) * 9]


@pytest.fixture
def embedder(tmp_path):
    with tfx.open_session(write_text_bundle(tmp_path / "embedder", embedding=MEAN)) as session:
        yield session


def assert_none_left():
    """No thread of a stream; one that was left has a moment to end."""
    until = time.monotonic() + 10
    while left := [one.name for one in threading.enumerate() if one.name.startswith("tfx-")]:
        assert time.monotonic() < until, left
        time.sleep(0.01)


@pytest.mark.parametrize("size", [1, 5, 63, 512])
def test_answers_are_those_of_predict_in_order(embedder, monkeypatch, size):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", size)
    found = list(embedder.map(iter(TEXTS)))
    np.testing.assert_allclose(found, embedder.predict(TEXTS), rtol=1e-5, atol=1e-6)
    assert embedder.report.texts == 2 * len(TEXTS)
    assert_none_left()


def test_streams_give_the_same(tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 8)
    with tfx.open_session(embedder.bundle, threads=2, streams=2) as session:
        assert (session.report.facts.threads, session.report.facts.streams) == (1, 2)
        np.testing.assert_allclose(
            list(session.map(TEXTS)), embedder.predict(TEXTS), rtol=1e-5, atol=1e-6
        )


def test_nothing_gives_nothing(embedder):
    assert list(embedder.map([])) == []
    assert_none_left()


@pytest.mark.parametrize("texts", ["a text", b"a text", {"a": "text"}, 5, None])
def test_one_text_is_no_stream(embedder, texts):
    with pytest.raises(FeedError, match="expected an iterable of texts") as caught:
        embedder.map(texts)
    assert caught.value.hint == "Put a single text in a list, or use predict."


def test_no_more_is_read_than_is_needed(embedder, monkeypatch):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 4)
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield "good film"

    answers = embedder.map(endless())
    for given in range(1, 50):
        next(answers)
        assert len(taken) <= 4 * (given // 4 + 2 + stream.STRETCHES_AHEAD)
    answers.close()
    assert_none_left()


def test_answers_that_are_there_do_not_wait_for_a_slow_source(embedder, monkeypatch):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 2)
    done = threading.Event()
    monkeypatch.setattr(stream.Stretch, "is_done", lambda self: done.is_set())

    def source():
        yield "good"
        yield "film"
        done.set()
        yield "bad"
        pytest.fail("read on instead of giving what is there")

    assert len(next(embedder.map_stretches(source()))) == 2


def test_progress_is_told_in_the_callers_thread(embedder, monkeypatch):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 25)
    told = []

    def tell(count):
        told.append((count, threading.current_thread()))

    list(embedder.map(TEXTS, on_progress=tell))
    assert told == [(25, threading.main_thread()), (25, threading.main_thread()), (13, told[2][1])]


def test_a_source_that_fails(embedder, monkeypatch):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 2)

    def source():
        yield from ["good", "bad", "film"]
        raise OSError("the disk is gone")

    answers = embedder.map(source())
    found = list(itertools.islice(answers, 3))
    np.testing.assert_allclose(found, embedder.predict(["good", "bad", "film"]), rtol=1e-5)
    with pytest.raises(OSError, match="the disk is gone"):
        next(answers)
    assert_none_left()


def test_a_text_that_cannot_be_read_comes_after_those_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 4)
    bundle = write_text_bundle(
        tmp_path / "b", tokenizer=tokenizer_json(special=False), embedding=MEAN
    )
    with tfx.open_session(bundle) as session:
        answers = session.map(["a"] * 6 + ["", "a"])
        assert len(list(itertools.islice(answers, 6))) == 6
        with pytest.raises(TextError, match=r"texts\[6\]: has no tokens") as caught:
            next(answers)
        assert list(caught.value.problems) == [6]
        assert session.report.texts == 6
        with pytest.raises(TextError, match=r"texts\[0\]: got int"):
            list(session.map([3, "a"]))
    assert_none_left()


def test_a_run_that_fails(embedder, monkeypatch):
    def broken(feed):
        raise BackendError("out of memory")

    monkeypatch.setattr(embedder._executable, "run", broken)
    with pytest.raises(BackendError, match="out of memory"):
        list(embedder.map(TEXTS))
    assert_none_left()


def test_a_stream_of_a_closed_session(embedder):
    answers = embedder.map(TEXTS)
    embedder.close()
    with pytest.raises(BackendError, match="session is closed"):
        list(answers)
    with pytest.raises(BackendError, match="session is closed"):
        embedder.map(TEXTS)
    assert_none_left()


def test_a_bundle_that_takes_no_text(tmp_path):
    with (
        tfx.open_session(write_bundle(tmp_path / "arrays")) as session,
        pytest.raises(FeedError, match="arrays has no tokenizer"),
    ):
        list(session.map(["a"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 0}, "streams is 0, expected 1 or more"),
        ({"streams": 3}, "streams is 3, expected 1 to 2, one thread each"),
        ({"streams": 2, "backend": "torch"}, "torch on cpu runs in one stream here, not in 2"),
    ],
)
def test_streams_that_cannot_be(tmp_path, options, message):
    bundle = write_bundle(tmp_path / "b")
    with pytest.raises(BackendError, match=message):
        tfx.open_session(bundle, threads=2, **options)


@pytest.mark.parametrize(
    ("backend", "threads", "streams"),
    [("onnxruntime", 2, 2), ("onnxruntime", 1, 1), ("openvino", 9, 4), ("torch", 2, 1)],
)
def test_as_many_streams_as_are_best(backend, threads, streams):
    assert best_streams(backend, "cpu", threads) == streams
    assert best_streams(backend, "cuda:0", threads) == 1


def test_none_is_as_many_as_are_best(tmp_path):
    with tfx.open_session(write_bundle(tmp_path / "b"), threads=2, streams=None) as session:
        assert session.report.facts.streams == 2


# Texts longer than the model takes.

LONG = " ".join(["good", "bad", "film", "not"] * 12)  # 48 tokens; the model takes 16 with 2 special


def windows(text, room, overlap):
    words = text.split(" ")
    firsts = range(0, len(words), room - overlap)
    found = [words[first : first + room] for first in firsts if first + room < len(words)]
    return [" ".join(one) for one in [*found, words[-room:]]]


def test_an_embedding_is_the_mean_over_windows(embedder):
    parts = embedder.predict(windows(LONG, 14, 7))
    mean = parts.mean(axis=0)
    found = embedder.predict([LONG, "good"], long="windows")
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], embedder.predict("good"), rtol=1e-5)
    assert embedder.report.windowed == 1
    assert embedder.report.truncated == 0
    (streamed,) = embedder.map([LONG], long="windows")
    np.testing.assert_allclose(streamed, found[0], rtol=1e-5, atol=1e-6)


def test_a_label_is_of_the_mean_of_scores(tmp_path):
    with tfx.open_session(write_classifier(tmp_path / "c", labels=("a", "b", "c"))) as session:
        parts = session.predict(windows(LONG, 14, 7))
        answer = session.predict(LONG, long="windows")
    mean = np.mean([part.scores for part in parts], axis=0)
    assert answer.scores == pytest.approx(tuple(mean), rel=1e-5)
    assert answer.label == "abc"[int(mean.argmax())]


@pytest.mark.parametrize("count", [14, 15, 21, 22, 48])
def test_every_token_of_a_long_text_has_one_label(tmp_path, count):
    bundle = write_classifier(tmp_path / "c", labels=("O", "A", "N"), per_token=True)
    text = " ".join(LONG.split(" ")[:count])
    with tfx.open_session(bundle) as session:
        labels = session.predict(text, long="windows")
        alone = {word: session.predict(word)[0].label for word in set(text.split(" "))}
        pair = session.predict(("very", text), long="windows")
    assert " ".join(one.text for one in labels) == text
    assert [one.label for one in labels] == [alone[one.text] for one in labels]
    assert [(one.part, one.text) for one in pair] == [(0, "very")] + [(1, o.text) for o in labels]


def test_a_label_comes_from_the_window_with_most_around_it():
    from tfx.runtime.text.answers import TokenLabel, joined_tokens
    from tfx.runtime.text.tokenizer import Encoded, Span

    def window(name, skipped):
        spans = tuple(Span(place + 1, 0, 0, 1) for place in range(6))
        labels = [TokenLabel(name, 1.0, "x", 0, 1) for _ in spans]
        return labels, Encoded(np.zeros(8), np.zeros(8), False, spans, skipped)

    first, second = window("first", 0), window("second", 3)
    found = joined_tokens([first[0], second[0]], [first[1], second[1]])
    assert [one.label for one in found] == ["first"] * 5 + ["second"] * 4


def test_outputs_of_windows_cannot_be_joined(tmp_path):
    with (
        tfx.open_session(write_text_bundle(tmp_path / "b")) as session,
        pytest.raises(FeedError, match="b gives outputs for tokens, and those of windows") as e,
    ):
        session.predict(LONG, long="windows")
    assert e.value.hint == "Use long='truncate'."


def test_what_else_can_be_done_with_long_texts(embedder):
    with pytest.raises(FeedError, match="long is 'cut', expected one of truncate, windows"):
        embedder.predict("a", long="cut")


def test_a_first_text_that_leaves_no_room(embedder):
    with pytest.raises(TextError, match="has 17 tokens that every window must hold") as caught:
        embedder.predict([(" ".join(["very"] * 14), "good")], long="windows")
    assert caught.value.hint == "Shorten it, or use long='truncate'."


def test_a_context_is_read_in_windows_whatever_is_asked(tmp_path):
    with tfx.open_session(write_reader(tmp_path / "reader")) as session:
        asked = ("good", LONG)
        assert session.predict(asked) == session.predict(asked, long="windows")
        assert session.report.windowed == 2
