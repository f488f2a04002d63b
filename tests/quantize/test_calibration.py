"""Data that calibrates: texts and arrays as feeds, and what it must not be."""

import numpy as np
import pytest
from support.bundles import write_bundle
from support.texts import write_text_bundle

from tfx.dtypes import DType
from tfx.errors import DataError, FeedError
from tfx.quantize import calibration
from tfx.quantize.calibration import (
    BATCH_TOKENS,
    FEW_SAMPLES,
    calibration_feeds,
    calibration_texts,
)
from tfx.runtime.text.tokenizer import TextError
from tfx.signature import Signature, TensorSpec

TEXTS = [f"the film {'very ' * (index % 9)}good" for index in range(40)]


@pytest.fixture(scope="module")
def texts_bundle(tmp_path_factory):
    return write_text_bundle(tmp_path_factory.mktemp("texts") / "tiny")


def test_texts_by_the_tokenizer_of_the_bundle(texts_bundle):
    data = calibration_texts(texts_bundle, TEXTS, name="texts.txt")
    feeds = list(data)
    assert data.facts.name == "texts.txt"
    assert data.facts.samples == len(TEXTS) == sum(len(feed["input_ids"]) for feed in feeds)
    assert data.facts.tokens == sum(feed["attention_mask"].sum() for feed in feeds)
    assert data.facts.warnings == ()
    assert all(feed["input_ids"].size <= BATCH_TOKENS for feed in feeds)
    again = list(data)
    assert len(data) == len(feeds) == len(again)
    for one, other in zip(feeds, again, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_texts_are_run_in_batches_of_like_lengths(texts_bundle, monkeypatch):
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 40)
    feeds = list(calibration_texts(texts_bundle, TEXTS, name="texts.txt"))
    assert all(len(feed["input_ids"]) > 1 for feed in feeds[:-1])
    assert all(feed["input_ids"].size <= 40 for feed in feeds)
    lengths = [feed["attention_mask"].sum(axis=1) for feed in feeds]
    assert (np.diff(np.concatenate(lengths)) >= 0).all()
    rows = texts_bundle.manifest.signature.ranges["batch"].max
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 10**6)
    feeds = list(calibration_texts(texts_bundle, TEXTS, name="texts.txt"))
    assert max(len(feed["input_ids"]) for feed in feeds) == rows


def test_texts_too_long_are_cut_and_keep_their_special_tokens(texts_bundle):
    (feed,) = calibration_texts(texts_bundle, ["very " * 30, "a b"], name="t", tokens=5)
    assert feed["input_ids"].tolist() == [[1, 4, 5, 2, 0], [1, 10, 10, 10, 2]]
    (feed,) = calibration_texts(texts_bundle, ["very " * 30], name="t", tokens=500)
    assert feed["input_ids"].shape == (1, 16)
    with pytest.raises(TextError):
        calibration_texts(texts_bundle, ["very good"], name="t", tokens=1)


def test_a_digest_is_of_the_tokens_in_their_order(texts_bundle):
    def digest(*texts, **options):
        return calibration_texts(texts_bundle, texts, name="t", **options).facts.digest

    assert digest("good film", "bad film") == digest("GOOD  film", "bad film")
    others = {
        digest("good film", "bad film"),
        digest("bad film", "good film"),
        digest("good film bad film"),
        digest("good film", "bad film", "bad film"),
        digest("good film", "bad film", tokens=3),
    }
    assert len(others) == 5
    # What is written down must stay the same: a manifest holds it.
    assert digest("good film") == (
        "a3ca6589d350470467f739794d8c96108f955e06aaa44ce1e3f432be086db872"
    )


def test_few_samples_and_equal_ones_are_said(texts_bundle):
    def warnings(*texts):
        return calibration_texts(texts_bundle, texts, name="t").facts.warnings

    few = f"calibration sample{{}}: {FEW_SAMPLES} or more are needed for ranges to settle"
    assert warnings("good") == (f"1 {few.format('')}",)
    assert warnings("good", "bad") == (f"2 {few.format('s')}",)
    assert warnings(*["good"] * 40) == ("all 40 calibration samples are the same",)
    assert warnings("good", "good")[1] == "all 2 calibration samples are the same"


def test_a_warning_is_added(texts_bundle):
    data = calibration_texts(texts_bundle, TEXTS, name="t").warned("as random as can be")
    assert data.facts.warnings == ("as random as can be",)
    assert len(list(data)) == len(data)


@pytest.mark.parametrize("texts", [[], ["", "  \n"], [("", "")]])
def test_no_text_at_all(texts, texts_bundle):
    with pytest.raises(DataError, match=r"^empty\.txt has no text to calibrate with$"):
        calibration_texts(texts_bundle, texts, name="empty.txt")


def test_a_bundle_that_takes_no_text(tmp_path):
    for tokens in (0, 8):
        with pytest.raises(FeedError, match="has no tokenizer"):
            calibration_texts(write_bundle(tmp_path / f"{tokens}"), ["a"], name="t", tokens=tokens)


def arrays(rng, rows=4):
    return {
        "input_ids": rng.integers(0, 64, (rows, 6)),
        "attention_mask": np.ones((rows, 6), np.int64),
    }


def test_arrays(texts_bundle, rng):
    feeds = [arrays(rng, 16), arrays(rng, 4), arrays(rng, 16)]
    data = calibration_feeds(texts_bundle, feeds, name="data.npz")
    assert data.facts.samples == 36
    assert data.facts.tokens == 216
    assert data.facts.warnings == ()
    assert [feed["input_ids"].shape for feed in data] == [(16, 6), (4, 6), (16, 6)]
    assert calibration_feeds(texts_bundle, feeds, name="x").facts.digest == data.facts.digest
    turned = calibration_feeds(texts_bundle, [feeds[1], feeds[0], feeds[2]], name="data.npz")
    assert turned.facts.digest != data.facts.digest


def test_equal_arrays_are_said(texts_bundle, rng):
    one = arrays(rng, 1)
    many = {name: np.repeat(array, 16, axis=0) for name, array in one.items()}
    said = ("all 48 calibration samples are the same",)
    assert calibration_feeds(texts_bundle, [many] * 3, name="x").facts.warnings == said
    many["input_ids"][3, 3] ^= 1
    assert calibration_feeds(texts_bundle, [many] * 3, name="x").facts.warnings == ()
    few = calibration_feeds(texts_bundle, [one], name="x").facts.warnings
    assert few[0].startswith("1 calibration sample: ")


def test_arrays_that_do_not_fit(texts_bundle, rng, tmp_path):
    with pytest.raises(DataError, match=r"^none\.npz has nothing to calibrate with$"):
        calibration_feeds(texts_bundle, [], name="none.npz")
    broken = arrays(rng)
    del broken["attention_mask"]
    with pytest.raises(FeedError, match="attention_mask"):
        calibration_feeds(texts_bundle, [arrays(rng), broken], name="x")
    signature = Signature(
        (TensorSpec("x", DType.FLOAT32, ("batch", 4)),),
        (TensorSpec("y", DType.FLOAT32, ("batch", 4)),),
    )
    floats = write_bundle(tmp_path / "floats", signature=signature)
    with pytest.raises(FeedError, match="NaN"):
        calibration_feeds(floats, [{"x": np.full((2, 4), np.nan, np.float32)}], name="x")
