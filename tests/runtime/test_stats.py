import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.runtime.stats import (
    LEAST_FOR_MEDIAN,
    Verdict,
    compare_speed,
    judge,
    latency_of,
    median_interval,
)

MS = 1_000_000


def rounds(rng, scale=1.0, *, count=40, calls=3, noise=0.05, drift=None):
    """Samples around 10 ms, log-normal, with an optional factor per round."""
    samples = 10 * MS * scale * np.exp(rng.normal(0, noise, (count, calls)))
    return (samples * (1.0 if drift is None else drift[:, None])).astype(int).tolist()


def test_latency_keeps_every_sample():
    found = latency_of([[1 * MS, 2 * MS], [3 * MS, 100 * MS]])
    assert (found.samples, found.min_ms, found.max_ms, found.median_ms) == (4, 1, 100, 2.5)


def test_percentiles_interpolate_linearly():
    found = latency_of([list(range(0, 1001 * MS, MS))])
    assert (found.p95_ms, found.p99_ms) == (950, 990)


@pytest.mark.parametrize(
    ("samples", "p95", "p99"), [(199, 0, 0), (200, 1, 0), (999, 1, 0), (1000, 1, 1)]
)
def test_percentiles_of_too_few_samples_are_not_given(samples, p95, p99):
    found = latency_of([[MS] * samples])
    assert (found.p95_ms is not None, found.p99_ms is not None) == (p95, p99)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.04, 1.2, Verdict.FASTER),
        (0.8, 0.96, Verdict.SLOWER),
        (0.8, 0.9705, Verdict.SLOWER),  # below 1 / 1.03
        (0.98, 1.02, Verdict.SAME),
        (1.02, 1.2, Verdict.UNSURE),
        (0.9, 1.1, Verdict.UNSURE),
        (0.9, 0.99, Verdict.UNSURE),
    ],
)
def test_verdict_of_an_interval(low, high, verdict):
    assert judge(low, high) is verdict


@given(st.floats(0.2, 5), st.floats(0.2, 5))
def test_a_verdict_read_from_the_other_side_is_its_opposite(one, other):
    low, high = sorted((one, other))
    opposite = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}
    verdict = judge(low, high)
    assert judge(1 / high, 1 / low) in (opposite.get(verdict, verdict), Verdict.UNSURE)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_slowdown_of_15_percent_is_found(seed):
    rng = np.random.default_rng(seed)
    found = compare_speed(rounds(rng, 1.15), rounds(rng), against="other", rng=rng)
    assert found.verdict is Verdict.SLOWER
    assert found.low < 1 / 1.15 < found.high
    assert found.against == "other"


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_equal_rows_are_never_called_different(seed, noise):
    rng = np.random.default_rng(seed)
    found = compare_speed(
        rounds(rng, noise=noise), rounds(rng, noise=noise), against="other", rng=rng
    )
    assert found.verdict in (Verdict.SAME, Verdict.UNSURE)
    assert found.verdict is Verdict.SAME or noise > 0.01


@pytest.mark.parametrize(
    ("count", "verdict"), [(1, "cannot say"), (7, "cannot say"), (8, "faster")]
)
def test_too_few_rounds_allow_no_verdict(count, verdict):
    rng = np.random.default_rng(0)
    row, other = rounds(rng, count=count, noise=0.001), rounds(rng, 2, count=count, noise=0.001)
    found = compare_speed(row, other, against="other", rng=rng)
    assert found.verdict == verdict
    assert found.speedup == pytest.approx(2, rel=0.01)


def test_a_slow_machine_slows_both_rows_and_not_their_ratio():
    rng = np.random.default_rng(0)
    drift = np.linspace(1, 2, 40)  # the machine gets half as fast
    slower, other = rounds(rng, 1.15, drift=drift), rounds(rng, drift=drift)
    found = compare_speed(slower, other, against="other", rng=rng)
    assert found.verdict is Verdict.SLOWER
    # Of other rounds for either row it would be several times as wide.
    assert found.high / found.low < 1.08


def test_the_interval_of_95_percent_holds_the_truth_about_as_often():
    hits = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = compare_speed(
            rounds(rng, 0.5, count=20), rounds(rng, count=20), against="other", rng=rng
        )
        hits += found.low <= 2 <= found.high
    assert 16 <= hits <= 20


def test_rows_may_have_blocks_of_different_lengths():
    rng = np.random.default_rng(0)
    found = compare_speed(
        rounds(rng, 0.1, calls=30), rounds(rng, calls=3), against="other", rng=rng
    )
    assert found.speedup == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (40, 14, 27), (5000, 2431, 2570)],
)
def test_the_interval_of_a_median_lies_between_two_samples(count, low, high):
    # As tables of the binomial distribution have them.
    values = np.random.default_rng(0).permutation(np.arange(1, count + 1))
    assert median_interval(values) == ((count + 1) / 2, low, high)


@pytest.mark.parametrize("count", [1, 2, LEAST_FOR_MEDIAN - 1])
def test_a_median_of_few_samples_has_no_interval(count):
    assert median_interval(np.arange(count)) == ((count - 1) / 2, None, None)


@pytest.mark.parametrize("count", [6, 10, 25])
def test_the_interval_of_a_median_holds_it_in_95_of_100_cases(count):
    values = np.random.default_rng(count).lognormal(0, 1, (1000, count))
    found = [median_interval(one) for one in values]
    assert sum(low <= 1 <= high for _, low, high in found) >= 940
