"""Layers and heads taken out of real models, compared with the whole model."""

import json

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from support import checkpoints
from support.checkpoints import SIZES

import tfx
from tfx.bundle import open_bundle
from tfx.cli import main
from tfx.errors import RecipeError, SourceError
from tfx.export.changes import describe_changes, heads_from_text, layers_from_text
from tfx.export.checkpoint.loader import load
from tfx.export.pipeline import export_bundle, export_bundles
from tfx.recipe import Changes, ExportRecipe
from tfx.runtime.parity import check_bundle
from tfx.runtime.pytorch.modules import load_module
from tfx.runtime.pytorch.trimming import HEAD_LAYOUTS, drop_heads, keep_layers, layer_stack


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def tiny(model_type, layers=3, **changes):
    """A model of one type with random weights that are not small, and something to feed it."""
    sizes = SIZES | {"num_hidden_layers": layers} | changes
    if model_type in ("vit", "deit"):
        sizes |= {"image_size": 16, "patch_size": 4}
    if model_type == "modernbert":  # its special tokens are beyond a tiny vocabulary
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        sizes |= dict.fromkeys(names, 0)
    if model_type == "qwen3":
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    config.use_cache = False
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    if model.main_input_name == "pixel_values":
        return model, {"pixel_values": torch.randn(2, 3, 16, 16)}
    return model, {"input_ids": torch.randint(5, 60, (2, 9))}


def last(model, feed):
    with torch.no_grad():
        return model(**feed).last_hidden_state


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# heads


@pytest.mark.parametrize("model_type", HEAD_LAYOUTS)
def test_dropping_heads_is_zeroing_them(model_type):
    model, feed = tiny(model_type)
    whole, _ = tiny(model_type)
    pairs = [(0, 1), (0, 3), (2, 0)]
    layout = HEAD_LAYOUTS[model_type]
    _, stack = layer_stack(whole)
    with torch.no_grad():
        for layer, head in pairs:  # [outputs, inputs]; GPT-2's Conv1D is the other way round
            weight = stack[layer].get_submodule(layout.output).weight
            heads = weight if model_type == "gpt2" else weight.T
            heads[head * 8 : (head + 1) * 8] = 0
    before = last(tiny(model_type)[0], feed)
    drop_heads(model, pairs)
    close(last(model, feed), last(whole, feed))
    assert (last(model, feed) - before).abs().max() > 1e-2


def test_dropped_heads_are_gone_from_the_weights():
    model, _ = tiny("bert")
    drop_heads(model, [(1, 0), (1, 2)])
    attention = model.encoder.layer[1].attention
    assert attention.self.query.weight.shape == (16, 32)
    assert attention.self.query.bias.shape == (16,)
    assert attention.output.dense.weight.shape == (32, 16)
    assert attention.output.dense.bias.shape == (32,)
    assert (attention.self.value.out_features, attention.output.dense.in_features) == (16, 16)
    assert (attention.self.num_attention_heads, attention.self.all_head_size) == (2, 16)
    assert model.encoder.layer[0].attention.self.query.weight.shape == (32, 32)


def test_heads_that_are_not_there():
    model, _ = tiny("bert")
    with pytest.raises(SourceError) as caught:
        drop_heads(model, [(0, 4), (0, 5), (1, 0), (1, 1), (1, 2), (1, 3), (7, 0)])
    assert str(caught.value).splitlines() == [
        "heads cannot be dropped:",
        "  layer 0: no head 4-5, expected 0-3",
        "  layer 1: all 4 heads, and attention needs one",
        "  layer 7: there are layers 0-2",
    ]
    assert caught.value.hint.startswith("Number layers and heads from 0")
    assert model.encoder.layer[1].attention.self.query.weight.shape == (32, 32)


def test_heads_of_another_family():
    model, _ = tiny("mpnet")
    with pytest.raises(SourceError, match="heads of mpnet models cannot be dropped, only those of"):
        drop_heads(model, [(0, 0)])


# layers


@pytest.mark.parametrize(
    "model_type", [*HEAD_LAYOUTS, "mpnet", "deberta-v2", "llama", "modernbert", "qwen3"]
)
def test_kept_layers_are_those_of_the_model(model_type):
    model, feed = tiny(model_type)
    expected, _ = tiny(model_type, layers=2)
    keep_layers(model, (0, 2))
    weights = tiny(model_type)[0].state_dict()
    name, _ = layer_stack(expected)
    for key in [key for key in weights if key.startswith(f"{name}.1.")]:
        weights[key] = weights[key.replace(f"{name}.1.", f"{name}.2.")]
    weights = {key: value for key, value in weights.items() if not key.startswith(f"{name}.2.")}
    expected.load_state_dict(weights)
    close(last(model, feed), last(expected, feed))
    assert (last(model, feed) - last(tiny(model_type)[0], feed)).abs().max() > 1e-2
    assert model.config.num_hidden_layers == 2


def test_layers_are_numbered_again_for_a_cache():
    model, _ = tiny("llama")
    keep_layers(model, (1, 2))
    assert [layer.self_attn.layer_idx for layer in model.layers] == [0, 1]


def test_kinds_of_layers_stay_with_their_layers():
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    model, feed = tiny("qwen3", layer_types=kinds, use_sliding_window=True, sliding_window=3)
    keep_layers(model, (1,))
    assert model.config.layer_types == ["sliding_attention"]
    assert last(model, feed).shape == (2, 9, 32)


def test_layers_that_are_not_there():
    model, _ = tiny("bert")
    with pytest.raises(SourceError, match=r"no layer 3-4: BertModel has layers 0-2") as caught:
        keep_layers(model, (1, 3, 4))
    assert caught.value.hint == "Number layers from 0; 0-5 keeps the first six."


def test_layer_the_others_lean_on():
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=3
    )
    model = transformers.T5EncoderModel(config)
    with pytest.raises(SourceError) as caught:
        keep_layers(model, (1, 2))
    assert str(caught.value) == (
        "layers hold weights that the kept ones may use: "
        "layer 0: layer.0.SelfAttention.relative_attention_bias.weight"
    )
    assert caught.value.hint == "Keep these layers."
    keep_layers(model, (0, 2))
    assert len(model.encoder.block) == 2


@pytest.mark.parametrize(
    ("model_type", "problem"),
    [
        ("albert", "found encoder.albert_layer_groups (1), its configuration says 12"),
        ("clip", "found text_model.encoder.layers (12), vision_model.encoder.layers (12), its"),
        ("resnet", "found none, its configuration says None"),
    ],
)
def test_models_without_one_stack(model_type, problem):
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type))
    with pytest.raises(SourceError) as caught:
        layer_stack(model)
    assert f"Model is not one stack of equal layers: {problem}" in str(caught.value)
    assert caught.value.hint == "Leave --layers and --drop-heads out."


# from the command line to the bundle


def test_layers_from_text():
    assert layers_from_text("0-2,5") == (0, 1, 2, 5)
    assert layers_from_text("0, 2, 4") == (0, 2, 4)


def test_heads_from_text():
    assert heads_from_text("0:1,3; 2:0-1") == ((0, 1), (0, 3), (2, 0), (2, 1))


@pytest.mark.parametrize(
    ("read", "text", "problem"),
    [
        (layers_from_text, "", "layers are '', expected numbers like 0-5 or 0,2,4"),
        (layers_from_text, "0..5", "layers are '0..5', expected numbers like 0-5 or 0,2,4"),
        (layers_from_text, "5-0", "layers are '5-0': 5-0 counts downwards"),
        (heads_from_text, "1,3", "heads are '1,3', expected LAYER:HEADS like 0:1,3;2:0-2"),
        (heads_from_text, "0:", "heads are '0:', expected numbers like 0:1,3;2:0-2"),
    ],
)
def test_text_that_is_no_list(read, text, problem):
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert str(caught.value) == problem


@pytest.mark.parametrize(("option", "value"), [("--layers", "first"), ("--drop-heads", "first")])
def test_usage(option, value):
    result = run("export", "minilm", option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr


def test_notes():
    config = transformers.BertConfig()
    changes = Changes(layers=tuple(range(6)), drop_heads=((0, 3), (0, 1), (2, 0)))
    assert describe_changes(changes, config) == (
        "attention heads 1,3 of 12 in layer 0 removed",
        "attention head 0 of 12 in layer 2 removed",
        "layers 6-11 of 12 removed",
    )
    assert describe_changes(Changes(layers=tuple(range(12))), config) == ("all 12 layers are kept",)
    assert describe_changes(Changes(), config) == ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.bert(
        tmp_path_factory.mktemp("trimming") / "classifier",
        transformers.BertForSequenceClassification,
        num_hidden_layers=3,
    )


@pytest.fixture(scope="module")
def trimmed(folder):
    path = folder.with_name("trimmed")
    result = run("export", folder, "-o", path, "--layers", "0,2", "--drop-heads", "0:1,3;2:0")
    assert result.exit_code == 0, result.output
    assert "layer 1 of 3 removed" in result.stdout
    return open_bundle(path)


def test_manifest_says_what_was_cut(trimmed):
    document = json.loads((trimmed.path / "tfx.json").read_text())
    cut = {"layers": [0, 2], "drop_heads": [[0, 1], [0, 3], [2, 0]]}
    assert document["recipe"]["changes"] == document["source"]["changes"] == cut
    assert document["notes"][:3] == [
        "attention heads 1,3 of 4 in layer 0 removed",
        "attention head 0 of 4 in layer 2 removed",
        "layer 1 of 3 removed",
    ]
    assert trimmed.manifest.facts["attention"] == 2
    config = json.loads((trimmed.path / "config.json").read_text())
    assert config["num_hidden_layers"] == 2


def test_trimmed_bundle_agrees_with_torch(trimmed):
    assert check_bundle(trimmed, backend="torch", threads=2).passed
    assert run("check", trimmed.path, "--backend", "torch", "--threads", 2).exit_code == 0


def test_trimmed_bundle_predicts(trimmed):
    with tfx.open_session(trimmed, threads=2) as session:
        (answer,) = session.predict(["a model of two heads"])
    assert np.isfinite(answer.scores).all()


def test_trimmed_weights_are_those_of_the_checkpoint(folder, trimmed):
    whole = transformers.BertForSequenceClassification.from_pretrained(folder).state_dict()
    weights = load_module(trimmed.manifest.source).state_dict()
    kept = whole["bert.encoder.layer.2.attention.self.query.weight"][8:]
    assert torch.equal(weights["bert.encoder.layer.1.attention.self.query.weight"], kept)


def test_random_weights_can_be_trimmed(folder, tmp_path):
    recipe = ExportRecipe(random_weights=True, changes=Changes(layers=(0,), drop_heads=((0, 2),)))
    bundle = export_bundle(str(folder), tmp_path / "random", recipe)
    assert bundle.manifest.source.random_weights
    assert bundle.manifest.facts["attention"] == 1
    assert check_bundle(bundle, backend="torch", threads=2).passed


def test_layer_out_of_range_leaves_nothing(folder, tmp_path):
    result = run("export", folder, "-o", tmp_path / "to", "--layers", "0-5")
    assert result.exit_code == 1
    assert "no layer 3-5: BertForSequenceClassification has layers 0-2" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_encoder_decoders_are_refused(tmp_path):
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=2
    )
    folder = checkpoints.write_checkpoint(
        tmp_path / "t5", transformers.T5ForConditionalGeneration, config
    )
    changes = Changes(layers=(0,), attentions=True)
    with pytest.raises(SourceError) as caught:
        export_bundles(str(folder), tmp_path / "to", ExportRecipe(changes=changes))
    assert str(caught.value) == (
        "T5ForConditionalGeneration is an encoder-decoder: --layers, --attentions cannot be used, "
        "only on models of one graph"
    )
    assert caught.value.hint == "Leave it out; --adapter works on both parts."


@pytest.mark.parametrize("what", ["a factory", "a module in memory"])
def test_modules_are_taken_as_they_are(what, factories):
    recipe = ExportRecipe(changes=Changes(layers=(0,)))
    model = f"{factories}:linear" if what == "a factory" else torch.nn.Linear(4, 3)
    with pytest.raises(SourceError) as caught:
        load(model, recipe, torch.ones(2, 4))
    assert str(caught.value).startswith(f"{what} is taken as it is: --adapter, --layers,")
    assert caught.value.hint == "Leave them out, and change the module where it is made."
