"""Files of tfx bench: whole or absent, and read back as they were."""

import csv
import dataclasses
import json
import multiprocessing
import os
import signal

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.reports import MACHINE, made_up

from tfx.bench.measuring.resume import continued
from tfx.bench.measuring.scenario import Load
from tfx.bench.measuring.workload import Plan
from tfx.bench.pages.files import write_text
from tfx.bench.pages.output import (
    COLUMNS,
    read_report,
    sole_writer,
    write_csv,
    write_html,
    write_json,
)
from tfx.bench.peaks import Bandwidth, Peaks
from tfx.bench.results import read_results
from tfx.cli import main
from tfx.errors import DataError

QUICK = ("--rounds", "2", "--seconds", "0.2", "--length", "8", "--threads", "1")


def tfx(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_json_is_read_back_as_it_was(tmp_path):
    report = made_up(failed=[("minilm-sst2", "tensorrt")])
    write_json(tmp_path / "new" / "r.json", report)
    assert read_report(tmp_path / "new" / "r.json") == report


def test_csv_has_a_line_a_row(tmp_path):
    report = made_up(failed=[("minilm-sst2", "tensorrt")])
    write_csv(tmp_path / "r.csv", report)
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.rows)
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["sizes"] == "batch 1, sequence 128"
    assert {row["preprocessing"] for row in rows} == {"not included"}
    assert float(rows[1]["speedup"]) == report.rows[1].comparison.speedup
    assert float(rows[1]["change"]) == report.rows[1].accuracy.change.value
    assert float(rows[0]["scaled_error"]) == 2e-6
    assert (rows[0]["rounds"], rows[0]["processes"], rows[8]["processes"]) == ("40", "1", "")
    assert (rows[8]["status"], rows[8]["median_ms"]) == ("not run", "")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    write_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(DataError, match=r"cannot write .*r.html: No space left on device"):
        write_html(path, made_up())
    assert [one.name for one in tmp_path.iterdir()] == ["r.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "r.json is not JSON: "), ("{}", r"r.json: no result of tfx bench: schema is None")],
)
def test_what_is_no_report_is_refused(tmp_path, content, message):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_report(tmp_path / "r.json")
    assert "tfx bench --output FILE" in caught.value.hint


def test_a_report_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none.json: No such file"):
        read_report(tmp_path / "none.json")


def test_a_run_goes_on_under_its_own_conditions_only(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, made_up())
    assert continued(path, Plan(), MACHINE) == made_up()
    with pytest.raises(DataError) as caught:
        continued(path, Plan(rounds=3), dataclasses.replace(MACHINE, cpu="another"))
    assert str(caught.value) == (
        f"{path} cannot be continued:\n  rounds was 40, is 3\n  cpu was Made-up CPU, is another"
    )


def test_all_files_of_one_run_and_it_goes_on_where_it_was_cut(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    files = ("-o", tmp_path / "r.json", "--csv", tmp_path / "r.csv", "--html", tmp_path / "r.html")
    asked = ("bench", bundle.path, "--backend", "onnxruntime", *QUICK)
    sizes = ("--batch", 1, "--batch", 2)
    found = tfx(*asked, *sizes, *files)
    assert found.exit_code == 0, found.output
    assert (tmp_path / "r.csv").read_text().startswith("bundle,backend,")
    assert "<!doctype html>" in (tmp_path / "r.html").read_text()
    whole = json.loads((tmp_path / "r.json").read_text())
    assert whole["unfinished"] == []
    assert len(whole["rows"]) == 2
    cut = whole | {"rows": whole["rows"], "unfinished": ["batch 2, sequence 8"]}
    (tmp_path / "r.json").write_text(json.dumps(cut))
    again = tfx(*asked, *sizes, "--resume", tmp_path / "r.json", "--save", tmp_path / "kept")
    assert again.exit_code == 0, again.output
    assert "batch 2, sequence 8: loading" in again.stderr
    assert "batch 1, sequence 8: loading" not in again.stderr
    now = json.loads((tmp_path / "r.json").read_text())
    assert now["unfinished"] == []
    assert now["created"] == whole["created"]
    assert now["rows"][0] == whole["rows"][0]
    assert now["rows"][1]["measurement"] != whole["rows"][1]["measurement"]
    kept = read_results(tmp_path / "kept")
    assert [one.command for one in kept] == ["bench"]
    assert kept[0].result == now
    other = tfx(*asked, "--batch", 1, "--batch", 2, "--seed", 1, "--resume", tmp_path / "r.json")
    assert other.exit_code == 1
    assert "seed was 0, is 1" in other.stderr


def test_an_interruption_keeps_what_was_measured_and_says_how_to_go_on(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "tiny")
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 5:  # in the second shape
            raise KeyboardInterrupt

    from tfx.bench.measuring import runner

    real = runner.measure
    monkeypatch.setattr(
        "tfx.bench.command.measure",
        lambda *positional, **named: real(*positional, **named, sleep=sleep),
    )
    found = tfx(
        "bench", bundle.path, "--backend", "onnxruntime", *QUICK, "--batch", 1, "--batch", 2,
        "-o", tmp_path / "r.json", "--save", tmp_path / "kept",
    )  # fmt: skip
    assert found.exit_code == 1
    assert "error: interrupted, without: batch 2, sequence 8\n" in found.stderr
    assert f"hint: Go on with --resume {tmp_path / 'r.json'}." in found.stderr
    assert not (tmp_path / "kept").exists()
    assert "batch 1, sequence 8" in found.stdout
    kept = json.loads((tmp_path / "r.json").read_text())
    assert kept["unfinished"] == ["batch 2, sequence 8"]
    assert kept["rows"][0]["status"] == "measured"


def test_what_is_kept_names_no_folders(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "tiny")
    found = made_up()
    load = Load(lengths="/home/me/texts.txt")
    plan = dataclasses.replace(found.plan, data="/home/me/dev.tsv", load=load)
    found = dataclasses.replace(found, plan=plan)
    monkeypatch.setattr("tfx.bench.command.measure", lambda *_, **__: found)
    done = tfx("bench", bundle.path, *QUICK, "--save", tmp_path / "kept")
    assert done.exit_code == 0, done.stderr
    (path,) = (tmp_path / "kept").iterdir()
    kept = json.loads(path.read_text())["result"]["plan"]
    assert (kept["data"], kept["load"]["lengths"]) == ("dev.tsv", "texts.txt")


@pytest.mark.parametrize("option", ["--csv", "--html"])
def test_the_table_is_shown_where_a_file_cannot_be_written(tmp_path, monkeypatch, option):
    bundle = write_bundle(tmp_path / "tiny")
    monkeypatch.setattr("tfx.bench.command.measure", lambda *_, **__: made_up())
    (tmp_path / "file").write_text("")
    found = tfx("bench", bundle.path, *QUICK, option, tmp_path / "file" / "r")
    assert found.exit_code == 1
    assert "minilm-sst2-int8 openvino" in found.stdout
    assert f"error: cannot write {tmp_path / 'file' / 'r'}: " in found.stderr


def test_peaks_are_measured_once_and_kept_when_a_run_goes_on(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "tiny")
    asked = []

    def peaks():
        asked.append(1)
        return Peaks("f" * 16, 0.1, (), (Bandwidth("copy", 1, 10.0),))

    monkeypatch.setattr("tfx.bench.command.machine_peaks", peaks)
    again = ("bench", bundle.path, "--backend", "onnxruntime", *QUICK, "--peaks")
    found = tfx(*again, "-o", tmp_path / "r.json")
    assert found.exit_code == 0, found.output
    assert tfx(*again, "--resume", tmp_path / "r.json").exit_code == 0
    assert asked == [1]
    kept = json.loads((tmp_path / "r.json").read_text())
    assert kept["peaks"]["memory"][0]["gb_per_s"] == 10.0
    assert kept["rows"][0]["reached"]["gemm_share"] is None
    assert "memory" in found.stdout


def hold(path, ready):
    with sole_writer([path]):
        ready.set()
        signal.pause()


@pytest.mark.parametrize("option", ["--output", "--csv", "--html"])
def test_two_at_once_do_not_write_one_file(tmp_path, option):
    bundle = write_bundle(tmp_path / "tiny")
    target = tmp_path / "new" / "r"
    with sole_writer([target]):
        found = tfx("bench", bundle.path, *QUICK, "--backend", "onnxruntime", option, target)
    assert found.exit_code == 1
    assert f"error: another tfx bench writes {target}\nhint: Name another file" in found.stderr
    assert list(target.parent.iterdir()) == []


def test_a_killed_process_holds_nothing(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=hold, args=(tmp_path / "r.json", ready))
    process.start()
    assert ready.wait(60)
    with (
        pytest.raises(DataError, match="another tfx bench writes"),
        sole_writer([tmp_path / "r.json"]),
    ):
        pytest.fail("two at once")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with sole_writer([tmp_path / "r.json"]):
        assert (tmp_path / ".r.json.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_by_writing(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "r.json"
    with (
        sole_writer([path]),
        pytest.raises(DataError, match="cannot write"),
    ):
        write_text(path, "new")
