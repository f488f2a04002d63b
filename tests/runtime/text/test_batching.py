"""Batches: every text once, none over the budget, order restored by the indices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.runtime.text.batching import RUN_TOKENS, cut_batches, even_slices

lengths = st.lists(st.integers(1, 300), max_size=60)


@given(lengths, st.integers(1, 20), st.integers(1, 2000), st.booleans())
def test_every_index_comes_exactly_once(lengths, rows, tokens, equal):
    batches = list(cut_batches(lengths, max_rows=rows, max_tokens=tokens, equal=equal))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths, st.integers(1, 20), st.integers(1, 2000))
def test_no_batch_is_over_the_budget_unless_single(lengths, rows, tokens):
    for batch in cut_batches(lengths, max_rows=rows, max_tokens=tokens):
        assert len(batch) <= rows
        width = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * width <= tokens


@given(lengths, st.integers(1, 20))
def test_equal_batches_need_no_padding(lengths, rows):
    for batch in cut_batches(lengths, max_rows=rows, max_tokens=10_000, equal=True):
        assert len({lengths[index] for index in batch}) == 1


def cost_of(batches, lengths):
    return sum(RUN_TOKENS + len(b) * max(lengths[index] for index in b) for b in batches)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=9), st.integers(1, 4))
def test_no_way_to_cut_costs_less(lengths, rows):
    ordered = sorted(lengths, reverse=True)

    def least(left):
        if not left:
            return 0
        fits = (n for n in range(1, min(rows, len(left)) + 1) if n == 1 or n * left[0] <= 200)
        return min(RUN_TOKENS + n * left[0] + least(left[n:]) for n in fits)

    batches = cut_batches(lengths, max_rows=rows, max_tokens=200)
    assert cost_of(batches, lengths) == least(ordered)


def test_padding_is_worth_no_more_than_a_run():
    far, near = RUN_TOKENS + 16, 17
    assert cut_batches([far, near], max_rows=2, max_tokens=1000) == [[0, 1]]
    assert cut_batches([far, near - 2], max_rows=2, max_tokens=1000) == [[0], [1]]


def test_the_longest_go_first():
    batches = cut_batches([5, 90, 40, 7, 300], max_rows=2, max_tokens=1000)
    assert batches[0] == [4]
    assert batches[-1] == [3, 0]


def test_similar_lengths_share_a_batch():
    assert list(cut_batches([3, 90, 4, 88], max_rows=2, max_tokens=1000)) == [[1, 3], [2, 0]]


def test_texts_of_one_length_keep_their_order():
    assert list(cut_batches([5, 5, 5], max_rows=2, max_tokens=1000)) == [[0, 1], [2]]


@given(st.integers(0, 500), st.integers(1, 40))
def test_slices_cover_every_row_evenly(rows, limit):
    slices = list(even_slices(rows, limit))
    assert [row for part in slices for row in range(rows)[part]] == list(range(rows))
    sizes = [part.stop - part.start for part in slices]
    assert all(size <= limit for size in sizes)
    assert len(slices) == -(-rows // limit)
    assert not sizes or max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: list(cut_batches([1], max_rows=0, max_tokens=9)),
        lambda: list(even_slices(3, 0)),
    ],
)
def test_a_limit_of_nothing_is_refused(call):
    with pytest.raises(ValueError, match="max_rows is 0, expected 1 or more"):
        call()
