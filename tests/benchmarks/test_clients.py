import json
import re
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from support.texts import MEAN, write_classifier, write_text_bundle

import tfx
from tfx.bench.clients import (
    ALL,
    MERGED,
    ONE_BY_ONE,
    SWEEP,
    THREADS,
    clients,
    is_same,
    made_sentences,
    measure_clients,
    read_lines,
    serve,
    ways_to_ask,
)
from tfx.bench.pages.sheets import section_of
from tfx.bench.pages.stored import read_stored
from tfx.errors import BackendError, DataError
from tfx.runtime.text.answers import TextLabel


def test_every_client_asks_its_share_once():
    asked = []
    lock = threading.Lock()

    def ask(text):
        with lock:
            asked.append((threading.current_thread().name, text))
        return text.upper()

    texts = [f"text {number}" for number in range(20)]
    served = serve(ask, texts, 6)
    assert sorted(text for _, text in asked) == sorted(texts)
    assert len({name for name, _ in asked}) == 6
    assert served.answers == {index: text.upper() for index, text in enumerate(texts)}
    assert len(served.latencies_ms) == 20


def test_clients_ask_at_the_same_time():
    together = threading.Barrier(5)  # breaks if one waits for another's answer
    served = serve(lambda text: together.wait(60), ["a"] * 5, 5)
    assert sorted(served.answers.values()) == [0, 1, 2, 3, 4]


def test_latency_is_of_one_answer():
    ticks = iter(range(100))
    served = serve(lambda text: text, ["a", "b"], 1, clock=lambda: next(ticks) / 1000)
    assert served.latencies_ms == pytest.approx((1.0, 1.0))


class Stub:
    """A session that answers 1, but fails or errs for some texts when they come merged."""

    def predict(self, text):
        return np.ones(2)

    def map(self, texts):
        return (np.ones(2) for text in texts)

    def predict_async(self, text):
        class Answer:
            def result(self):
                if text == "lost":
                    raise BackendError("gone")
                return np.array([1.0, -1.0]) if text == "wrong" else np.ones(2)

        return Answer()


def test_lost_and_wrong_answers_are_counted():
    texts = ["a", "lost", "b", "wrong", "c"]
    rows = measure_clients(ways_to_ask(Stub(), Stub(), texts, [2]), len(texts), rounds=3, seed=0)
    by_way = {row.way: row for row in rows}
    assert list(by_way) == [ONE_BY_ONE, THREADS, MERGED, ALL]
    assert [(row.asked, row.lost, row.wrong) for row in rows] == [
        (15, 0, 0),
        (15, 0, 0),
        (15, 3, 3),
        (15, 0, 0),
    ]
    assert by_way[ONE_BY_ONE].speedup == by_way[ONE_BY_ONE].processor_ratio == 1
    assert by_way[MERGED].low <= by_way[MERGED].speedup <= by_way[MERGED].high


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (np.array([1.0, 0]), np.array([1.0, 0.01]), True),
        (np.array([1.0, 0]), np.array([1.0, 0.1]), False),
        (np.ones(2), np.ones(3), False),
        ({"x": np.ones(2)}, {"x": np.ones(2)}, True),
        ({"x": np.ones(2)}, {"x": -np.ones(2)}, False),
        (TextLabel("a", 0.7, (0.7,)), TextLabel("a", 0.6, (0.6,)), True),
        ([TextLabel("a", 0.7, (0.7,))], [TextLabel("b", 0.7, (0.7,))], False),
        ([TextLabel("a", 0.7, (0.7,))], [], False),
    ],
)
def test_is_same(first, second, same):
    assert is_same(first, second) is same


def test_sentences_are_the_same_for_a_seed():
    assert made_sentences(9, 3) == made_sentences(9, 3) != made_sentences(9, 4)
    assert {5 <= len(text.split()) <= 12 for text in made_sentences(50, 0)} == {True}


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("one\n\n two \nthree\n")
    assert read_lines(path, 2) == ["one", "two"]
    with pytest.raises(DataError, match=r"lines.txt holds 3 texts, expected 4"):
        read_lines(path, 4)


@pytest.mark.parametrize("streams", ["1", "2"])
def test_the_command_measures_a_bundle(tmp_path, streams):
    path = str(write_text_bundle(tmp_path / "tiny", embedding=MEAN).path)
    arguments = [path, "--clients", "8", "--texts", "40", "--rounds", "2", "--threads", "2"]
    found = CliRunner().invoke(clients, [*arguments, "--streams", streams])
    assert found.exit_code == 0, found.output
    _, *rows = found.stdout.splitlines()
    assert [re.split(" {2,}", row)[:2] for row in rows[:4]] == [
        [ONE_BY_ONE, "1"],
        [THREADS, "8"],
        [MERGED, "8"],
        [ALL, "1"],
    ]
    assert all(row.rstrip().endswith("0 of 80") for row in rows[:4])
    assert f"{streams} streams of {2 // int(streams)} threads; load average" in found.stdout
    assert re.search(r"3 times one by one: (yes|no|cannot say)", found.stdout)
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
    assert len(section_of(read_stored(json.loads(kept.read_text()))).sheets[0].lines) == 4
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
