"""Many callers at once, who cancel, overfill the queue and close: everything accepted ends."""

import asyncio
import random
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
from support.texts import MEAN, WORDS, write_text_bundle

import tfx
from tfx.errors import BackendError, FeedError, QueueFullError
from tfx.runtime.text.batcher import Batching

LIMIT_S = 30  # for what must end; nothing here takes more than a few seconds

# Threads that a process has once, however many sessions there are, and has not before the second.
SHARED = 1


@pytest.fixture
def bundle(tmp_path):
    return write_text_bundle(tmp_path / "b", embedding=MEAN)


def together(*calls):
    """Run each in a thread; raises what they raise, or if one does not end."""
    errors = []

    def guarded(call):
        try:
            call()
        except BaseException as error:  # noqa: BLE001  raised again below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    until = time.monotonic() + LIMIT_S
    for thread in threads:
        thread.join(max(0, until - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a caller waits for ever"
    if errors:
        raise errors[0]


def ended(futures):
    """Every one of them, by what came of it."""
    left = wait(futures, LIMIT_S).not_done
    assert not left, f"{len(left)} of {len(futures)} futures never end"
    kinds = {"answers": 0, "cancelled": 0, "closed": 0, "refused": 0}
    for future in futures:
        if future.cancelled():
            kinds["cancelled"] += 1
        elif (error := future.exception()) is None:
            assert np.isfinite(future.result()).all()
            kinds["answers"] += 1
        else:
            assert isinstance(error, BackendError | FeedError), error
            kinds["closed" if isinstance(error, BackendError) else "refused"] += 1
    return kinds


def caller(session, seed, requests, futures, refused):
    """Asks; now and then cancels, asks what cannot be read, or waits for an answer."""
    rng = random.Random(seed)
    for _ in range(requests):
        text = " ".join(rng.choices(WORDS[4:], k=rng.randint(1, 12)))
        try:
            future = session.predict_async(("good", 3) if rng.random() < 0.05 else text)
        except QueueFullError:
            refused.append(seed)
            time.sleep(0)
            continue
        futures.append(future)
        chance = rng.random()
        if chance < 0.2:
            future.cancel()
        elif chance < 0.4:
            wait([future], LIMIT_S)


@pytest.mark.parametrize("streams", [1, 2])
def test_thousands_of_requests_lose_no_wake_up(bundle, streams):
    futures, refused = [], []
    small = Batching(max_queue=24, max_rows=8)
    with tfx.open_session(bundle, threads=2, streams=streams, batching=small) as session:
        together(
            *(lambda seed=seed: caller(session, seed, 200, futures, refused) for seed in range(12))
        )
        kinds = ended(futures)
        assert session._batcher._queued() == 0
    assert len(futures) + len(refused) == 12 * 200
    assert kinds["closed"] == 0
    assert kinds["refused"] > 0
    assert kinds["answers"] > 100
    assert kinds["cancelled"] > 0
    assert refused  # or the queue was never full, and this tests nothing


@pytest.mark.parametrize("drop", [False, True])
def test_close_under_load_ends_every_future(bundle, drop):
    for trial in range(6):
        session = tfx.open_session(bundle, threads=2, batching=Batching(max_rows=4))
        futures, done = [], threading.Barrier(5)

        def ask(seed, session=session, futures=futures, done=done):
            done.wait(LIMIT_S)
            with pytest.raises(BackendError, match="session is closed"):
                caller(session, seed, 100_000, futures, [])

        def close(session=session, done=done, trial=trial):
            done.wait(LIMIT_S)
            time.sleep(trial * 0.004)
            session.close(drop=drop)

        together(close, *(lambda seed=seed: ask(seed) for seed in range(4)))
        kinds = ended(futures)
        if not drop:
            assert kinds["closed"] == 0  # what was accepted is answered


def test_two_event_loops_use_one_session(bundle):
    found = {}
    with tfx.open_session(bundle) as session:
        expected = session.predict("good film")

        def loop(name):
            async def ask(number):
                future = asyncio.wrap_future(session.predict_async("good film"))
                if number % 5 == 4:
                    future.cancel()
                return await future

            async def main():
                asked = (ask(number) for number in range(200))
                return await asyncio.wait_for(
                    asyncio.gather(*asked, return_exceptions=True), LIMIT_S
                )

            found[name] = asyncio.run(main())

        together(*(lambda name=name: loop(name) for name in "ab"))
    for name in "ab":
        for number, one in enumerate(found[name]):
            if number % 5 == 4:
                assert isinstance(one, asyncio.CancelledError)
            else:
                np.testing.assert_allclose(one, expected, rtol=1e-5)


def test_a_text_of_100_000_characters(bundle):
    text = "good " * 19_999 + "film "
    assert len(text) == 100_000
    with tfx.open_session(bundle) as session:
        short = session.predict_async("bad")
        for long in ("truncate", "windows"):
            future = session.predict_async(text, long=long)
            np.testing.assert_allclose(
                future.result(LIMIT_S), session.predict(text, long=long), rtol=1e-4, atol=1e-6
            )
        assert short.result(LIMIT_S).shape == (8,)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_sessions_beside_each_other_have_the_threads_they_were_given(bundle):
    def count():
        return len(list(Path("/proc/self/task").iterdir()))

    with tfx.open_session(bundle, threads=2) as one:  # brings what all of them share
        one.predict_async("good").result(LIMIT_S)
    before = count()
    sessions = [tfx.open_session(bundle, threads=2) for _ in range(4)]
    together(
        *(
            lambda session=session: [
                session.predict_async("good film").result(LIMIT_S) for _ in range(20)
            ]
            for session in sessions
            for _ in range(3)
        )
    )
    # Of each: one of the engine beside the caller's, and those that read and run for it. A thread
    # that was joined may be there for a moment still.
    until = time.monotonic() + LIMIT_S
    while count() - before > 4 * 3 + SHARED and time.monotonic() < until:
        time.sleep(0.01)
    assert count() - before <= 4 * 3 + SHARED
    for session in sessions:
        session.close()
    until = time.monotonic() + LIMIT_S
    while count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert count() <= before + SHARED
