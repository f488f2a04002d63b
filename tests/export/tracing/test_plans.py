"""What a model is fed while it is traced: PyTorch takes it, and the sizes it says it takes."""

import math

import pytest
import torch
import transformers

from tfx.errors import ExportError
from tfx.export.checkpoint.loader import is_encoder_decoder
from tfx.export.families import FAMILIES, build
from tfx.export.tracing.architectures import (
    EXAMPLE_BATCH,
    EXAMPLE_SEQUENCE,
    FIXED_IMAGES,
    OFFSET_POSITIONS,
    plan_inputs,
)
from tfx.recipe import DECODER, ENCODER
from tfx.runtime.pytorch.parts import part_of, whole_of

BY_CLASS = {family.class_name: family for family in FAMILIES}
TEXT = ("batch", "sequence")


def model_of(class_name, **sizes):
    """The tiny model of the family with this class; ``sizes`` replace some of its own."""
    family = BY_CLASS[class_name]
    if not sizes:
        return build(family)
    config = getattr(transformers, family.config)(**{**family.sizes, **sizes})
    return getattr(transformers, class_name)(config).eval()


def plan_of(class_name, part="", **sizes):
    model = model_of(class_name, **sizes)
    module = part_of(model, part) if part else whole_of(model)
    return plan_inputs(module, model.config, part), module


def run(module, feed):
    with torch.no_grad():
        return module(**feed)


def sized(plan, **sizes):
    """The examples cut or repeated to other sizes of their axes."""
    feed = dict(plan.examples)
    for name, axes in plan.dynamic.items():
        for axis, label in enumerate(axes):
            if label in sizes:
                index = torch.arange(sizes[label]) % feed[name].shape[axis]
                feed[name] = feed[name].index_select(axis, index)
    return feed


def graphs():
    """Every graph of one class per configuration."""
    seen = set()
    for family in FAMILIES:
        if family.config in seen:
            continue
        seen.add(family.config)
        config = getattr(transformers, family.config)(**family.sizes)
        two = is_encoder_decoder(config, family.class_name)
        yield from ((family.class_name, part) for part in ((ENCODER, DECODER) if two else ("",)))


@pytest.mark.parametrize(("class_name", "part"), list(graphs()))
def test_pytorch_takes_the_examples_and_the_smallest(class_name, part):
    plan, module = plan_of(class_name, part)
    assert plan.examples.keys() == plan.dynamic.keys()
    for name, tensor in plan.examples.items():
        assert len(plan.dynamic[name]) == tensor.ndim
        assert plan.dynamic[name][0] in ("batch", "texts", "images")
    run(module, plan.examples)

    axes = {label for labels in plan.dynamic.values() for label in labels if label}
    assert {*plan.limits, *plan.smallest} <= axes
    run(module, sized(plan, **{axis: plan.smallest.get(axis, 1) for axis in axes}))


@pytest.mark.parametrize(("class_name", "part"), list(graphs()))
def test_axes_that_vary_have_sizes_of_their_own(class_name, part):
    """Else tracing could take one axis for the other."""
    plan, _ = plan_of(class_name, part)
    sizes = {}
    for name, labels in plan.dynamic.items():
        for axis, label in enumerate(labels):
            if label:
                sizes.setdefault(label, set()).add(plan.examples[name].shape[axis])
    assert all(len(found) == 1 for found in sizes.values()), sizes
    known = [found.pop() for label, found in sizes.items() if label not in ("texts", "images")]
    assert len(set(known)) == len(known)
    assert 1 not in known


# text


@pytest.mark.parametrize(
    ("class_name", "limit", "names"),
    [
        ("BertModel", 64, ["input_ids", "attention_mask", "token_type_ids"]),
        ("RobertaForSequenceClassification", 64, ["input_ids", "attention_mask"]),
        ("MPNetModel", 64, ["input_ids", "attention_mask"]),
        ("DistilBertForSequenceClassification", 64, ["input_ids", "attention_mask"]),
        ("GPT2LMHeadModel", 64, ["input_ids", "attention_mask"]),
        ("GPTNeoForCausalLM", 64, ["input_ids", "attention_mask"]),
        ("CLIPTextModelWithProjection", 64, ["input_ids", "attention_mask"]),
    ],
)
def test_longest_text_is_what_the_position_table_has_room_for(class_name, limit, names):
    plan, model = plan_of(class_name)
    assert list(plan.examples) == names
    assert set(plan.dynamic.values()) == {TEXT}
    assert plan.limits == {"sequence": limit}
    run(model, {**sized(plan, sequence=limit), "input_ids": torch.full((3, limit), 5)})
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        run(model, {**sized(plan, sequence=limit + 1), "input_ids": torch.full((3, limit + 1), 5)})


def test_example_text():
    plan, model = plan_of("BertModel")
    assert plan.examples["input_ids"].shape == (EXAMPLE_BATCH, EXAMPLE_SEQUENCE)
    assert plan.examples["input_ids"].max() < model.config.vocab_size
    mask = plan.examples["attention_mask"]
    assert mask.sum(1).tolist() == [13, 6, 13]  # right-padded, one row of three


def test_vocabulary_smaller_than_the_example():
    plan, model = plan_of("BertModel", vocab_size=11)
    assert plan.examples["input_ids"].max() == 10
    run(model, plan.examples)


def test_one_token_type_is_no_input():
    plan, _ = plan_of("BertModel", type_vocab_size=1)
    assert "token_type_ids" not in plan.examples


@pytest.mark.parametrize("positions", [0, -1])
def test_no_position_table_is_no_limit(positions):
    model = model_of("BertModel")
    model.config.max_position_embeddings = positions
    assert plan_inputs(model, model.config).limits == {}


def test_offset_positions_are_model_types_of_transformers():
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    assert known.keys() >= OFFSET_POSITIONS
    assert known.keys() >= FIXED_IMAGES


# images and videos


@pytest.mark.parametrize(
    ("class_name", "sizes", "shape"),
    [
        ("ViTForImageClassification", {}, (3, 3, 30, 30)),
        ("ViTForImageClassification", {"image_size": [12, 18]}, (3, 3, 12, 18)),
        ("ViTForImageClassification", {"image_size": (12, 18)}, (3, 3, 12, 18)),
        ("ViTForImageClassification", {"num_channels": 1}, (3, 1, 30, 30)),
        ("SwinForImageClassification", {}, (3, 3, 32, 32)),
        ("CLIPVisionModelWithProjection", {}, (3, 3, 30, 30)),
        ("VideoMAEForVideoClassification", {}, (3, 2, 3, 10, 10)),
        ("TimesformerForVideoClassification", {"num_frames": 4}, (3, 4, 3, 10, 10)),
    ],
)
def test_images_have_the_size_of_the_configuration(class_name, sizes, shape):
    plan, model = plan_of(class_name, **sizes)
    assert plan.examples["pixel_values"].shape == shape
    assert plan.dynamic == {"pixel_values": ("batch", *[""] * (len(shape) - 1))}
    assert (plan.limits, plan.smallest) == ({}, {})
    run(model, plan.examples)


def test_images_of_any_size():
    plan, model = plan_of("DetrForObjectDetection")
    assert plan.dynamic == {
        "pixel_values": ("batch", "", "height", "width"),
        "pixel_mask": ("batch", "height", "width"),
    }
    assert plan.limits == {"height": 1333, "width": 1333}
    assert plan.smallest == {"height": 64, "width": 64}
    assert plan.examples["pixel_mask"].float().mean((1, 2)).tolist() == pytest.approx([1, 2 / 3, 1])
    run(model, sized(plan, height=65, width=131))  # no multiples of anything


def test_images_of_a_size_that_is_asked_for():
    model = model_of("DetrForObjectDetection")
    plan = plan_inputs(model, model.config, image_size=(64, 96))
    assert plan.examples["pixel_values"].shape == (3, 3, 64, 96)
    assert plan.dynamic == {
        "pixel_values": ("batch", "", "", ""),
        "pixel_mask": ("batch", "", ""),
    }
    assert (plan.limits, plan.smallest) == ({}, {})


def test_images_of_a_model_that_keeps_their_size():
    plan, _ = plan_of("DeformableDetrForObjectDetection")
    assert plan.examples["pixel_values"].shape == (3, 3, 480, 640)
    assert plan.dynamic["pixel_values"] == ("batch", "", "", "")


@pytest.mark.parametrize("class_name", ["ViTForImageClassification", "BertModel"])
def test_size_of_an_image_that_is_not_free(class_name):
    model = model_of(class_name)
    with pytest.raises(ExportError) as caught:
        plan_inputs(model, model.config, image_size=(64, 96))
    assert str(caught.value) == (
        f"--image-size is for models that take any size, {class_name} does not"
    )
    assert caught.value.hint == "Leave it out."


# sound and series


@pytest.mark.parametrize(
    ("kernels", "strides", "field"),
    [
        ((8, 8), (4, 4), 36),
        ((10, 3), (5, 2), 20),
        ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), 400),  # wav2vec2's own: 25 ms
        ((3, 2), (1, 1), 4),
    ],
)
def test_shortest_sound_is_one_frame(kernels, strides, field):
    plan, model = plan_of(
        "Wav2Vec2ForCTC",
        conv_kernel=kernels,
        conv_stride=strides,
        conv_dim=(16,) * len(kernels),
    )
    assert plan.smallest == {"samples": field}
    assert plan.limits == {"samples": 480_000}
    extract = model.wav2vec2.feature_extractor
    with torch.no_grad():
        assert extract(torch.zeros(1, field)).shape[-1] == 1
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            extract(torch.zeros(1, field - 1))
    samples = plan.examples["input_values"].shape[1]
    assert samples == field + 12 * math.prod(strides) + 1
    run(model, sized(plan, samples=field))


def test_sound_with_a_mask():
    plan, _ = plan_of("Wav2Vec2ForCTC")
    assert plan.dynamic == {
        "input_values": ("batch", "samples"),
        "attention_mask": ("batch", "samples"),
    }
    assert plan.examples["attention_mask"].sum(1).tolist() == [229, 152, 229]


def test_sound_without_a_mask():
    """Models with group normalization were trained without one."""
    plan, _ = plan_of("Wav2Vec2ForCTC", feat_extract_norm="group", do_stable_layer_norm=False)
    assert list(plan.examples) == ["input_values"]


def test_spectrogram():
    plan, module = plan_of("WhisperForConditionalGeneration", ENCODER)
    assert plan.examples["input_features"].shape == (3, 20, 60)
    assert plan.dynamic == {"input_features": ("batch", "", "")}
    assert run(module, plan.examples)["last_hidden_state"].shape == (3, 30, 32)


def test_series():
    plan, _ = plan_of("PatchTSTForPrediction")
    assert plan.examples["past_values"].shape == (3, 32, 3)
    assert plan.dynamic == {"past_values": ("batch", "", "")}


# two inputs, two graphs


def test_image_and_text_have_batches_of_their_own():
    plan, model = plan_of("CLIPModel")
    assert plan.dynamic == {
        "input_ids": ("texts", "sequence"),
        "attention_mask": ("texts", "sequence"),
        "pixel_values": ("images", "", "", ""),
    }
    assert plan.limits == {"sequence": 64}
    found = run(model, sized(plan, texts=2, images=5))
    assert found.logits_per_text.shape == (2, 5)


@pytest.mark.parametrize(
    ("class_name", "encoder_axis", "masked", "limits"),
    [
        (
            "BartForConditionalGeneration",
            "encoder_sequence",
            True,
            {"encoder_sequence": 64, "sequence": 64},
        ),
        ("T5ForConditionalGeneration", "encoder_sequence", True, {}),
        ("WhisperForConditionalGeneration", "", False, {"sequence": 40}),
        ("SpeechT5ForSpeechToText", "encoder_sequence", False, {}),
    ],
)
def test_decoder(class_name, encoder_axis, masked, limits):
    plan, module = plan_of(class_name, DECODER)
    assert plan.dynamic["input_ids"] == TEXT
    assert plan.dynamic["encoder_hidden_states"] == ("batch", encoder_axis, "")
    assert ("encoder_attention_mask" in plan.dynamic) == masked
    assert plan.limits == limits
    longest = sized(plan, sequence=plan.limits.get("sequence", 100))
    run(module, longest | {"input_ids": longest["input_ids"] % 50 + 3})


@pytest.mark.parametrize("main", ["", "inputs", "pixel_value"])
def test_input_of_no_known_kind(main):
    class Odd(torch.nn.Module):
        main_input_name = main

    with pytest.raises(ExportError) as caught:
        plan_inputs(Odd(), transformers.BertConfig())
    assert str(caught.value) == (
        f"Odd takes {main or 'unknown inputs'}, expected one of input_ids, pixel_values, "
        "input_values, input_features, past_values"
    )
    assert caught.value.hint == (
        "Write a factory that returns the module and example inputs: file.py:function."
    )
