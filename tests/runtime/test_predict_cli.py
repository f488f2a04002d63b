"""`tfx predict`: what goes in, what comes out, and what is said when it cannot."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import TEXT_SIGNATURE, write_bundle
from support.texts import (
    MEAN,
    read_jsonl,
    tiny_vectors,
    tokenizer_json,
    write_classifier,
    write_text_bundle,
)

import tfx
from tfx.cli import main
from tfx.dtypes import DType
from tfx.processing import Activation
from tfx.runtime import predictions
from tfx.runtime.text import stream
from tfx.signature import Signature, TensorSpec


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def classifier(workspace):
    return write_classifier(workspace / "classifier")


@pytest.fixture
def embedder(workspace):
    return write_text_bundle(workspace / "embedder", embedding=MEAN)


def predict(*arguments, stdin=None):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)], input=stdin)


def lines(result):
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(result, *, code=1):
    assert result.exit_code == code, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result.stderr


def feed(rows):
    return {
        "input_ids": np.arange(rows * 3).reshape(rows, 3) % 64,
        "attention_mask": np.ones((rows, 3), np.int64),
    }


# In and out.


def test_a_text_through_a_pipe(classifier):
    result = predict(stdin="good film\n")
    (line,) = lines(result)
    with tfx.open_session(classifier) as session:
        answer = session.predict("good film")
    assert line["text"] == "good film"
    assert line["label"] == answer.label
    assert np.float32(line["score"]) == np.float32(answer.score)
    assert sorted(line) == ["label", "score", "text"]
    assert "using classifier" in result.stderr
    assert "1 text in" in result.stderr


def test_the_real_command_in_a_real_pipe(classifier):
    done = subprocess.run(
        [sys.executable, "-c", "from tfx.cli import main; main()", "predict"],
        input=b"good film\nbad\n",
        capture_output=True,
        cwd=classifier.path.parent,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["good film", "bad"]


def test_texts_on_the_command_line(embedder):
    found = lines(predict(embedder.path, "--text", "good film", "-t", "bad"))
    with tfx.open_session(embedder) as session:
        expected = session.predict(["good film", "bad"])
    assert [line["text"] for line in found] == ["good film", "bad"]
    np.testing.assert_array_equal(np.float32([line["embedding"] for line in found]), expected)


def test_jsonl_carries_other_fields_in_order(classifier, workspace):
    texts = ["good", "the very very bad film", "", "film"] * 5
    with (workspace / "in.jsonl").open("w") as file:
        for number, text in enumerate(texts):
            print(json.dumps({"id": number, "text": text}), file=file)
    assert predict("--input", "in.jsonl", "--output", "out.jsonl").exit_code == 0
    found = read_jsonl(workspace / "out.jsonl")
    assert [(line["id"], line["text"]) for line in found] == list(enumerate(texts))
    assert all("label" in line for line in found)


def test_pairs_and_another_field(embedder):
    data = '{"q": "good", "text_pair": "film"}\n'
    (line,) = lines(
        predict(
            "-i",
            "-",
            "--input-format",
            "jsonl",
            "--field",
            "q",
            "--backend",
            "onnxruntime",
            stdin=data,
        )
    )
    with tfx.open_session(embedder) as session:
        expected = session.predict(("good", "film"))
    np.testing.assert_array_equal(np.float32(line["embedding"]), expected)


def test_independent_labels_show_every_score(workspace):
    write_classifier(workspace / "b", labels=("x", "y"), activation=Activation.SIGMOID)
    (line,) = lines(predict("-t", "good"))
    assert sorted(line["scores"]) == ["x", "y"]
    assert line["score"] == max(line["scores"].values())


def test_labels_of_tokens(workspace):
    write_classifier(workspace / "b", per_token=True)
    (line,) = lines(predict("-t", "good film"))
    assert [(one["text"], one["start"], one["end"]) for one in line["tokens"]] == [
        ("good", 0, 4),
        ("film", 5, 9),
    ]


def test_without_a_head_the_outputs(workspace):
    write_text_bundle(workspace / "b")
    (line,) = lines(predict("-t", "good film"))
    np.testing.assert_array_equal(np.float32(line["last_hidden_state"]), tiny_vectors([1, 6, 8, 2]))


def test_embeddings_as_npz(embedder, workspace):
    assert predict("-t", "good", "-t", "bad film", "-o", "out.npz").exit_code == 0
    with np.load(workspace / "out.npz", allow_pickle=False) as found:
        assert found["embeddings"].shape == (2, 8)
        assert found["embeddings"].dtype == np.float32


def test_scores_as_npz_on_stdout(classifier):
    done = subprocess.run(
        [sys.executable, "-c", "from tfx.cli import main; main()", "predict", "--format", "npz"],
        input=b"good film\nbad\n",
        capture_output=True,
        cwd=classifier.path.parent,
    )
    assert done.returncode == 0, done.stderr
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
        assert found["scores"].shape == (2, 2)
        assert found["labels"].tolist() == ["bad", "good"]


@pytest.mark.parametrize("options", [(), ("--batch", 3)])
def test_arrays_larger_than_the_largest_batch(workspace, options):
    write_bundle(workspace / "b")  # takes up to 16
    np.savez(workspace / "in.npz", **feed(37))
    result = predict("-i", "in.npz", "-o", "out.npz", *options)
    assert result.exit_code == 0, result.stderr
    with np.load(workspace / "out.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(
            found["last_hidden_state"], tiny_vectors(feed(37)["input_ids"])
        )


def test_arrays_as_jsonl(workspace):
    write_bundle(workspace / "b")
    np.savez(workspace / "in.npz", **feed(20))
    found = lines(predict("-i", "in.npz"))
    assert len(found) == 20
    np.testing.assert_array_equal(
        np.float32([line["last_hidden_state"] for line in found]),
        tiny_vectors(feed(20)["input_ids"]),
    )


def test_texts_that_were_cut_are_told(embedder):
    result = predict("-t", "very " * 50, "-t", "good")
    assert "2 texts in" in result.stderr
    assert "1 of them longer than the model takes, and cut" in result.stderr


# Streaming.


def test_answers_come_before_the_input_ends(embedder, monkeypatch):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 4)
    taken, written = [], []

    def source():
        for number in range(40):
            taken.append(number)
            yield b"good film\n"

    class Sink(io.BytesIO):
        def write(self, data):
            written.append((len(taken), data.count(b"\n")))
            return super().write(data)

    class Source(io.BytesIO):
        def __iter__(self):
            return source()

    with tfx.open_session(embedder) as session:
        predictions.predict_stream(session, Source(), Sink(), where="test")
    assert [count for _, count in written] == [4] * 10
    for index, (read, _) in enumerate(written):  # two stretches beyond the one that is given
        assert read <= 4 * (index + 1 + stream.STRETCHES_AHEAD)


def test_long_texts_in_windows(embedder):
    result = predict("--long", "windows", "-t", "very " * 50, "-t", "good")
    assert "2 texts in" in result.stderr
    assert "1 longer than the model takes, and read in windows" in result.stderr
    cut, whole = (
        predict("-t", "good " * 16 + "film " * 20),
        predict("--long", "windows", "-t", "good " * 16 + "film " * 20),
    )
    assert cut.stdout != whole.stdout


# What is refused, and that nothing is left behind.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'"fine"\nnot json\n', "error: in.jsonl, line 2: not JSON"),
        (b'"fine"\n{"id": 3}\n', "error: in.jsonl, line 2: no field 'text', it has: 'id'"),
        (b'"fine"\n\xff\n', "error: in.jsonl, line 2: not UTF-8: byte 0xff at 0"),
        (b'{"text": "a", "label": 1}\n', "line 1: the field 'label' is the answer's as well"),
        (b"", "error: in.jsonl is empty, expected at least one text"),
    ],
)
def test_bad_lines_leave_no_output(classifier, workspace, monkeypatch, data, message):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 1)  # so that line 1 was answered before
    (workspace / "in.jsonl").write_bytes(data)
    assert message in refused(predict("-i", "in.jsonl", "-o", "out.jsonl"))
    assert sorted(os.listdir(workspace)) == ["classifier", "in.jsonl"]


def test_a_text_without_tokens_is_named_by_its_line(workspace, monkeypatch):
    monkeypatch.setattr(stream, "STRETCH_TEXTS", 2)
    write_text_bundle(workspace / "b", tokenizer=tokenizer_json(special=False), embedding=MEAN)
    said = refused(predict(stdin="a\nb\nfilm\n\n"))
    assert "error: stdin, line 4: has no tokens" in said


def test_an_output_that_is_there(classifier, workspace):
    (workspace / "out.jsonl").write_text("old")
    said = refused(predict("-t", "good", "-o", "out.jsonl"))
    assert "error: out.jsonl exists already\nhint: Use --force to replace it." in said
    assert (workspace / "out.jsonl").read_text() == "old"
    assert predict("-t", "good", "-o", "out.jsonl", "--force").exit_code == 0
    assert len(read_jsonl(workspace / "out.jsonl")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "a", "-i", "in.tsv"), "--text excludes --input and --input-format"),
        (("-t", "a", "--input-format", "jsonl"), "--text excludes --input and --input-format"),
        (("-i", "in.tsv"), "what in.tsv holds is not clear from its name: give --input-format"),
        (("-i", "missing.txt"), "'missing.txt' does not exist"),
        (("-t", "a", "--batch", "0"), "0 is not in the range x>=1"),
        (("-t", "a", "--format", "csv"), "'csv' is not one of 'jsonl', 'npz'"),
    ],
)
def test_usage(classifier, workspace, arguments, message):
    (workspace / "in.tsv").write_text("a\tb\n")
    assert message in refused(predict(*arguments), code=2)


def test_a_terminal_has_nothing_to_read(classifier):
    reader, writer = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from tfx.cli import main; main()", "predict"],
            stdin=writer,
            capture_output=True,
            text=True,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 2
    assert "nothing to read: give --text, --audio or --input, or pipe text in" in done.stderr


def test_no_bundle(workspace):
    assert "error: no bundle in" in refused(predict("-t", "a"))
    assert "error: no such bundle: nowhere" in refused(predict("nowhere", "-t", "a"))


def test_a_damaged_bundle(classifier):
    model = bytearray(classifier.model.read_bytes())
    model[-1] ^= 1
    classifier.model.write_bytes(model)
    assert "model.onnx: sha256 is not the one" in refused(predict("-t", "a"))


def test_a_bundle_that_takes_no_text(workspace):
    write_bundle(workspace / "b")
    said = refused(predict("-t", "a"))
    assert "error: b has no tokenizer: it takes arrays, not text\nhint: Give arrays by name" in said


def test_arrays_that_do_not_fit(workspace):
    write_bundle(workspace / "b")
    np.savez(workspace / "in.npz", input_ids=np.ones((2, 3)), labels=np.ones(2))
    said = refused(predict("-i", "in.npz", "-o", "out.npz"))
    for problem in ("attention_mask: missing", "labels: not an input", "got float64[2, 3]"):
        assert problem in said
    assert sorted(os.listdir(workspace)) == ["b", "in.npz"]


def test_rows_that_cannot_be_joined(workspace):
    signature = Signature(
        inputs=TEXT_SIGNATURE.inputs,
        outputs=(
            *TEXT_SIGNATURE.outputs,
            TensorSpec("bias", DType.FLOAT32, (8,)),
        ),
        ranges=TEXT_SIGNATURE.ranges,
    )
    write_bundle(workspace / "b", signature=signature)
    np.savez(workspace / "in.npz", **feed(20))
    said = refused(predict("-i", "in.npz", "-o", "out.npz"))
    assert "a batch of 20 is run in parts of 16, and bias has no batch axis to join them" in said


def test_answers_of_many_sizes_are_no_npz(workspace):
    write_classifier(workspace / "b", per_token=True)
    said = refused(predict("-t", "a", "-o", "out.npz"))
    assert "these answers differ in size from text to text\nhint: Use --format jsonl." in said
    assert sorted(os.listdir(workspace)) == ["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "nothing"), "error: no backend called 'nothing'"),
        (("--threads", "0"), "error: threads is 0, expected 1 or more"),
    ],
)
def test_bad_backend_options(classifier, options, message):
    assert message in refused(predict("-t", "a", *options))
