"""Requests of many threads: merged, in order, bounded, and none lost, whatever one of them does."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
from support.bundles import write_bundle
from support.texts import MEAN, tokenizer_json, write_classifier, write_text_bundle
from support.valve import LIMIT_S, Valve, settled

import tfx
from tfx.errors import BackendError, FeedError, QueueFullError
from tfx.runtime.text.batcher import Batching
from tfx.runtime.text.tokenizer import TextError

TEXTS = [" ".join(["good"] * n + ["film"]) for n in (3, 1, 9, 0, 5, 12, 2) * 9]


@pytest.fixture
def embedder(tmp_path):
    with tfx.open_session(write_text_bundle(tmp_path / "embedder", embedding=MEAN)) as session:
        yield session


def answer(future):
    return future.result(LIMIT_S)


def feed(rows, tokens=3):
    ids = np.arange(rows * tokens).reshape(rows, tokens) % 60
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


# Answers.


def test_answers_are_those_of_predict(embedder):
    futures = [embedder.predict_async(text) for text in TEXTS]
    np.testing.assert_allclose(
        [answer(one) for one in futures], embedder.predict(TEXTS), rtol=1e-5, atol=1e-6
    )
    assert embedder.report.texts == 2 * len(TEXTS)


@pytest.mark.parametrize("inputs", [["good film", "bad"], [("good", "film")], ("good", "film")])
def test_lists_and_pairs(embedder, inputs):
    found = answer(embedder.predict_async(inputs))
    expected = embedder.predict(inputs)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_arrays(embedder):
    futures = [embedder.predict_async(feed(rows, tokens)) for rows in (1, 2) for tokens in (3, 4)]
    for future, (rows, tokens) in zip(futures, [(1, 3), (1, 4), (2, 3), (2, 4)], strict=True):
        np.testing.assert_array_equal(
            answer(future)["last_hidden_state"],
            embedder.predict(feed(rows, tokens))["last_hidden_state"],
        )


def test_long_texts_in_windows(embedder):
    long = "good bad film " * 20
    futures = [embedder.predict_async(long, long="windows"), embedder.predict_async(long)]
    for future, how in zip(futures, ["windows", "truncate"], strict=True):
        np.testing.assert_allclose(answer(future), embedder.predict(long, long=how), rtol=1e-5)
    assert (embedder.report.windowed, embedder.report.truncated) == (2, 2)


def test_coroutines(embedder):
    async def ask():
        return await asyncio.gather(
            *(asyncio.wrap_future(embedder.predict_async(text)) for text in TEXTS)
        )

    np.testing.assert_allclose(asyncio.run(ask()), embedder.predict(TEXTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("streams", [1, 2])
def test_64_threads_lose_nothing(tmp_path, streams):
    bundle = write_classifier(tmp_path / "c", labels=("a", "b", "c"))
    found = {}
    with tfx.open_session(bundle, threads=2, streams=streams) as session:
        expected = session.predict(TEXTS)

        def client(name):
            mine = TEXTS[name % 7 :: 7]
            found[name] = (
                [answer(session.predict_async(text)) for text in mine],
                [session.predict(text) for text in mine[:2]],
            )

        threads = [threading.Thread(target=client, args=(name,)) for name in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert session.report.texts == len(TEXTS) + 64 * 9 + 64 * 2
    for name in range(64):
        asked, predicted = found[name]
        for one, other in zip(asked, expected[name % 7 :: 7], strict=True):
            assert one.scores == pytest.approx(other.scores, rel=1e-5)
        assert len(predicted) == 2


# Merging.


def test_what_comes_during_a_run_is_merged(embedder, monkeypatch):
    valve = Valve(embedder, monkeypatch, shut=True)
    first = embedder.predict_async("bad")
    valve.wait_for_a_run()
    others = [embedder.predict_async("good film") for _ in range(10)]
    settled(embedder)
    valve.open()
    wait([first, *others], LIMIT_S)
    assert valve.rows == [1, 10]


def test_feeds_are_merged_where_their_other_axes_are_equal(embedder, monkeypatch):
    valve = Valve(embedder, monkeypatch, shut=True)
    first = embedder.predict_async("bad")
    valve.wait_for_a_run()
    futures = [embedder.predict_async(feed(2, tokens)) for tokens in (3, 4, 3, 4, 3)]
    settled(embedder)
    valve.open()
    wait([first, *futures], LIMIT_S)
    assert valve.rows == [1, 6, 4]
    assert answer(futures[0])["last_hidden_state"].base is None  # does not keep the batch alive


def test_no_batch_is_larger_than_the_model_takes(embedder, monkeypatch):
    valve = Valve(embedder, monkeypatch, shut=True)
    futures = [embedder.predict_async("bad")]
    valve.wait_for_a_run()
    futures += [embedder.predict_async("good film") for _ in range(40)]
    settled(embedder)
    valve.open()
    wait(futures, LIMIT_S)
    assert valve.rows == [1, 16, 16, 8]  # the signature admits 16


def test_a_request_waits_for_others_no_longer_than_it_was_told(tmp_path, monkeypatch):
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    patient = Batching(max_wait_ms=3_600_000, max_rows=3)
    with tfx.open_session(bundle, batching=patient) as session:
        valve = Valve(session, monkeypatch)
        futures = [session.predict_async("good") for _ in range(3)]
        wait(futures, LIMIT_S)  # full: nobody waits for an hour
        assert valve.rows == [3]
        last = session.predict_async("bad")
        settled(session)
        assert not last.done()
    assert answer(last).shape == (8,)  # close does not wait for others either
    with tfx.open_session(bundle, batching=Batching(max_wait_ms=1)) as session:
        assert answer(session.predict_async("bad")).shape == (8,)


def test_a_long_text_does_not_starve(embedder, monkeypatch):
    """Short ones keep coming; the long one runs when it is the oldest."""
    valve = Valve(embedder, monkeypatch, shut=True)
    embedder.predict_async("bad")
    valve.wait_for_a_run()
    futures = [embedder.predict_async("good") for _ in range(16)]
    long = embedder.predict_async("very " * 14)
    later = [embedder.predict_async("good") for _ in range(32)]
    settled(embedder)
    order = []
    long.add_done_callback(lambda future: order.append("long"))
    later[-1].add_done_callback(lambda future: order.append("last short"))
    valve.open()
    wait([*futures, long, *later], LIMIT_S)
    assert order == ["long", "last short"]


# What goes wrong.


def test_a_bad_request_fails_alone(embedder, monkeypatch):
    valve = Valve(embedder, monkeypatch, shut=True)
    embedder.predict_async("bad")
    valve.wait_for_a_run()
    good = [embedder.predict_async(text) for text in TEXTS[:5]]
    bad = [
        embedder.predict_async(["good", "half \ud800"]),
        embedder.predict_async([3]),
        embedder.predict_async({"input_ids": np.ones((1, 3), np.int64)}),
    ]
    more = [embedder.predict_async(feed(1)), embedder.predict_async("film")]
    settled(embedder)
    valve.open()
    for future, message in zip(
        bad,
        [
            r"texts\[1\]: is not Unicode",
            r"texts\[0\]: got int",
            "attention_mask: missing",
        ],
        strict=True,
    ):
        with pytest.raises(FeedError, match=message):
            answer(future)
    np.testing.assert_allclose(
        [answer(one) for one in good], embedder.predict(TEXTS[:5]), rtol=1e-5, atol=1e-6
    )
    for future in more:
        answer(future)


def test_a_text_without_tokens_fails_alone(tmp_path):
    bundle = write_text_bundle(
        tmp_path / "b", tokenizer=tokenizer_json(special=False), embedding=MEAN
    )
    with tfx.open_session(bundle) as session:
        futures = [session.predict_async(text) for text in ("a", "", "b")]
        assert [future.exception(LIMIT_S) is None for future in futures] == [True, False, True]
        assert isinstance(futures[1].exception(), TextError)
        assert session.report.texts == 2


def test_one_that_makes_the_model_fail_fails_alone(embedder, monkeypatch):
    run = embedder._executable.run
    ready = threading.Event()

    def picky(feed):
        assert ready.wait(LIMIT_S)
        if (feed["input_ids"] == 7).any():  # "bad"
            raise BackendError("overflow")
        return run(feed)

    monkeypatch.setattr(embedder._executable, "run", picky)
    texts = ["good", "film", "bad", "very", "not"]
    futures = [embedder.predict_async(text) for text in texts]
    settled(embedder)
    ready.set()
    failed = [text for text, one in zip(texts, futures, strict=True) if one.exception(LIMIT_S)]
    assert failed == ["bad"]


@pytest.mark.parametrize("inputs", [3, None, b"a", np.zeros(3)])
def test_inputs_of_another_kind(embedder, inputs):
    with pytest.raises(FeedError, match="expected arrays by name, a text or a list of texts"):
        embedder.predict_async(inputs)


def test_an_empty_list(embedder):
    with pytest.raises(FeedError, match="got an empty list, expected at least one text"):
        embedder.predict_async([])


def test_texts_for_a_bundle_without_tokenizer(tmp_path):
    with tfx.open_session(write_bundle(tmp_path / "arrays")) as session:
        with pytest.raises(FeedError, match="arrays has no tokenizer"):
            answer(session.predict_async("a"))
        assert answer(session.predict_async(feed(2)))["last_hidden_state"].shape == (2, 3, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_wait_ms": -1}, "max_wait_ms is -1, expected 0 or more"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is nan, expected 0 or more"),
        ({"max_wait_ms": float("inf")}, "max_wait_ms is inf, expected 0 or more, and finite"),
        ({"max_wait_ms": "5"}, "max_wait_ms is '5', expected 0 or more, and finite"),
        ({"max_rows": 0}, "max_rows is 0, expected 1 or more"),
        ({"max_rows": 2.5}, "max_rows is 2.5, expected a whole number"),
        ({"max_tokens": 0}, "max_tokens is 0, expected 1 or more"),
        ({"max_queue": 0}, "max_queue is 0, expected 1 or more"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(BackendError, match=message):
        Batching(**settings)


# The queue's bound, and leaving it.


@pytest.fixture
def full(tmp_path, monkeypatch):
    """A session whose model is held, with one request that runs and three that wait of three."""
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    session = tfx.open_session(bundle, batching=Batching(max_queue=3, max_rows=1))
    valve = Valve(session, monkeypatch, shut=True)
    running = session.predict_async("good")
    valve.wait_for_a_run()
    queued = [session.predict_async(text) for text in ("bad", "film", "very")]
    yield session, valve, running, queued
    valve.open()
    session.close()


def test_a_full_queue_refuses(full):
    session, valve, running, queued = full
    with pytest.raises(QueueFullError, match="3 of at most 3 texts or feeds wait, got 2") as caught:
        session.predict_async(["a", "b"])
    assert caught.value.hint == "Wait for answers before asking again, or raise max_queue."
    valve.open()
    wait([running, *queued], LIMIT_S)
    assert answer(session.predict_async("a")).shape == (8,)


def test_who_cancels_does_not_run_and_makes_room(full):
    session, valve, running, queued = full
    assert not running.cancel()
    settled(session)
    assert queued[1].cancel()
    late = session.predict_async("not")
    valve.open()
    with pytest.raises(CancelledError):
        queued[1].result(LIMIT_S)
    wait([running, queued[0], queued[2], late], LIMIT_S)
    assert len(valve.rows) == 4
    assert answer(late).shape == (8,)


def test_close_waits_for_what_was_accepted(full):
    session, valve, running, queued = full
    closer = threading.Thread(target=session.close)
    closer.start()
    with session._batcher._changed:
        assert session._batcher._changed.wait_for(lambda: session._batcher._closing, LIMIT_S)
    with pytest.raises(BackendError, match="session is closed"):
        session.predict_async("a")
    valve.open()
    closer.join(LIMIT_S)
    assert not closer.is_alive()
    assert [answer(one).shape for one in (running, *queued)] == [(8,)] * 4


def test_close_may_drop_what_does_not_run(full):
    session, valve, running, queued = full
    settled(session)
    closer = threading.Thread(target=lambda: session.close(drop=True))
    closer.start()
    for future in queued:  # though the one that runs is not done
        with pytest.raises(BackendError, match="session is closed"):
            answer(future)
    valve.open()
    closer.join(LIMIT_S)
    assert answer(running).shape == (8,)


def test_close_drops_what_is_being_read(tmp_path, monkeypatch):
    session = tfx.open_session(write_text_bundle(tmp_path / "b", embedding=MEAN))
    read, reading, goes_on = session._texts.read, threading.Event(), threading.Event()

    def slowly(*texts):
        reading.set()
        assert goes_on.wait(LIMIT_S)
        return read(*texts)

    monkeypatch.setattr(session._texts, "read", slowly)
    valve = Valve(session, monkeypatch)
    future = session.predict_async("good")
    assert reading.wait(LIMIT_S)
    closer = threading.Thread(target=lambda: session.close(drop=True))
    closer.start()
    with session._batcher._changed:
        assert session._batcher._changed.wait_for(lambda: session._batcher._closing, LIMIT_S)
    goes_on.set()
    with pytest.raises(BackendError, match="session is closed"):
        answer(future)
    closer.join(LIMIT_S)
    assert not closer.is_alive()
    assert valve.rows == []


def test_an_error_in_the_with_block_drops_what_does_not_run(tmp_path, monkeypatch):
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    session = tfx.open_session(bundle, batching=Batching(max_rows=1))
    valve = Valve(session, monkeypatch, shut=True)

    def ask_and_fail():
        with session:
            running = session.predict_async("good")
            valve.wait_for_a_run()
            queued = session.predict_async("bad")
            settled(session)
            queued.add_done_callback(lambda future: valve.open())
            asked.extend([running, queued])
            raise ZeroDivisionError

    asked = []
    with pytest.raises(ZeroDivisionError):
        ask_and_fail()
    running, queued = asked
    assert answer(running).shape == (8,)
    assert isinstance(queued.exception(), BackendError)


def test_close_from_a_callback_hangs_nothing(tmp_path, monkeypatch):
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    session = tfx.open_session(bundle, batching=Batching(max_rows=1))
    valve = Valve(session, monkeypatch, shut=True)
    first = session.predict_async("good")
    valve.wait_for_a_run()
    others = [session.predict_async("bad") for _ in range(5)]
    settled(session)
    first.add_done_callback(lambda future: session.close())
    valve.open()
    assert not wait([first, *others], LIMIT_S).not_done
    assert answer(first).shape == (8,)
    for future in others:
        assert future.exception() is None or isinstance(future.exception(), BackendError)


def test_a_session_left_open_does_not_keep_the_process_alive(tmp_path):
    path = write_text_bundle(tmp_path / "b", embedding=MEAN).path
    script = f"""
import tfx
session = tfx.open_session({str(path)!r})
print(session.predict_async("good film").result().shape)
session.predict_async("bad")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(8,)\n", "")
