"""Which of the requests that wait are run together."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tfx.runtime.text.batching import RUN_TOKENS, cut_batches
from tfx.runtime.text.requests import LOOK_AHEAD, Item, Request, pick


def items(widths, keys=None):
    keys = keys or [None] * len(widths)
    return [
        Item(Request(1), 0, None, 1, width, key) for width, key in zip(widths, keys, strict=True)
    ]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 20))
def test_the_oldest_is_always_picked(widths, rows):
    waiting = items(widths)
    picked = pick(waiting, max_rows=rows, max_tokens=500)
    assert picked[0] is waiting[0]
    assert len({id(one) for one in picked}) == len(picked) <= rows
    assert len(picked) == 1 or len(picked) * max(one.width for one in picked) <= 500


def test_those_of_similar_length_join():
    waiting = items([100, 10, 98, 101, 100, 9])
    picked = pick(waiting, max_rows=3, max_tokens=10_000)
    assert sorted(one.width for one in picked) == [100, 100, 101]
    everything = pick(waiting, max_rows=30, max_tokens=10_000)
    assert sorted(one.width for one in everything) == [98, 100, 100, 101]


def test_padding_is_worth_no_more_than_a_run():
    assert len(pick(items([50, 50 - RUN_TOKENS]), max_rows=9, max_tokens=999)) == 2
    assert len(pick(items([50, 49 - RUN_TOKENS]), max_rows=9, max_tokens=999)) == 1


def test_only_what_is_alike_is_merged():
    waiting = items([5, 5, 5, 5], [None, "feed", None, object()])
    assert pick(waiting, max_rows=9, max_tokens=99) == [waiting[0], waiting[2]]


def test_a_long_queue_is_looked_at_from_its_begin():
    waiting = items([5] * (LOOK_AHEAD + 10))
    assert len(pick(waiting, max_rows=10_000, max_tokens=10**6)) == LOOK_AHEAD


def test_a_queue_is_cut_as_a_list_of_texts_is():
    """Many that differ a little: padding all of them to the longest costs more than two runs."""
    widths = [8, 14] * 32
    (first, second) = cut_batches(widths, max_rows=64, max_tokens=2048)
    picked = pick(items(widths), max_rows=64, max_tokens=2048)
    assert {one.width for one in picked} == {8}
    assert {len(picked)} == {len(first), len(second)} == {32}


def test_arrays_of_several_rows_fill_a_run():
    waiting = items([5] * 4, ["feed"] * 4)
    waiting = [replace(item, rows=rows) for item, rows in zip(waiting, (2, 3, 4, 1), strict=True)]
    assert [one.rows for one in pick(waiting, max_rows=6, max_tokens=99)] == [2, 3, 1]
    assert [one.rows for one in pick(waiting, max_rows=9, max_tokens=30)] == [2, 3, 1]
