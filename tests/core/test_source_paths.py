import os
from pathlib import Path

import pytest

from tfx.recipe import Changes, Source, SourceKind


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with another beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("model", "../../here/model"),
        ("./sub/../model", "../../here/model"),
        ("../there/model", "../model"),
        ("../there/deep/model", "model"),
        (".", "../../here"),
        ("..", "../.."),
    ],
)
def test_relative_paths_lead_from_the_bundles_folder(location, expected, here, tmp_path):
    folder = tmp_path / "there" / "deep"
    stored = Source(SourceKind.CHECKPOINT, location).seen_from(folder)
    assert stored.location == expected
    found = stored.found_from(folder).location
    assert os.path.normpath(here / location) == found


def test_in_one_folder_they_stay_as_they_are(here):
    factory = Source(SourceKind.FACTORY, "net.py:make", digest="d", file_digest="f")
    assert factory.seen_from(here) == factory
    assert factory.seen_from(Path()) == factory
    assert factory.found_from(here).location == f"{here / 'net.py'}:make"
    assert factory.found_from(here).file_digest == "f"


def test_paths_from_the_root_stay_as_they_are(here):
    source = Source(SourceKind.FACTORY, "/models/net.py:make")
    assert source.seen_from(here) == source
    assert source.found_from(here) == source


@pytest.mark.parametrize("kind", [SourceKind.HUB, SourceKind.PACKAGE, SourceKind.CONFIG])
def test_names_are_no_paths(kind, here, tmp_path):
    source = Source(kind, "name/model")
    assert source.seen_from(tmp_path) == source
    assert source.found_from(tmp_path) == source


def test_the_adapter_is_a_path_whatever_the_model_is(here, tmp_path):
    source = Source(SourceKind.HUB, "name/model", changes=Changes(adapter="tuned", layers=(0,)))
    stored = source.seen_from(tmp_path / "there")
    assert stored.changes == Changes(adapter="../here/tuned", layers=(0,))
    assert stored.found_from(tmp_path / "there").changes.adapter == str(here / "tuned")


def test_links_on_the_way_are_followed_and_the_last_is_not(here, tmp_path):
    """``..`` behind a link leads beside what it leads to, not beside the link."""
    (tmp_path / "link").symlink_to(tmp_path / "there" / "deep")
    (here / "model").symlink_to(tmp_path / "there")
    stored = Source(SourceKind.CHECKPOINT, "model").seen_from(tmp_path / "link")
    assert stored.location == "../../here/model"
    assert stored.found_from(tmp_path / "link").location == str(here / "model")


def test_another_drive_has_no_way_to_it(here, monkeypatch):
    def refuse(path, start):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", refuse)
    assert Source(SourceKind.CHECKPOINT, "m").seen_from(here).location == str(here / "m")
