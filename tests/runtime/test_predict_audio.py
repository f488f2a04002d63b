"""`tfx predict --audio`: WAV files in, what is said of them out."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.hearing import NAMES, spelled, write_listener, write_speller
from support.sounds import write_sound

from tfx.cli import main
from tfx.runtime.opening import open_session


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"ab": "A_B|_BA", "aa": "AA_A", "b": "B"}.items():
        write_sound(tmp_path / f"{name}.wav", spelled(text), 8000)
    return tmp_path


def predict(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def test_text_of_files(workspace):
    write_speller(workspace / "speller")
    done = predict("--audio", "ab.wav", "--audio", "aa.wav", "--audio", "b.wav")
    assert done.exit_code == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"audio": "ab.wav", "text": "AB BA"},
        {"audio": "aa.wav", "text": "AA"},
        {"audio": "b.wav", "text": "B"},
    ]


def test_labels_of_files_as_lines_and_arrays(workspace):
    write_listener(workspace / "listener")
    sounds = ("--audio", "ab.wav", "--audio", "aa.wav")
    done = predict(*sounds, "--batch", "1")
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == ["loud", "low"]
    assert predict(*sounds, "-o", "found.npz").exit_code == 0
    with np.load("found.npz") as found:
        assert found["scores"].argmax(axis=1).tolist() == [3, 1]
        assert found["labels"].tolist() == list(NAMES)


def test_text_is_not_for_npz(workspace):
    write_speller(workspace / "speller")
    done = predict("--audio", "ab.wav", "-o", "found.npz")
    assert done.exit_code == 1
    assert "Use --format jsonl." in done.stderr
    assert not (workspace / "found.npz").exists()


def test_long_sound_is_read_in_windows(workspace):
    text = "A_B|" * 50  # 20,000 samples, the model takes 8,000
    with open_session(write_speller(workspace / "speller"), backend="onnxruntime") as session:
        assert session.predict(spelled(text)).text == " ".join(["AB"] * 50)


def test_a_file_that_cannot_be_read_is_named(workspace):
    write_speller(workspace / "speller")
    (workspace / "bad.wav").write_bytes(b"RIFF")
    done = predict("--audio", "bad.wav")
    assert done.exit_code == 1
    assert "bad.wav is not a WAV file" in done.stderr


def test_a_bundle_of_text(workspace):
    write_bundle(workspace / "text")
    done = predict("--audio", "ab.wav")
    assert done.exit_code == 1
    assert "text does not say how sound becomes arrays" in done.stderr


@pytest.mark.parametrize("other", [("--text", "a"), ("--input", "ab.wav")])
def test_sound_and_text_exclude_each_other(workspace, other):
    done = predict("--audio", "ab.wav", *other)
    assert done.exit_code == 2
    assert "--audio excludes --text, --input and --input-format" in done.stderr
