"""Images to the input of a model: as Pillow resizes, and as transformers normalizes."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tfx.errors import DataError
from tfx.processing import ImagePreparation, Resample
from tfx.runtime.images import prepared_images, resized

FILTERS = {
    Resample.NEAREST: Image.Resampling.NEAREST,
    Resample.BOX: Image.Resampling.BOX,
    Resample.BILINEAR: Image.Resampling.BILINEAR,
    Resample.BICUBIC: Image.Resampling.BICUBIC,
    Resample.LANCZOS: Image.Resampling.LANCZOS,
}


def smooth(rng, height, width):
    """Images with something larger than a pixel in them."""
    small = rng.integers(0, 256, (2, height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return small.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]


def pillow(images, size, how):
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((size[1], size[0]), FILTERS[how]))
            for image in images
        ]
    )


@pytest.mark.parametrize("how", Resample)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((32, 40), (224, 40)),
        ((97, 61), (30, 61)),
        ((40, 40), (40, 17)),
        ((5, 9), (5, 9)),
        ((481, 5), (24, 5)),
    ],
)
def test_one_direction_as_pillow_makes_it(how, before, after, rng):
    images = smooth(rng, *before)
    found = resized(images, after, how)
    expected = pillow(images, after, how)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.9


@pytest.mark.parametrize("how", Resample)
@pytest.mark.parametrize(("before", "after"), [((32, 32), (224, 224)), ((97, 61), (30, 44))])
def test_a_size_as_pillow_makes_it(how, before, after, rng):
    images = smooth(rng, *before)
    off = resized(images, after, how).astype(int) - pillow(images, after, how)
    assert np.abs(off).mean() < 0.5


def test_an_image_of_one_colour_keeps_it():
    images = np.full((1, 37, 23, 3), 137, np.uint8)
    for how in Resample:
        assert (resized(images, (64, 11), how) == 137).all()


@pytest.mark.parametrize(
    ("size", "shape"), [((60, 40), (36, 24)), ((40, 60), (24, 36)), ((40, 41), (24, 24))]
)
def test_the_shorter_edge(size, shape, rng):
    found = prepared_images(smooth(rng, *size), ImagePreparation(resize=(24,)))
    assert found.shape == (2, 3, *shape)


def test_the_middle_is_cut_out(rng):
    images = smooth(rng, 20, 31)
    found = prepared_images(images, ImagePreparation(crop=(10, 12)))
    np.testing.assert_array_equal(found, np.moveaxis(images, -1, 1)[:, :, 5:15, 9:21])


def test_levels_are_scaled_and_normalized(rng):
    images = smooth(rng, 4, 4)
    said = ImagePreparation(scale=1 / 255, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    found = prepared_images(images, said)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    expected = (images / 255 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]
    np.testing.assert_allclose(found, np.moveaxis(expected, -1, 1), atol=1e-6)
    plain = prepared_images(images, dataclasses.replace(said, scale=1.0, mean=(), std=()))
    np.testing.assert_array_equal(plain, np.moveaxis(images, -1, 1))


def test_images_that_are_too_small(rng):
    with pytest.raises(DataError) as caught:
        prepared_images(smooth(rng, 20, 10), ImagePreparation(crop=(16, 16)))
    assert str(caught.value) == "images are 20 x 10 where the middle 16 x 16 is cut out"
    assert caught.value.hint == "Give larger images."
