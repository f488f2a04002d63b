"""What the wide net found once, in one place."""

import numpy as np
import pytest
import torch
import transformers

from tfx.dtypes import DType
from tfx.errors import ExportError
from tfx.export.checkpoint.loader import is_encoder_decoder
from tfx.export.checkpoint.processing import read_processing
from tfx.export.pipeline import export_bundle
from tfx.export.proof import text_cases
from tfx.export.tiny_configs import build_tiny, tiny_config
from tfx.export.tracing.architectures import plan_inputs
from tfx.export.wide import OK, attempt, candidates
from tfx.runtime.pytorch.parts import part_of
from tfx.signature import ShapeRange, Signature, TensorSpec, ValueRange

TOKENS = ("batch", "sequence")


def test_feeds_are_as_long_as_the_model_needs(rng):
    inputs = (
        TensorSpec("input_ids", DType.INT64, TOKENS, ValueRange(0, 9)),
        TensorSpec("attention_mask", DType.INT64, TOKENS, ValueRange(0, 1)),
    )
    outputs = (TensorSpec("logits", DType.FLOAT32, TOKENS),)
    signature = Signature(inputs, outputs, {"sequence": ShapeRange(12, 12, 40)})
    cases = text_cases(signature, rng)
    lengths = [case.feed["input_ids"].shape[1] for case in cases]
    assert min(lengths) == 12
    assert max(lengths) == 40
    assert any(case.part_of >= 0 for case in cases)  # rows long enough alone are still tried


def test_a_mixture_of_experts_decodes():
    config = tiny_config(transformers.SwitchTransformersConfig)
    whole = build_tiny(transformers.SwitchTransformersForConditionalGeneration, config)
    decoder = part_of(whole, "decoder")
    plan = plan_inputs(decoder, config, "decoder")
    with torch.no_grad():
        logits = decoder(**plan.examples)["logits"]
    assert logits.shape == (*plan.examples["input_ids"].shape, config.vocab_size)
    assert np.isfinite(logits.numpy()).all()


def test_a_classifier_without_labels_has_no_classification(tmp_path):
    config = transformers.PvtConfig()
    assert config.id2label is None
    images = TensorSpec("pixel_values", DType.FLOAT32, ("batch", 3, 8, 8))
    logits = TensorSpec("logits", DType.FLOAT32, ("batch", 2))
    signature = Signature((images,), (logits,), {})
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    processing, _ = read_processing(source, config, "image-classification", signature, target, "")
    assert processing.classification is None


def test_rows_that_mask_every_key_are_averages(tmp_path):
    """Gemma 2 classifies by the last token that is no padding token, masked or not."""
    (row,) = candidates(["text-classification"], ["gemma2"])
    found = attempt(row, tmp_path)
    assert (found.status, found.reason, found.softmax) == (OK, "", 0)


@pytest.mark.parametrize(
    ("name", "two"),
    [
        ("BartForSequenceClassification", False),
        ("BartForQuestionAnswering", False),
        ("BartForConditionalGeneration", True),
        ("BartModel", True),
    ],
)
def test_a_head_that_reads_its_input_twice_is_one_graph(name, two):
    assert is_encoder_decoder(transformers.BartConfig(), name) == two


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Funnel", "its positions are a Python list as long as the text (modeling_funnel.py, "),
        ("Reformer", "it looks up positions in a Python loop over the batch, and hashes by random"),
    ],
)
def test_a_model_that_no_graph_of_any_size_is(name, reason, tmp_path):
    config = tiny_config(getattr(transformers, f"{name}Config"))
    build_tiny(getattr(transformers, f"{name}Model"), config).save_pretrained(tmp_path / "from")
    with pytest.raises(ExportError) as caught:
        export_bundle(str(tmp_path / "from"), tmp_path / "to")
    assert str(caught.value).startswith(f"{name}Model is no graph of any size: {reason}")
    assert (
        caught.value.hint
        == "Wrap it in a module of one size, if its outputs repeat: file.py:function."
    )
    assert not (tmp_path / "to").exists()


def test_aimv2_exports(tmp_path):
    config = tiny_config(transformers.Aimv2Config)
    build_tiny(transformers.Aimv2Model, config).save_pretrained(tmp_path / "from")
    bundle = export_bundle(str(tmp_path / "from"), tmp_path / "to")
    assert bundle.manifest.parity.passed
    assert any(note.startswith("texts are read forwards") for note in bundle.manifest.notes)
