"""Every family exports from a checkpoint folder, with its attention fused and its axes named."""

import re

import numpy as np
import onnx
import pytest
import torch

import tfx
from tfx.chatter import quiet
from tfx.dtypes import DType
from tfx.export.engines.engine import build_engine
from tfx.export.families import FAMILIES, build
from tfx.export.pipeline import export_bundles
from tfx.quantization import QuantizeRecipe
from tfx.quantize.engine_survey import bounded
from tfx.quantize.lowering import proof_data
from tfx.quantize.pipeline import quantize_bundle
from tfx.recipe import EngineRecipe
from tfx.runtime.engines import MODULES
from tfx.runtime.pytorch.parts import part_of, speaks

TEXT = {"batch", "sequence"}
IMAGE = {"batch"}
DECODER = {"batch", "sequence", "encoder_sequence"}

# Axes of the graph, or of each of the two; by model type or class. Others are texts.
AXES = {
    "SpeechT5ForTextToSpeech": [TEXT, DECODER],
    "beit": [IMAGE],
    "clip": [{"texts", "images", "sequence"}],
    "clip_vision_model": [IMAGE],
    "deformable_detr": [IMAGE],
    "deit": [IMAGE],
    "detr": [{"batch", "height", "width"}],
    "patchtsmixer": [IMAGE],
    "patchtst": [IMAGE],
    "speecht5": [{"batch", "samples"}, DECODER],
    "swin": [IMAGE],
    "swinv2": [IMAGE],
    "time_series_transformer": [IMAGE],
    "timesformer": [IMAGE],
    "videomae": [IMAGE],
    "vit": [IMAGE],
    "wav2vec2": [{"batch", "samples"}],
    "whisper": [IMAGE, TEXT],
}


# Of both generations at once: one engine has kernels for either.
ENGINE = EngineRecipe(gpus=("sm89", "sm120"))
LOWERED = {
    "fp16": QuantizeRecipe(DType.FLOAT16),
    "int8": QuantizeRecipe(DType.INT8, rest=DType.FLOAT16),
}


def label(family):
    return f"{family.name} {family.class_name}".replace(" ", "-").replace(",", "")


def parameters():
    """All families; further heads of one that was already there are slow."""
    seen = set()
    for family in FAMILIES:
        marks = [pytest.mark.slow] if family.config in seen else []
        seen.add(family.config)
        yield pytest.param(family, id=label(family), marks=marks)


def random_weights(model):
    """Weights large enough for attention to be far from uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2, generator=generator)
    return model


@pytest.fixture(scope="module")
def exported(folders):
    """Of a family: its folder, the model, and its bundles; each is made once."""
    made = {}

    def get(family):
        name = label(family)
        if name not in made:
            folder, model = folders.root / name, random_weights(build(family))
            with quiet():
                model.save_pretrained(folder / "from")
            bundles = export_bundles(str(folder / "from"), folder / "to", family.recipe)
            made[name] = folder, model, bundles
        return made[name]

    return get


@pytest.mark.parametrize("family", list(parameters()))
def test_family(family, exported):
    folder, model, bundles = exported(family)

    kind = model.config.model_type
    halves = (
        ["encoder", "decoder"] if model.config.is_encoder_decoder and len(bundles) == 2 else [""]
    )
    assert [bundle.manifest.source.part for bundle in bundles] == halves
    texts = [TEXT, DECODER] if len(bundles) == 2 else [TEXT]
    expected = AXES.get(family.class_name, AXES.get(kind, texts))
    if family.max_sequence:  # one length
        expected = [{"batch"}]
    assert [axes_of(bundle.manifest.signature) for bundle in bundles] == expected
    for bundle in bundles:
        assert_well_made(bundle, family)
    if len(bundles) == 2:
        # From the folder: sinusoidal positions are made anew and not read from there.
        with quiet():
            whole = type(model).from_pretrained(folder / "from").eval()
        assert_chain(bundles, whole)


@pytest.mark.parametrize("family", FAMILIES, ids=label)
def test_family_builds_as_engines(family, exported, tmp_path):
    """In float16, and in int8 with float16 around: less than a second of a processor each."""
    pytest.importorskip(
        MODULES[ENGINE.target], reason="needs TensorRT-RTX: pip install 'tfx-toolkit[rtx]'"
    )
    for bundle in exported(family)[2]:
        for name, recipe in LOWERED.items():
            path = tmp_path / f"{bundle.name}-{name}"
            data = proof_data(bundle) if recipe.needs_calibration else None
            lowered = quantize_bundle(bundle, path, recipe=recipe, data=data)
            made = build_engine(lowered, bounded(ENGINE, lowered)).build
            assert made.gpus == ENGINE.gpus
            assert made.attention + made.spelled_out == bundle.manifest.facts["attention"]


def axes_of(signature):
    return {dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)}


def assert_well_made(bundle, family):
    manifest = bundle.manifest
    assert manifest.parity.passed
    assert max(check.error for check in manifest.parity.checks) <= 1e-4
    graph = onnx.load(bundle.model).graph
    operators = [node.op_type for node in graph.node]
    assert {node.domain for node in graph.node} == {""}
    assert operators.count("Attention") == manifest.facts["attention"]
    assert operators.count("Attention") or family.unfused
    assert bool(operators.count("Softmax")) == bool(family.unfused)
    assert_axes_are_named(graph, manifest.signature)


def assert_axes_are_named(graph, signature):
    """The axes of the graph are those of the signature, and each has one name."""
    for value in graph.input:
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        spec = next(spec for spec in signature.inputs if spec.name == value.name)
        assert dims == list(spec.shape)
    assert signature.ranges.keys() <= axes_of(signature)
    # What the inputs' sizes are computed into may have a name of its own, but no symbol.
    for spec in (*signature.inputs, *signature.outputs):
        for dim in spec.shape:
            assert not re.search(r"\b[su]\d+\b", str(dim)), spec


def assert_chain(bundles, model):
    """Encoder and decoder, one after the other, give the logits of the whole model."""
    encoder, decoder = (tfx.open_session(bundle, threads=2) for bundle in bundles)
    with encoder, decoder:
        feed = source(bundles[0].manifest.signature, model.config)
        rng = np.random.default_rng(1)
        states = encoder.predict(feed)["last_hidden_state"]
        if speaks(model):
            part_of(model, "decoder")  # averages what it draws
            kind, shape = "input_values", (2, 6, model.config.num_mel_bins)
            target = {kind: rng.normal(size=shape).astype(np.float32)}
            more = {"speaker_embeddings": rng.normal(size=(2, 16)).astype(np.float32)}
        else:
            kind, more = "input_ids", {}
            target = {kind: rng.integers(3, model.config.vocab_size, size=(2, 6))}
        given = {"encoder_hidden_states": states, **target, **more}
        if "attention_mask" in feed:
            given["encoder_attention_mask"] = feed["attention_mask"]
        found = decoder.predict(given)
    output = "spectrogram" if speaks(model) else "logits"
    tensors = {name: torch.from_numpy(array) for name, array in (feed | more).items()}
    tensors[f"decoder_{kind}"] = torch.from_numpy(target[kind])
    with torch.no_grad():
        whole = model(**tensors)[output]
    np.testing.assert_allclose(found[output], whole.numpy(), rtol=1e-4, atol=1e-4)
    if "attention_mask" in feed:
        # The comparison above could fail: without the mask, the second row is another.
        unmasked = tensors | {"attention_mask": torch.ones_like(tensors["attention_mask"])}
        with torch.no_grad():
            other = model(**unmasked)[output]
        assert (other - whole)[1].abs().max() > 1e-3


def source(signature, config):
    """Two rows for the encoder, the second padded where there is a mask."""
    rng = np.random.default_rng(0)
    first = signature.inputs[0]
    length = 800 if "samples" in first.shape else 9
    shape = [
        {"batch": 2}.get(size, size if isinstance(size, int) else length) for size in first.shape
    ]
    if first.name == "input_ids":
        feed = {first.name: rng.integers(3, config.vocab_size - 1, size=shape)}
    else:
        feed = {first.name: rng.normal(size=shape).astype(np.float32)}
    if "attention_mask" in {spec.name for spec in signature.inputs}:
        mask = np.ones(shape, np.int64)
        mask[1, length * 2 // 3 :] = 0
        feed["attention_mask"] = mask
    return feed


def test_labels_tell_families_apart():
    labels = [label(family) for family in FAMILIES]
    sizes = [str(sorted(family.sizes.items(), key=str)) for family in FAMILIES]
    assert len(set(labels)) == len(labels)
    assert len({*zip([family.class_name for family in FAMILIES], sizes, strict=True)}) == len(
        labels
    )


def test_built_twice_is_the_same():
    one, other = (build(FAMILIES[0]).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    different = build(FAMILIES[0], seed=1).state_dict()
    assert any(not torch.equal(one[name], different[name]) for name in one)
