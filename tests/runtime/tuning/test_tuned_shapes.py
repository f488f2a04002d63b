"""Shapes to tune for: typed, by default, and named."""

import pytest
from support.bundles import TEXT_SIGNATURE

from tfx.dtypes import DType
from tfx.errors import FeedError
from tfx.runtime.tuning.shapes import default_shapes, label_of, shape_of
from tfx.signature import ShapeRange, Signature, TensorSpec


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("2x8", {"batch": 2, "sequence": 8}),
        ("batch=3,sequence=9", {"batch": 3, "sequence": 9}),
        ("sequence=9", {"batch": 4, "sequence": 9}),
    ],
)
def test_shapes_are_read(text, sizes):
    assert shape_of(text, TEXT_SIGNATURE) == sizes


@pytest.mark.parametrize("text", ["", "2", "2x", "ax8", "2x8x3", "batch=", "batch=2=3"])
def test_what_is_no_shape_is_an_error(text):
    with pytest.raises(FeedError) as caught:
        shape_of(text, TEXT_SIGNATURE)
    assert str(caught.value) == f"shape is {text!r}, expected one like 16x128"
    assert caught.value.hint == "Give BATCHxLENGTH, or sizes of: batch, sequence."


def test_an_axis_that_is_not_there_is_an_error():
    with pytest.raises(FeedError, match="shape 'width=3': no axis called width"):
        shape_of("width=3", TEXT_SIGNATURE)


def test_shapes_that_are_not_given_fit_the_signature():
    assert default_shapes(TEXT_SIGNATURE) == (
        {"batch": 1, "sequence": 32},
        {"batch": 16, "sequence": 32},
    )
    pixels = TensorSpec("pixels", DType.FLOAT32, ("batch", 3, "height"))
    logits = TensorSpec("logits", DType.FLOAT32, ("batch", 2))
    images = Signature((pixels,), (logits,), {"height": ShapeRange(1, 7, 9)})
    assert default_shapes(images) == ({"batch": 1, "height": 7}, {"batch": 16, "height": 7})
    fixed = TensorSpec("x", DType.FLOAT32, (1, 3))
    assert default_shapes(Signature((fixed,), (logits,), {})) == ({},)


def test_shapes_have_short_names():
    assert label_of({"batch": 16, "sequence": 128}) == "16x128"
    assert label_of({"batch": 1, "height": 7}) == "batch 1, height 7"
    assert label_of({}) == "fixed shape"
