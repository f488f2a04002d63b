import math

import numpy as np
import pytest
from support.bundles import TEXT_SIGNATURE

from tfx.bench.measuring.workload import Plan, Shape, shapes_of
from tfx.dtypes import DType
from tfx.errors import FeedError, RecipeError
from tfx.signature import ShapeRange, Signature, TensorSpec

IMAGES = Signature(
    inputs=(TensorSpec("pixel_values", DType.FLOAT32, ("batch", 3, 8, 8)),),
    outputs=(TensorSpec("logits", DType.FLOAT32, ("batch", 2)),),
    ranges={"batch": ShapeRange(1, 2, 4)},
)


def sizes_of(shapes):
    return [dict(shape.sizes) for shape in shapes]


def test_every_batch_meets_every_length():
    shapes, notes = shapes_of([TEXT_SIGNATURE], Plan(batches=(1, 8), lengths=(16, 32)))
    assert [str(shape) for shape in shapes] == [
        "batch 1, sequence 16",
        "batch 1, sequence 32",
        "batch 8, sequence 16",
        "batch 8, sequence 32",
    ]
    assert notes == ()


def test_sizes_are_clipped_to_the_range_and_it_is_said():
    shapes, notes = shapes_of([TEXT_SIGNATURE], Plan())
    assert sizes_of(shapes) == [{"batch": 1, "sequence": 32}, {"batch": 8, "sequence": 32}]
    assert notes == ("sequence 128 was clipped to 32: the bundles admit 1..32",)


def test_shapes_that_are_equal_once_clipped_are_one():
    shapes, _ = shapes_of([TEXT_SIGNATURE], Plan(batches=(1,), lengths=(64, 128)))
    assert sizes_of(shapes) == [{"batch": 1, "sequence": 32}]


def test_images_have_only_a_batch():
    shapes, notes = shapes_of([IMAGES], Plan())
    assert sizes_of(shapes) == [{"batch": 1}, {"batch": 4}]
    assert notes == ("batch 8 was clipped to 4: the bundles admit 1..4",)


def test_a_shape_fits_every_bundle():
    shapes, _ = shapes_of([TEXT_SIGNATURE, IMAGES], Plan(batches=(16,), lengths=(8,)))
    assert sizes_of(shapes) == [{"batch": 4, "sequence": 8}]


def test_other_axes_take_the_size_they_are_tuned_for():
    signature = Signature(
        inputs=(TensorSpec("x", DType.FLOAT32, ("frames", "bands", "decoder_sequence")),),
        outputs=(TensorSpec("y", DType.FLOAT32, ("frames",)),),
        ranges={"frames": ShapeRange(1, 50, 90)},
    )
    (shape,), _ = shapes_of([signature], Plan(batches=(1,), lengths=(7,)))
    assert dict(shape.sizes) == {"frames": 50, "bands": 1, "decoder_sequence": 7}
    assert shape.batch == 1


def test_one_seed_gives_every_row_the_same_padded_feed():
    shape = Shape({"batch": 4, "sequence": 16})
    first, second = (shape.feed_for(TEXT_SIGNATURE, 3) for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)
    assert not first["attention_mask"].all()
    assert (np.diff(first["attention_mask"], axis=1) <= 0).all()  # padded on the right


def test_sizes_outside_the_range_are_refused():
    with pytest.raises(FeedError, match=r"axis .batch.: size 17, outside 1\.\.16"):
        Shape({"batch": 17, "sequence": 4}).feed_for(TEXT_SIGNATURE, 0)


def test_every_impossible_plan_is_refused_at_once():
    with pytest.raises(RecipeError) as caught:
        Plan((0,), (4, -1), rounds=0, seconds=float("nan"), limit_s=math.inf, threads=0, seed=-1)
    assert str(caught.value) == (
        "nothing can be measured like this:\n"
        "  batch is 0, expected 1 or more\n"
        "  length is -1, expected 1 or more\n"
        "  rounds is 0, expected 1 or more\n"
        "  threads is 0, expected 1 or more\n"
        "  seconds is nan, expected more than 0, and finite\n"
        "  limit is inf, expected more than 0, and finite\n"
        "  seed is -1, expected 0 or more"
    )
