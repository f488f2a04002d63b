import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import TEXT_SIGNATURE, VOCABULARY

from tfx.dtypes import DType
from tfx.errors import FeedError
from tfx.feeds import random_feed, trial_feed
from tfx.signature import ShapeRange, Signature, TensorSpec, ValueRange

BATCH = ("batch", "sequence")
MIXED = Signature(
    inputs=(
        TensorSpec("input_ids", DType.INT32, BATCH, ValueRange(5, 9)),
        TensorSpec("token_type_ids", DType.INT64, BATCH, ValueRange(0, 1)),
        TensorSpec("positions", DType.INT64, ("sequence",)),
        TensorSpec("pixel_values", DType.FLOAT32, ("batch", 3, 4, 4)),
        TensorSpec("keep", DType.BOOL, BATCH),
    ),
    outputs=(TensorSpec("y", DType.FLOAT32, ("batch",)),),
    ranges={"batch": ShapeRange(1, 2, 9), "sequence": ShapeRange(1, 8, 40)},
)
PADDINGS = st.sampled_from(["none", "right", "left", "both"])


@given(st.integers(1, 9), st.integers(1, 32), PADDINGS, st.integers(0, 2**32))
def test_every_feed_binds(batch, sequence, padding, seed):
    sizes = {"batch": batch, "sequence": sequence}
    for signature in (TEXT_SIGNATURE, MIXED):
        feed = random_feed(signature, sizes, np.random.default_rng(seed), padding=padding)
        assert signature.bind(feed, check_finite=True) == sizes


@given(st.integers(1, 9), st.integers(1, 32), PADDINGS, st.integers(0, 2**32))
def test_the_first_row_is_full_and_every_row_keeps_a_token(batch, sequence, padding, seed):
    sizes = {"batch": batch, "sequence": sequence}
    mask = random_feed(TEXT_SIGNATURE, sizes, np.random.default_rng(seed), padding=padding)[
        "attention_mask"
    ]
    assert mask[0].all()
    assert mask.any(axis=1).all()
    assert mask.all() or padding != "none"


@pytest.mark.parametrize(("padding", "growing"), [("right", [-1, -1]), ("left", [1, 1])])
def test_padding_is_one_run_on_the_side_asked_for(padding, growing):
    sizes = {"batch": 3, "sequence": 12}
    rng = np.random.default_rng(3)
    mask = random_feed(TEXT_SIGNATURE, sizes, rng, padding=padding)["attention_mask"]
    steps = np.diff(mask[1:], axis=1)
    assert [int(row[row != 0].item()) for row in steps] == growing


def test_both_pads_one_row_on_each_side():
    rng = np.random.default_rng(0)
    feed = random_feed(TEXT_SIGNATURE, {"batch": 3, "sequence": 8}, rng, padding="both")
    mask = feed["attention_mask"]
    assert {(int(row[0]), int(row[-1])) for row in mask[1:]} == {(0, 1), (1, 0)}


def test_ids_under_padding_are_not_all_the_same():
    rng = np.random.default_rng(0)
    feed = random_feed(TEXT_SIGNATURE, {"batch": 4, "sequence": 32}, rng, padding="right")
    padded = feed["input_ids"][feed["attention_mask"] == 0]
    assert len(np.unique(padded)) > 3
    assert feed["input_ids"].max() < VOCABULARY


def test_token_types_are_a_pair_of_texts():
    feed = random_feed(MIXED, {"batch": 2, "sequence": 4}, np.random.default_rng(0))
    assert feed["token_type_ids"].tolist() == [[0, 0, 1, 1]] * 2


def test_one_seed_gives_one_feed():
    feeds = [
        random_feed(MIXED, {"batch": 2, "sequence": 4}, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    ]
    assert (feeds[0]["input_ids"] == feeds[1]["input_ids"]).all()
    assert (feeds[0]["pixel_values"] != feeds[2]["pixel_values"]).any()


def test_every_bad_size_is_listed():
    with pytest.raises(FeedError) as caught:
        random_feed(MIXED, {"batch": 10}, np.random.default_rng(0))
    assert str(caught.value) == (
        "no feed of these sizes:\n  axis 'sequence': no size given\n"
        "  axis 'batch': size 10, outside 1..9"
    )
    assert caught.value.hint.startswith("Give each axis a size in its range: batch 1..9, sequence ")


def test_unknown_padding_is_refused():
    with pytest.raises(FeedError, match="padding is 'up', expected one of none, right, left, both"):
        random_feed(MIXED, {"batch": 1, "sequence": 1}, np.random.default_rng(0), padding="up")


def test_places_of_a_cache_ascend(rng):
    signature = Signature(
        (
            TensorSpec("cache_position", DType.INT64, ("sequence",)),
            TensorSpec("logits_to_keep", DType.INT64, ("kept",)),
        ),
        (TensorSpec("logits", DType.FLOAT32, ("kept",)),),
    )
    feed = random_feed(signature, {"sequence": 5, "kept": 2}, rng)
    assert feed["cache_position"].tolist() == [0, 1, 2, 3, 4]
    assert feed["logits_to_keep"].tolist() == [0, 1]


def test_integers_reach_both_ends_of_their_range():
    feed = random_feed(MIXED, {"batch": 9, "sequence": 40}, np.random.default_rng(0))
    assert set(feed["input_ids"].flat) == {5, 6, 7, 8, 9}
    assert set(feed["positions"].flat) == {0, 1}


def test_a_trial_is_always_the_same_and_padded():
    feed, again = trial_feed(TEXT_SIGNATURE), trial_feed(TEXT_SIGNATURE)
    assert all(np.array_equal(feed[name], again[name]) for name in feed)
    assert feed["attention_mask"][0].all()
    assert not feed["attention_mask"][1:, -1].any()


@pytest.mark.parametrize(("beside", "fewest"), [(DType.FLOAT32, 20), (DType.INT64, 1)])
@given(samples=st.integers(20, 40), padding=PADDINGS, seed=st.integers(0, 2**32))
def test_of_a_sound_as_much_is_kept_as_the_model_takes(beside, fewest, samples, padding, seed):
    specs = (
        TensorSpec("input_values", beside, ("batch", "samples")),
        TensorSpec("attention_mask", DType.INT64, ("batch", "samples"), ValueRange(0, 1)),
    )
    signature = Signature(specs, MIXED.outputs, {"samples": ShapeRange(20, 30, 40)})
    sizes = {"batch": 4, "samples": samples}
    feed = random_feed(signature, sizes, np.random.default_rng(seed), padding=padding)
    kept = feed["attention_mask"].sum(axis=1)
    assert kept.min() >= fewest
    assert (kept.min() == samples) == (padding == "none" or samples == fewest)
