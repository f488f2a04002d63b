"""Metrics: by their definitions, and as the libraries that define them have them."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from tfx.errors import DataError
from tfx.runtime.accuracy.metrics import (
    METRICS,
    UP_TO_ONE,
    Direction,
    Form,
    Needs,
    answer_f1,
    check_drop,
    divergence,
    entities,
    find_metric,
    mean_cosine,
    normalized_answer,
    surprise,
)
from tfx.runtime.bootstrap import RESAMPLES, percentile_interval, resampled

classes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)
scores = st.lists(
    st.tuples(st.integers(-5, 5).map(float), st.integers(-5, 5).map(float)),
    min_size=2,
    max_size=30,
)


def value(name, predicted, expected):
    metric = find_metric(name)
    return float(metric.value(metric.rows(predicted, expected)))


def test_a_metric_that_does_not_exist():
    with pytest.raises(DataError, match="no metric called 'meteor'") as caught:
        find_metric("meteor")
    assert caught.value.hint.startswith("Use one of: accuracy, f1, f1-macro, spearman, ")


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_budget_in_percent(name):
    check_drop(name, 0.9)
    if METRICS[name].unit in UP_TO_ONE:
        with pytest.raises(DataError, match=rf"max_drop is 5 of {name}, which is at most 1"):
            check_drop(name, 5.0)
    else:
        check_drop(name, 5.0)


@given(classes)
def test_class_metrics_are_those_of_scikit_learn(pairs):
    predicted, expected = zip(*pairs, strict=True)
    assert value("accuracy", predicted, expected) == pytest.approx(
        sklearn.metrics.accuracy_score(expected, predicted)
    )
    assert value("f1-macro", predicted, expected) == pytest.approx(
        sklearn.metrics.f1_score(expected, predicted, average="macro", zero_division=0)
    )
    assert value("f1", predicted, expected) == pytest.approx(
        sklearn.metrics.f1_score(np.array(expected) == 1, np.array(predicted) == 1, zero_division=0)
    )


@given(scores)
def test_correlations_are_those_of_scipy(pairs):
    predicted, expected = map(np.array, zip(*pairs, strict=True))
    if np.ptp(predicted) == 0 or np.ptp(expected) == 0:
        assert value("pearson", predicted, expected) == 0
        assert value("spearman", predicted, expected) == 0
        return
    pearson = scipy.stats.pearsonr(predicted, expected).statistic
    assert value("pearson", predicted, expected) == pytest.approx(pearson, abs=1e-12)
    spearman = scipy.stats.spearmanr(predicted, expected).statistic
    assert value("spearman", predicted, expected) == pytest.approx(spearman, abs=1e-12)


def test_a_constant_correlates_with_nothing_however_it_rounds():
    constant = np.full(7, 0.1) + np.array([0, 1, 0, 0, 1, 0, 1]) * 1e-17
    assert value("pearson", constant, np.arange(7)) == 0
    assert value("pearson", np.full(3, 0.3), [1, 2, 3]) == 0
    assert value("pearson", np.array([1, 2, 3]) * 1e-9, [1, 2, 3]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["f1", "f1-macro", "spearman", "pearson", "entity-f1", "accuracy"])
def test_many_draws_at_once_are_each_alone(name, rng):
    rows = rng.integers(0, 3, (5, 20, 3 if name == "entity-f1" else 2)).astype(float)
    together = METRICS[name].value(rows)
    assert together.shape == (5,)
    np.testing.assert_allclose(together, [METRICS[name].value(one) for one in rows])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("an apple a day", "apple day"),
        ("U.S.", "us"),
        ("theatre", "theatre"),
        ("", ""),
    ],
)
def test_answers_are_compared_as_squad_does(text, expected):
    assert normalized_answer(text) == expected


@pytest.mark.parametrize(
    ("predicted", "accepted", "f1"),
    [
        ("October 16, 1973", "16 october 1973", 1.0),
        ("in October 1973", "October 16, 1973", 2 * (2 / 3) * (2 / 3) / (4 / 3)),
        ("very very good", "very good", 2 * (2 / 3) * 1 / (5 / 3)),
        ("London", "Paris", 0.0),
        ("", "Paris", 0.0),
    ],
)
def test_f1_of_answers(predicted, accepted, f1):
    assert answer_f1(predicted, accepted) == pytest.approx(f1)


def test_the_best_accepted_answer_counts():
    predicted = ["the London", "Ada met"]
    expected = [("Paris", "London"), ("Ada", "nobody")]
    assert value("exact-match", predicted, expected) == 0.5
    assert value("squad-f1", predicted, expected) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-A I-A O", {(1, 3, "A")}),
        ("B-A B-A", {(0, 1, "A"), (1, 2, "A")}),
        ("B-A I-B", {(0, 1, "A"), (1, 2, "B")}),
        ("O I-A I-A", {(1, 3, "A")}),
        ("B-creative-work I-creative-work", {(0, 2, "creative-work")}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_of_tags(tags, expected):
    assert entities(tags.split()) == expected


def test_entity_f1_is_over_all_entities():
    predicted = [["B-A", "I-A", "O"], ["B-A", "O"], ["O", "B-B"]]
    expected = [["B-A", "I-A", "O"], ["B-B", "O"], ["B-A", "B-B"]]
    # 2 of 3 predicted are right, and 2 of 4 expected are found.
    assert value("entity-f1", predicted, expected) == pytest.approx(4 / 7)
    assert value("entity-f1", [["O"]], [["O"]]) == 0


def test_entities_are_exact():
    assert value("entity-f1", [["B-A", "O"]], [["B-A", "I-A"]]) == 0
    assert value("entity-f1", [["B-A", "I-A"]], [["B-B", "I-B"]]) == 0


def test_divergence_is_that_of_scipy(rng):
    p, e = rng.dirichlet(np.ones(5), 4), rng.dirichlet(np.ones(5), 4)
    assert divergence(p, e) == pytest.approx(scipy.stats.entropy(e, p, axis=-1).mean())
    assert divergence(e, e) == 0
    assert math.isfinite(divergence(np.array([0.0, 1.0]), np.array([1.0, 0.0])))


def test_cosines():
    left = np.array([[1, 0], [0, 0], [1, 1], [0, 0]], np.float32)
    right = np.array([[0, 2], [0, 0], [3, 3], [1, 0]], np.float32)
    assert mean_cosine(left, right) == pytest.approx((0 + 1 + 1 + 0) / 4)


def test_the_worst_sample_decides():
    ones = np.ones(2)
    predicted = [ones, np.array([3.0, 4.0]), np.array([0.0, 1.0])]
    found = value("least-cosine", predicted, [ones, ones, ones])
    assert found == pytest.approx(1 / math.sqrt(2))
    assert value("cosine", predicted, [ones, ones, ones]) > found


def test_perplexity_of_a_text(rng):
    logits = rng.normal(size=(4, 7)).astype(np.float32)
    ids = np.array([3, 1, 6, 2])
    shares = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    nats, count = surprise(logits, ids)
    assert count == 3
    assert nats == pytest.approx(-np.log([shares[0, 1], shares[1, 6], shares[2, 2]]).sum())
    assert value("perplexity", [logits] * 2, [ids] * 2) == pytest.approx(math.exp(nats / 3))
    assert surprise(logits[:1], ids[:1]) == (0.0, 0)
    assert value("perplexity", [np.zeros((5, 7))], [np.zeros(5, int)]) == pytest.approx(7)


def test_longer_texts_count_for_more():
    even, sure = np.zeros((5, 4)), np.full((2, 4), [50.0, 0, 0, 0])
    ids = [np.zeros(5, int), np.zeros(2, int)]
    assert value("perplexity", [even, sure], ids) == pytest.approx(4 ** (4 / 5))


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("accuracy", 1),
        ("f1", 1),
        ("exact-match", "Ada"),
        ("entity-f1", ["B-A"]),
        ("agreement", np.array([1, 2])),
        ("cosine", np.ones((2, 3))),
        ("least-cosine", np.ones((2, 3))),
        ("kl", np.array([0.25, 0.75])),
    ],
)
def test_what_is_compared_with_itself_is_best(name, sample):
    expected = [(sample,)] if METRICS[name].form is Form.ANSWER else [sample]
    assert value(name, [sample], expected) == pytest.approx(METRICS[name].best)


def test_agreement_is_by_place():
    assert value("agreement", [np.array([1, 2, 3, 4]), 5], [np.array([1, 2, 0, 4]), 6]) == 0.375
    assert value("agreement", ["Ada"], ["Bob"]) == 0


def test_only_losses_are_better_low():
    low = {name for name, metric in METRICS.items() if metric.direction is Direction.LOWER}
    assert low == {"perplexity", "kl", "wer", "cer"}
    compared = {name for name, metric in METRICS.items() if metric.needs is Needs.REFERENCE}
    assert compared == {"agreement", "cosine", "least-cosine", "kl"}


def test_the_interval_of_a_share_is_that_of_theory(rng):
    rows = (np.arange(400) < 340).astype(float).reshape(-1, 1)
    (values,) = resampled(METRICS["accuracy"].value, rows, rng=rng)
    assert values.shape == (RESAMPLES,)
    spread = 1.96 * math.sqrt(0.85 * 0.15 / 400)
    np.testing.assert_allclose(
        percentile_interval(values), (0.85 - spread, 0.85 + spread), atol=0.004
    )


def test_sets_of_rows_are_drawn_together(rng):
    rows = rng.normal(size=(30, 1))
    left, right = resampled(METRICS["accuracy"].value, rows, rows + 2, rng=rng)
    np.testing.assert_allclose(right - left, 2)
    assert np.ptp(left) > 0


def test_draws_do_not_depend_on_how_they_are_cut(monkeypatch):
    rows = np.random.default_rng(1).normal(size=(50, 2))
    whole = resampled(METRICS["pearson"].value, rows, rng=np.random.default_rng(2))
    monkeypatch.setattr("tfx.runtime.bootstrap.CHUNK", 700)
    cut = resampled(METRICS["pearson"].value, rows, rng=np.random.default_rng(2))
    np.testing.assert_allclose(cut, whole)
