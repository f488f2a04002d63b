"""Checkpoints and bundles shared by the tests of export: each export takes seconds."""

from types import SimpleNamespace

import pytest
import transformers
from support import checkpoints
from support.modules import write_factories

from tfx.export.pipeline import export_bundle
from tfx.recipe import ExportRecipe

LABELS = {0: "calm", 1: "cross", 2: "curious"}


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    """An empty hub cache and no network, whatever the machine has."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-hub-cache"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Where checkpoints and bundles of the whole run live."""
    root = tmp_path_factory.mktemp("export")
    return SimpleNamespace(root=root, checkpoints=root / "from", bundles=root / "to")


@pytest.fixture(scope="session")
def encoder_folder(folders):
    """A BERT without a head, with sentence-transformers' files."""
    folder = checkpoints.bert(folders.checkpoints / "encoder")
    return checkpoints.write_sentence_transformers(
        folder, normalize=True, sentence={"max_seq_length": 48, "do_lower_case": True}
    )


@pytest.fixture(scope="session")
def classifier_folder(folders):
    """A BERT that gives a text one of three labels."""
    return checkpoints.bert(
        folders.checkpoints / "classifier",
        transformers.BertForSequenceClassification,
        id2label=LABELS,
    )


@pytest.fixture(scope="session")
def factories(folders):
    """The file of ``support.modules.FACTORIES``."""
    folders.root.mkdir(exist_ok=True)
    return write_factories(folders.root)


@pytest.fixture(scope="session")
def encoder(folders, encoder_folder):
    """The bundle of ``encoder_folder``."""
    return export_bundle(str(encoder_folder), folders.bundles / "encoder")


@pytest.fixture(scope="session")
def classifier(folders, classifier_folder):
    """The bundle of ``classifier_folder``."""
    return export_bundle(str(classifier_folder), folders.bundles / "classifier")


@pytest.fixture(scope="session")
def padded(folders, factories):
    """The bundle of a hand-written ``nn.TransformerEncoder`` with a padding mask, axes named."""
    axes = {"x": ("batch", "sequence", ""), "padding_mask": ("batch", "sequence")}
    return export_bundle(
        f"{factories}:encoder", folders.bundles / "padded", ExportRecipe(dynamic=axes, seed=3)
    )
