"""Stored results: the page made of them, and how figures moved."""

import dataclasses
import json

import pytest
from click.testing import CliRunner
from support.reports import MACHINE, made_up

from tfx.bench.pages.output import write_json
from tfx.bench.pages.stored import save_result
from tfx.bench.results import page_of_results, read_results, reports_of, results
from tfx.cli import main
from tfx.errors import DataError

OLD, NEW = "2026-11-20T10:00:00+00:00", "2026-11-21T10:00:00+00:00"
CPU_ROWS = [
    {"shape": "batch 1", "name": "b on torch", "precision": "float32", "median_ms": 20.0},
    {"shape": "batch 1", "name": "b on openvino", "reason": "no openvino here"},
]


@pytest.fixture
def folder(tmp_path):
    """Two runs of one family on one machine, one as --output has it, one as --save."""
    stored = tmp_path / "stored"
    write_json(stored / "b.json", made_up(created=OLD, slow=2.0))
    save_result(stored, "bench", NEW, made_up(created=NEW).to_dict(), MACHINE)
    return stored


def test_results_come_oldest_first(folder):
    assert [one.created for one in read_results(folder)] == [OLD, NEW]


def test_reports_are_found_where_another_command_wraps_them(folder):
    wrapped = {"rows": [], "verdicts": [], "report": made_up(created=NEW).to_dict()}
    save_result(folder, "cpu", NEW, wrapped, MACHINE)
    save_result(folder, "soak", NEW, {"soak": {}}, MACHINE)
    assert [one.created for one in reports_of(read_results(folder))] == [OLD, NEW, NEW]


def test_the_page_has_the_newest_of_each_machine_and_family(folder):
    page = page_of_results(read_results(folder))
    assert page.count("### tfx bench, 2026-11-21") == 1
    assert "2026-11-20" not in page
    assert "## Made-up CPU, 2 of 4 CPUs usable, 16 GB" in page
    lines = page.splitlines()
    (first,) = [one for one in lines if one.startswith("| minilm-sst2-int8 on openvino | 3.")]
    assert "| faster |" in first
    assert "| 0.9025 ±0.020 | -0.0097 ±0.006 |" in first
    widths = {one.count("|") for one in lines if one.startswith("|")}
    assert widths == {9}


def test_machines_are_kept_apart(folder):
    other = dataclasses.replace(MACHINE, cpu="Other | CPU")
    write_json(folder / "c.json", dataclasses.replace(made_up(created=OLD), machine=other))
    page = page_of_results(read_results(folder))
    assert "## Other | CPU, 2 of 4" in page
    assert "2026-11-20" in page


def test_commands_have_an_order_and_take_no_place_of_another(folder):
    save_result(folder, "unheard-of", OLD, {"ways": [{"name": "a", "step_ms": 1.5}]}, MACHINE)
    save_result(folder, "cpu", OLD, {"rows": CPU_ROWS, "verdicts": ["5x: no"]}, MACHINE)
    page = page_of_results(read_results(folder))
    places = [page.index(name) for name in ("bench.cpu`", "### tfx bench", "bench.unheard-of`")]
    assert places == sorted(places)


def test_a_folder_without_results_makes_a_page_that_says_so(tmp_path):
    assert page_of_results(read_results(tmp_path)).endswith("No results are stored yet.\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "a.json cannot be read"),
        ('{"texts": 5}', "a.json: no result of tfx bench: schema is None"),
        ('{"command": "cpu", "result": {}}', "a.json: no stored result: .*created: missing"),
    ],
)
def test_damaged_results_are_named(folder, text, says):
    (folder / "a.json").write_text(text)
    with pytest.raises(DataError, match=says):
        read_results(folder)


def test_a_result_of_another_form_is_named(folder):
    save_result(folder, "cpu", NEW, {"rows": [{"shape": "batch 1"}], "verdicts": []}, MACHINE)
    with pytest.raises(DataError, match=rf"of cpu of {NEW[:10]}.* is not what it prints") as caught:
        page_of_results(read_results(folder))
    assert caught.value.hint == "Measure again with --save."


def test_the_command_writes_the_page_and_tells_when_it_is_old(folder, tmp_path):
    page = tmp_path / "results.md"

    def run(*arguments):
        return CliRunner().invoke(results, [str(folder), "-o", str(page), *arguments])

    assert run("--check").exit_code == 1
    assert run().exit_code == 0
    assert run("--check").exit_code == 0
    page.write_text(page.read_text() + "typed")
    old = run("--check")
    assert old.exit_code == 1
    assert "is not what" in old.output


def test_history_shows_each_row_over_time(folder):
    found = CliRunner().invoke(main, ["bench", "--history", str(folder)])
    assert found.exit_code == 0, found.output
    text = " ".join(found.stdout.split())
    assert "minilm-sst2 on torch, batch 1, sequence 128 2026-11-20 10:00 " in text
    start = text.index("minilm-sst2 on torch, batch 1")
    row = text[start : text.index("minilm-sst2 on torch-compiled, batch 1")]
    assert "2026-11-21 10:00" in row
    assert "-5" in row  # the machine was half as fast the day before
    assert "0.9117 ±0.019" in row


def test_history_of_nothing_is_an_error(tmp_path):
    found = CliRunner().invoke(main, ["bench", "--history", str(tmp_path)])
    assert found.exit_code == 1
    assert "error: no results of tfx bench here" in found.stderr


def test_the_stored_results_of_the_project_are_whole(request):
    stored = request.config.rootpath / "benchmarks" / "results"
    page = page_of_results(read_results(stored))
    assert "bench.cpu`" in page
    assert json.loads(next(stored.glob("*-cpu-*.json")).read_text())["command"] == "cpu"
