import json

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.hearing import spelled, write_listener, write_speller
from support.sounds import write_sound

import tfx
from tfx.cli import main
from tfx.errors import DataError
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.accuracy.evaluation import evaluate
from tfx.runtime.accuracy.fitting import metric_for
from tfx.runtime.accuracy.samples import DatasetKind

SAID = {"ab.wav": "AB|A", "b.wav": "B|B", "a.wav": "A"}


def write_list(folder, texts, name="said.tsv", columns=("audio", "text")):
    """Sounds of ``SAID``, and a list that says these texts of them."""
    (folder / "wav").mkdir(parents=True)
    for file, letters in SAID.items():
        write_sound(folder / "wav" / file, spelled("_".join(letters)), rate=8000)
    rows = [(f"wav/{file}", text) for file, text in zip(SAID, texts, strict=True)]
    if name.endswith(".jsonl"):
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    else:
        lines = ["\t".join(row) for row in (columns, *rows)]
    (folder / name).write_text("\n".join(lines))
    return folder / name


@pytest.mark.parametrize("name", ["said.tsv", "said.jsonl"])
def test_a_list_of_sounds(tmp_path, name):
    found = read_dataset(write_list(tmp_path, ["ab a", "7", "a"], name))
    assert found.kind is DatasetKind.SOUNDS
    assert found.labels == ("ab a", "7", "a")
    assert [one.name for one in found.files] == [*SAID]
    assert all(one.is_file() for one in found.files)


def test_other_names_of_columns(tmp_path):
    found = read_dataset(write_list(tmp_path, ["x", "y", "z"], columns=("File", "Transcript")))
    assert (found.columns, found.labels) == (("File", "Transcript"), ("x", "y", "z"))
    found = read_dataset(write_list(tmp_path / "more", ["1", "2", "1"], columns=("path", "label")))
    assert found.labels == (1, 2, 1)


def test_texts_about_files_are_texts(tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text("sentence\tfile\tlabel\nopen a.wav\treadme\t1\n")
    assert read_dataset(path).kind is DatasetKind.TEXTS
    path = tmp_path / "texts.jsonl"
    path.write_text('"open a.wav"\n')
    assert read_dataset(path).texts == ("open a.wav",)


def test_the_same_sounds_elsewhere_are_the_same_data(tmp_path):
    first = read_dataset(write_list(tmp_path / "one", ["x", "y", "z"]))
    second = read_dataset(write_list(tmp_path / "two", ["x", "y", "z"]))
    assert first.digest == second.digest
    write_sound(tmp_path / "two" / "wav" / "a.wav", np.zeros(100, np.float32), rate=8000)
    assert read_dataset(tmp_path / "two" / "said.tsv").digest != first.digest


def test_files_that_are_not_there(tmp_path):
    path = write_list(tmp_path, ["x", "y", "z"])
    (tmp_path / "wav" / "b.wav").unlink()
    with pytest.raises(DataError, match=r"names files that are not there:\s+line 3: wav/b.wav"):
        read_dataset(path)
    path.write_text("audio\ttext\n" + "".join(f"lost{row}.wav\tx\n" for row in range(9)))
    with pytest.raises(DataError, match="and 4 more"):
        read_dataset(path)


def test_a_row_without_a_text(tmp_path):
    path = tmp_path / "said.jsonl"
    path.write_text('{"audio": "a.wav", "text": "x"}\n{"audio": "a.wav"}\n')
    with pytest.raises(DataError, match="no field 'text'"):
        read_dataset(path)


def test_sounds_are_no_texts(tmp_path):
    found = read_dataset(write_list(tmp_path, ["x", "y", "z"]))
    with pytest.raises(DataError, match=r"said.tsv holds sounds, expected texts"):
        found.texts  # noqa: B018
    path = tmp_path / "texts.txt"
    path.write_text("one\n")
    with pytest.raises(DataError, match=r"texts.txt holds texts, expected sounds"):
        read_dataset(path).files  # noqa: B018


def test_error_rates_of_a_bundle_that_hears(tmp_path):
    dataset = read_dataset(write_list(tmp_path, ["AB a", "b, x!", "A"]))
    with tfx.open_session(write_speller(tmp_path / "speller")) as session:
        assert metric_for(session.bundle, dataset).name == "wer"
        found = evaluate(session, dataset)
        assert found.value == 1 / 5
        assert found.low <= found.value <= found.high
        assert evaluate(session, dataset, "cer").value == 1 / 8
        with pytest.raises(DataError, match="accuracy looks at a class"):
            evaluate(session, dataset, "accuracy")


def test_classes_of_sounds(tmp_path):
    texts = ["low", "loud", "silent"]
    dataset = read_dataset(write_list(tmp_path, texts, columns=("audio", "label")))
    with tfx.open_session(write_listener(tmp_path / "listener")) as session:
        found = evaluate(session, dataset)
    # The loudest of "AB|A" is B, of "B|B" too, of "A" itself.
    assert (found.metric, found.value) == ("accuracy", 1 / 3)


def test_labels_that_are_no_speech(tmp_path):
    dataset = read_dataset(write_list(tmp_path, ["1", "2", "3"], columns=("audio", "label")))
    with (
        tfx.open_session(write_speller(tmp_path / "speller")) as session,
        pytest.raises(DataError, match="says what class each sound is, and not what is said"),
    ):
        evaluate(session, dataset)


def test_a_bundle_that_does_not_hear(tmp_path):
    dataset = read_dataset(write_list(tmp_path, ["x", "y", "z"]))
    with (
        tfx.open_session(write_bundle(tmp_path / "adds")) as session,
        pytest.raises(
            DataError, match=r"said.tsv holds sounds, and adds does not say how it hears"
        ),
    ):
        evaluate(session, dataset)


def test_the_command(tmp_path):
    path = write_list(tmp_path, ["AB a", "b x", "A"])
    write_speller(tmp_path / "speller")
    result = CliRunner().invoke(
        main, ["evaluate", str(tmp_path / "speller"), "--eval", str(path), "--json"]
    )
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert "per word" in result.stdout
    assert "wer" in json.dumps(shown)
