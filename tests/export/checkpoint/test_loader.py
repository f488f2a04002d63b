"""Checkpoints to modules: their weights, their class, and what is refused in them."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from support import checkpoints
from support.loading import RANDOM, RECIPE, edit_config, refused
from torch import nn

from tfx.errors import SourceError
from tfx.export.checkpoint import loader
from tfx.export.checkpoint.loader import choose_class, load
from tfx.models import KNOWN_MODELS
from tfx.recipe import ExportRecipe


@pytest.fixture
def copied(classifier_folder, tmp_path):
    """A copy of a checkpoint, to be damaged."""
    return Path(shutil.copytree(classifier_folder, tmp_path / "copied"))


def test_checkpoint(classifier_folder):
    loaded = load(str(classifier_folder), RECIPE)
    assert loaded.source.class_name == "BertForSequenceClassification"
    assert loaded.task == "text-classification"
    assert len(loaded.source.digest) == 64
    assert not loaded.module.training
    assert loaded.folder == classifier_folder


def test_half_precision_checkpoint_is_loaded_in_float32(copied):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(copied)
    model.half().save_pretrained(copied)
    loaded = load(str(copied), RECIPE)
    assert {weight.dtype for weight in loaded.module.parameters()} == {torch.float32}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_weights_are_refused_and_not_executed(copied, tmp_path):
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    assert refused(copied) == (
        f"{copied} has no safetensors weights, only pytorch_model.bin: "
        "a pickle runs code when it is read",
        "Save the model again with save_pretrained (safetensors is its default).",
    )
    assert not (tmp_path / "ran").exists()


def test_no_weights_at_all(copied):
    (copied / "model.safetensors").unlink()
    assert refused(copied)[0] == f"{copied} has no safetensors weights"


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(copied, keep):
    path = copied / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    message, hint = refused(copied)
    assert message.startswith(
        f"cannot load checkpoint {copied} (BertForSequenceClassification): "
        "its weights are cut short or damaged: "
    )
    assert hint == "Copy or download model.safetensors again."


def test_a_damaged_tokenizer_is_told_before_the_weights_are_loaded(copied, monkeypatch):
    checkpoints.write_tokenizer(copied)
    (copied / "tokenizer.json").write_text("{")
    monkeypatch.setattr(loader, "load_module", lambda source: pytest.fail("loaded the model"))
    message, hint = refused(copied)
    assert message.startswith(f"cannot load the tokenizer of {copied}: ")
    assert hint == "Copy or download the tokenizer's files again."


def test_a_tokenizer_that_is_not_read_may_be_damaged(monkeypatch, tmp_path):
    checkpoints.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    config = transformers.ViTConfig(architectures=["ViTModel"])
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(loader, "load_module", lambda source: nn.Linear(2, 2))
    assert load(str(tmp_path), RECIPE).folder == tmp_path


def test_weights_of_another_size(copied):
    edit_config(copied, hidden_size=64)
    message, hint = refused(copied)
    assert "tensors of the checkpoint do not fit its config.json: bert." in message
    assert "is [32], expected [64]" in message
    assert hint == "Check that config.json belongs to these weights."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not a valid JSON file"),
        ("[]", "Should have a `model_type` key"),
        ('{"model_type": "no-such-type"}', "model type `no-such-type`"),
        ('{"model_type": "bert", "hidden_size": "wide"}', "'hidden_size' expected int, got str"),
    ],
)
def test_config_that_cannot_be_read(copied, text, problem):
    (copied / "config.json").write_text(text)
    message, hint = refused(copied)
    assert message.startswith(f"cannot read the config.json of {copied}: ")
    assert problem in message
    assert "\n" not in message
    assert hint == "Check the file; a model whose code is not in transformers needs a factory."


def test_config_that_is_not_there(copied):
    (copied / "config.json").unlink()
    assert refused(copied)[0] == f"{copied} is not a checkpoint folder: it has no config.json"


def test_config_names_no_class(copied):
    edit_config(copied, architectures=...)
    assert refused(copied) == (
        "config.json names no architecture",
        "Choose the head: --task feature-extraction, text-classification, ...",
    )
    loaded = load(str(copied), ExportRecipe(task="text-classification"))
    assert loaded.source.class_name == "BertForSequenceClassification"


def test_config_names_a_class_transformers_lacks(copied):
    edit_config(copied, architectures=["NoSuchModel"])
    assert refused(copied) == (
        f"transformers {transformers.__version__} has no 'NoSuchModel', the class config.json "
        "names",
        "Upgrade transformers, choose a head with --task, or write a factory.",
    )


def test_code_in_a_checkpoint_never_runs_and_nobody_is_asked(copied, tmp_path):
    ran = tmp_path / "ran"
    (copied / "custom.py").write_text(f"open({str(ran)!r}, 'w')\n")
    edit_config(
        copied,
        model_type="custom-type",
        auto_map={"AutoConfig": "custom.Config", "AutoModel": "custom.Model"},
    )
    # In a process of its own: stdin has an answer ready for whoever asks.
    code = (
        "import sys; from tfx.export.checkpoint.loader import load\n"
        "from tfx.recipe import ExportRecipe\n"
        "try: load(sys.argv[1], ExportRecipe())\n"
        "finally: print('left:', sys.stdin.read())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, copied], input="y\n", capture_output=True, text=True
    )
    assert "SourceError: cannot read the config.json" in result.stderr
    assert "contains custom code" in result.stderr
    assert result.stdout == "left: y\n\n"
    assert not ran.exists()


def test_code_for_a_known_type_is_ignored(copied, tmp_path):
    ran = tmp_path / "ran"
    (copied / "custom.py").write_text(f"open({str(ran)!r}, 'w')\n")
    edit_config(copied, auto_map={"AutoModelForSequenceClassification": "custom.Model"})
    load(str(copied), RECIPE)
    assert not ran.exists()


def test_missing_head_weights(classifier_folder):
    assert refused(classifier_folder, ExportRecipe(task="question-answering")) == (
        "the checkpoint has no weights for 2 tensors of BertForQuestionAnswering: "
        "qa_outputs.bias, qa_outputs.weight",
        "Choose the head the checkpoint was trained with (--task), or leave --task out.",
    )


def test_many_missing_weights_are_cut(classifier_folder):
    message, _ = refused(classifier_folder, ExportRecipe(task="text-generation"))
    assert message.startswith("the checkpoint has no weights for 6 tensors of BertLMHeadModel: ")
    assert message.endswith(", ...")


def test_missing_pooler_is_left_out_not_made_up(tmp_path):
    folder = checkpoints.bert(tmp_path / "headed", transformers.BertForMaskedLM)
    loaded = load(str(folder), ExportRecipe(task="feature-extraction"))
    assert loaded.source.class_name == "BertModel"
    assert loaded.module.pooler is None


def test_base_model_of_a_checkpoint_with_a_head(classifier_folder):
    loaded = load(str(classifier_folder), ExportRecipe(task="feature-extraction"))
    assert loaded.task == "feature-extraction"
    assert loaded.module.pooler is not None


def test_random_weights_of_a_folder(classifier_folder):
    def digest(**changes):
        recipe = ExportRecipe(random_weights=True, **changes)
        return load(str(classifier_folder), recipe).source.digest

    assert digest() == digest() != digest(seed=1)
    assert digest() != load(str(classifier_folder), RECIPE).source.digest


def test_random_weights_of_an_alias(monkeypatch):
    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    for name, value in small.items():
        monkeypatch.setitem(KNOWN_MODELS["bert-large"].sizes, name, value)
    loaded = load("bert-large", RANDOM)
    assert loaded.source.class_name == "BertModel"
    assert loaded.source.random_weights
    assert str(loaded.source) == "config bert-large (BertModel), random weights"
    assert loaded.config.num_hidden_layers == 1
    assert loaded.folder is None


@pytest.mark.parametrize("alias", sorted(KNOWN_MODELS))
def test_known_models_name_classes_that_exist(alias):
    known = KNOWN_MODELS[alias]
    config = getattr(transformers, known.config)(**known.sizes)
    assert getattr(transformers, known.class_name).config_class is type(config)
    chosen = choose_class(config, "auto", known.class_name)
    task = "text-generation" if known.class_name.endswith("LMHeadModel") else "feature-extraction"
    assert chosen == (known.class_name, task)


# choose_class


def test_choose_class_of_a_task():
    config = transformers.BertConfig()
    assert choose_class(config, "token-classification") == (
        "BertForTokenClassification",
        "token-classification",
    )


def test_choose_class_of_a_task_by_its_other_name():
    assert choose_class(transformers.BertConfig(), "masked-lm") == ("BertForMaskedLM", "fill-mask")


def test_choose_class_of_no_task():
    with pytest.raises(SourceError, match=r"^no task called 'mind-reading'$") as caught:
        choose_class(transformers.BertConfig(), "mind-reading")
    assert caught.value.hint.startswith("Use one of: ")
    assert "text-classification" in caught.value.hint


def test_choose_class_of_a_task_the_type_has_no_head_for():
    with pytest.raises(
        SourceError, match=r"^bert models have no head for 'image-classification'$"
    ) as caught:
        choose_class(transformers.BertConfig(), "image-classification")
    assert caught.value.hint == "Leave --task out for the checkpoint's own head."


@pytest.mark.parametrize(
    ("class_name", "task"),
    [
        ("BertForPreTraining", ""),  # two heads, of which neither is the task
        ("DeiTForImageClassification", "image-classification"),
        ("CLIPTextModelWithProjection", "feature-extraction"),
    ],
)
def test_choose_class_where_optimum_has_no_entry(class_name, task):
    config = transformers.BertConfig(architectures=[class_name])
    assert choose_class(config, "auto") == (class_name, task)
