import dataclasses
import json
import re

import pytest
from click.testing import CliRunner
from support.texts import MEAN, write_classifier, write_text_bundle

import tfx
from tfx.bench.clients import (
    SWEEP,
    clients,
    made_sentences,
    read_lines,
    verdict_of,
)
from tfx.bench.measuring.callers import ALL, MERGED, ONE_BY_ONE, THREADS, Row
from tfx.bench.pages.sheets import section_of
from tfx.bench.pages.stored import read_stored
from tfx.errors import DataError


def test_sentences_are_the_same_for_a_seed():
    assert made_sentences(9, 3) == made_sentences(9, 3) != made_sentences(9, 4)
    assert {5 <= len(text.split()) <= 12 for text in made_sentences(50, 0)} == {True}


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("one\n\n two \nthree\n")
    assert read_lines(path, 2) == ["one", "two"]
    with pytest.raises(DataError, match=r"lines.txt holds 3 texts, expected 4"):
        read_lines(path, 4)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(3.0, 4.0, "yes"), (2.0, 2.9, "no"), (2.9, 3.1, "cannot say"), (None, None, "cannot say")],
)
def test_verdict(low, high, verdict):
    row = Row(MERGED, 64, 9, 0, 0, 1.0, 1.0, None, None, 3.0, low, high, 1.0)
    assert verdict_of(row) == verdict


@pytest.mark.parametrize("asked", ["1", "2", None])
def test_the_command_measures_a_bundle(tmp_path, asked):
    path = str(write_text_bundle(tmp_path / "tiny", embedding=MEAN).path)
    arguments = [path, "--clients", "8", "--texts", "40", "--rounds", "2", "--threads", "2"]
    found = CliRunner().invoke(clients, [*arguments, *(["--streams", asked] if asked else [])])
    assert found.exit_code == 0, found.output
    _, *rows = found.stdout.splitlines()
    # Of so few rounds and answers there is no interval, no p99 and no verdict.
    assert all(re.split(" {2,}", row.strip())[4:7:2] == ["-", "-"] for row in rows[:4])
    assert [re.split(" {2,}", row)[:2] for row in rows[:4]] == [
        [ONE_BY_ONE, "1"],
        [THREADS, "8"],
        [MERGED, "8"],
        [ALL, "1"],
    ]
    assert all(row.rstrip().endswith("0 of 80") for row in rows[:4])
    streams = int(asked or 2)
    assert f"{streams} streams of {2 // streams} threads; load average" in found.stdout
    assert "3 times one by one: cannot say" in found.stdout
    assert re.search(r"beforehand: [\d.]+ times is what merging can reach", found.stdout)


def test_a_sweep_asks_with_few_clients_and_with_many(tmp_path):
    path = str(write_text_bundle(tmp_path / "tiny", embedding=MEAN).path)
    arguments = [path, "--sweep", "--texts", "64", "--rounds", "1"]
    document = json.loads(CliRunner().invoke(clients, [*arguments, "--json"]).stdout)
    assert [(row["way"], row["clients"]) for row in document["rows"]] == [
        (ONE_BY_ONE, 1),
        *((MERGED, count) for count in SWEEP),
    ]
    assert [row["lost"] + row["wrong"] for row in document["rows"]] == [0] * 8
    found = CliRunner().invoke(clients, arguments)
    assert found.exit_code == 0, found.output
    assert "beforehand" not in found.stdout
    assert re.search(r"3 times one by one: (yes|no|cannot say)", found.stdout)


def test_the_command_as_json(tmp_path):
    path = str(write_classifier(tmp_path / "tiny").path)
    arguments = [path, "--clients", "4", "--texts", "8", "--rounds", "1", "--json"]
    arguments += ["--save", str(tmp_path / "kept")]
    document = json.loads(CliRunner().invoke(clients, arguments).stdout)
    (kept,) = (tmp_path / "kept").glob("*-clients-*.json")
    assert json.loads(kept.read_text())["result"] == document
    stored = read_stored(json.loads(kept.read_text()))
    (sheet,) = section_of(stored).sheets
    assert (len(sheet.lines), sheet.heads[5]) == (4, "times, 95 %")
    older = {name: value for name, value in document.items() if name != "rounds"}
    (sheet,) = section_of(dataclasses.replace(stored, result=older)).sheets
    assert sheet.heads[5] == "times, range"
    assert [row["way"] for row in document["rows"]] == [ONE_BY_ONE, THREADS, MERGED, ALL]
    assert [row["lost"] + row["wrong"] for row in document["rows"]] == [0, 0, 0, 0]


def test_answers_that_differ_are_an_error(tmp_path, monkeypatch):
    path = str(write_text_bundle(tmp_path / "tiny", embedding=MEAN).path)
    real = tfx.Session.predict_async

    def mistaken(self, text):
        return real(self, "not " + text)

    monkeypatch.setattr(tfx.Session, "predict_async", mistaken)
    found = CliRunner().invoke(clients, [path, "--clients", "2", "--texts", "4", "--rounds", "1"])
    assert found.exit_code == 1
    assert "answers were lost or differ from those given one by one" in found.stderr


def test_our_errors_come_without_a_traceback(tmp_path):
    found = CliRunner().invoke(clients, [str(tmp_path)])
    assert found.exit_code == 1
    assert "is not a bundle" in found.stderr
