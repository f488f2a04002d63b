"""How tokens are chosen: as transformers' logits processors do it."""

import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from tfx.runtime.generation.sampling import (
    draw,
    keep_top_k,
    keep_top_p,
    log_probabilities,
    penalize_repetition,
    probabilities,
)


@pytest.fixture
def logits(rng):
    return rng.normal(scale=3, size=(4, 50)).astype(np.float32)


def of_transformers(processor, logits, ids=None):
    ids = torch.zeros(len(logits), 1, dtype=torch.long) if ids is None else torch.from_numpy(ids)
    return processor(ids, torch.from_numpy(logits.copy())).numpy()


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_repetition(logits, rng, penalty):
    ids = rng.integers(0, 50, (4, 9))
    expected = of_transformers(
        logits_process.RepetitionPenaltyLogitsProcessor(penalty), logits, ids
    )
    before = logits.copy()
    np.testing.assert_array_equal(penalize_repetition(logits, ids.tolist(), penalty), expected)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("count", [1, 5, 49, 50, 60])
def test_top_k(logits, count):
    expected = of_transformers(logits_process.TopKLogitsWarper(count), logits)
    np.testing.assert_array_equal(keep_top_k(logits, count), expected)


def test_top_k_of_none_keeps_all(logits):
    assert keep_top_k(logits, 0) is logits


@pytest.mark.parametrize("share", [1e-12, 1e-6, 0.3, 0.9, 0.999])
def test_top_p(logits, share):
    expected = of_transformers(logits_process.TopPLogitsWarper(share), logits)
    np.testing.assert_array_equal(keep_top_p(logits, share), expected)


def test_top_p_keeps_no_token_beyond_the_share():
    kept = np.isfinite(keep_top_p(np.zeros((1, 4), np.float32), 0.5))
    assert kept.sum() == 2  # exactly a half


def test_top_p_of_one_keeps_all(logits):
    assert keep_top_p(logits, 1.0) is logits


def test_probabilities_are_torchs_softmax(logits):
    tensor = torch.from_numpy(logits)
    np.testing.assert_allclose(probabilities(logits), tensor.softmax(-1), rtol=1e-5)
    np.testing.assert_allclose(log_probabilities(logits), tensor.log_softmax(-1), rtol=1e-5)


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([[0.5, 0.25, 0.0, 0.25]], np.float32) + 1e-30)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([draw(logits, [rng]) for _ in range(4000)])
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.0, 0.25], atol=0.03)


def test_a_row_draws_the_same_alone_and_in_a_batch(logits):
    def rngs():
        return [np.random.default_rng(seed) for seed in range(4)]

    alone = [draw(logits[row : row + 1], rngs()[row : row + 1])[0] for row in range(4)]
    np.testing.assert_array_equal(draw(logits, rngs()), alone)
