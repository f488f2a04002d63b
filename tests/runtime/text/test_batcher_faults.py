"""Requests, callbacks and systems that misbehave: the batcher goes on, and no other one suffers."""

import threading
from concurrent.futures import Future, wait

import numpy as np
import pytest
from support.texts import MEAN, write_text_bundle

import tfx
from tfx.errors import BackendError, FeedError, QueueFullError
from tfx.runtime.text.batcher import Batching

LIMIT_S = 60  # for what must happen; nothing here takes a second


@pytest.fixture
def session(tmp_path):
    opened = tfx.open_session(write_text_bundle(tmp_path / "b", embedding=MEAN), threads=2)
    yield opened
    closer = threading.Thread(target=opened.close, daemon=True)
    closer.start()
    closer.join(LIMIT_S)
    assert not closer.is_alive(), "close() waits for ever"


def assert_goes_on(session):
    np.testing.assert_allclose(
        session.predict_async("bad film").result(LIMIT_S), session.predict("bad film"), rtol=1e-5
    )


class Text(str):
    """A string that cannot be encoded, whatever the reason."""

    __slots__ = ()

    def encode(self, *args):
        raise self.reason()

    reason = ValueError


class Panic(Text):
    """As a panic of a library in Rust: no ``Exception``."""

    __slots__ = ()
    reason = SystemExit


@pytest.mark.parametrize("kind", [Text, Panic])
def test_what_reading_raises_is_that_request_s_answer(session, kind):
    with session._opened_batcher()._changed:  # they are read together
        bad, good = session.predict_async(kind("good")), session.predict_async("bad film")
    with pytest.raises(kind.reason):
        bad.result(LIMIT_S)
    np.testing.assert_allclose(good.result(LIMIT_S), session.predict("bad film"), rtol=1e-5)
    assert_goes_on(session)


class Arrays(dict):
    def items(self):
        raise SystemExit


def test_arrays_that_cannot_be_listed(session):
    with pytest.raises(SystemExit):
        session.predict_async(Arrays()).result(LIMIT_S)
    assert_goes_on(session)


def test_a_run_that_ends_its_thread_does_not(session, monkeypatch):
    def broken(feed):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(session._executable, "run", broken)
        with pytest.raises(SystemExit):
            session.predict_async("good").result(LIMIT_S)
    assert_goes_on(session)


@pytest.mark.parametrize("long", [None, "all", [], np.array(["truncate", "windows"])])
def test_unknown_words_for_long_texts_are_refused_at_once(session, long):
    with pytest.raises(FeedError, match=r"long is .*, expected one of truncate, windows"):
        session.predict_async("good", long=long)
    with pytest.raises(FeedError, match=r"long is .*, expected one of truncate, windows"):
        session.predict("good", long=long)
    assert_goes_on(session)


def test_a_list_that_is_filled_anew_meanwhile_moves_no_answer(session, monkeypatch):
    read, mine = session._texts.read, ["good", "very good"]

    def read_and_clear(*texts):
        found = read(*texts)
        mine.clear()
        return found

    monkeypatch.setattr(session._texts, "read", read_and_clear)
    with session._opened_batcher()._changed:  # they are read together
        first, other = session.predict_async(mine), session.predict_async("bad film")
    expected = session.predict(["good", "very good", "bad film"])
    np.testing.assert_allclose(first.result(LIMIT_S), expected[:2], rtol=1e-5)
    np.testing.assert_allclose(other.result(LIMIT_S), expected[2], rtol=1e-5)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, ZeroDivisionError])
def test_a_callback_that_raises_takes_no_answer_along(session, caplog, kind):
    def callback(future):
        raise kind

    futures = []
    with session._opened_batcher()._changed:  # they run together
        for _ in range(20):
            futures.append(session.predict_async("good"))
            futures[-1].add_done_callback(callback)
    assert not wait(futures, LIMIT_S).not_done
    assert_goes_on(session)
    assert len([one for one in caplog.records if one.exc_info[0] is kind]) == 20


def no_threads(monkeypatch, after=0):
    """Let the system start so many more threads, and then none."""
    start, started = threading.Thread.start, []

    def refused(self):
        if self.name.startswith("tfx-batch"):
            if len(started) >= after:
                raise RuntimeError("can't start new thread")
            started.append(self.name)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refused)


def test_without_a_thread_a_request_is_refused(session, monkeypatch):
    with monkeypatch.context() as patched:
        no_threads(patched)
        for _ in range(3):
            with pytest.raises(BackendError, match="no thread can be started: can't start"):
                session.predict_async("good")
    own = session._batcher
    assert (own._queued(), own._reading, own._running) == (0, False, 0)
    assert_goes_on(session)
    with own._changed:
        assert own._changed.wait_for(lambda: not own._reading, LIMIT_S)
        assert own._changed.wait_for(lambda: not own._running, LIMIT_S)
        assert own._running == 0


def test_one_thread_does_it_all_where_there_are_no_more(tmp_path, monkeypatch):
    no_threads(monkeypatch, after=1)
    small = Batching(max_rows=2)
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    with tfx.open_session(bundle, threads=2, streams=2, batching=small) as session:
        for _ in range(3):
            futures = [session.predict_async("good film") for _ in range(200)]
            assert not wait(futures, LIMIT_S).not_done
            assert [one.result().shape for one in futures] == [(8,)] * 200
        assert session._batcher._running == 0


def test_what_is_asked_while_the_only_thread_runs_waits_for_it(tmp_path, monkeypatch):
    no_threads(monkeypatch, after=1)
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    with tfx.open_session(bundle, threads=1) as session:
        running, go_on = threading.Event(), threading.Event()
        run = session._executable.run

        def slow(feed):
            running.set()
            assert go_on.wait(LIMIT_S)
            return run(feed)

        monkeypatch.setattr(session._executable, "run", slow)
        first = session.predict_async("good")
        assert running.wait(LIMIT_S)
        second = session.predict_async("good film")
        go_on.set()
        assert not wait([first, second], LIMIT_S).not_done
        assert second.result().shape == (8,)


def test_a_long_queue_costs_no_more_for_each(tmp_path, monkeypatch):
    """What is looked at for a run is a part of the queue, however long that is."""
    cancelled, looked = Future.cancelled, []

    def counted(self):
        looked.append(self)
        return cancelled(self)

    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    long = Batching(max_queue=5000, max_rows=16)
    with tfx.open_session(bundle, batching=long) as session:
        monkeypatch.setattr(Future, "cancelled", counted)
        futures = [session.predict_async("good film") for _ in range(5000)]
        with pytest.raises(QueueFullError):
            [session.predict_async("good film") for _ in range(5000)]
        assert not wait(futures, LIMIT_S).not_done
    assert len(looked) < 3 * len(futures)


def test_a_wait_longer_than_the_system_knows(tmp_path):
    bundle = write_text_bundle(tmp_path / "b", embedding=MEAN)
    forever = Batching(max_wait_ms=1e14)
    with tfx.open_session(bundle, batching=forever) as session:
        future = session.predict_async("good")
        assert not wait([future], 0.1).done
    assert future.result(LIMIT_S).shape == (8,)  # close() waits for no others
