"""Observations: words and their tags, arrays in parts, and probabilities."""

import numpy as np
import pytest
from support.bundles import write_bundle
from support.texts import write_classifier

import tfx
from tfx.dtypes import DType
from tfx.processing import Activation
from tfx.runtime.accuracy.evaluation import evaluate
from tfx.runtime.accuracy.metrics import Form
from tfx.runtime.accuracy.observations import Observations, word_tags
from tfx.runtime.accuracy.samples import Dataset, DatasetKind
from tfx.runtime.text.answers import TokenLabel
from tfx.signature import ShapeRange, Signature, TensorSpec


def tokens(*spans):
    return [TokenLabel(label, 1.0, "", start, end) for label, start, end in spans]


def test_a_words_first_token_gives_its_tag():
    answer = tokens(("B-A", 0, 2), ("O", 2, 3), ("I-A", 4, 7))
    assert word_tags("Ada Lov x", answer) == ("B-A", "I-A", "O")


def test_tokens_that_begin_with_a_space():
    answer = tokens(("B-A", 0, 3), ("I-A", 3, 7), ("O", 7, 9))
    assert word_tags("Ada Lov x", answer) == ("B-A", "I-A", "O")


def test_a_word_without_a_token_has_no_tag():
    assert word_tags("a \x01 b", tokens(("B-A", 0, 1), ("B-B", 4, 5))) == ("B-A", "O", "B-B")
    assert word_tags("a b", []) == ("O", "O")


def logits_bundle(path, width):
    """``logits = table[x]``: a module of one's own, without labels in its manifest."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.eye(4, width, dtype=np.float32) * np.arange(1, 5, dtype=np.float32)[:, None]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["logits"])],
        "own",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(table, "table")],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10
    )
    signature = Signature(
        (TensorSpec("x", DType.INT64, ("batch",)),),
        (TensorSpec("logits", DType.FLOAT32, ("batch", width)),),
        {"batch": ShapeRange(1, 2, 2)},
    )
    return write_bundle(path, model, signature=signature)


def test_arrays_in_parts_and_labels_without_names(tmp_path):
    x = np.array([0, 1, 2, 3, 1])
    data = Dataset("a.npz", DatasetKind.FEEDS, {"x": x}, (0, 1, 2, 3, 0))
    with tfx.open_session(logits_bundle(tmp_path / "b", 4), backend="onnxruntime") as session:
        found = evaluate(session, data)  # the batch is 2 at most
        kl = evaluate(session, data, "kl", reference=session)
    assert (found.metric, found.value, kl.value) == ("accuracy", 4 / 5, 0)


def test_one_logit_is_a_score(tmp_path):
    data = Dataset("a.npz", DatasetKind.FEEDS, {"x": np.array([3, 0])}, (0.5, 2.0))
    with tfx.open_session(logits_bundle(tmp_path / "b", 1), backend="onnxruntime") as session:
        found = evaluate(session, data)
    assert (found.metric, found.value) == ("spearman", 1)


@pytest.mark.parametrize("activation", [Activation.SIGMOID, Activation.NONE, Activation.SOFTMAX])
def test_probabilities_sum_to_one(tmp_path, activation):
    bundle = write_classifier(tmp_path / "b", activation=activation)
    data = Dataset("f", DatasetKind.TEXTS, ("a", "b"), None)
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        (found,) = Observations(session, data).predicted(Form.SCORES, slice(0, 1))
        scores = np.array(session.predict("a").scores)
    assert found.shape == ((2, 2) if activation is Activation.SIGMOID else (2,))
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)
    if activation is Activation.SIGMOID:
        np.testing.assert_allclose(found[:, 0], scores)
