"""``--adapter``: LoRA and AdaLoRA weights merged before tracing."""

import json
import shutil
import sys

import numpy as np
import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support import checkpoints
from support.adapters import adalora, lora, write_adapter

from tfx.bundle import open_bundle
from tfx.chatter import quiet
from tfx.cli import main
from tfx.errors import BackendError, SourceError
from tfx.export.changes import task_of_adapter
from tfx.export.checkpoint.loader import load
from tfx.export.pipeline import export_bundles
from tfx.recipe import Changes, ExportRecipe, Source, SourceKind
from tfx.runtime.parity import check_bundle
from tfx.runtime.pytorch.adapters import Adapter, merge_adapter, read_adapter
from tfx.runtime.pytorch.modules import load_module, run_module, weights_digest

FEED = {"input_ids": np.array([[2, 7, 8, 9, 3]]), "attention_mask": np.ones((1, 5), np.int64)}
BERT, CLASSIFIER = transformers.BertModel, transformers.BertForSequenceClassification


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def source_of(base, adapter, cls=BERT):
    return Source(
        SourceKind.CHECKPOINT, str(base), cls.__name__, changes=Changes(adapter=str(adapter))
    )


def refusal(base, adapter, cls=BERT):
    with pytest.raises(SourceError) as caught:
        load_module(source_of(base, adapter, cls))
    return str(caught.value), caught.value.hint


def outputs_with_peft(base, adapter, cls=BERT, **changes):
    """What PEFT itself gives, without merging."""
    with quiet():
        model = cls.from_pretrained(base, **changes)
        model = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in FEED.items()})[0].numpy()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return checkpoints.bert(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture(scope="module")
def plain_lora(base):
    return lora(base.with_name("lora"), base)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"target_modules": "all-linear"},
        {"target_modules": ["query"], "rank_pattern": {"0.attention.self.query": 2}},
        {"target_modules": ["query", "word_embeddings"]},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_merged_is_adapted(options, base, tmp_path):
    adapter = lora(tmp_path / "lora", base, **options)
    module = load_module(source_of(base, adapter))
    expected = outputs_with_peft(base, adapter)
    found = run_module(module, FEED)["last_hidden_state"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    unadapted = load_module(Source(SourceKind.CHECKPOINT, str(base), "BertModel"))
    assert np.abs(found - run_module(unadapted, FEED)["last_hidden_state"]).max() > 1e-2
    assert module.state_dict().keys() == unadapted.state_dict().keys()
    assert not module.training


def test_merged_adalora_is_adapted(base, tmp_path):
    adapter = adalora(tmp_path / "adalora", base)
    assert read_adapter(adapter).kind == "ADALORA"
    found = run_module(load_module(source_of(base, adapter)), FEED)["last_hidden_state"]
    np.testing.assert_allclose(found, outputs_with_peft(base, adapter), rtol=1e-4, atol=1e-4)


def test_lora_of_conv1d(tmp_path):
    """GPT-2 keeps its weights the other way round."""
    config = transformers.GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    cls = transformers.GPT2Model
    folder = checkpoints.write_checkpoint(tmp_path / "gpt2", cls, config, std=0.3)
    options = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    adapter = lora(tmp_path / "lora", folder, cls, **options)
    found = run_module(load_module(source_of(folder, adapter, cls)), FEED)["last_hidden_state"]
    expected = outputs_with_peft(folder, adapter, cls)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_digest_covers_the_adapter(base, plain_lora):
    source = source_of(base, plain_lora)
    without = Source(SourceKind.CHECKPOINT, str(base), "BertModel")
    assert weights_digest(load_module(source)) == weights_digest(load_module(source))
    assert weights_digest(load_module(source)) != weights_digest(load_module(without))


# bundles


def test_bundle_of_an_adapted_model(base, plain_lora, tmp_path):
    result = run("export", base, "-o", tmp_path / "to", "--adapter", plain_lora)
    assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "to")
    assert bundle.manifest.notes[0] == f"the adapter {plain_lora} is merged into the weights"
    assert bundle.manifest.source.changes == Changes(adapter=str(plain_lora))
    assert bundle.manifest.facts["attention"] == 2
    assert bundle.manifest.tools["peft"] == peft.__version__
    assert check_bundle(bundle, backend="torch", threads=2).passed
    result = run("check", bundle.path, "--backend", "torch", "--threads", 2)
    assert result.exit_code == 0, result.output


def test_adapter_that_changed_or_went_away(base, tmp_path):
    adapter = lora(tmp_path / "lora", base)
    result = run("export", base, "-o", tmp_path / "to", "--adapter", adapter, "--layers", "0")
    assert result.exit_code == 0, result.output
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: weight * 2 for name, weight in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    said = run("check", tmp_path / "to", "--backend", "torch").stderr
    assert "holds other weights now" in said
    shutil.rmtree(adapter)
    with pytest.raises(BackendError, match="no such adapter folder"):
        check_bundle(open_bundle(tmp_path / "to"), backend="torch", threads=2)
    assert run("check", tmp_path / "to", "--threads", 2).exit_code == 0


def test_head_that_comes_with_the_adapter(base, tmp_path):
    """The usual fine-tuning: a base model without a head, a head in ``modules_to_save``."""
    adapter = lora(tmp_path / "lora", base, CLASSIFIER, labels=5, task_type="SEQ_CLS")
    loaded = load(str(base), ExportRecipe(changes=Changes(adapter=str(adapter))))
    assert loaded.source.class_name == "BertForSequenceClassification"
    assert loaded.task == "text-classification"
    assert loaded.config.num_labels == 5
    found = run_module(loaded.module, FEED)["logits"]
    expected = outputs_with_peft(base, adapter, CLASSIFIER, num_labels=5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    again = load_module(loaded.source)
    assert weights_digest(again) == loaded.source.digest


def test_head_that_replaces_the_checkpoints(classifier_folder, tmp_path):
    adapter = lora(tmp_path / "lora", classifier_folder, CLASSIFIER, labels=3, task_type="SEQ_CLS")
    wider = {
        name: torch.cat([weight, weight]) if "classifier" in name else weight
        for name, weight in load_file(adapter / "adapter_model.safetensors").items()
    }
    save_file(wider, adapter / "adapter_model.safetensors")
    module = load_module(source_of(classifier_folder, adapter, CLASSIFIER))
    assert run_module(module, FEED)["logits"].shape == (1, 6)


def test_class_of_an_adapter_without_a_task(base, tmp_path):
    adapter = lora(tmp_path / "lora", base, CLASSIFIER, modules_to_save=["classifier"])
    assert read_adapter(adapter).class_name == "BertForSequenceClassification"
    loaded = load(str(base), ExportRecipe(changes=Changes(adapter=str(adapter))))
    assert loaded.source.class_name == "BertForSequenceClassification"


def test_an_adapter_of_another_model(plain_lora, tmp_path):
    other = checkpoints.vit(tmp_path / "vit")
    with pytest.raises(SourceError) as caught:
        load(str(other), ExportRecipe(changes=Changes(adapter=str(plain_lora))))
    assert str(caught.value) == (
        f"the adapter {plain_lora} was made for BertModel, got a model of type vit"
    )
    assert caught.value.hint == "Name the checkpoint that it was trained on."


def test_task_asked_for_stands(base, plain_lora):
    recipe = ExportRecipe(task="feature-extraction", changes=Changes(adapter=str(plain_lora)))
    assert load(str(base), recipe).source.class_name == "BertModel"


@pytest.mark.parametrize(("task", "expected"), [("CAUSAL_LM", "text-generation"), ("", "")])
def test_task_of_an_adapter(task, expected, tmp_path):
    assert task_of_adapter(Adapter(tmp_path, "LORA", task)) == expected


def test_encoder_decoder(tmp_path):
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=1
    )
    cls = transformers.T5ForConditionalGeneration
    folder = checkpoints.write_checkpoint(tmp_path / "t5", cls, config, std=0.3)
    adapter = write_adapter(
        tmp_path / "lora", folder, cls, peft.LoraConfig(r=2, target_modules=["q", "v"])
    )
    recipe = ExportRecipe(changes=Changes(adapter=str(adapter)))
    for bundle in export_bundles(str(folder), tmp_path / "to", recipe):
        assert bundle.manifest.source.changes.adapter == str(adapter)
        assert check_bundle(bundle, backend="torch", threads=2).passed


# what cannot be merged


def test_no_such_folder(base, tmp_path):
    message, _ = refusal(base, tmp_path / "gone")
    assert message == f"no such adapter folder: {tmp_path / 'gone'}"


def test_folder_without_an_adapter(base):
    message, hint = refusal(base, base)
    assert message == f"{base} is not an adapter folder: it has no adapter_config.json"
    assert hint == "Name the folder that PEFT's save_pretrained wrote."


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"peft_type": "LORA", "auto_mapping": 3}'])
def test_configuration_that_is_damaged(text, base, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text)
    message, _ = refusal(base, tmp_path)
    assert message.startswith(f"cannot read {tmp_path / 'adapter_config.json'}: ")


def test_pickles_are_never_read(base, plain_lora, tmp_path):
    folder = shutil.copytree(plain_lora, tmp_path / "lora")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    message, hint = refusal(base, folder)
    assert message == (
        f"{folder} has no adapter_model.safetensors, only adapter_model.bin: "
        "a pickle runs code when it is read"
    )
    assert hint == "Save the adapter again with save_pretrained (safetensors is its default)."
    (folder / "adapter_model.bin").unlink()
    assert refusal(base, folder)[0] == f"{folder} has no adapter_model.safetensors"


def test_weights_that_are_damaged(base, plain_lora, tmp_path):
    folder = shutil.copytree(plain_lora, tmp_path / "lora")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert refusal(base, folder)[0].startswith(f"{path} is damaged: ")


def test_kinds_that_cannot_be_merged(base, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    message, hint = refusal(base, tmp_path)
    assert message == f"the adapter {tmp_path} is of kind PROMPT_TUNING, expected LORA or ADALORA"
    assert hint.startswith("Merge it into the checkpoint with PEFT first")


def test_no_module_is_imported_that_a_file_names(base, plain_lora, tmp_path, monkeypatch):
    folder = shutil.copytree(plain_lora, tmp_path / "lora")
    (folder / "planted.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"megatron_config": {"a": 1}, "megatron_core": "planted"}
    config["auto_mapping"] = {"base_model_class": "BertModel", "parent_library": "planted"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert "potential security risk" in refusal(base, folder)[0]  # PEFT's own words


def test_another_width(plain_lora, tmp_path):
    wide = checkpoints.bert(tmp_path / "wide", hidden_size=64)
    message, hint = refusal(wide, plain_lora)
    lines = message.splitlines()
    assert lines[0] == f"the adapter {plain_lora} does not fit BertModel:"
    assert len(lines) == 1 + 8  # A and B of two projections in two layers
    assert lines[1] == (
        "  encoder.layer.0.attention.self.query.lora_A.weight: "
        "[4, 32] in the adapter, [4, 64] expected"
    )
    assert hint == "Name the model the adapter was trained on, with the same head (--task)."


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (3, "encoder.layer.2.attention.self.query.lora_A.weight: not in the adapter"),
        (1, "encoder.layer.1.attention.self.query.lora_A.weight: not in the model"),
    ],
)
def test_another_number_of_layers(layers, problem, plain_lora, tmp_path):
    other = checkpoints.bert(tmp_path / "other", num_hidden_layers=layers)
    assert problem in refusal(other, plain_lora)[0]


def test_another_architecture(plain_lora, tmp_path):
    other = checkpoints.distilbert(tmp_path / "other")
    message, _ = refusal(other, plain_lora, transformers.DistilBertModel)
    assert "does not fit DistilBertModel: Target modules" in message


def test_another_head(base, plain_lora, classifier_folder):
    assert "not in the model" in refusal(classifier_folder, plain_lora, CLASSIFIER)[0]


def test_weights_that_are_no_numbers(base, plain_lora, tmp_path):
    folder = shutil.copytree(plain_lora, tmp_path / "lora")
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[:] = torch.nan
    save_file(weights, folder / "adapter_model.safetensors")
    assert "NaN" in refusal(base, folder)[0]


def test_without_peft_it_says_how_to_get_it(base, plain_lora, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    module = load_module(Source(SourceKind.CHECKPOINT, str(base), "BertModel"))
    with pytest.raises(BackendError, match="peft is not installed") as caught:
        merge_adapter(module, read_adapter(plain_lora))
    assert caught.value.hint == "Run: pip install 'tfx-toolkit[adapters]'"
