"""Counts that a caller gives, from wherever they read them."""

import numpy as np
import pytest
from support.texts import MEAN, write_text_bundle

import tfx
from tfx.errors import FeedError
from tfx.runtime.counts import count_problem


@pytest.mark.parametrize("value", [1, 64, np.int64(3)])
def test_counts(value):
    assert count_problem("max_rows", value) == ""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (0, "max_rows is 0, expected 1 or more"),
        (-3, "max_rows is -3, expected 1 or more"),
        (2.0, "max_rows is 2.0, expected a whole number"),
        ("64", "max_rows is '64', expected a whole number"),
        (None, "max_rows is None, expected a whole number"),
    ],
)
def test_no_counts(value, problem):
    assert count_problem("max_rows", value) == problem


def test_a_session_asks_for_counts(tmp_path):
    with tfx.open_session(write_text_bundle(tmp_path / "b", embedding=MEAN)) as session:
        for call in (session.predict, session.map):
            with pytest.raises(FeedError, match=r"max_rows is '8', expected a whole number"):
                call(["good"], max_rows="8")
        with pytest.raises(FeedError, match="stretch is 0, expected 1 or more"):
            session.map_stretches(["good"], stretch=0)
