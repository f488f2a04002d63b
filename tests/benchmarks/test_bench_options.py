"""Options of tfx bench in groups, and the plan they come to."""

from dataclasses import fields

import click
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.reports import made_up

from tfx.bench.cli import bench
from tfx.bench.command import Gate, gate_of
from tfx.bench.measuring.baseline import Limits, RegressionError, compare_runs
from tfx.bench.measuring.workload import Plan, Way
from tfx.bench.options import Asked, Files, grouped, plan_of, ways_of
from tfx.bench.pages.output import write_json
from tfx.cli import main
from tfx.errors import RecipeError


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("options") / "tiny")


@pytest.fixture
def generator(encoder, monkeypatch):
    """A bundle that counts as one with a cache: to export one takes seconds."""
    monkeypatch.setattr("tfx.bench.measuring.family.is_generator", lambda signature: True)
    return encoder


def test_without_options_the_plan_is_the_usual_one(encoder):
    assert plan_of(Asked(), [encoder], processes=1) == Plan()


def test_every_option_is_a_field_of_its_group():
    names = {parameter.name for parameter in bench.params}
    grouped_names = {field.name for kind in (Asked, Files) for field in fields(kind)}
    alone = {"bundles", "profile", "peaks", "baselines", "fail_on", "history", "save", "as_json"}
    assert names == grouped_names | alone


def test_a_group_is_one_value_in_the_order_of_the_help():
    @click.command
    @grouped(Files, "files", click.option("--output"), click.option("--csv", "csv_file"),
             click.option("--html", "html_file"), click.option("--resume"))  # fmt: skip
    def command(files):
        click.echo(files)

    assert [one.name for one in command.params] == ["output", "csv_file", "html_file", "resume"]
    found = CliRunner().invoke(command, ["--csv", "a.csv"])
    assert found.output == f"{Files(csv_file='a.csv')}\n"


def test_what_is_named_twice_is_measured_once(encoder):
    asked = Asked(backends=("torch", "torch"), precisions=("fp32", "bf16"), batches=(2, 2))
    plan = plan_of(asked, [encoder], processes=3)
    assert (plan.batches, plan.processes) == ((2,), 3)
    assert ways_of(asked, [encoder], plan) == [Way("torch", "fp32"), Way("torch", "bf16")]


def test_the_number_of_processes_that_is_named_counts(encoder):
    assert plan_of(Asked(processes=9), [encoder], processes=3).processes == 9


@pytest.mark.parametrize(
    "asked",
    [Asked(lengths=(8,)), Asked(qps=5.0, scenario="server"), Asked(lengths_of="zipf")],
)
def test_options_of_feeds_choose_their_scenario_for_bundles_with_a_cache(generator, asked):
    assert plan_of(Asked(), [generator], processes=1).load.writes
    assert not plan_of(asked, [generator], processes=1).load.writes


def test_a_bundle_with_a_cache_writes_after_prompts(generator):
    plan = plan_of(Asked(prompts=(4, 8), new_tokens=3), [generator], processes=1)
    assert (plan.lengths, plan.load.new_tokens) == ((4, 8), 3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(scenario="generation", lengths=(8,)), "--length is of feeds"),
        (Asked(scenario="offline", prompts=(8,)), "--prompt-tokens is for --scenario generation"),
    ],
)
def test_options_of_two_scenarios(encoder, asked, message):
    with pytest.raises(click.UsageError, match=message):
        plan_of(asked, [encoder], processes=1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(qps=5.0), "the server scenario needs one above 0, and no other takes it"),
        (Asked(scenario="server"), "the server scenario needs one above 0"),
        (Asked(with_preprocessing=True), "preprocessing needs texts: give --lengths FILE"),
        (Asked(new_tokens=8), "new_tokens are for scenario generation"),
        (Asked(seed=-1), "seed is -1, expected 0 or more"),
    ],
)
def test_options_that_contradict_each_other(encoder, asked, message):
    with pytest.raises(RecipeError, match=message):
        plan_of(asked, [encoder], processes=1)


def test_what_a_run_writes():
    assert Files(output="a", resume="b").target == "a"
    assert Files(resume="b", html_file="c").written == ["b", "c"]
    assert Files().written == []


def test_limits_without_a_baseline():
    found = CliRunner().invoke(main, ["bench", "--fail-on", "slower:10%"])
    assert found.exit_code == 2
    assert "--fail-on needs --baseline, the run to compare with" in found.stderr


def test_a_gate_is_read_from_files(tmp_path):
    assert gate_of((), None) is None
    write_json(tmp_path / "old.json", made_up())
    gate = gate_of([tmp_path / "old.json"], None)
    assert (gate.limits, gate.asked) == (Limits(), "")
    gate = gate_of([tmp_path / "old.json"], "slower:10%")
    assert (gate.limits, gate.asked) == (Limits(slower=0.1), "slower:10%")


def test_only_limits_that_were_asked_for_fail():
    speeds = {("minilm", "torch"): 20.0, ("minilm", "openvino"): 5.0}
    slower = speeds | {("minilm", "openvino"): 8.0}
    shapes = ({"batch": 1, "sequence": 128},)
    before, after = (
        made_up(one, shapes=shapes, with_accuracy=False, seed=seed, processes=4)
        for seed, one in enumerate((speeds, slower))
    )
    gate = Gate([before], Limits(slower=0.1), "slower:10%")
    changes = compare_runs(gate.before, after, gate.limits)
    with pytest.raises(RegressionError, match="by more than slower:10%: minilm on openvino, batch"):
        gate.check(changes)
    Gate([before], Limits()).check(changes)
    assert gate.more(1)(after) == []  # as many processes as a gate of one adds at most
