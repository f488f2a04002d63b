"""Tiny tokenizers and bundles that take text, made by hand."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.bundles import HIDDEN, TEXT_SIGNATURE, VOCABULARY, write_bundle
from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.processing import Activation, Classification, Embedding, Pooling, Processing, Tokenization
from tfx.signature import Signature, TensorSpec

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "good", "bad", "film", "not", "very", "the"]
TOKENIZATION = Tokenization("tokenizer.json", max_length=16)
MEAN = Embedding("last_hidden_state", (Pooling.MEAN,), normalize=True)


def tokenizer_json(*, special: bool = True, truncate: int | None = None) -> bytes:
    """A word-level tokenizer; ``special`` puts [CLS] and [SEP] around, as BERT does.

    Args:
        special: Whether it adds special tokens.
        truncate: Length that the file itself cuts to; the runtime must not heed it.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:3])
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
        )
    if truncate:
        tokenizer.enable_truncation(truncate)
        tokenizer.enable_padding(length=32, pad_id=3)
    return tokenizer.to_str().encode()


def write_text_bundle(
    path: Path,
    *,
    tokenizer: bytes | None = None,
    tokenization: Tokenization | None = TOKENIZATION,
    embedding: Embedding | None = None,
    classification: Classification | None = None,
    **changes,
) -> Bundle:
    """The text graph of ``support.bundles`` with a tokenizer, and a head if one is given."""
    files = {"tokenizer.json": tokenizer_json() if tokenizer is None else tokenizer}
    processing = Processing(tokenization, embedding, classification)
    return write_bundle(path, files=files, processing=processing, **changes)


def write_classifier(
    path: Path,
    *,
    labels: tuple[str, ...] = ("bad", "good"),
    activation: Activation = Activation.SOFTMAX,
    per_token: bool = False,
    **changes,
) -> Bundle:
    """Logits are a table's rows: of the first word for a text, of every token for tokens."""
    return write_text_bundle(
        path,
        graph=classifier_graph(len(labels), per_token=per_token),
        classification=Classification("logits", labels, activation, per_token),
        signature=Signature(
            inputs=TEXT_SIGNATURE.inputs,
            outputs=(
                TensorSpec(
                    "logits",
                    DType.FLOAT32,
                    ("batch", "sequence", len(labels)) if per_token else ("batch", len(labels)),
                ),
            ),
            ranges=TEXT_SIGNATURE.ranges,
        ),
        **changes,
    )


def write_reader(path: Path, **changes) -> Bundle:
    """A question answerer: start and end logits are columns 0 and 1 of a table's rows."""
    logits = tuple(
        TensorSpec(name, DType.FLOAT32, ("batch", "sequence"))
        for name in ("start_logits", "end_logits")
    )
    return write_text_bundle(
        path,
        graph=reader_graph(),
        signature=Signature(TEXT_SIGNATURE.inputs, logits, TEXT_SIGNATURE.ranges),
        task="question-answering",
        **changes,
    )


def reader_graph() -> onnx.ModelProto:
    """``logits_table(2)[input_ids]``, a column for each output."""
    tokens = ["batch", "sequence"]
    table = logits_table(2)
    names = ("start_logits", "end_logits")
    graph = helper.make_graph(
        [helper.make_node("Gather", [f"{name}.table", "input_ids"], [name]) for name in names],
        "reader",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, tokens),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, tokens),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, tokens) for name in names],
        [
            numpy_helper.from_array(table[:, column].copy(), f"{name}.table")
            for column, name in enumerate(names)
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def logits_table(labels: int) -> np.ndarray:
    """Logits of each token id; ``float32[VOCABULARY, labels]``."""
    return np.random.default_rng(labels).normal(scale=2, size=(VOCABULARY, labels)).astype("f4")


def classifier_graph(labels: int, *, per_token: bool) -> onnx.ModelProto:
    """``table[input_ids]``, or its row 1: the word after [CLS]."""
    tokens = ["batch", "sequence"]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["found"])]
    if per_token:
        nodes.append(helper.make_node("Identity", ["found"], ["logits"]))
    else:
        nodes.append(helper.make_node("Gather", ["found", "second"], ["logits"], axis=1))
    shape = [*tokens, labels] if per_token else ["batch", labels]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, tokens),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, tokens),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(logits_table(labels), "table"),
            numpy_helper.from_array(np.array(1), "second"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def tiny_vectors(ids: list[int]) -> np.ndarray:
    """What the text graph gives for token ids; ``float32[tokens, HIDDEN]``."""
    table = np.random.default_rng(0).normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
    return table[ids]


def read_jsonl(path: Path) -> list[dict]:
    """Every line of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
