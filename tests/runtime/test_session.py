"""Session: arrays and texts in, outputs and answers out; everything wrong said at once."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from support.bundles import TEXT_SIGNATURE, write_bundle
from support.errors import lines_of
from support.texts import (
    MEAN,
    logits_table,
    tiny_vectors,
    tokenizer_json,
    write_classifier,
    write_text_bundle,
)

import tfx
from tfx.dtypes import DType
from tfx.errors import BackendError, BundleError, FeedError
from tfx.processing import Activation, Embedding, Pooling
from tfx.runtime.device_arrays import DeviceArray
from tfx.runtime.text.answers import TextLabel, TokenLabel
from tfx.runtime.text.tokenizer import TextError
from tfx.signature import Signature, TensorSpec

FEED = {
    "input_ids": np.array([[1, 4, 2]], np.int64),
    "attention_mask": np.array([[1, 1, 1]], np.int64),
}
# [CLS] good film [SEP], and so on: the ids of support.texts.WORDS.
GOOD_FILM = [1, 6, 8, 2]
LONG = " ".join(["very"] * 40) + " good"


@pytest.fixture
def arrays(tmp_path):
    with tfx.open_session(write_bundle(tmp_path / "arrays")) as session:
        yield session


@pytest.fixture
def embedder(tmp_path):
    with tfx.open_session(write_text_bundle(tmp_path / "embedder", embedding=MEAN)) as session:
        yield session


def expected_embedding(ids):
    mean = tiny_vectors(ids).mean(axis=0)
    return mean / np.linalg.norm(mean)


# Arrays.


def test_arrays_give_outputs_by_name(arrays):
    outputs = arrays.predict(FEED)
    assert list(outputs) == ["last_hidden_state"]
    np.testing.assert_array_equal(outputs["last_hidden_state"][0], tiny_vectors([1, 4, 2]))


def test_dlpack_tensors_are_taken(arrays):
    torch = pytest.importorskip("torch")
    outputs = arrays.predict({name: torch.from_numpy(array) for name, array in FEED.items()})
    np.testing.assert_array_equal(
        outputs["last_hidden_state"], arrays.predict(FEED)["last_hidden_state"]
    )


def test_dlpack_is_not_a_copy():
    torch = pytest.importorskip("torch")
    from tfx.runtime.arrays import host_array

    tensor = torch.zeros(3)
    host_array("x", tensor)[0] = 7
    assert tensor[0] == 7


def test_a_tensor_that_cannot_be_shared(arrays):
    torch = pytest.importorskip("torch")
    feed = FEED | {"input_ids": torch.zeros(1, 3, requires_grad=True)}
    with pytest.raises(FeedError, match="input_ids: got a Tensor that is not shared") as caught:
        arrays.predict(feed)
    assert caught.value.hint == "Convert it to a NumPy array first."


def test_outputs_of_a_cpu_speak_dlpack(arrays):
    torch = pytest.importorskip("torch")
    outputs = arrays.predict(FEED, outputs="dlpack")
    expected = arrays.predict(FEED)["last_hidden_state"]
    assert torch.from_dlpack(outputs["last_hidden_state"]).equal(torch.from_numpy(expected))


def test_a_tensor_on_a_gpu_in_a_session_on_a_cpu(arrays):
    tensor = DeviceArray(1, DType.INT64, (1, 3), 0, None)
    with pytest.raises(FeedError) as caught:
        arrays.predict(FEED | {"input_ids": tensor})
    assert str(caught.value) == (
        "input_ids: got a tensor on cuda:0, and onnxruntime runs on cpu here"
    )
    assert caught.value.hint == (
        "Copy it to the CPU first, or open the session with device='cuda:0'."
    )


def test_every_problem_of_a_feed_is_listed(arrays):
    feed = {
        "input_ids": np.array([[64, 4, 2]], np.int64),
        "attention_mask": np.array([[1, 1]], np.int64),
        "labels": np.array([1]),
    }
    with pytest.raises(FeedError) as caught:
        arrays.predict(feed)
    assert lines_of(str(caught.value)) == [
        "feed does not fit the signature:",
        "  labels: not an input",
        "  input_ids: int64[batch, sequence]: values 2..64, outside 0..63",
        "  attention_mask: int64[batch, sequence]: axis 'sequence' is 2, elsewhere 3",
    ]


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "input_ids: missing"),
        ({"input_ids": FEED["input_ids"]}, "attention_mask: missing"),
        (FEED | {"input_ids": FEED["input_ids"].astype(np.int32)}, "got int32"),
        (FEED | {"input_ids": FEED["input_ids"][0]}, r"got int64\[3\]"),
        (FEED | {"input_ids": [[1, 4, 2]]}, "got list, not a NumPy array"),
        (FEED | {"input_ids": -FEED["input_ids"]}, r"values -4\.\.-1, outside 0\.\.63"),
        ({n: a[:0] for n, a in FEED.items()}, "axis 'batch' is empty"),
        ({n: np.repeat(a, 17, 0) for n, a in FEED.items()}, r"'batch' is 17, outside 1\.\.16"),
        ({n: np.repeat(a, 11, 1) for n, a in FEED.items()}, r"'sequence' is 33, outside 1\.\.32"),
    ],
)
def test_bad_feeds(arrays, feed, message):
    with pytest.raises(FeedError, match=message):
        arrays.predict(feed)


@pytest.mark.parametrize("inputs", [3, None, b"a text", 1.5, {"a"}, np.zeros(3), iter(["a"])])
def test_inputs_of_another_kind(arrays, inputs):
    with pytest.raises(FeedError) as caught:
        arrays.predict(inputs)
    assert str(caught.value) == (
        f"got {type(inputs).__name__}, expected arrays by name, a text or a list of texts"
    )
    assert caught.value.hint.startswith("Pass a mapping")


def test_a_closed_session_refuses(arrays):
    arrays.close()
    arrays.close()
    with pytest.raises(BackendError, match="session is closed"):
        arrays.predict(FEED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorflow"}, "no backend called 'tensorflow'"),
        ({"threads": 0}, "threads is 0, expected 1 or more"),
        ({"threads": "2"}, "threads is '2', expected a whole number"),
        ({"streams": 1.5}, "streams is 1.5, expected a whole number"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(BackendError, match=message):
        tfx.open_session(write_bundle(tmp_path / "b"), **options)


def test_many_threads_share_a_session(embedder):
    texts = ["good film", "bad", "not very good", "the film"] * 5
    expected = embedder.predict(texts)
    found = {}

    def run(name):
        found[name] = embedder.predict(texts)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for array in found.values():
        np.testing.assert_array_equal(array, expected)
    assert embedder.report.texts == 5 * len(texts)


# Texts.


def test_embeddings_of_texts(embedder):
    vectors = embedder.predict(["good film", "bad"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(
        vectors, [expected_embedding(GOOD_FILM), expected_embedding([1, 7, 2])], rtol=1e-5
    )


def test_one_text_gives_its_answer_alone(embedder):
    vector = embedder.predict("good film")
    assert vector.shape == (8,)
    np.testing.assert_allclose(vector, embedder.predict(["good film"])[0])


def test_texts_of_all_lengths_keep_their_order(embedder):
    texts = [" ".join(["good"] * n + ["film"]) for n in (3, 1, 9, 0, 5, 12, 2) * 9]
    together = embedder.predict(texts)
    alone = np.stack([embedder.predict(text) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_max_rows_changes_nothing_but_the_batches(embedder):
    texts = ["good film", "bad", "a b", "the very bad film"]
    np.testing.assert_allclose(
        embedder.predict(texts, max_rows=1), embedder.predict(texts), rtol=1e-5, atol=1e-6
    )


def test_batches_are_as_large_as_asked_for_and_admitted(embedder, monkeypatch):
    sizes = []
    run = embedder._executable.run

    def counted(feed):
        sizes.append(len(feed["input_ids"]))
        return run(feed)

    monkeypatch.setattr(embedder._executable, "run", counted)
    embedder.predict(["good"] * 20, max_rows=8)
    embedder.predict(["good"] * 20, max_rows=100)  # the signature admits 16
    assert sizes == [8, 8, 4, 16, 4]


def test_max_rows_of_nothing(embedder):
    with pytest.raises(FeedError, match="max_rows is 0, expected 1 or more"):
        embedder.predict(["a"], max_rows=0)


@pytest.mark.parametrize("pair", [("good", "film"), ["good", "film"]])
def test_a_pair_is_read_together(embedder, pair):
    vector = embedder.predict([pair])[0]
    np.testing.assert_allclose(vector, expected_embedding([1, 6, 2, 8, 2]), rtol=1e-5)


def test_a_tuple_alone_is_a_pair(embedder):
    assert embedder.predict(("good", "film")).shape == (8,)
    assert embedder.predict(["good", "film"]).shape == (2, 8)


def test_an_empty_text_has_its_special_tokens(embedder):
    np.testing.assert_allclose(embedder.predict(""), expected_embedding([1, 2]), rtol=1e-5)


def test_long_texts_are_cut_and_counted(embedder):
    assert (embedder.report.texts, embedder.report.truncated) == (0, 0)
    vectors = embedder.predict([LONG, "good"])
    np.testing.assert_allclose(
        vectors[0], expected_embedding([1, *[10] * 14, 2]), rtol=1e-4, atol=1e-6
    )
    assert (embedder.report.texts, embedder.report.truncated) == (2, 1)


def test_labels_of_texts(tmp_path):
    with tfx.open_session(write_classifier(tmp_path / "c")) as session:
        answers = session.predict(["good film", "bad"])
    for answer, word in zip(answers, (6, 7), strict=True):
        logits = logits_table(2)[word]
        scores = np.exp(logits) / np.exp(logits).sum()
        assert isinstance(answer, TextLabel)
        assert answer.label == ("bad", "good")[int(logits.argmax())]
        assert answer.score == pytest.approx(scores.max(), rel=1e-5)
        assert answer.scores == pytest.approx(tuple(scores), rel=1e-5)


def test_regression_gives_the_number(tmp_path):
    bundle = write_classifier(tmp_path / "c", labels=("stars",), activation=Activation.NONE)
    with tfx.open_session(bundle) as session:
        answer = session.predict("film")
    assert answer.score == pytest.approx(float(logits_table(1)[8, 0]))


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_of_tokens(tmp_path, side):
    from tfx.processing import Tokenization

    bundle = write_classifier(
        tmp_path / "c",
        labels=("O", "ADJ", "NOUN"),
        per_token=True,
        tokenization=Tokenization("tokenizer.json", 16, 0, side),
    )
    with tfx.open_session(bundle) as session:
        short, _ = session.predict(["Good  film", "the very very very bad film"])
    assert [(a.text, a.start, a.end, a.part) for a in short] == [
        ("Good", 0, 4, 0),
        ("film", 6, 10, 0),
    ]
    for answer, token in zip(short, (6, 8), strict=True):
        assert isinstance(answer, TokenLabel)
        assert answer.label == ("O", "ADJ", "NOUN")[int(logits_table(3)[token].argmax())]


def test_tokens_of_a_pair_say_which_text(tmp_path):
    bundle = write_classifier(tmp_path / "c", per_token=True)
    with tfx.open_session(bundle) as session:
        answers = session.predict(("good", "the film"))
    assert [(a.text, a.start, a.part) for a in answers] == [
        ("good", 0, 0),
        ("the", 0, 1),
        ("film", 4, 1),
    ]


def test_without_a_head_each_text_gets_its_own_part(tmp_path):
    with tfx.open_session(write_text_bundle(tmp_path / "b")) as session:
        long, short = session.predict(["a b a b a b", "good film"])
    assert long["last_hidden_state"].shape == (8, 8)
    np.testing.assert_array_equal(short["last_hidden_state"], tiny_vectors(GOOD_FILM))


# Bad texts.


def test_every_bad_text_is_named(embedder):
    with pytest.raises(TextError) as caught:
        embedder.predict(["fine", 3, None, ("a",), ("a", 1), "half \ud800"])
    assert lines_of(str(caught.value)) == [
        "texts cannot be read:",
        "  texts[1]: got int, expected a string or a pair of strings",
        "  texts[2]: got NoneType, expected a string or a pair of strings",
        "  texts[3]: got 1 parts, expected a string or a pair of strings",
        "  texts[4]: got a pair with a int, expected a pair of strings",
        "  texts[5]: is not Unicode: half of a surrogate pair at character 5",
    ]
    assert sorted(caught.value.problems) == [1, 2, 3, 4, 5]
    assert embedder.report.texts == 0


def test_an_empty_list(embedder):
    with pytest.raises(FeedError, match="got an empty list, expected at least one text"):
        embedder.predict([])


def test_a_text_without_tokens(tmp_path):
    bundle = write_text_bundle(
        tmp_path / "b", tokenizer=tokenizer_json(special=False), embedding=MEAN
    )
    with (
        tfx.open_session(bundle) as session,
        pytest.raises(TextError, match=r"texts\[1\]: has no tokens"),
    ):
        session.predict(["a", ""])


def test_text_for_a_bundle_without_tokenizer(arrays):
    with pytest.raises(FeedError, match="arrays has no tokenizer: it takes arrays") as caught:
        arrays.predict("hello")
    assert caught.value.hint == (
        "Give arrays by name, to a command in an npz file; see the names with: tfx inspect"
    )


def test_text_for_a_model_that_needs_more(tmp_path):
    signature = Signature(
        inputs=(
            *TEXT_SIGNATURE.inputs,
            TensorSpec("pixel_values", DType.FLOAT32, ("batch", 3)),
        ),
        outputs=TEXT_SIGNATURE.outputs,
        ranges=TEXT_SIGNATURE.ranges,
    )
    bundle = write_text_bundle(tmp_path / "b", signature=signature)
    with (
        tfx.open_session(bundle) as session,
        pytest.raises(FeedError, match="b needs pixel_values as well, which text does not give"),
    ):
        session.predict("hello")


def test_a_manifest_that_does_not_fit_its_model(tmp_path):
    bundle = write_text_bundle(tmp_path / "b", embedding=Embedding("hidden", (Pooling.MEAN,)))
    with (
        tfx.open_session(bundle) as session,
        pytest.raises(BundleError, match="b: the manifest names an output 'hidden'"),
    ):
        session.predict("hello")


# What it costs.


def test_neither_torch_nor_transformers_nor_onnx_is_imported(tmp_path):
    path = write_text_bundle(tmp_path / "b", embedding=MEAN).path
    script = f"""
import json, sys, tfx
with tfx.open_session({str(path)!r}) as session:
    session.predict(["good film"])
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum"}
