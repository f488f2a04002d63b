"""Tokenizer: the manifest's lengths and padding hold, whatever the file says."""

import numpy as np
import pytest
from support.bundles import TEXT_SIGNATURE
from support.texts import tokenizer_json, write_text_bundle

from tfx.dtypes import DType
from tfx.errors import BundleError, FeedError
from tfx.processing import Tokenization
from tfx.runtime.text.tokenizer import TextError, Tokenizer
from tfx.signature import ShapeRange, Signature, TensorSpec


def signature(*names, sequence="sequence", rows="batch", sizes=None):
    inputs = tuple(TensorSpec(name, DType.INT64, (rows, sequence)) for name in names)
    used = {"batch", "sequence"} & {rows, sequence}
    known = {"batch": ShapeRange(1, 4, 16), "sequence": ShapeRange(1, 16, 32)}
    sizes = known | (sizes or {})
    return Signature(inputs, TEXT_SIGNATURE.outputs, {axis: sizes[axis] for axis in used})


def tokenizer(tmp_path, **options):
    return Tokenizer(write_text_bundle(tmp_path / "b", **options))


def test_the_files_own_cutting_and_padding_are_not_heeded(tmp_path):
    tokens = tokenizer(tmp_path, tokenizer=tokenizer_json(truncate=3))
    (one,) = tokens.encode(["good film a b"])
    assert one.ids.tolist() == [1, 6, 8, 4, 5, 2]
    assert not one.truncated


def test_length_is_the_manifests(tmp_path):
    tokens = tokenizer(tmp_path, tokenization=Tokenization("tokenizer.json", 5))
    cut, whole = tokens.encode(["a b a b a b", "a b a"])
    assert cut.ids.tolist() == [1, 4, 5, 4, 2]
    assert (cut.truncated, whole.truncated) == (True, False)


def test_length_is_never_more_than_the_model_takes(tmp_path):
    short = signature("input_ids", "attention_mask", sizes={"sequence": ShapeRange(1, 4, 4)})
    tokens = tokenizer(tmp_path, signature=short)
    assert tokens.max_tokens == 4
    assert len(tokens.encode(["a b a b a b"])[0].ids) == 4


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("right", [[1, 6, 8, 2], [1, 7, 2, 9]]),
        ("left", [[1, 6, 8, 2], [9, 1, 7, 2]]),
    ],
)
def test_padding(tmp_path, side, expected):
    tokens = tokenizer(tmp_path, tokenization=Tokenization("tokenizer.json", 16, 9, side))
    batch = tokens.batch(tokens.encode(["good film", "bad"]))
    np.testing.assert_array_equal(batch.feed["input_ids"], expected)
    np.testing.assert_array_equal(batch.mask, np.array(expected) != 9)
    np.testing.assert_array_equal(batch.feed["attention_mask"], batch.mask)
    assert batch.rows == 2


def test_only_the_inputs_of_the_model_are_made(tmp_path):
    tokens = tokenizer(tmp_path, signature=signature("input_ids", "token_type_ids"))
    batch = tokens.batch(tokens.encode([("good", "bad film")]))
    assert sorted(batch.feed) == ["input_ids", "token_type_ids"]
    assert batch.feed["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]


def test_inputs_have_the_models_dtypes(tmp_path):
    inputs = (
        TensorSpec("input_ids", DType.INT32, ("batch", "sequence")),
        TensorSpec("attention_mask", DType.FLOAT32, ("batch", "sequence")),
    )
    tokens = tokenizer(tmp_path, signature=Signature(inputs, TEXT_SIGNATURE.outputs))
    feed = tokens.batch(tokens.encode(["a"])).feed
    assert [feed[spec.name].dtype for spec in inputs] == [np.int32, np.float32]


def test_fixed_sizes_are_filled(tmp_path):
    fixed = signature("input_ids", "attention_mask", rows=3, sequence=6)
    tokens = tokenizer(tmp_path, signature=fixed)
    batch = tokens.batch(tokens.encode(["good film"]))
    assert batch.feed["input_ids"].tolist() == [[1, 6, 8, 2, 0, 0]] * 3
    assert batch.rows == 1
    assert tokens.max_rows == 3


def test_no_padding_without_a_mask(tmp_path):
    tokens = tokenizer(tmp_path, signature=signature("input_ids"))
    with pytest.raises(FeedError, match="a text has 3 tokens, the model takes 4") as caught:
        tokens.batch(tokens.encode(["a", "a b"]))
    assert caught.value.hint == "Use texts of equal length, or pass arrays."


def test_special_tokens_alone_are_too_many(tmp_path):
    tokens = tokenizer(tmp_path, tokenization=Tokenization("tokenizer.json", 1))
    with pytest.raises(TextError, match=r"texts\[0\]: has 3 special tokens|has .* the model takes"):
        tokens.encode(["a"])


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b'{"version": "1.0"}', b"\xff\xfe"])
def test_a_damaged_tokenizer(tmp_path, data):
    with pytest.raises(BundleError, match=r"tokenizer\.json is damaged") as caught:
        tokenizer(tmp_path, tokenizer=data)
    assert caught.value.hint == "Make the bundle again."


def test_a_model_without_token_ids(tmp_path):
    with pytest.raises(FeedError, match="b has no input_ids of two axes"):
        tokenizer(tmp_path, signature=signature("attention_mask"))
