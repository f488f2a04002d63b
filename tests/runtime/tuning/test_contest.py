import re

import numpy as np
import pytest
from support.bundles import write_bundle
from support.tuning import Behaviour, World, proof, write_child

from tfx.errors import BackendError
from tfx.runtime.tuning.candidates import Candidate, Outcome
from tfx.runtime.tuning.contest import CLEARLY, FINALISTS, HOPELESS, MOST_ROUNDS, _Run


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b")


def ways(*bundles, backends=("onnxruntime", "openvino"), precisions=("",), threads=(2,)):
    return [
        Candidate(one.name, one.digest, backend, precision, count)
        for count in threads
        for one in bundles
        for precision in precisions
        for backend in backends
    ]


def decide(world, found, *children, reference=None, **options):
    with world.contest(children, **options) as contest:
        contest.first_round(found)
        if reference:
            contest.add_reference(reference)
        contest.final_rounds(world.sleep)
        trials = contest.decide(found)
    assert not world.alive
    return {str(trial.candidate): trial for trial in trials}


def test_the_fastest_is_chosen_and_the_others_say_by_how_much_they_lost(bundle):
    world = World(bundle, onnxruntime=Behaviour(12), openvino=Behaviour(10))
    trials = decide(world, ways(bundle))
    chosen, lost = trials["b on openvino, threads 2"], trials["b on onnxruntime, threads 2"]
    assert (chosen.outcome, chosen.reason) == (Outcome.CHOSEN, "the fastest")
    assert chosen.medians_ms == {"1x8": 10.0, "4x8": 40.0}
    assert chosen.score_ms == pytest.approx(20.0)  # the geometric mean
    assert lost.outcome is Outcome.LOST
    assert lost.reason == "1.20 times the chosen one's time, 1.20 to 1.20"
    assert list(trials) == ["b on openvino, threads 2", "b on onnxruntime, threads 2"]


def test_a_shape_that_counts_twice_weighs_twice(bundle):
    trials = decide(
        World(bundle), ways(bundle, backends=("onnxruntime",)), weights={"1x8": 2, "4x8": 1}
    )
    (trial,) = trials.values()
    assert trial.score_ms == pytest.approx((10 * 10 * 40) ** (1 / 3))


def test_of_equals_the_least_lowered_with_the_fewest_threads_is_chosen(bundle):
    world = World(bundle, onnxruntime_1=Behaviour(10.2), openvino_bf16=Behaviour(10))
    found = ways(bundle, backends=("onnxruntime",), threads=(2, 1))
    found += ways(bundle, backends=("openvino",), precisions=("", "bf16"))
    trials = decide(world, found)
    chosen = trials["b on onnxruntime, threads 1"]
    assert chosen.outcome is Outcome.CHOSEN
    assert chosen.reason.startswith("within 3% of the fastest, b on ")
    assert chosen.reason.endswith("and nearer to the bundle as it is")


def test_a_child_that_is_hardly_faster_is_not_chosen(bundle, tmp_path):
    child = write_child(tmp_path / "c", bundle, proof(0.0))
    world = World(bundle, c_onnxruntime=Behaviour(9.9))
    trials = decide(world, ways(bundle, child, backends=("onnxruntime",)), child)
    assert trials["b on onnxruntime, threads 2"].outcome is Outcome.CHOSEN
    assert trials["c on onnxruntime, threads 2"].outcome is Outcome.LOST


def test_fewer_bits_that_are_hardly_faster_are_not_chosen(bundle):
    world = World(bundle, openvino_bf16=Behaviour(9.9))
    trials = decide(world, ways(bundle, backends=("openvino",), precisions=("", "bf16")))
    assert trials["b on openvino, threads 2"].outcome is Outcome.CHOSEN


def test_rounds_come_to_an_end_and_one_alone_needs_none(bundle):
    for backends, rounds in ((("onnxruntime", "openvino"), MOST_ROUNDS), (("openvino",), 0)):
        world = World(bundle)
        with world.contest((), seconds=1e9) as contest:
            contest.first_round(ways(bundle, backends=backends))
            assert contest.final_rounds(world.sleep) == rounds


def test_what_is_clearly_slower_ends_in_the_first_round(bundle):
    world = World(bundle, openvino=Behaviour(20))
    slow = decide(world, ways(bundle))["b on openvino, threads 2"]
    assert (slow.outcome, slow.reason) == (
        Outcome.DROPPED,
        "2.0 times the fastest one's time at first",
    )
    assert slow.score_ms == pytest.approx(40)


def test_so_far_behind_fewer_threads_are_not_tried(bundle):
    world = World(bundle, openvino=Behaviour(40))
    trials = decide(world, ways(bundle, threads=(2, 1)))
    assert trials["b on openvino, threads 1"].outcome is Outcome.NOT_RUN
    assert trials["b on openvino, threads 1"].reason == (
        "with more threads it took 4.0 times the fastest one's time"
    )
    assert trials["b on onnxruntime, threads 1"].score_ms


def test_behind_by_less_fewer_threads_are_tried(bundle):
    world = World(bundle, openvino=Behaviour(10 * (CLEARLY + HOPELESS) / 2))
    trials = decide(world, ways(bundle, threads=(2, 1)))
    assert trials["b on openvino, threads 1"].outcome is Outcome.DROPPED


def test_only_a_few_are_alive_at_once(bundle):
    found = ways(bundle, backends=("onnxruntime",), threads=(8, 7, 6, 5, 4, 3, 2, 1))
    world = World(bundle, **{f"onnxruntime_{n}": Behaviour(10 + n / 10) for n in range(1, 9)})
    trials = decide(world, found)
    assert world.most_alive == FINALISTS + 1
    dropped = [one for one in trials.values() if one.outcome is Outcome.DROPPED]
    assert len(dropped) == 4
    assert dropped[0].reason.endswith("at first, and 4 others were faster")


def test_a_wrong_one_is_never_chosen_however_fast(bundle):
    world = World(bundle, openvino=Behaviour(1, noise=0.1))
    trials = decide(world, ways(bundle))
    wrong = trials["b on openvino, threads 2"]
    assert wrong.outcome is Outcome.WRONG
    assert wrong.reason.startswith("differs from the outputs of b by 0.0")
    assert wrong.reason.endswith(", 0.0002 is allowed")
    assert trials["b on onnxruntime, threads 2"].outcome is Outcome.CHOSEN


def test_nan_is_wrong(bundle):
    world = World(bundle, openvino=Behaviour(1, noise=np.nan))
    assert decide(world, ways(bundle))["b on openvino, threads 2"].outcome is Outcome.WRONG


@pytest.mark.parametrize("error", [0.5, float("inf"), float("nan")])
def test_one_that_fails_the_stored_proof_is_wrong(bundle, error):
    world = World(bundle, onnxruntime=Behaviour(1, error=error), openvino=Behaviour(error=1e-6))
    trials = decide(world, ways(bundle))
    wrong = trials["b on onnxruntime, threads 2"]
    assert wrong.outcome is Outcome.WRONG
    assert wrong.reason == (
        f"differs from PyTorch's stored outputs by {error:.2g}, 0.0001 is allowed"
    )
    assert trials["b on openvino, threads 2"].outcome is Outcome.CHOSEN


@pytest.mark.parametrize(("noise", "outcome"), [(0.01, "chosen"), (0.15, "over budget")])
def test_fewer_bits_must_give_nearly_the_same_outputs(bundle, noise, outcome):
    world = World(bundle, openvino_bf16=Behaviour(1, noise=noise))
    trials = decide(world, ways(bundle, precisions=("", "bf16"), backends=("openvino",)))
    lower = trials["b on openvino bf16, threads 2"]
    assert lower.outcome == outcome
    if outcome == "over budget":
        assert lower.reason.startswith("its outputs have cosine 0.9")
        assert lower.reason.endswith(" to those of b on openvino, threads 2, 0.995 is needed")


def test_a_child_without_proof_is_judged_by_its_outputs(bundle, tmp_path):
    child = write_child(tmp_path / "c", bundle)
    world = World(bundle, c_onnxruntime=Behaviour(1, noise=5e-5))
    assert (
        decide(world, ways(bundle, child), child)["c on onnxruntime, threads 2"].outcome
        is Outcome.CHOSEN
    )
    trials = decide(world, ways(bundle, child), child, min_cosine=1.0)
    assert trials["c on onnxruntime, threads 2"].outcome is Outcome.OVER_BUDGET
    assert "its accuracy was not measured when it was made" in (
        trials["c on onnxruntime, threads 2"].reason
    )


def test_a_proof_on_one_engine_holds_on_another_that_gives_the_same(bundle, tmp_path):
    child = write_child(tmp_path / "c", bundle, proof(0.0))
    world = World(
        bundle, c_onnxruntime=Behaviour(5, noise=5e-5), c_openvino=Behaviour(1, noise=-8e-5)
    )
    trials = decide(world, ways(bundle, child), child, min_cosine=0.999999999)
    assert trials["c on onnxruntime, threads 2"].outcome is Outcome.CHOSEN
    assert trials["c on openvino, threads 2"].outcome is Outcome.OVER_BUDGET
    assert trials["c on openvino, threads 2"].reason.endswith(
        "to those of c on onnxruntime, threads 2, 1 is needed"
    )


def test_a_crash_takes_no_other_along(bundle):
    world = World(bundle, onnxruntime=Behaviour(9, dies_after=6))
    trials = decide(world, ways(bundle))
    dead = trials["b on onnxruntime, threads 2"]
    assert (dead.outcome, dead.reason) == (Outcome.NOT_RUN, "the process ended: signal 11")
    assert trials["b on openvino, threads 2"].outcome is Outcome.CHOSEN


def test_a_precision_that_is_refused_is_asked_for_once(bundle, tmp_path):
    child = write_child(tmp_path / "c", bundle, proof(0.0))
    world = World(bundle, openvino_bf16=Behaviour(refuses="no bf16 here"))
    found = ways(bundle, child, backends=("openvino",), precisions=("", "bf16"), threads=(2, 1))
    trials = decide(world, found, child)
    refused = [one for one in trials.values() if one.candidate.precision]
    assert {one.reason for one in refused} == {"no bf16 here (Do without.)"}
    assert len(refused) == 4
    assert sum("bf16" in name for name in world.loaded) == 1


def test_when_the_time_is_up_the_best_so_far_is_chosen(bundle):
    world = World(bundle)
    world.load_ns = 10**10
    trials = decide(world, ways(bundle, threads=(2, 1)), seconds=10.0)
    assert len(world.loaded) == 1
    assert trials["b on openvino, threads 1"].reason == "the time was up: 10 s for all of them"
    assert trials["b on onnxruntime, threads 2"].outcome is Outcome.CHOSEN


def test_rounds_end_with_the_time_and_an_interval_needs_some(bundle):
    world = World(bundle, onnxruntime=Behaviour(1000), openvino=Behaviour(1200))
    with world.contest(seconds=50.0) as contest:
        found = ways(bundle, threads=(2,))
        contest.first_round(found)
        assert world.now > 50e9
        assert contest.final_rounds(world.sleep) == 3
        lost = contest.decide(found)[1]
    assert lost.reason == "1.20 times the chosen one's time"


def test_the_interval_is_of_the_figure_in_front_of_it(bundle):
    """Where a machine turns slow in between, the ratio of medians is not the median of ratios."""
    slow = _Run(None, None, rounds=[[[ms * 1e6], [ms * 1e6]] for ms in [4] * 5 + [12] * 6])
    chosen = _Run(None, None, rounds=[[[ms * 1e6], [ms * 1e6]] for ms in [3] * 6 + [10] * 5])
    with World(bundle).contest() as contest:
        said = contest._behind(slow, chosen)
    figure, low, high = re.findall(r"\d+\.\d+", said)
    assert figure == "4.00"
    assert float(low) < 4 <= float(high)


def test_the_reference_is_timed_and_never_chosen(bundle):
    torch = Candidate("b", bundle.digest, "torch", "fp32", 2)
    world = World(bundle, torch=Behaviour(2))
    trials = decide(world, ways(bundle), reference=torch)
    assert trials[str(torch)].outcome is Outcome.REFERENCE
    assert trials[str(torch)].reason.startswith("0.20 times the chosen one's time")
    assert trials["b on onnxruntime, threads 2"].outcome is Outcome.CHOSEN


def test_a_reference_that_does_not_run_is_no_obstacle(bundle):
    torch = Candidate("b", bundle.digest, "torch", "fp32", 2)
    world = World(bundle, torch=Behaviour(refuses="torch is not installed"))
    trials = decide(world, ways(bundle), reference=torch)
    assert trials[str(torch)].outcome is Outcome.NOT_RUN


def test_where_nothing_runs_it_says_why_of_each(bundle):
    refuses = Behaviour(refuses="no")
    world = World(bundle, onnxruntime=refuses, openvino=refuses)
    with pytest.raises(BackendError) as caught:
        decide(world, ways(bundle))
    assert str(caught.value) == (
        f"nothing runs {bundle.path} as it must:\n  b on onnxruntime, threads 2: no (Do without.)"
        "\n  b on openvino, threads 2: no (Do without.)"
    )
    assert caught.value.hint == "See what is missing with: tfx doctor"


def test_a_child_is_not_judged_without_its_parent(bundle, tmp_path):
    child = write_child(tmp_path / "c", bundle, proof(0.0))
    refuses = Behaviour(refuses="no")
    world = World(bundle, b_onnxruntime=refuses, b_openvino=refuses)
    with pytest.raises(BackendError, match="b ran nowhere in its own precision: nothing to comp"):
        decide(world, ways(bundle, child), child)


def test_processes_end_when_it_is_interrupted(bundle):
    world = World(bundle)

    def interrupted():
        with world.contest() as contest:
            contest.first_round(ways(bundle))
            assert world.alive
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not world.alive
