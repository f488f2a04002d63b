"""Folders of images: by class, by a file of labels, or without."""

import json

import numpy as np
import pytest
from PIL import Image

from tfx.errors import BackendError, DataError
from tfx.extras import need
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.accuracy.samples import DatasetKind

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def draw(path, colour=RED, size=(6, 4), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def classes(tmp_path):
    """Three images of two classes."""
    draw(tmp_path / "pets" / "dog" / "b.png", GREEN)
    draw(tmp_path / "pets" / "cat" / "z.png", RED)
    draw(tmp_path / "pets" / "cat" / "A.PNG", BLUE)
    (tmp_path / "pets" / ".hidden").write_text("x")
    return tmp_path / "pets"


def test_a_folder_for_each_class(classes):
    data = read_dataset(classes)
    assert (data.name, data.kind) == ("pets", DatasetKind.IMAGES)
    assert data.labels == ("cat", "cat", "dog")
    assert data.columns == ("images", "label")
    images = data.arrays["images"]
    assert (images.dtype, images.shape) == (np.uint8, (3, 4, 6, 3))
    assert [tuple(image[0, 0]) for image in images] == [BLUE, RED, GREEN]


def test_folders_named_by_numbers_are_places(tmp_path):
    draw(tmp_path / "0" / "a.png")
    draw(tmp_path / "10" / "a.png")
    assert read_dataset(tmp_path).labels == (0, 10)


def test_without_labels(tmp_path):
    draw(tmp_path / "b.jpg")
    draw(tmp_path / "a.webp")
    data = read_dataset(tmp_path)
    assert data.labels is None
    assert (len(data), data.columns) == (2, ("images",))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\none/a.png,dog\nb.png,cat\n"),
        ("labels.tsv", "label\tfile_name\ndog\tone/a.png\ncat\tb.png\n"),
        (
            "labels.jsonl",
            '{"image": "one/a.png", "label": "dog"}\n{"image": "b.png", "label": "cat"}',
        ),
    ],
)
def test_a_file_of_labels(tmp_path, name, text):
    draw(tmp_path / "one" / "a.png", RED)
    draw(tmp_path / "b.png", BLUE)
    (tmp_path / name).write_text(text)
    data = read_dataset(tmp_path)
    assert data.labels == ("dog", "cat")
    assert [tuple(image[0, 0]) for image in data.arrays["images"]] == [RED, BLUE]


def test_sizes_may_differ_and_are_told_apart(tmp_path):
    draw(tmp_path / "a.png", size=(6, 4))
    draw(tmp_path / "b.png", size=(4, 6))
    data = read_dataset(tmp_path)
    images = data.arrays["images"]
    assert (images.dtype, images.shape) == (object, (2,))
    assert [image.shape for image in images] == [(4, 6, 3), (6, 4, 3)]
    # Of one colour, their bytes are the same.
    assert data.common(data.take([0])) == 1
    assert data.take([1]).digest != data.take([0]).digest


def test_what_is_not_drawn_is_not_opened(classes):
    every = read_dataset(classes)
    some = read_dataset(classes, limit=2, seed=1)
    assert some.digest == every.sample(2, seed=1).digest
    left = next(iter(set(range(3)) - {0, 1}))
    chosen = every.sample(2, seed=1)
    left = next(row for row in range(3) if every.take([row]).common(chosen) == 0)
    path = [classes / "cat" / "A.PNG", classes / "cat" / "z.png", classes / "dog" / "b.png"][left]
    path.write_bytes(b"damaged")
    assert read_dataset(classes, limit=2, seed=1).digest == some.digest
    with pytest.raises(DataError, match="cannot read the image"):
        read_dataset(classes)


def test_a_camera_held_sideways(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(tmp_path / "a.jpg", size=(6, 4), exif=turned)
    assert read_dataset(tmp_path).arrays["images"].shape == (1, 6, 4, 3)


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGBA", (*RED, 3)), ("P", 1), ("1", 1)])
def test_every_image_has_three_colours(tmp_path, mode, colour):
    draw(tmp_path / "a.png", colour, mode=mode)
    assert read_dataset(tmp_path).arrays["images"].shape == (1, 4, 6, 3)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda root: None, "holds no image: expected files that end in .png, "),
        (lambda root: (root / "dog").mkdir(), "holds no image"),
        (lambda root: (draw(root / "dog/a.png"), draw(root / "b.png")), "both images and folders"),
        (lambda root: (root / "a.txt").write_text(""), "is no image, by its name: a.txt"),
        (lambda root: draw(root / "dog/old/a.png"), "is no image, by its name: dog/old"),
        (lambda root: (root / "a.png").write_bytes(b"GIF"), "cannot read the image"),
        (
            lambda root: draw(root / "a.png", 40000, mode="I;16"),
            "has pixels of mode I;16, expected 8 bits a colour",
        ),
        (
            lambda root: [(root / f"labels.{one}").write_text("") for one in ("csv", "tsv")],
            "more than one file of labels: labels.csv, labels.tsv",
        ),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert message in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n", "labels.csv is empty, expected at least one row"),
        ("file,label\na.png\n", "labels.csv, line 2: got 1 columns, expected 2"),
        ("name,label\na.png,1\n", "lacks a column: got 'name', 'label', expected one of file, "),
        ("file,class\na.png,1\n", "lacks a column: got 'file', 'class', expected one of label, "),
        ("file,label\n../x.png,1\n", 'line 2: "../x.png" is no path inside the folder'),
        ("file,label\nb.png,1\n", "line 2: there is no file b.png"),
        ("file,label\na.png,\n", 'line 2: label is "", expected a name'),
        ("file,label\na.png,1\na.png,1\n", "1 images are named more than once"),
        ("file,label\nb.png,1\n", "1 images have no line, e.g. a.png"),
    ],
)
def test_what_is_wrong_with_a_file_of_labels(tmp_path, table, message):
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "x.png")
    (tmp_path / "in" / "labels.csv").write_text(table)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path / "in")
    assert message in str(caught.value)


def test_a_line_that_is_no_object(tmp_path):
    (tmp_path / "labels.jsonl").write_text(json.dumps("a.png"))
    with pytest.raises(DataError, match=r"labels\.jsonl, line 1: got a string, expected an object"):
        read_dataset(tmp_path)


def test_an_image_too_large_to_be_meant(tmp_path, monkeypatch):
    draw(tmp_path / "a.png", size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="could be decompression bomb"):
        read_dataset(tmp_path)


def test_without_pillow(classes, monkeypatch):
    def missing(name):
        raise BackendError(f"{name} is not installed") if name == "PIL" else AssertionError(name)

    assert need("PIL")
    monkeypatch.setattr("tfx.runtime.accuracy.image_folders.need", missing)
    with pytest.raises(BackendError, match="PIL is not installed"):
        read_dataset(classes)
