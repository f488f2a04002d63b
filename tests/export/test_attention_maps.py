"""``--attentions``: attention maps as outputs, and nothing else changed."""

import json

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from support import checkpoints

import tfx
from tfx.bundle import open_bundle
from tfx.cli import main
from tfx.errors import ExportError, SourceError
from tfx.export.changes import require_attentions
from tfx.export.pipeline import export_bundle
from tfx.recipe import Changes, ExportRecipe
from tfx.runtime.parity import check_bundle
from tfx.runtime.pytorch.changes import return_attentions

MAPS = ExportRecipe(changes=Changes(attentions=True))


def names(bundle):
    return [spec.name for spec in bundle.manifest.signature.outputs]


@pytest.fixture(scope="module")
def mapped(classifier_folder, folders):
    """The bundle of ``classifier_folder`` with attention maps, from the command line."""
    path = folders.bundles / "mapped"
    result = CliRunner().invoke(
        main, ["export", str(classifier_folder), "-o", str(path), "--attentions"]
    )
    assert result.exit_code == 0, result.output
    return open_bundle(path)


def test_maps_are_outputs(mapped):
    assert [str(spec) for spec in mapped.manifest.signature.outputs] == [
        "logits: float32[batch, 3]",
        "attentions.0: float32[batch, 4, sequence, sequence]",
        "attentions.1: float32[batch, 4, sequence, sequence]",
    ]


def test_manifest_says_why_attention_is_not_fused(mapped):
    document = json.loads((mapped.path / "tfx.json").read_text())
    assert document["recipe"]["changes"] == {"attentions": True}
    assert document["notes"][0] == (
        "attention maps are outputs: attention that gives one stays MatMul and Softmax"
    )
    assert (mapped.manifest.facts["attention"], mapped.manifest.facts["softmax"]) == (0, 2)


def test_inspect_says_why_attention_is_not_fused(mapped):
    result = CliRunner().invoke(main, ["inspect", str(mapped.path)])
    assert "0 fused nodes, 2 Softmax left" in result.output
    assert "output" in result.output[result.output.index("Softmax left") :]


def test_the_other_outputs_are_as_without(mapped, classifier, rng):
    feed = {
        "input_ids": rng.integers(5, 60, (3, 11)),
        "attention_mask": np.array([[1] * 11, [1] * 7 + [0] * 4, [1] * 3 + [0] * 8]),
        "token_type_ids": np.zeros((3, 11), np.int64),
    }
    with (
        tfx.open_session(mapped, threads=2) as with_maps,
        tfx.open_session(classifier, threads=2) as without,
    ):
        found, expected = with_maps.predict(feed), without.predict(feed)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
    for layer in range(2):
        attention = found[f"attentions.{layer}"]
        np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
        assert (attention[1, :, :, 7:] == 0).all()  # padding is not looked at


def test_parity_covers_the_maps(mapped):
    covered = {error.name for error in mapped.manifest.parity.outputs}
    assert covered == {"logits", "attentions.0", "attentions.1"}
    claims = {check.name: check.passed for check in mapped.manifest.parity.checks}
    assert claims["parity"]
    assert claims["right-padded = unpadded"]
    assert claims["batch = single"]


def test_torch_gives_the_same_maps(mapped):
    report = check_bundle(mapped, backend="torch", threads=2)
    assert report.passed
    assert {error.name for error in report.outputs} == set(names(mapped))


def test_texts_are_answered_as_without(mapped, classifier):
    with (
        tfx.open_session(mapped, threads=2) as with_maps,
        tfx.open_session(classifier, threads=2) as without,
    ):
        (found,), (expected,) = (s.predict(["alpha beta"]) for s in (with_maps, without))
    assert found.label == expected.label


def test_images(tmp_path):
    folder = checkpoints.vit(tmp_path / "vit")
    bundle = export_bundle(str(folder), tmp_path / "to", MAPS)
    assert [str(spec) for spec in bundle.manifest.signature.outputs][1:] == [
        "attentions.0: float32[batch, 4, 17, 17]",
        "attentions.1: float32[batch, 4, 17, 17]",
    ]


def test_models_of_two_parts(tmp_path):
    config = transformers.CLIPConfig(
        text_config=dict(checkpoints.SIZES),
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "image_size": 16,
            "patch_size": 4,
        },
        projection_dim=16,
    )
    folder = checkpoints.write_checkpoint(tmp_path / "clip", transformers.CLIPModel, config)
    bundle = export_bundle(str(folder), tmp_path / "to", MAPS)
    assert [name for name in names(bundle) if "attentions" in name] == [
        "text_model_output.attentions.0",
        "text_model_output.attentions.1",
        "vision_model_output.attentions.0",
    ]


def test_causal_maps_of_a_trimmed_model(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, pad_token_id=0
    )
    folder = checkpoints.write_checkpoint(
        tmp_path / "gpt2", transformers.GPT2Model, config, std=0.3
    )
    changes = Changes(layers=(1,), drop_heads=((1, 0),), attentions=True)
    bundle = export_bundle(str(folder), tmp_path / "to", ExportRecipe(changes=changes))
    assert names(bundle) == ["last_hidden_state", "attentions.0"]
    assert bundle.manifest.signature.outputs[1].shape == ("batch", 3, "sequence", "sequence")
    feed = {"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.ones((1, 3), np.int64)}
    with tfx.open_session(bundle, threads=2) as session:
        attention = session.predict(feed)["attentions.0"]
    assert (np.triu(attention, 1) == 0).all()
    assert check_bundle(bundle, backend="torch", threads=2).passed


def test_models_that_return_none():
    with pytest.raises(ExportError) as caught:
        require_attentions(["logits", "no_attentions"], "SomeModel")
    assert str(caught.value) == "SomeModel returns no attention maps, only logits, no_attentions"
    assert caught.value.hint == "Leave --attentions out."
    require_attentions(["logits", "text_model_output.attentions.0"], "CLIPModel")


def test_model_without_attention_leaves_nothing(tmp_path):
    config = transformers.FNetConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=48
    )
    folder = checkpoints.write_checkpoint(tmp_path / "fnet", transformers.FNetModel, config)
    with pytest.raises((ExportError, SourceError), match="attention maps"):
        export_bundle(str(folder), tmp_path / "to", MAPS)
    assert not (tmp_path / "to").exists()


def test_modules_without_eager_attention():
    with pytest.raises(SourceError, match="Linear does not give attention maps: ") as caught:
        return_attentions(torch.nn.Linear(2, 2))
    assert caught.value.hint == "Leave --attentions out."
