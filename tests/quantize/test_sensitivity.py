"""The order in which groups are best kept."""

import numpy as np
import pytest

from tfx.quantize.sensitivity import NO_NUMBERS, MetricRuler, order_of
from tfx.runtime.accuracy.observations import NotFiniteError


class Worst:
    """A metric that the worst sample decides."""

    name = "worst"

    def __init__(self, samples):
        self.samples = samples

    def origin(self):
        return np.zeros((self.samples, 1))

    def loss(self, rows):
        return float(rows.max())


class Total(Worst):
    def loss(self, rows):
        return float(rows.sum())


def changes(**groups):
    return {
        group: None if rows is None else np.array(rows, float)[:, None]
        for group, rows in groups.items()
    }


def test_what_the_worst_sample_suffers_from_comes_before_what_is_worst_alone():
    # Together the last sample loses 9, the first one 6: "loud" does not change the worst.
    found = order_of(Worst(2), changes(loud=[5, 0], soft=[1, 4], quiet=[0, 3], faint=[0, 2]))
    assert found[0] == "soft"
    assert found[1] == "loud"  # now it is: 5 beside 5, of which no other group takes more


def test_of_a_sum_the_worst_alone_comes_first():
    found = order_of(Total(2), changes(a=[1, 1], b=[5, 0], c=[0, 3], d=[0.5, 0]))
    assert found == ["b", "c", "a", "d"]


def test_where_nothing_helps_the_one_that_is_worse_alone_comes_first():
    # Two samples are equally bad, for a group each: neither lowers the worst.
    found = order_of(Worst(3), changes(small=[0, 0, 1], left=[6, 0, 0], right=[0, 6, 0]))
    assert found == ["left", "right", "small"]


def test_what_gives_no_numbers_comes_first():
    assert order_of(Worst(1), changes(a=[1], broken=None, b=[2])) == ["broken", "b", "a"]


@pytest.mark.parametrize("seed", range(5))
def test_keeping_in_this_order_never_loses_more(seed):
    rng = np.random.default_rng(seed)
    rows = {f"g{index}": rng.random(6) for index in range(8)}
    left = sum(rows.values())
    losses = [left.max()]
    for group in order_of(Worst(6), changes(**rows)):
        left = left - rows[group]
        losses.append(left.max())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0)


class Judge:
    """Says what a bundle's rows are; here a bundle is its rows."""

    metric = "worst"
    parent_rows = np.zeros((2, 1))

    def rows(self, bundle):
        if bundle is None:
            raise NotFiniteError("no number")
        return np.array(bundle, float)[:, None]

    def drop_of(self, rows):
        return float(rows.max())


def test_what_a_bundle_loses_of_a_metric():
    ruler = MetricRuler(Judge())
    assert ruler.name == "worst"
    assert ruler.lost([0.25, 0.5]) == 0.5
    assert ruler.lost(None) == NO_NUMBERS
