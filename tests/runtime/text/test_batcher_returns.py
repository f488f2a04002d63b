"""Who got an answer is expected to ask again, for a moment, and only where that costs nobody."""

import threading
from concurrent.futures import wait

import pytest
from support.texts import MEAN, write_text_bundle
from support.valve import LIMIT_S, Valve, settled

import tfx
from tfx.runtime.text import batcher


@pytest.fixture
def embedder(tmp_path):
    with tfx.open_session(write_text_bundle(tmp_path / "embedder", embedding=MEAN)) as session:
        yield session


def answer(future):
    return future.result(LIMIT_S)


def test_those_answered_are_waited_for_a_moment(embedder, monkeypatch):
    """They ask again at once, and run with one that waits already."""
    monkeypatch.setattr(batcher, "RETURN_SHARE", 1e6)
    valve = Valve(embedder, monkeypatch, shut=True)
    asking = embedder.predict_async("good")
    again = []
    asking.add_done_callback(
        lambda future: threading.Timer(
            0.05, lambda: again.append(embedder.predict_async("film"))
        ).start()
    )
    valve.wait_for_a_run()
    waiting = embedder.predict_async("bad")
    settled(embedder)
    valve.open()
    assert answer(waiting).shape == (8,)
    assert valve.rows == [1, 2]
    assert answer(again[0]).shape == (8,)


def test_nobody_is_waited_for_where_more_wait_than_one_run_takes(embedder, monkeypatch):
    monkeypatch.setattr(batcher, "RETURN_SHARE", 1e6)
    valve = Valve(embedder, monkeypatch, shut=True)
    embedder.predict_async("good")
    valve.wait_for_a_run()
    waiting = [embedder.predict_async("bad") for _ in range(20)]
    settled(embedder)
    valve.open()
    assert not wait(waiting[:16], LIMIT_S).not_done  # the signature admits 16
    settled(embedder)
    assert valve.rows == [1, 16]
    assert not any(one.done() for one in waiting[16:])


def test_those_answered_are_waited_for_no_longer_than_a_share_of_the_run(embedder, monkeypatch):
    monkeypatch.setattr(batcher, "RETURN_SHARE", 0.1)
    for _ in range(5):
        assert answer(embedder.predict_async("good")).shape == (8,)
    valve = Valve(embedder, monkeypatch, shut=True)
    embedder.predict_async("good")
    valve.wait_for_a_run()
    waiting = embedder.predict_async("bad")
    settled(embedder)
    valve.open()
    assert answer(waiting).shape == (8,)  # nobody comes back
    assert valve.rows == [1, 1]
