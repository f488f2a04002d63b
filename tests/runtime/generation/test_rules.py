"""What the next token is kept to, beside transformers' processors of logits."""

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as processors

from tfx.processing import Target
from tfx.runtime.generation.beams import Weighing
from tfx.runtime.generation.rules import finished, keep_to

END = (3,)
TEXTS = {
    "start": [[2], [2]],
    "second": [[2, 5], [2, 6]],
    "later": [[2, 5, 6, 5], [2, 7, 7, 7]],
    "last": [[2, 5, 6, 5, 6, 8, 9], [2, 7, 7, 7, 7, 1, 1]],
}
LONGEST = 8
RULES = {
    "ngram": (Target(2, ngram=2), [processors.NoRepeatNGramLogitsProcessor(2)]),
    "one token": (Target(2, ngram=1), [processors.NoRepeatNGramLogitsProcessor(1)]),
    "first": (Target(2, first=9), [processors.ForcedBOSTokenLogitsProcessor(9)]),
    "last": (Target(2, last=3), [processors.ForcedEOSTokenLogitsProcessor(LONGEST, 3)]),
    "shortest": (Target(2, shortest=3), [processors.MinLengthLogitsProcessor(3, 3)]),
    "suppressed": (
        Target(2, suppressed=(1, 4)),
        [processors.SuppressTokensLogitsProcessor([1, 4])],
    ),
    "suppressed first": (
        Target(2, suppressed_first=(1, 4)),
        [processors.SuppressTokensAtBeginLogitsProcessor([1, 4], 1)],
    ),
    "suppressed after the first": (
        Target(2, first=9, suppressed_first=(1, 4)),
        [
            processors.ForcedBOSTokenLogitsProcessor(9),
            processors.SuppressTokensAtBeginLogitsProcessor([1, 4], 2),
        ],
    ),
}


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(("target", "processor"), RULES.values(), ids=RULES)
def test_rules_are_those_of_transformers(target, processor, texts, rng):
    scores = rng.normal(size=(2, 10)).astype(np.float32)
    expected = torch.tensor(scores)
    for one in processor:
        expected = one(torch.tensor(texts), expected)
    before = scores.copy()
    found = keep_to(scores, texts, target, END, LONGEST)
    np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_array_equal(scores, before)


def test_scores_are_probabilities_again(rng):
    scores = rng.normal(size=(2, 10))
    scores[:, 4] = -np.inf
    again = finished(scores, Target(2, renormalize=True))
    np.testing.assert_allclose(np.exp(again).sum(axis=1), 1)
    assert finished(scores, Target(2)) is scores


@pytest.mark.parametrize(
    ("stopping", "penalty", "over"),
    [
        ("no", 1.0, True),  # -6 / 4 is worse than -1
        ("never", 1.0, False),  # -6 / 12 is not
        ("never", -1.0, True),  # what is longer would only be worse
        ("yes", 1.0, True),
    ],
)
def test_when_a_search_is_over(stopping, penalty, over):
    assert Weighing(penalty, stopping).ends(-6.0, -1.0, 4, 12) is over


def test_a_length_penalty_weighs_long_texts():
    assert Weighing(0.0).score(-6.0, 4) == -6
    assert Weighing(2.0).score(-6.0, 4) == -6 / 16
