import itertools

import numpy as np
import pytest

from tfx.runtime.clock import STEADY_RATIO, WINDOW_CALLS, block_calls, time_calls, warm_up

MS = 1_000_000


class FakeTime:
    """A clock that only moves when a call takes time."""

    def __init__(self, durations):
        self.now = 0
        self.durations = iter(durations)

    def clock(self):
        return self.now

    def call(self):
        self.now += next(self.durations)


def forever(first, then):
    yield from first
    while True:
        yield then


def test_every_call_is_timed_alone():
    fake = FakeTime([5, 7, 9])
    assert time_calls(fake.call, 3, fake.clock) == [5, 7, 9]


def test_constant_time_settles_after_three_windows():
    fake = FakeTime(forever([], 10 * MS))
    found = warm_up(fake.call, limit_s=100, clock=fake.clock)
    assert found.settled
    assert found.calls == 3 * WINDOW_CALLS
    assert found.median_ms == 10
    assert found.duration_s == pytest.approx(0.15)


def test_slow_first_windows_are_waited_out():
    fake = FakeTime(forever([50 * MS] * 5 + [20 * MS] * 5, 10 * MS))
    found = warm_up(fake.call, limit_s=100, clock=fake.clock)
    assert found.settled
    assert found.calls == 5 * WINDOW_CALLS
    assert found.median_ms == 10


def test_windows_are_counted_anew_after_a_jump():
    steady = [10 * MS] * 2 * WINDOW_CALLS
    fake = FakeTime(forever(steady, 20 * MS))
    found = warm_up(fake.call, limit_s=100, clock=fake.clock)
    assert (found.calls, found.median_ms) == (5 * WINDOW_CALLS, 20)


def test_calls_that_differ_are_compared_by_whole_turns():
    lengths = np.random.default_rng(0).integers(3, 15, 64).tolist()
    fake = FakeTime(length * MS for length in itertools.cycle(lengths))
    found = warm_up(fake.call, limit_s=100, turn=64, clock=fake.clock)
    assert found.settled
    assert found.calls == 3 * 64
    assert found.median_ms == np.median(lengths)


@pytest.mark.parametrize(
    ("median_ms", "calls"), [(0.0, 100), (0.1, 100), (2.0, 10), (3.0, 7), (4.1, 5), (900.0, 5)]
)
def test_a_block_has_calls_for_20_ms_within_bounds(median_ms, calls):
    assert block_calls(median_ms) == calls


def test_a_drift_of_more_than_the_ratio_never_settles():
    step = 1 + STEADY_RATIO * 1.2
    fake = FakeTime(int(10 * MS * step ** (call // WINDOW_CALLS)) for call in range(1000))
    found = warm_up(fake.call, limit_s=3, clock=fake.clock)
    assert not found.settled
    assert 3 <= found.duration_s < 5


def test_short_calls_fill_a_window_of_20_ms():
    fake = FakeTime(forever([], MS // 10))
    assert warm_up(fake.call, limit_s=100, clock=fake.clock).calls == 3 * 200
