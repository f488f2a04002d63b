import logging

import pytest
from support.bundles import write_bundle

from tfx import workspace
from tfx.errors import BundleError
from tfx.manifest import Parent
from tfx.staging import STAGING_PREFIX


def made(folder, name, hour, **changes):
    return write_bundle(folder / name, created=f"2026-01-01T{hour:02}:00:00.000000Z", **changes)


def names(bundles):
    return [bundle.name for bundle in bundles]


def test_oldest_first_whatever_the_names(tmp_path):
    for name, hour in (("b", 3), ("a", 2), ("c", 1)):
        made(tmp_path, name, hour)
    assert names(workspace.bundles_in(tmp_path)) == ["c", "a", "b"]
    assert workspace.newest(tmp_path).name == "b"


def test_newest_of_the_current_folder(tmp_path, monkeypatch):
    made(tmp_path, "only", 1)
    monkeypatch.chdir(tmp_path)
    assert workspace.newest().name == "only"


def test_none(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError) as caught:
        workspace.newest()
    assert str(caught.value) == f"no bundle in {tmp_path}"
    assert caught.value.hint == "Make one with: tfx export minilm, or name a bundle's folder."


def test_folder_that_is_not_there_holds_no_bundle(tmp_path):
    assert workspace.bundles_in(tmp_path / "none") == []


def test_damaged_bundle_is_said_and_left_out(tmp_path, caplog):
    made(tmp_path, "old", 1)
    made(tmp_path, "new", 2).model.unlink()
    with caplog.at_level(logging.WARNING, logger="tfx"):
        assert workspace.newest(tmp_path).name == "old"
    assert "left out: bundle" in caplog.text
    assert "model.onnx: missing" in caplog.text


def test_half_written_bundle_is_none(tmp_path, caplog):
    made(tmp_path, "x", 1).path.rename(tmp_path / f"{STAGING_PREFIX}x")
    assert workspace.bundles_in(tmp_path) == []
    assert not caplog.text


def child(folder, name, hour, parent):
    return made(folder, name, hour, parent=Parent(parent.name, parent.digest))


def test_family_is_ancestors_and_descendants(tmp_path):
    root = made(tmp_path, "root", 1)
    half = child(tmp_path, "half", 2, root)
    engine = child(tmp_path, "engine", 3, half)
    made(tmp_path, "stranger", 4)
    for member in (root, half, engine):
        assert names(workspace.family_of(member)) == ["root", "half", "engine"]


def test_family_without_its_root_holds_together(tmp_path):
    root = made(tmp_path / "elsewhere", "root", 1)
    one = child(tmp_path, "one", 2, root)
    child(tmp_path, "two", 3, root)
    assert names(workspace.family_of(one)) == ["one", "two"]


def test_family_of_a_bundle_outside_the_workspace(tmp_path):
    root = made(tmp_path / "elsewhere", "root", 1)
    child(tmp_path, "one", 2, root)
    assert names(workspace.family_of(root, tmp_path)) == ["one", "root"]
