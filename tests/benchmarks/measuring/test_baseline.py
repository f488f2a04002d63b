"""``tfx bench --baseline``: what became worse is found, what did not is left alone."""

import dataclasses
import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console
from support.bundles import write_bundle
from support.reports import MACHINE, SPEEDS_MS, made_up

from tfx.bench.measuring.baseline import (
    PROBE,
    Limits,
    Outcome,
    compare_runs,
    limits_of,
    same_runs,
    show_changes,
    unsure_rows,
    versions_that_differ,
)
from tfx.bench.measuring.report import Status
from tfx.bench.pages.output import write_json
from tfx.cli import main
from tfx.errors import DataError, RecipeError

SHAPES = ({"batch": 1, "sequence": 128},)
TEN_PERCENT = Limits(slower=0.1, accuracy=0.005)
SLOWED = ("minilm-sst2", "onnxruntime")


def run(seed, *, slow=1.0, planted=1.0, speeds=SPEEDS_MS, **changes):
    """A run of one shape on a machine that is ``slow`` today, one row ``planted`` times slower."""
    changed = {pair: ms * (planted if pair == SLOWED else 1) for pair, ms in speeds.items()}
    changes = {"with_accuracy": False} | changes
    return made_up(changed, shapes=SHAPES, seed=seed, slow=slow, load_noise=0.005, **changes)


def outcomes(earlier, later, limits=TEN_PERCENT):
    earlier = earlier if isinstance(earlier, list) else [earlier]
    return {one.name: one.outcome for one in compare_runs(earlier, later, limits)}


@pytest.mark.parametrize(("seed", "slow"), [(seed, 1 + 0.1 * seed) for seed in range(10)])
def test_an_unchanged_run_is_not_flagged_however_slow_the_machine_is(seed, slow):
    found = outcomes(run(seed), run(100 + seed, slow=slow))
    assert Outcome.FAILED not in found.values()
    assert len(found) == 8


@pytest.mark.parametrize(("seed", "slow"), [(seed, 1 - 0.03 * seed) for seed in range(10)])
def test_a_planted_slowdown_of_15_percent_is_caught_and_no_other_row(seed, slow):
    found = outcomes(run(seed), run(100 + seed, slow=slow, planted=1.15))
    assert [name for name, one in found.items() if one is Outcome.FAILED] == [
        "minilm-sst2 on onnxruntime"
    ]


def test_without_pytorch_the_fixed_product_is_the_anchor():
    speeds = {pair: ms for pair, ms in SPEEDS_MS.items() if pair[1] == "onnxruntime"}
    earlier = run(0, speeds=speeds)
    same = compare_runs([earlier], run(1, speeds=speeds, slow=1.4), TEN_PERCENT)
    assert {one.anchor for one in same} == {PROBE}
    assert {one.outcome for one in same} == {Outcome.FINE}
    slower = outcomes(earlier, run(2, speeds=speeds, slow=1.4, planted=1.15))
    assert slower["minilm-sst2 on onnxruntime"] is Outcome.FAILED
    assert list(slower.values()).count(Outcome.FAILED) == 1


def test_pytorch_itself_is_compared_with_the_fixed_product():
    changes = {one.name: one for one in compare_runs([run(0)], run(1), TEN_PERCENT)}
    assert changes["minilm-sst2 on torch"].anchor == PROBE
    assert changes["minilm-sst2 on openvino"].anchor == "minilm-sst2 on torch"


def test_a_fixed_product_that_became_faster_alone_fails_no_row():
    earlier, later = run(0), run(1)
    probes = {title: tuple(ms / 1.3 for ms in times) for title, times in later.probes.items()}
    found = outcomes(earlier, dataclasses.replace(later, probes=probes))
    assert found["minilm-sst2 on torch"] is Outcome.UNSURE
    assert Outcome.FAILED not in found.values()


def test_noise_that_reaches_over_the_limit_allows_no_verdict():
    found = outcomes(run(0, noise=0.4), run(3, noise=0.4, planted=1.1))
    assert found["minilm-sst2 on onnxruntime"] is Outcome.UNSURE


def test_few_rounds_allow_no_verdict_and_say_so():
    earlier = run(0)
    rows = tuple(
        dataclasses.replace(
            row, measurement=dataclasses.replace(row.measurement, round_min_ms=(1.0,) * 5)
        )
        for row in earlier.rows
    )
    (*_, change) = compare_runs([earlier], dataclasses.replace(run(1), rows=rows), Limits(0.1))
    assert change.outcome is Outcome.UNSURE
    assert change.reason == "fewer than 8 rounds: its time is not compared"


def test_several_baselines_are_surer_than_one_that_was_unlucky():
    unlucky = run(0, planted=1.09, processes=4)
    later = run(100, planted=1.15, processes=4)
    assert outcomes(unlucky, later)["minilm-sst2 on onnxruntime"] is not Outcome.FAILED
    several = [unlucky, run(1, slow=1.3, processes=4), run(2, slow=0.8, processes=4)]
    assert same_runs(several) is several
    assert outcomes(several, later)["minilm-sst2 on onnxruntime"] is Outcome.FAILED
    assert Outcome.FAILED not in outcomes(several, run(101, processes=4)).values()
    changes = compare_runs(several, later, TEN_PERCENT)
    assert {one.processes for one in changes} == {(12, 4)}


def test_baselines_of_other_rows_or_machines_are_refused():
    fewer = {pair: ms for pair, ms in SPEEDS_MS.items() if pair[1] != "openvino"}
    elsewhere = dataclasses.replace(run(0), machine=dataclasses.replace(MACHINE, usable_cpus=4))
    for other in (run(1, speeds=fewer), elsewhere):
        with pytest.raises(DataError, match="the baselines are not runs of one plan") as caught:
            same_runs([run(0), other])
        assert caught.value.hint == "Measure them again with the same command."


def test_a_drop_of_accuracy_is_found_in_pairs():
    same = run(0, right={}, with_accuracy=True)
    less = compare_runs(
        [same], run(1, right={"minilm-sst2": 0.89}, with_accuracy=True), TEN_PERCENT
    )
    found = {one.name: one for one in less}
    assert found["minilm-sst2 on onnxruntime"].outcome is Outcome.FAILED
    assert found["minilm-sst2 on onnxruntime"].drop.value == pytest.approx(0.0217, abs=1e-3)
    assert found["minilm-sst2-int8 on openvino"].outcome is Outcome.FINE
    little = outcomes(same, run(1, right={"minilm-sst2": 0.9070}, with_accuracy=True))
    assert little["minilm-sst2 on onnxruntime"] is Outcome.UNSURE


def test_a_row_that_does_not_run_any_more_fails_and_says_why():
    later = run(1)
    broken = dataclasses.replace(
        later.rows[2], status=Status.NOT_RUN, measurement=None, reason="crashed"
    )
    later = dataclasses.replace(later, rows=(*later.rows[:2], broken, *later.rows[3:]))
    changes = {one.name: one for one in compare_runs([run(0)], later, Limits())}
    lost = changes["minilm-sst2 on onnxruntime"]
    assert lost.outcome is Outcome.FAILED
    assert lost.reason == "measured then, not run now: crashed"


def test_other_data_are_not_compared():
    later = run(1, with_accuracy=True)
    rows = [
        dataclasses.replace(row, accuracy=dataclasses.replace(row.accuracy, data_digest="e" * 64))
        for row in later.rows
    ]
    changes = compare_runs(
        [run(0, with_accuracy=True)], dataclasses.replace(later, rows=tuple(rows)), TEN_PERCENT
    )
    assert changes[0].drop is None
    assert "evaluations cannot be compared: data 'dev.tsv dddd" in changes[0].reason


def test_another_machine_is_refused():
    other = dataclasses.replace(run(1), machine=dataclasses.replace(MACHINE, usable_cpus=8))
    with pytest.raises(
        DataError, match="baseline was measured on 2 CPUs of 'Made-up CPU', this on 8"
    ):
        compare_runs([run(0)], other, Limits())


def test_nothing_in_common_is_refused():
    with pytest.raises(DataError, match="no row of the baseline was measured again"):
        compare_runs([run(0)], made_up(shapes=({"batch": 2, "sequence": 8},)), Limits())


def test_other_versions_are_said():
    machine = dataclasses.replace(MACHINE, versions={"onnxruntime": "1.32.0", "openvino": "1"})
    assert versions_that_differ([run(0)], dataclasses.replace(run(1), machine=machine)) == [
        "onnxruntime 1.31.1 then, 1.32.0 now",
        "openvino absent then, 1 now",
        "tfx-toolkit 0.1.0 then, absent now",
    ]


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("slower:10%", Limits(slower=0.1)),
        ("accuracy:0.5", Limits(accuracy=0.005)),
        ("accuracy:.5, slower:2.5%", Limits(slower=0.025, accuracy=0.005)),
    ],
)
def test_limits_are_percent_and_points(text, limits):
    assert limits_of(text) == limits


@pytest.mark.parametrize("text", ["", "slower", "slower:10", "accuracy:1%", "slower:1%,slower:2%"])
def test_other_limits_are_refused(text):
    with pytest.raises(RecipeError, match=r"expected slower:PERCENT%, accuracy:POINTS or both"):
        limits_of(text)


def test_the_table_says_what_failed_and_by_what():
    out = io.StringIO()
    changes = compare_runs([run(0)], run(1, planted=1.15), TEN_PERCENT)
    show_changes(Console(file=out, width=120), changes, TEN_PERCENT)
    (line,) = [one for one in out.getvalue().splitlines() if one.endswith("failed")]
    assert line.startswith("minilm-sst2 on onnxruntime ")
    assert " 1.1" in line
    assert "note: surely slower, and by more than 10.0%, fails" in out.getvalue()
    assert "note: a sure drop, of more than 0.5 points, fails" in out.getvalue()
    assert "times are relative to minilm-sst2 on torch and the fixed product" in out.getvalue()


def test_the_command_fails_for_what_became_worse_and_for_nothing_else(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    asked = ("bench", bundle.path, "--backend", "onnxruntime", "--rounds", 8, "--seconds", 0.1)
    asked += ("--batch", 2, "--length", 8, "--threads", 1, "--processes", 1)

    def tfx(*arguments):
        return CliRunner().invoke(main, list(map(str, (*asked, *arguments))))

    old = tmp_path / "old.json"
    assert tfx("-o", old).exit_code == 0
    document = json.loads(old.read_text())
    (row,) = document["rows"]
    (tmp_path / "new.json").write_text(old.read_text())  # finished: nothing is measured again
    again = ("--resume", tmp_path / "new.json", "--baseline", old)
    gate = (*again, "--fail-on", "slower:10000%", "--json")
    fine = tfx(*gate)
    assert fine.exit_code == 0, fine.output
    assert json.loads(fine.stdout)["baseline"][0]["outcome"] == "fine"
    for times in ("round_ms", "round_min_ms"):
        row["measurement"][times] = [ms / 1000 for ms in row["measurement"][times]]
    row["measurement"]["latency"]["median_ms"] /= 1000
    old.write_text(json.dumps(document))
    worse = tfx(*gate)
    assert worse.exit_code == 1
    assert (
        "error: worse than the baseline by more than slower:10000%: tiny on onnxruntime, batch 2, "
        "sequence 8\nhint: Measure again"
    ) in worse.stderr
    assert tfx(*again).exit_code == 0


def test_runs_of_older_versions_are_compared_by_medians():
    def old(report):
        rows = tuple(
            dataclasses.replace(
                row,
                measurement=dataclasses.replace(
                    row.measurement, round_min_ms=(), process_rounds=()
                ),
            )
            for row in report.rows
        )
        return dataclasses.replace(report, rows=rows)

    later = run(1, planted=1.15)
    assert outcomes(old(run(0)), later)["minilm-sst2 on onnxruntime"] is Outcome.FAILED
    changes = compare_runs([old(run(0))], later, TEN_PERCENT)
    assert {one.processes for one in changes} == {(1, 1)}


def test_only_rows_that_more_processes_may_tell_of_are_measured_again():
    earlier = [run(0, processes=4)]
    later = run(1, planted=1.1, processes=4)
    assert unsure_rows(earlier, later, TEN_PERCENT, 8) == ["minilm-sst2 on onnxruntime"]
    assert unsure_rows(earlier, later, TEN_PERCENT, 4) == []
    assert unsure_rows(earlier, later, Limits(accuracy=0.1), 8) == []
    assert unsure_rows(earlier, run(1, planted=1.3, processes=4), TEN_PERCENT, 8) == []
    elsewhere = made_up(shapes=({"batch": 2, "sequence": 8},))
    assert unsure_rows(earlier, elsewhere, TEN_PERCENT, 8) == []


def test_one_process_is_said_to_tell_too_little():
    for processes, said in ((1, True), (4, False)):
        out = io.StringIO()
        changes = compare_runs([run(0, processes=4)], run(1, processes=processes), TEN_PERCENT)
        show_changes(Console(file=out, width=150), changes, TEN_PERCENT)
        assert ("note: some rows were one process: another" in out.getvalue()) is said
        assert f" 4 | {processes} " in out.getvalue()


@pytest.mark.parametrize(
    ("options", "processes", "again"),
    [
        ((), 1, []),
        (("--fail-on", "accuracy:1"), 1, []),
        (("--fail-on", "slower:10%"), 3, ["minilm-sst2 on onnxruntime"]),
        (("--fail-on", "slower:10%", "--processes", "1"), 1, []),
    ],
)
def test_a_run_that_is_judged_by_time_takes_processes(
    tmp_path, monkeypatch, options, processes, again
):
    bundle = write_bundle(tmp_path / "tiny")
    old = tmp_path / "old.json"
    write_json(old, run(0, processes=8))
    later = run(1, planted=1.1, processes=5)

    def measured(bundles, plan, ways, machine, *, more, **others):
        assert plan.processes == processes
        assert more(later) == again
        return later

    monkeypatch.setattr("tfx.bench.command.measure", measured)
    monkeypatch.setattr("tfx.bench.command.this_machine", lambda: MACHINE)
    found = CliRunner().invoke(main, ["bench", str(bundle.path), "--baseline", str(old), *options])
    assert found.exit_code in (0, 1), found.output
    assert "against the baseline" in found.stdout


def test_a_baseline_of_another_machine_is_refused_before_anything_runs(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "tiny")
    write_json(tmp_path / "old.json", run(0))
    monkeypatch.setattr("tfx.bench.command.measure", lambda *_, **__: pytest.fail("runs"))
    asked = ["bench", str(bundle.path), "--baseline", str(tmp_path / "old.json")]
    found = CliRunner().invoke(main, asked)
    assert found.exit_code == 1
    assert "the baseline was measured on 2 CPUs of 'Made-up CPU'" in found.stderr


def test_a_limit_needs_a_baseline(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    found = CliRunner().invoke(main, ["bench", str(bundle.path), "--fail-on", "slower:10%"])
    assert found.exit_code == 2
    assert "--fail-on needs --baseline" in found.stderr
