"""Perplexity: every token of a text of any length is counted once, with those before it."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
from support.bundles import TEXT_SIGNATURE
from support.texts import WORDS, classifier_graph, logits_table, tokenizer_json, write_text_bundle

import tfx
from tfx.dtypes import DType
from tfx.errors import DataError
from tfx.runtime.accuracy.evaluation import evaluate
from tfx.runtime.accuracy.next_tokens import windows_of
from tfx.runtime.accuracy.observations import NotFiniteError
from tfx.runtime.accuracy.samples import Dataset, DatasetKind
from tfx.runtime.text.tokenizer import Encoded
from tfx.signature import Signature, TensorSpec

VOCABULARY = 64
LONG = " ".join(itertools.islice(itertools.cycle(WORDS[4:]), 41))  # the model takes 16 tokens


def open_session(bundle):
    return tfx.open_session(bundle, backend="onnxruntime", threads=1)


def texts(*inputs):
    return Dataset("dev.tsv", DatasetKind.TEXTS, inputs, None, ("text",))


def write_language_model(path, **changes):
    """Logits of the next token are a table's row: of the token before it."""
    return write_text_bundle(
        path,
        graph=classifier_graph(VOCABULARY, per_token=True),
        task="text-generation",
        signature=Signature(
            TEXT_SIGNATURE.inputs,
            (TensorSpec("logits", DType.FLOAT32, ("batch", "sequence", VOCABULARY)),),
            TEXT_SIGNATURE.ranges,
        ),
        **changes,
    )


def surprise_of(sentence):
    """Nats of a sentence's tokens after the first, and how many they are."""
    shares = scipy.special.log_softmax(logits_table(VOCABULARY).astype(np.float64), axis=-1)
    ids = [1, *(WORDS.index(word) for word in sentence.split()), 2]
    return -sum(shares[now, then] for now, then in itertools.pairwise(ids)), len(ids) - 1


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    with open_session(write_language_model(tmp_path_factory.mktemp("lm") / "lm")) as session:
        yield session


def test_perplexity(writer):
    sentences = ("a good film", "the very bad b", "not")
    found = evaluate(writer, texts(*sentences))
    same = evaluate(writer, texts(*sentences), "kl", reference=writer)
    nats, counts = zip(*map(surprise_of, sentences), strict=True)
    assert found.metric == "perplexity"
    assert found.value == pytest.approx(math.exp(sum(nats) / sum(counts)))
    assert (same.value, same.high) == (0, 0)


@pytest.mark.parametrize("max_rows", [None, 1])
def test_long_texts_are_read_in_windows(writer, max_rows):
    sentences = ("a good film", LONG, "not", LONG + " a")
    counted = []
    found = evaluate(writer, texts(*sentences), max_rows=max_rows, on_progress=counted.append)
    np.testing.assert_allclose(found.rows, [surprise_of(one) for one in sentences], rtol=1e-5)
    assert "texts longer than the model takes, and read in windows: 2" in found.warnings
    assert (found.truncated, sum(counted)) == (0, 4)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("total", [1, 2, 15, 16, 17, 40, 41])
def test_each_token_is_new_in_one_window_and_has_half_of_one_before_it(size, total):
    text = Encoded(np.arange(total), np.zeros(total, int), truncated=False)
    windows = list(windows_of(text, size))
    new = [one.encoded.ids[one.known :] for one in windows]
    np.testing.assert_array_equal(np.concatenate(new), np.arange(total))
    assert all(1 <= len(one.encoded.ids) <= size for one in windows)
    assert all(len(one) for one in new)
    assert all(one.known == size - max(size // 2, 1) for one in windows[1:])


def test_no_text_of_two_tokens(tmp_path):
    bundle = write_language_model(tmp_path / "lm", tokenizer=tokenizer_json(special=False))
    with (
        open_session(bundle) as session,
        pytest.raises(DataError, match=r"dev\.tsv has no text of two tokens, perplexity needs one"),
    ):
        evaluate(session, texts("a", "b"))


def test_an_unreadable_text_is_named(writer):
    with pytest.raises(DataError, match=r"dev\.tsv, sample 18: is not Unicode: half of a"):
        evaluate(writer, texts(*["a b"] * 17, "\ud800"))


def test_logits_that_are_not_finite(tmp_path):
    with open_session(write_language_model(tmp_path / "nan")) as session:
        run = session._executable.run
        session._executable.run = lambda feed: {k: v * np.nan for k, v in run(feed).items()}
        with pytest.raises(NotFiniteError) as caught:
            evaluate(session, texts("a", "b"))
    assert str(caught.value) == "perplexity of nan is not finite for sample 1 of dev.tsv"
