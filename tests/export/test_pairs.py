"""Encoder-decoders that generate: two graphs, and their proofs."""

import numpy as np
import pytest
import torch
import transformers
from support.pairs import FAMILIES, write_pair

from tfx.errors import SourceError
from tfx.export.checkpoint.loader import parts_of
from tfx.export.families import build
from tfx.export.pipeline import export_bundles
from tfx.recipe import GENERATING_DECODER, GENERATING_PARTS, PARTS, ExportRecipe
from tfx.runtime.generation.decoder import is_generator
from tfx.runtime.generation.kv_cache import cache_specs, is_cross, text_signature
from tfx.runtime.pytorch.pairs import no_pair_cache, pair_part_of, pair_sizes


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    source = write_pair(folder / "source", "t5")
    return export_bundles(str(source), folder / "made", cache=None)


def test_a_cache_changes_nothing_of_what_is_heard():
    """Step by step through the cache the logits are those of the model without one.

    Those that read are in test_writers.py.
    """
    model = build(FAMILIES["whisper"])
    encoder, decoder = (pair_part_of(model, part) for part in GENERATING_PARTS)
    source = {"input_features": torch.randn(3, 8, 40)}
    target = torch.randint(3, 60, (3, 7))
    with torch.no_grad():
        expected = model(**source, decoder_input_ids=target, use_cache=False).logits
        given = encoder(**source)
        assert given.pop("last_hidden_state").shape[-1] == 32
        past = {}
        for layer, (heads, key, value) in enumerate(pair_sizes(model)):
            past[f"past_key_{layer}"] = torch.randn(3, heads, 11, key)  # never looked at
            past[f"past_value_{layer}"] = torch.randn(3, heads, 11, value)
        found = []
        for first, last in ((0, 4), (4, 5), (5, 6), (6, 7)):
            outputs = decoder(
                input_ids=target[:, first:last],
                cache_position=torch.arange(first, last),
                logits_to_keep=torch.arange(last - first),
                **given,
                **past,
            )
            found.append(outputs.pop("logits"))
            past = {name.replace("present", "past"): one for name, one in outputs.items()}
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_gives_what_the_decoder_takes(bundles):
    encoder, decoder = (bundle.manifest.signature for bundle in bundles)
    given = {spec.name: spec for spec in encoder.outputs}
    taken = [spec for spec in decoder.inputs if is_cross(spec)]
    assert len(taken) == 4
    for spec in taken:
        assert given[spec.name].shape[1::2] == spec.shape[1::2]
    names = {spec.name for spec in decoder.outputs}
    assert not any(spec.name in names for spec in taken)  # they never come back
    assert len(cache_specs(decoder)) == 4


def test_every_attention_is_one_operator(bundles):
    assert [bundle.manifest.facts["attention"] for bundle in bundles] == [3, 4]
    assert [bundle.manifest.facts["softmax"] for bundle in bundles] == [0, 0]


def test_a_decoder_is_proved_on_padded_inputs_and_through_its_cache(bundles):
    parity = bundles[1].manifest.parity
    checks = {check.name: check for check in parity.checks}
    assert checks.keys() == {
        "parity",
        "batch = single",
        "right-padded = unpadded",
        "left-padded = unpadded",
    }
    assert all(check.passed and check.cases for check in checks.values())
    assert any("sequence 100" in shape for shape in parity.shapes)


def test_whole_targets_take_no_cache(bundles):
    signature = text_signature(bundles[1].manifest.signature)
    names = [spec.name for spec in signature.inputs]
    assert names[:2] == ["input_ids", "encoder_attention_mask"]
    assert all(name.startswith("cross_") for name in names[2:])
    assert signature.outputs[0].shape == ("batch", "sequence", 64)


def test_the_source_names_its_part(bundles):
    assert [str(bundle.manifest.source).split(" of ")[0] for bundle in bundles] == [
        "encoder",
        "decoder",
    ]
    assert bundles[1].manifest.source.part == GENERATING_DECODER


def test_parts_follow_what_is_asked_for(tmp_path):
    source = str(write_pair(tmp_path / "source", "marian"))
    assert parts_of(source, ExportRecipe(), cache=None) == GENERATING_PARTS
    assert parts_of(source, ExportRecipe(), cache=True) == GENERATING_PARTS
    assert parts_of(source, ExportRecipe(), cache=False) == PARTS


def test_what_has_no_cache_says_why(tmp_path):
    config = transformers.BartConfig(d_model=32, encoder_layers=1, decoder_layers=1)
    assert no_pair_cache(config, "BartModel") == "does not generate text"
    assert no_pair_cache(
        transformers.Speech2TextConfig(), "Speech2TextForConditionalGeneration"
    ) == ("is of type speech_to_text, whose decoder was not tried with places for a cache")
    config = transformers.ProphetNetConfig()
    config.architectures = ["ProphetNetForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    assert parts_of(str(tmp_path), ExportRecipe(), cache=None) == PARTS
    with pytest.raises(SourceError, match=r"ProphetNetFor.* reads the first tokens") as caught:
        parts_of(str(tmp_path), ExportRecipe(), cache=True)
    assert caught.value.hint == "Export it for one pass: --no-cache."


def test_no_such_part():
    with pytest.raises(SourceError, match="no part called 'middle'"):
        pair_part_of(build(FAMILIES["t5"]), "middle")


def test_cross_keys_are_of_the_encoder_alone(bundles):
    """A decoder that looked at anything but the shape of its stand-in states would show here."""
    from tfx.runtime.opening import open_session

    rng = np.random.default_rng(0)
    ids = rng.integers(4, 60, (2, 6))
    mask = np.ones_like(ids)
    with open_session(bundles[0]) as session:
        both = session.predict({"input_ids": ids, "attention_mask": mask})
        one = session.predict({"input_ids": ids[:1], "attention_mask": mask[:1]})
    np.testing.assert_allclose(both["cross_value_1"][:1], one["cross_value_1"], atol=1e-5)


def test_a_decoder_does_not_write_by_itself(bundles):
    """Benchmarks and tuning measure it as a graph of one run."""
    assert not is_generator(bundles[1].manifest.signature)
    assert not is_generator(bundles[0].manifest.signature)
