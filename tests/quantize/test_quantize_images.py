"""``tfx quantize`` and ``tfx evaluate`` with images, through what the bundle says of them."""

import json

import numpy as np
import pytest
import transformers
from click.testing import CliRunner
from support.checkpoints import write_checkpoint

from tfx.bundle import open_bundle
from tfx.cli import main
from tfx.export.pipeline import export_bundle
from tfx.processing import ImagePreparation
from tfx.quantize.calibration import calibration_images
from tfx.runtime.images import prepared_images


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """The bundle of a tiny ViT whose checkpoint says how images become its input."""
    root = tmp_path_factory.mktemp("vision")
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        image_size=16, patch_size=4, id2label={0: "cat", 1: "dog", 2: "ship"},
    )  # fmt: skip
    folder = write_checkpoint(
        root / "from", transformers.ViTForImageClassification, config, std=0.2, tokenizer=False
    )
    said = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return export_bundle(str(folder), root / "vit")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    small = rng.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    images = small.repeat(3, axis=1).repeat(3, axis=2)
    names = np.array(["ship", "cat", "dog"])
    np.savez(path, images=images, labels=rng.integers(0, 3, 80), classes=names)
    return path


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_the_bundle_says_how(vision):
    assert vision.manifest.processing.images == ImagePreparation(
        resize=(16, 16), scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert "images     16 x 16, bilinear, normalized" in run("inspect", vision.path).stdout


def test_images_calibrate_and_judge(vision, pictures, tmp_path):
    target = tmp_path / "small"
    result = run(
        "quantize", vision.path, "-o", target, "--int8", "--calibrate", pictures,
        "--eval", pictures, "--samples", 40,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "calibrated on 40 samples of pictures.npz\n" in result.stdout
    how = open_bundle(target).manifest.quantization
    assert (how.calibration.name, how.calibration.samples) == ("pictures.npz", 40)
    first, second = how.accuracy
    # Calibration and evaluation are kept apart, though the file is one.
    assert (first.metric, first.samples) == ("accuracy", 40)
    assert (second.metric, second.samples) == ("agreement", 40)
    assert second.value > 0.8


def test_a_budget_holds_on_images(vision, pictures, tmp_path):
    target = tmp_path / "small"
    result = run(
        "quantize", vision.path, "-o", target, "--int8", "--calibrate", pictures,
        "--eval", pictures, "--samples", 40, "--metric", "agreement", "--max-drop", 0.2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert open_bundle(target).manifest.quantization.accuracy[0].drop <= 0.2


def test_prepared_arrays_give_the_same_ranges(vision, pictures, tmp_path):
    said = vision.manifest.processing.images
    with np.load(pictures) as file:
        np.savez(tmp_path / "arrays.npz", pixel_values=prepared_images(file["images"], said))
    for data, name in ((pictures, "one"), (tmp_path / "arrays.npz", "two")):
        made = run("quantize", vision.path, "-o", tmp_path / name, "--int8", "--calibrate", data)
        assert made.exit_code == 0, made.output
    for name in ("model.onnx", "model.onnx.data", "calibration.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_images_are_prepared_as_they_are_needed(vision):
    images = np.zeros((20, 40, 40, 3), np.uint8)
    data = calibration_images(vision, images, name="black.npz")
    assert [len(feed["pixel_values"]) for feed in data] == [8, 8, 4]
    assert all((feed["pixel_values"] == -1).all() for feed in data)
    assert data.facts.warnings == (
        "20 calibration samples: 32 or more are needed for ranges to settle",
        "all 20 calibration samples are the same",
    )


@pytest.mark.parametrize("option", ["--calibrate", "--eval"])
def test_a_bundle_that_takes_no_images(option, classifier, pictures, files, tmp_path):
    others = ["--calibrate", files.text] if option == "--eval" else []
    result = run(
        "quantize", classifier.path, "-o", tmp_path / "to", "--int8", *others, option, pictures
    )
    assert result.exit_code == 1
    assert f"{classifier.name} does not say how images become arrays" in result.stderr
    assert "hint: Give an npz of arrays named as the model's inputs" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_evaluate(vision, pictures):
    result = run("evaluate", vision.path, "--eval", pictures, "--json")
    assert result.exit_code == 0, result.output
    assert '"metric": "accuracy"' in result.stdout
    assert '"samples": 80' in result.stdout
