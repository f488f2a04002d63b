import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.runtime.accuracy.metrics import METRICS
from tfx.runtime.accuracy.spoken import edits, normalized_speech


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ask not, what YOUR country can do!", "ask not what your country can do"),
        ("Don\u2019t 'quote' rock 'n' roll", "don't quote rock n roll"),
        ("well-known  \t half\u2014way", "well known half way"),
        ("Ｆｕｌｌ ｗｉｄｔｈ ½", "full width 1 2"),  # noqa: RUF001
        ("Größe: 7,5 €", "größe 7 5"),
        ("हिन्दी में", "हिन्दी में"),
        ("... !?", ""),
    ],
)
def test_texts_are_compared_as_they_are_heard(text, expected):
    assert normalized_speech(text) == expected
    assert normalized_speech(expected) == expected


def by_definition(left, right):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        same = left[i - 1] == right[j - 1]
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same)
        )

    return distance(len(left), len(right))


@given(st.text("abc", max_size=9), st.text("abcd", max_size=9))
def test_edits_are_levenshteins(left, right):
    assert edits(left, right) == by_definition(left, right) == edits(right, left)


def rate(name, predicted, expected):
    metric = METRICS[name]
    return float(metric.value(metric.rows(predicted, expected)))


def test_rates_weigh_texts_by_their_length():
    said = ["a b c d e f g h", "Right."]
    heard = ["a b x d e f g", "right"]
    assert rate("wer", heard, said) == 2 / 9
    assert rate("cer", heard, said) == 3 / 20
    assert rate("wer", said, said) == 0


def test_what_is_invented_counts():
    assert rate("wer", ["one two three"], ["one"]) == 2
    assert rate("wer", ["noise"], [""]) == 1
    assert rate("wer", [""], ["two words"]) == 1


def test_a_draw_of_texts_has_a_rate_of_its_own():
    metric = METRICS["wer"]
    rows = metric.rows(["a b", "c"], ["a x", "c"])
    assert metric.value(rows[np.array([[0, 0], [1, 1], [0, 1]])]).tolist() == [0.5, 0, 1 / 3]
