"""Answers: poolings, scores and labels by their definitions."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.bundles import TEXT_SIGNATURE
from support.texts import MEAN, write_classifier, write_text_bundle

import tfx
from tfx.dtypes import DType
from tfx.errors import BundleError
from tfx.processing import Activation, Classification, Embedding, Pooling
from tfx.runtime.text.answers import (
    embeddings_from,
    normalized,
    own_part,
    pool,
    scores_from,
    text_label,
)
from tfx.signature import ShapeRange, Signature, TensorSpec

TOKENS = np.array([[[1, -2], [3, 4], [100, 100]], [[-9, -9], [5, 6], [7, -8]]], np.float32)
RIGHT_AND_LEFT = np.array([[1, 1, 0], [0, 1, 1]], bool)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Pooling.CLS, [[1, -2], [5, 6]]),
        (Pooling.LAST_TOKEN, [[3, 4], [7, -8]]),
        (Pooling.MAX, [[3, 4], [7, 6]]),
        (Pooling.MEAN, [[2, 1], [6, -1]]),
        (Pooling.MEAN_SQRT_LENGTH, np.array([[4, 2], [12, -2]]) / np.sqrt(2)),
    ],
)
def test_pooling_sees_no_padding(mode, expected):
    pooled = pool(TOKENS, RIGHT_AND_LEFT, mode)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)


@pytest.mark.parametrize("modes", [(mode,) for mode in Pooling] + [tuple(Pooling)], ids=str)
@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("normalize", [False, True])
def test_embeddings_are_those_of_sentence_transformers(modes, side, normalize):
    torch = pytest.importorskip("torch")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    rng = np.random.default_rng(len(side))
    tokens = rng.normal(size=(5, 7, 16)).astype(np.float32)
    mask = np.ones((5, 7), np.int64)
    for row in range(1, 5):
        if side == "right":
            mask[row, 7 - row :] = 0
        elif side == "left":
            mask[row, :row] = 0
    features = {
        "token_embeddings": torch.from_numpy(tokens),
        "attention_mask": torch.from_numpy(mask),
    }
    features = modules.Pooling(16, pooling_mode=tuple(map(str, modes)))(features)
    if normalize:
        features = modules.Normalize()(features)

    found = embeddings_from(Embedding("tokens", modes, normalize), tokens, mask.astype(bool))

    np.testing.assert_allclose(found, features["sentence_embedding"].numpy(), rtol=2e-6, atol=1e-6)


def test_half_precision_is_pooled_in_float32():
    tokens = np.full((1, 4000, 2), 20, np.float16)  # their sum is above float16's largest
    pooled = embeddings_from(Embedding("t", (Pooling.MEAN,)), tokens, np.ones((1, 4000), bool))
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, 20)


def test_a_vector_of_zeros_stays():
    np.testing.assert_array_equal(normalized(np.zeros((1, 3), np.float32)), np.zeros((1, 3)))


def test_mean_of_nothing_is_zero():
    assert not pool(TOKENS, np.zeros((2, 3), bool), Pooling.MEAN).any()


logits = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=1, max_dims=3, max_side=5),
    elements=st.floats(-(2.0**127), 2.0**127, width=32),
)


@given(logits)
def test_softmax_is_a_distribution(values):
    with np.errstate(over="ignore"):  # the difference of two such logits may be -inf: a 0
        scores = scores_from(values, Activation.SOFTMAX)
    np.testing.assert_allclose(scores.sum(axis=-1), 1, rtol=1e-5)
    assert (scores >= 0).all()


@given(logits)
def test_sigmoid_is_a_probability_and_symmetric(values):
    scores = scores_from(values, Activation.SIGMOID)
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(scores + scores_from(-values, Activation.SIGMOID), 1, rtol=1e-6)


def test_scores_by_hand():
    values = np.array([0, np.log(3)], np.float32)
    np.testing.assert_allclose(scores_from(values, Activation.SOFTMAX), [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(scores_from(values, Activation.SIGMOID), [0.5, 0.75], rtol=1e-6)
    np.testing.assert_array_equal(scores_from(values, Activation.NONE), values)


def test_the_best_label_wins():
    label = text_label(("a", "b", "c"), np.array([0.25, 0.5, 0.25], np.float32))
    assert (label.label, label.score, label.scores) == ("b", 0.5, (0.25, 0.5, 0.25))


def test_own_part_cuts_every_token_axis():
    signature = Signature(
        inputs=TEXT_SIGNATURE.inputs,
        outputs=(
            TensorSpec("attentions", DType.FLOAT32, ("batch", 2, "sequence", "sequence")),
            TensorSpec("bias", DType.FLOAT32, (3,)),
        ),
        ranges=TEXT_SIGNATURE.ranges,
    )
    outputs = {
        "attentions": np.arange(64, dtype=np.float32).reshape(2, 2, 4, 4),
        "bias": np.ones(3, np.float32),
    }
    own = own_part(signature, outputs, 1, np.array([False, True, True, True]))
    np.testing.assert_array_equal(own["attentions"], outputs["attentions"][1][:, 1:, 1:])
    np.testing.assert_array_equal(own["bias"], outputs["bias"])


def test_labels_that_do_not_fit_the_logits(tmp_path):
    path = write_classifier(
        tmp_path / "right", labels=("a", "b", "c")
    )  # shows that the fixture fits
    assert path.manifest.processing.classification.labels == ("a", "b", "c")
    bundle = write_text_bundle(
        tmp_path / "wrong",
        classification=Classification("last_hidden_state", ("a", "b"), per_token=True),
    )
    with (
        tfx.open_session(bundle) as session,
        pytest.raises(BundleError) as caught,
    ):
        session.predict("film")
    assert str(caught.value) == (
        "wrong: last_hidden_state has 8 classes, the manifest has 2 labels"
    )


def test_an_output_of_another_rank(tmp_path):
    bundle = write_text_bundle(
        tmp_path / "wrong", classification=Classification("last_hidden_state", ("a", "b"))
    )
    with (
        tfx.open_session(bundle) as session,
        pytest.raises(BundleError, match=r"last_hidden_state is \[1, 3, 8\] for tokens \[1, 3\]"),
    ):
        session.predict("film")


@pytest.mark.parametrize("kind", ["embedder", "classifier"])
def test_rows_that_fill_a_batch_give_no_answers(tmp_path, kind):
    write = write_classifier if kind == "classifier" else write_text_bundle
    head = {} if kind == "classifier" else {"embedding": MEAN}
    bundle = write(tmp_path / "bundle", **head)
    ranges = bundle.manifest.signature.ranges | {"batch": ShapeRange(4, 4, 4)}
    signature = dataclasses.replace(bundle.manifest.signature, ranges=ranges)
    manifest = dataclasses.replace(bundle.manifest, signature=signature)
    filled = dataclasses.replace(bundle, manifest=manifest)
    texts = ["good", "not bad"]
    with tfx.open_session(bundle) as plain, tfx.open_session(filled) as session:
        found, expected = session.predict(texts), plain.predict(texts)
    assert len(found) == 2
    assert all(map(np.array_equal, found, expected)) or found == expected
