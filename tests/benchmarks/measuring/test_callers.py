"""Callers that ask in several ways: what is counted, and what their answers are compared with."""

import threading

import numpy as np
import pytest

from tfx.bench.measuring.callers import (
    ALL,
    MERGED,
    ONE_BY_ONE,
    THREADS,
    Served,
    is_same,
    measure_clients,
    serve,
    ways_to_ask,
)
from tfx.errors import BackendError
from tfx.runtime.text.answers import TextLabel


def test_every_client_asks_its_share_once():
    asked = []
    lock = threading.Lock()

    def ask(text):
        with lock:
            asked.append((threading.current_thread().name, text))
        return text.upper()

    texts = [f"text {number}" for number in range(20)]
    served = serve(ask, texts, 6)
    assert sorted(text for _, text in asked) == sorted(texts)
    assert len({name for name, _ in asked}) == 6
    assert served.answers == {index: text.upper() for index, text in enumerate(texts)}
    assert len(served.latencies_ms) == 20


def test_clients_ask_at_the_same_time():
    together = threading.Barrier(5)  # breaks if one waits for another's answer
    served = serve(lambda text: together.wait(60), ["a"] * 5, 5)
    assert sorted(served.answers.values()) == [0, 1, 2, 3, 4]


def test_latency_is_of_one_answer():
    ticks = iter(range(100))
    served = serve(lambda text: text, ["a", "b"], 1, clock=lambda: next(ticks) / 1000)
    assert served.latencies_ms == pytest.approx((1.0, 1.0))


class Stub:
    """A session that answers 1, but fails or errs for some texts when they come merged."""

    def predict(self, text):
        return np.ones(2)

    def map(self, texts):
        return (np.ones(2) for text in texts)

    def predict_async(self, text):
        class Answer:
            def result(self):
                if text == "lost":
                    raise BackendError("gone")
                return np.array([1.0, -1.0]) if text == "wrong" else np.ones(2)

        return Answer()


def test_lost_and_wrong_answers_are_counted():
    texts = ["a", "lost", "b", "wrong", "c"]
    rows = measure_clients(ways_to_ask(Stub(), Stub(), texts, [2]), len(texts), rounds=6, seed=0)
    by_way = {row.way: row for row in rows}
    assert list(by_way) == [ONE_BY_ONE, THREADS, MERGED, ALL]
    assert [(row.asked, row.lost, row.wrong) for row in rows] == [
        (30, 0, 0),
        (30, 0, 0),
        (30, 6, 6),
        (30, 0, 0),
    ]
    assert by_way[ONE_BY_ONE].speedup == by_way[ONE_BY_ONE].processor_ratio == 1
    assert by_way[MERGED].low <= by_way[MERGED].speedup <= by_way[MERGED].high


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (np.array([1.0, 0]), np.array([1.0, 0.01]), True),
        (np.array([1.0, 0]), np.array([1.0, 0.1]), False),
        (np.ones(2), np.ones(3), False),
        ({"x": np.ones(2)}, {"x": np.ones(2)}, True),
        ({"x": np.ones(2)}, {"x": -np.ones(2)}, False),
        (TextLabel("a", 0.7, (0.7,)), TextLabel("a", 0.6, (0.6,)), True),
        ([TextLabel("a", 0.7, (0.7,))], [TextLabel("b", 0.7, (0.7,))], False),
        ([TextLabel("a", 0.7, (0.7,))], [], False),
    ],
)
def test_is_same(first, second, same):
    assert is_same(first, second) is same


def served(seconds, processor_s, answers, latencies=()):
    return Served(seconds, processor_s, tuple(latencies), {at: np.ones(2) for at in range(answers)})


def test_throughput_is_of_what_was_answered():
    ways = {
        (ONE_BY_ONE, 1): lambda: served(2.0, 1.0, 10),
        (MERGED, 4): lambda: served(1.0, 0.5, 5),  # half of them are lost
    }
    usual, merged = measure_clients(ways, 10, rounds=6)
    assert (usual.per_second, merged.per_second) == (5, 5)
    assert (merged.speedup, merged.low, merged.high, merged.lost) == (1, 1, 1, 30)
    assert merged.processor_ratio == 2


@pytest.mark.parametrize(("answers", "known"), [(0, (False, False)), (199, (True, False))])
def test_percentiles_of_too_few_answers_are_not_given(answers, known):
    ways = {
        (ONE_BY_ONE, 1): lambda: served(1.0, 1.0, 1, [1.0] * 200),
        (MERGED, 4): lambda: served(1.0, 1.0, answers, [1.0] * answers),
    }
    usual, merged = measure_clients(ways, 200, rounds=5)
    assert (usual.p50_ms, usual.p99_ms) == (1.0, 1.0)
    assert (merged.p50_ms is not None, merged.p99_ms is not None) == known


def test_without_an_answer_one_by_one_there_is_nothing_to_compare_with():
    ways = {(ONE_BY_ONE, 1): lambda: served(1.0, 1.0, 0)}
    with pytest.raises(BackendError, match="no text was answered one by one") as caught:
        measure_clients(ways, 3, rounds=1)
    assert caught.value.hint == "Ask for one with tfx predict, to see why."
