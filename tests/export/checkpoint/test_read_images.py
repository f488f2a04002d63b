"""A checkpoint's image processor: what is carried over, and what is not."""

import json

import numpy as np
import pytest
import transformers

from tfx import extras
from tfx.dtypes import DType
from tfx.errors import BackendError, SourceError
from tfx.export.checkpoint import images
from tfx.export.checkpoint.images import read_images
from tfx.processing import ImagePreparation, Resample
from tfx.runtime.images import prepared_images
from tfx.signature import Signature, TensorSpec

# Names of processors with Pillow alone are imported from where they live.
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 30}}
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 24, "width": 24},
}
CARRIED = {
    "vit": (VIT, (24, 30)),
    "vit, not normalized": (VIT | {"do_normalize": False, "resample": 1}, (24, 30)),
    "vit, levels": (VIT | {"do_normalize": False, "do_rescale": False, "resample": 0}, (24, 30)),
    "clip": (CLIP, (24, 24)),
    "beit": (
        {
            "image_processor_type": "BeitImageProcessor",
            "size": {"height": 26, "width": 26},
            "do_center_crop": True,
            "crop_size": {"height": 24, "width": 24},
        },
        (24, 24),
    ),
}


def signature(height: int | str = 24, width: int | str = 30, name: str = "pixel_values"):
    pixels = TensorSpec(name, DType.FLOAT32, ("batch", 3, height, width))
    return Signature((pixels,), (TensorSpec("logits", DType.FLOAT32, ("batch", 2)),), {})


@pytest.fixture
def checkpoint(tmp_path):
    def write(config, name="preprocessor_config.json"):
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("name", CARRIED)
def test_the_same_numbers_as_transformers(name, checkpoint, rng):
    config, size = CARRIED[name]
    folder = checkpoint(config)
    notes = []
    said = read_images(folder, signature(*size), notes)
    assert notes == []
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = rng.integers(0, 256, (80, 50, 3), dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    expected = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"])
    found = prepared_images(image[None], said)
    assert found.shape == expected.shape
    level = said.scale / min(said.std or (1.0,))
    assert np.abs(found - expected).mean() <= 0.5 * level


def test_what_is_said(checkpoint):
    said = read_images(checkpoint(VIT), signature(), [])
    assert said == ImagePreparation(
        "pixel_values", (24, 30), Resample.BILINEAR, (), 1 / 255, (0.5,) * 3, (0.5,) * 3
    )
    clip = read_images(checkpoint(CLIP), signature(24, 24), [])
    assert (clip.resize, clip.crop, clip.resample) == ((28,), (24, 24), Resample.BICUBIC)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        # It resizes by a share of its own, and crops.
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}},
            (24, 24),
        ),
        # The model takes another size than the processor gives.
        (VIT, (48, 48)),
        (VIT | {"resample": 5}, (24, 30)),
    ],
)
def test_what_is_not_known_is_said(config, size, checkpoint):
    notes = []
    assert read_images(checkpoint(config), signature(*size), notes) is None
    name = config["image_processor_type"]
    assert notes == [
        f"{name} does more than is known here: predict and evaluate take arrays, not images"
    ]


def test_checkpoints_without_images(checkpoint):
    notes = []
    assert read_images(checkpoint("{}", "config.json"), signature(), notes) is None
    assert read_images(checkpoint(VIT), signature(name="input_values"), notes) is None
    assert notes == []


def test_without_pillow(checkpoint, monkeypatch):
    def missing(name):
        if name == "PIL":
            raise BackendError("PIL is not installed")
        return extras.need(name)

    monkeypatch.setattr(images, "need", missing)
    notes = []
    assert read_images(checkpoint(VIT), signature(), notes) is None
    (note,) = notes
    assert note.startswith("its image processor needs Pillow, which is not installed")


def test_a_damaged_file(checkpoint):
    with pytest.raises(SourceError, match="cannot load the image processor of "):
        read_images(checkpoint('{"image_processor_type": '), signature(), [])
