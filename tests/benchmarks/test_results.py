"""Stored results: the page made of them, and how figures moved."""

import dataclasses
import json

import pytest
from click.testing import CliRunner
from support.reports import MACHINE, made_up

from tfx.bench.output import write_json
from tfx.bench.results import page_of_results, read_results, results
from tfx.cli import main
from tfx.errors import DataError

OLD, NEW = "2026-11-20T10:00:00+00:00", "2026-11-21T10:00:00+00:00"


@pytest.fixture
def folder(tmp_path):
    """Two runs of one machine, the newer wrapped as another comparison stores it."""
    write_json(tmp_path / "stored" / "b.json", made_up(created=OLD, slow=2.0))
    newer = {"peaks": {}, "report": made_up(created=NEW).to_dict()}
    (tmp_path / "stored" / "a.json").write_text(json.dumps(newer))
    (tmp_path / "stored" / "text.json").write_text(json.dumps({"rows": [], "texts": 5}))
    return tmp_path / "stored"


def test_reports_come_oldest_first_and_other_files_are_left_out(folder):
    assert [report.created for report in read_results(folder)] == [OLD, NEW]


def test_the_page_has_the_newest_of_each_machine_and_family(folder):
    page = page_of_results(read_results(folder))
    assert page.count("### batch 1, sequence 128, 2026-11-21") == 1
    assert "2026-11-20" not in page
    assert f"## {MACHINE}" in page
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


def test_a_folder_without_results_makes_a_page_that_says_so(tmp_path):
    assert page_of_results(read_results(tmp_path)).endswith("No results are stored yet.\n")


def test_damaged_results_are_named(folder):
    (folder / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a.json cannot be read"):
        read_results(folder)
    document = made_up().to_dict() | {"schema": 1}
    (folder / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"a.json: no result of tfx bench: schema is 1"):
        read_results(folder)


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
