import os

import pytest
import transformers
from support.checkpoints import VOCABULARY, write_checkpoint

from tfx.bundle import open_bundle
from tfx.errors import BundleError, ParityError, SourceError
from tfx.export import pipeline
from tfx.export.checkpoint.loader import load, parts_of
from tfx.export.pipeline import export_bundle, export_bundles
from tfx.recipe import ExportRecipe
from tfx.runtime.parity import check_bundle


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory):
    """A T5 of one layer on each side."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    folder = tmp_path_factory.mktemp("parts") / "t5"
    return write_checkpoint(folder, transformers.T5ForConditionalGeneration, config)


@pytest.fixture(scope="module")
def halves(seq2seq):
    return export_bundles(str(seq2seq), seq2seq.parent / "made")


def test_encoder_decoder_becomes_two_bundles(halves):
    assert [bundle.name for bundle in halves] == ["made-encoder", "made-decoder"]
    assert [bundle.manifest.recipe.part for bundle in halves] == ["encoder", "decoder"]
    for bundle in halves:
        assert open_bundle(bundle.path).digest == bundle.digest
        assert bundle.manifest.parity.passed
        assert bundle.manifest.parity.checks[0].error <= 1e-4
        assert bundle.manifest.facts["softmax"] == 0


def test_decoder_takes_what_the_encoder_gives(halves):
    encoder, decoder = (bundle.manifest.signature for bundle in halves)
    (given,) = (spec for spec in encoder.outputs if spec.name == "last_hidden_state")
    (taken,) = (spec for spec in decoder.inputs if spec.name == "encoder_hidden_states")
    assert (given.dtype, given.shape[-1]) == (taken.dtype, taken.shape[-1])
    assert decoder.inputs[0].name == "input_ids"
    assert "logits" in {spec.name for spec in decoder.outputs}


@pytest.mark.parametrize("index", [0, 1])
def test_each_half_agrees_with_its_source(halves, index):
    assert check_bundle(halves[index], backend="torch", threads=2).passed


def test_parts_of(seq2seq, classifier_folder, factories):
    assert parts_of(str(seq2seq), ExportRecipe()) == ("encoder", "decoder")
    assert parts_of(str(classifier_folder), ExportRecipe()) == ("",)
    assert parts_of(f"{factories}:linear", ExportRecipe()) == ("",)


def test_two_graphs_are_not_one_bundle(seq2seq, tmp_path):
    with pytest.raises(SourceError) as caught:
        export_bundle(str(seq2seq), tmp_path / "to")
    assert str(caught.value) == (
        "T5ForConditionalGeneration is an encoder-decoder: two graphs, not one"
    )
    assert caught.value.hint == ("Choose part='encoder' or part='decoder', or use export_bundles.")
    assert os.listdir(tmp_path) == []


def test_part_of_a_model_that_is_one_graph(classifier_folder):
    with pytest.raises(SourceError) as caught:
        load(str(classifier_folder), ExportRecipe(part="encoder"))
    assert str(caught.value) == ("BertForSequenceClassification has no encoder: it is one graph")
    assert caught.value.hint == "Leave part out."


def test_one_half_that_fails_leaves_neither(seq2seq, tmp_path, monkeypatch):
    prove = pipeline.prove

    def fail_on_the_decoder(known, run, signature, **options):
        if any(spec.name == "encoder_hidden_states" for spec in signature.inputs):
            raise ParityError("planted")
        return prove(known, run, signature, **options)

    monkeypatch.setattr(pipeline, "prove", fail_on_the_decoder)
    with pytest.raises(ParityError, match="planted"):
        export_bundles(str(seq2seq), tmp_path / "to")
    assert os.listdir(tmp_path) == []


def test_one_taken_target_is_refused_before_loading(halves, seq2seq, monkeypatch):
    monkeypatch.setattr(pipeline, "load", lambda *args: pytest.fail("loaded the model"))
    with pytest.raises(BundleError, match="made-encoder already holds a bundle"):
        export_bundles(str(seq2seq), halves[0].path.parent / "made")
