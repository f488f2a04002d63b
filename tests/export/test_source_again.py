"""The torch reference of a bundle, found again from wherever it is run."""

import shutil

import numpy as np
import pytest
from support import checkpoints
from support.modules import write_factories

import tfx
from tfx.errors import BackendError
from tfx.export.pipeline import export_bundle
from tfx.recipe import ExportRecipe

FEED = {"input": np.ones((2, 4), np.float32)}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current folder, with a factory's file in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_factories(folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    """Another folder, with a file of the factory's name that must not run."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "factories.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


def torch_outputs(path):
    with tfx.open_session(path, backend="torch", trust=True) as session:
        return session.predict(FEED)["output"]


@pytest.mark.parametrize("output", ["linear", "out/linear", "../elsewhere/linear"])
def test_found_from_another_folder(output, project, elsewhere, tmp_path, monkeypatch):
    bundle = export_bundle("factories.py:linear", output)
    assert str(tmp_path) not in (bundle.path / "tfx.json").read_text()
    expected = tfx.open_session(bundle).predict(FEED)["output"]
    path = bundle.path.resolve()
    monkeypatch.chdir(elsewhere)
    np.testing.assert_allclose(torch_outputs(path), expected, atol=1e-5)
    (tmp_path / "link").symlink_to(path)
    np.testing.assert_allclose(torch_outputs(tmp_path / "link"), expected, atol=1e-5)
    assert not (tmp_path / "ran").exists()


def test_checkpoint_found_from_another_folder(project, elsewhere, monkeypatch):
    checkpoints.bert(project / "bert")
    bundle = export_bundle("bert", "out/bert-onnx", ExportRecipe(max_batch=2))
    assert bundle.manifest.source.location == "../bert"
    path = bundle.path.resolve()
    monkeypatch.chdir(elsewhere)
    with tfx.open_session(path, backend="torch") as session:
        assert session.report.facts.backend == "torch"


def test_moved_together(project, tmp_path):
    export_bundle("factories.py:linear", "out/linear")
    shutil.move(project, tmp_path / "moved")
    assert torch_outputs(tmp_path / "moved" / "out" / "linear").shape == (2, 3)


def test_another_file_of_that_name_does_not_run(project, elsewhere, tmp_path):
    """A bundle moved by itself: what lies where its source was is not what it was."""
    bundle = export_bundle("factories.py:linear", "linear")
    path = shutil.move(bundle.path, elsewhere / "linear")
    with pytest.raises(BackendError) as caught:
        torch_outputs(path)
    message = str(caught.value)
    assert message.startswith(
        f"the source of linear cannot be loaded: {elsewhere / 'factories.py'} is another file now: "
        "sha256 "
    )
    digest = bundle.manifest.source.file_digest
    assert message.endswith(f", the bundle was made from {digest[:12]}")
    assert caught.value.hint == "Export it again."
    assert not (tmp_path / "ran").exists()


def test_code_cached_beside_the_file_does_not_run(project, tmp_path):
    """A .pyc has no digest."""
    import py_compile

    bundle = export_bundle("factories.py:linear", "linear")
    planted = tmp_path / "planted.py"
    planted.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    file = project / "factories.py"
    for other in (file, planted):
        cache = py_compile.compile(
            str(other), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    shutil.move(cache, project / "__pycache__" / _cached_name(file))
    assert torch_outputs(bundle.path).shape == (2, 3)
    assert not (tmp_path / "ran").exists()


def _cached_name(file):
    from importlib.util import cache_from_source

    return cache_from_source(str(file)).rpartition("/")[2]
