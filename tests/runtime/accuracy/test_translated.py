"""BLEU and chrF beside sacrebleu's own scores, and the lists they are measured on."""

import json
from functools import partial

import numpy as np
import pytest

from tfx.errors import DataError
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.accuracy.metrics import METRICS
from tfx.runtime.accuracy.samples import DatasetKind

sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu: tfx-toolkit[eval]")

PREDICTED = [
    "The cat sat on the mat.",
    "There is a house, and it is small!",
    "nothing of it is right",
    "Das Haus ist klein und rot.",
]
EXPECTED = [
    "The cat sat on a mat.",
    "There is a house and it's small.",
    "Quite another sentence",
    "Das Haus ist klein und rot.",
]
SCORES = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}


def rows_of(name):
    return METRICS[name].rows(PREDICTED, EXPECTED)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_the_score_of_all_texts_is_sacrebleus(name):
    theirs = SCORES[name](PREDICTED, [EXPECTED]).score
    assert 20 < theirs < 90
    assert METRICS[name].value(rows_of(name)) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_so_is_that_of_any_draw(name):
    drawn = np.array([[0, 1, 1, 3], [2, 2, 2, 0]])
    found = METRICS[name].value(rows_of(name)[drawn])
    for value, rows in zip(found, drawn, strict=True):
        picked = [PREDICTED[row] for row in rows], [[EXPECTED[row] for row in rows]]
        assert value == pytest.approx(SCORES[name](*picked).score, abs=1e-9)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_the_ends_of_the_scale(name):
    metric = METRICS[name]
    assert metric.value(metric.rows(EXPECTED, EXPECTED)) == pytest.approx(metric.best)
    assert metric.value(metric.rows(["", "xyz"], ["a b c d e", "uvw"])) == pytest.approx(0)


def write(path, rows, columns=("source", "target")):
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    else:
        lines = ["\t".join(row) for row in (columns, *rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.jsonl"])
@pytest.mark.parametrize("columns", [("source", "target"), ("Src", "Tgt"), ("source", "reference")])
def test_a_list_of_translations(tmp_path, name, columns):
    found = read_dataset(write(tmp_path / name, [("one", "eins"), ("7", "8")], columns))
    assert found.kind is DatasetKind.TRANSLATIONS
    assert found.columns == columns
    assert found.texts == ("one", "7")
    assert found.labels == ("eins", "8")


def test_a_list_is_drawn_from(tmp_path):
    rows = [(f"text {row}", f"Text {row}") for row in range(20)]
    found = read_dataset(write(tmp_path / "pairs.tsv", rows), limit=3)
    assert len(found) == 3
    assert [text.lower() for text in found.labels] == list(found.texts)


def test_what_is_wrong_with_a_row(tmp_path):
    fails = partial(pytest.raises, DataError)
    with fails(match=r"pairs.tsv, line 3: 'target' is empty"):
        read_dataset(write(tmp_path / "pairs.tsv", [("one", "eins"), ("two", " ")]))
    with fails(match=r"pairs.jsonl, line 2: 'target' is no text"):
        read_dataset(write(tmp_path / "pairs.jsonl", [("one", "eins"), ("two", 2)]))
    path = tmp_path / "more.jsonl"
    path.write_text('{"source": "one", "target": "eins"}\n{"source": "two"}\n')
    with fails(match=r"more.jsonl, line 2: 'target' is no text"):
        read_dataset(path)
    path.write_text('{"source": "\\ud83d", "target": "eins"}\n')
    with fails(match=r"'source' is not Unicode: half of a surrogate pair"):
        read_dataset(path)


def test_other_columns_are_no_translations(tmp_path):
    path = write(tmp_path / "texts.tsv", [("a text", "1")], ("sentence", "label"))
    assert read_dataset(path).kind is DatasetKind.TEXTS
