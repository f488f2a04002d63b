"""What several processes of a row tell: coverage, and both errors of --fail-on, by simulation."""

import numpy as np
import pytest

from tfx.bench.measuring.processes import Side, compare_rows, joined, ratio_of, side_of
from tfx.bench.measuring.workload import GATE_PROCESSES, GATE_TIMES
from tfx.runtime.stats import Verdict

# Standard deviations of logarithms as a noisy machine of 2 CPUs has them: of a process, and of the
# fastest call of a round.
PROCESS, ROUND = 0.015, 0.10
ROUNDS = 9
LIMIT = 1.10
RUNS = 150


def side(rng, processes, ratio=1.0, *, process=PROCESS, noise=ROUND, rounds=ROUNDS):
    """Rounds that other work makes longer, never shorter, of rows that differ by process."""
    found = []
    for _ in range(processes):
        own = rng.normal(0, process, (2, 1)) + np.log([[ratio], [2.5]])
        found.append(np.exp(own + np.abs(rng.normal(0, noise, (2, rounds)))))
    return Side(tuple(found))


def judged(rng, baseline, ratio):
    """The gate: processes are added until the interval is clear of the limit, or there are all."""
    found = side(rng, GATE_PROCESSES, ratio)
    while True:
        value, low, high = ratio_of(found, baseline, rng)
        count = len(found.processes)
        if high <= LIMIT:
            return False, count
        if low > LIMIT or count >= GATE_PROCESSES * GATE_TIMES:
            return value > LIMIT and low > 1, count
        found = joined([found, side(rng, 1, ratio)])


@pytest.mark.parametrize(("ratio", "least", "most"), [(1.0, 0.0, 0.0), (1.15, 0.99, 1.0)])
def test_a_slowdown_of_15_percent_is_found_and_no_other(ratio, least, most):
    rng = np.random.default_rng(1)
    found = [judged(rng, side(rng, 3 * GATE_PROCESSES), ratio) for _ in range(RUNS)]
    assert least <= np.mean([flagged for flagged, _ in found]) <= most
    assert np.mean([count for _, count in found]) < 3 * GATE_PROCESSES


@pytest.mark.parametrize(
    ("later", "earlier", "process", "least", "most"),
    [
        (3, 3, 0.03, 0.92, 1.0),
        (4, 12, 0.03, 0.92, 0.99),
        (4, None, 0.03, 0.92, 0.99),
        (1, 8, 0.03, 0.90, 1.0),  # the one is taken to spread as the eight do
        (1, 1, 0.0, 0.90, 0.99),
        (1, 1, 0.10, 0.0, 0.75),  # one process tells nothing of another: too narrow, and said so
    ],
)
def test_how_often_the_interval_holds_the_truth(later, earlier, process, least, most):
    rng = np.random.default_rng(2)
    truth = 1.2 if earlier else 1.2 / 2.5
    held = 0
    for _ in range(RUNS):
        before = side(rng, earlier, process=process, rounds=20) if earlier else None
        now = side(rng, later, 1.2, process=process, rounds=20)
        _, low, high = ratio_of(now, before, rng)
        held += low <= truth <= high
    assert least <= held / RUNS <= most


def test_rounds_are_divided_among_processes_and_those_nobody_else_has_are_left_out():
    found = side_of([1, 2, 3, 4, 5, 6, 7], [1, 1, 1, 1, 1], (2, 2, 3))
    assert [one.tolist() for one in found.processes] == [
        [[1, 2], [1, 1]],
        [[3, 4], [1, 1]],
        [[5], [1]],
    ]
    assert found.rounds == 5
    assert side_of([1.0], [], (1,)).processes == ()
    assert len(joined([found, found]).processes) == 6


def test_a_process_counts_with_the_lower_quartile_of_its_rounds():
    found = side_of([1.0, 2.0, 3.0, 4.0, 90.0], [5.0, 1.0, 1.0, 1.0, 1.0], [5])
    assert found.centre == pytest.approx(np.log(2.0))


def test_processes_of_a_sample_are_further_apart_than_they_look():
    two = Side((np.array([[1.0], [1.0]]), np.array([[4.0], [1.0]])))
    assert two.apart == pytest.approx(np.array([-1, 1]) * np.log(2.0) * 2**0.5)


def test_two_processes_are_as_sure_as_student_says():
    two = Side((np.array([[1.0], [1.0]]), np.array([[4.0], [1.0]])))
    ratio, low, high = ratio_of(two, None, np.random.default_rng(0))
    # Drawn, both are the same one in half of all cases: 12.706 of 1 degree of freedom, for 1.960.
    reach = np.exp(np.log(2.0) * 2**0.5 * 12.706 / 1.960)
    assert (ratio, low, high) == pytest.approx((2.0, 2.0 / reach, 2.0 * reach))


def test_processes_that_are_all_alike_have_no_interval():
    same = side_of([2.0] * 8, [1.0] * 8, (4, 4))
    assert ratio_of(same, same, np.random.default_rng(0)) == (1.0, 1.0, 1.0)
    assert ratio_of(same, None, np.random.default_rng(0)) == pytest.approx((2.0, 2.0, 2.0))


def test_rows_of_a_run_are_compared_by_process():
    rng = np.random.default_rng(0)
    rounds = np.exp(rng.normal(0, 0.01, (12, 5))) * 1e7
    spread = np.array([1.0, 1.3, 0.8]).repeat(4)[:, None]
    slower = (rounds * 1.15 * spread).astype(int).tolist()
    rows = slower, rounds.astype(int).tolist()
    one = compare_rows(*rows, (12,), against="torch", rng=rng)
    several = compare_rows(*rows, (4, 4, 4), against="torch", rng=rng)
    assert several.speedup == pytest.approx(1 / 1.15 / (1.3 * 0.8) ** (1 / 3), rel=0.02)
    assert several.low < 0.6 < one.low < one.high < 1.1 < several.high
    assert several.verdict is Verdict.UNSURE
    assert compare_rows(*rows, (6, 6), against="torch", rng=rng).low < one.low / 1.2
    assert compare_rows(slower, rows[1][:8], (4, 4, 4), against="torch", rng=rng).speedup < 1
    few = compare_rows(slower[:6], rows[1], (3, 3), against="torch", rng=rng)
    assert few.verdict is Verdict.UNSURE


def test_rows_of_a_run_are_compared_by_their_medians():
    slower = [[10], [10], [30], [30], [30]] * 2
    found = compare_rows(slower, [[10]] * 10, (5, 5), against="torch", rng=np.random.default_rng(0))
    assert found.speedup == pytest.approx(1 / 3)
