"""Sounds through a session: files, rates, windows, and what PyTorch says of the same."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
import transformers
from support.bundles import write_bundle
from support.hearing import FRAME, spelled, write_listener, write_speller
from support.sounds import tone, write_sound
from support.speech import wav2vec2

from tfx.bundle import open_bundle
from tfx.errors import BundleError, DataError, FeedError
from tfx.export.pipeline import export_bundle
from tfx.processing import AudioPreparation, Classification
from tfx.runtime.opening import open_session
from tfx.runtime.speech.sounds import SoundRunner, answer_sounds
from tfx.runtime.speech.transcript import Transcript
from tfx.runtime.text.answers import TextLabel
from tfx.signature import Signature

LABELS = {0: "zero", 1: "one", 2: "two"}


def folder_of(root, cls, **changes):
    folder = wav2vec2(root / "model", cls, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_bundle(str(folder), root / "bundle")
    return root


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("ctc"), transformers.Wav2Vec2ForCTC)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return folder_of(
        tmp_path_factory.mktemp("labels"),
        transformers.Wav2Vec2ForSequenceClassification,
        id2label=LABELS,
        label2id={label: index for index, label in LABELS.items()},
    )


@pytest.fixture
def sounds(rng):
    noise = (rng.normal(size=6000) * np.linspace(0, 1, 6000)).astype(np.float32)
    return [tone(440, 0.4, 16000), noise, noise[1000:4000], tone(90, 0.4, 16000)]


def torch_logits(root, sound):
    model = (
        transformers.AutoModelForCTC
        if "ctc" in root.name
        else (transformers.AutoModelForAudioClassification)
    )
    extractor = transformers.AutoFeatureExtractor.from_pretrained(root / "model")
    given = extractor(sound, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        return model.from_pretrained(root / "model").eval()(**given).logits[0]


def test_ctc_gives_the_text_of_transformers(letters, sounds):
    tokenizer = transformers.AutoTokenizer.from_pretrained(letters / "model")
    with open_session(letters / "bundle", backend="onnxruntime") as session:
        found = session.predict(sounds)
        assert session.predict(sounds[1]) == found[1]
    wanted = [tokenizer.decode(torch_logits(letters, one).argmax(-1)) for one in sounds]
    assert [one.text for one in found] == wanted
    assert len(set(wanted)) == len(wanted)
    assert all(wanted)
    assert isinstance(found[0], Transcript)


def test_classification_gives_the_scores_of_transformers(words, sounds):
    with open_session(words / "bundle", backend="onnxruntime") as session:
        found = session.predict(sounds, max_rows=2)  # padded beside each other
        alone = [session.predict(one) for one in sounds]
    for sound, one, other in zip(sounds, found, alone, strict=True):
        wanted = torch_logits(words, sound).softmax(-1)
        assert isinstance(one, TextLabel)
        assert one.label == LABELS[int(wanted.argmax())]
        np.testing.assert_allclose(one.scores, wanted, atol=1e-5)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_files_of_another_rate_are_what_arrays_of_it_are(words, tmp_path):
    samples = tone(440, 0.5, 8000) * 0.5
    path = write_sound(tmp_path / "a.wav", samples, 8000)
    with open_session(words / "bundle", backend="onnxruntime") as session:
        file, text = session.predict([path, str(path)])
        array = session.predict(samples, sampling_rate=8000)
        same = session.predict(tone(440, 0.5, 16000) * 0.5)
        other = session.predict(samples)  # taken for twice as fast
    assert file == text
    np.testing.assert_allclose(file.scores, array.scores, atol=1e-3)
    np.testing.assert_allclose(file.scores, same.scores, atol=5e-3)
    assert np.abs(np.subtract(file.scores, other.scores)).max() > 1e-2


def narrowed(root, longest):
    """The bundle as if its model took shorter sounds."""
    bundle = open_bundle(root / "bundle")
    ranges = dict(bundle.manifest.signature.ranges)
    ranges["samples"] = dataclasses.replace(
        ranges["samples"], opt=ranges["samples"].min, max=longest
    )
    signature = dataclasses.replace(bundle.manifest.signature, ranges=ranges)
    manifest = dataclasses.replace(bundle.manifest, signature=signature)
    return dataclasses.replace(bundle, manifest=manifest)


def test_long_speech_is_read_in_windows(letters, rng):
    # Sound that repeats with the windows' step: each window alone gives the same frames.
    longest, hop = 3200, 16
    step = int(longest * 5 / 6) // hop * hop
    sound = np.tile(rng.normal(size=step).astype(np.float32), 4)[: 3 * step + 1000]
    bundle = narrowed(letters, longest)
    assert bundle.manifest.processing.transcription.hop == hop
    seen = []
    with open_session(bundle, backend="onnxruntime") as session:

        def run(feed):
            seen.append(feed["input_values"].shape)
            return session.predict(feed)

        found = answer_sounds(bundle, run, sound)
        whole = answer_sounds(open_bundle(letters / "bundle"), session._run, sound)
    assert sorted(seen) == [(1, 3 * step + 1000 - 3 * step), (3, longest)]
    # Random weights hear all of a window at once, so only most of the text is the same.
    assert 0.7 * len(whole.text) < len(found.text) < 1.4 * len(whole.text)


def test_scores_of_windows_are_averaged(words, rng):
    sound = rng.normal(size=5000).astype(np.float32)
    bundle = narrowed(words, 3000)
    with open_session(bundle, backend="onnxruntime") as session:
        found = session.predict(sound)
        parts = [session.predict(sound[start : start + 3000]) for start in (0, 2500)]
    np.testing.assert_allclose(found.scores, np.mean([one.scores for one in parts], 0), atol=1e-6)


@pytest.mark.parametrize("frames", [21, 35, 47, 60])
def test_windows_of_one_size_reach_back_from_the_end(frames, tmp_path):
    bundle = of_one_size(write_speller(tmp_path / "speller"), 20 * FRAME)
    letters = np.random.default_rng(frames).choice(list("A_B"), frames)
    seen = []
    with open_session(bundle, backend="onnxruntime") as session:

        def run(feed):
            seen.append(feed["input_values"].shape[1])
            return session.predict(feed)

        sound = spelled("".join(letters))
        found = answer_sounds(bundle, run, sound)
        end = answer_sounds(bundle, run, np.append(sound, sound[:1]))  # less than a frame more
    heard = [one for one, before in zip(letters, ["", *letters], strict=False) if one != before]
    assert found.text == end.text == "".join(heard).replace("_", "")
    assert set(seen) == {20 * FRAME}


def test_scores_of_windows_of_one_size(tmp_path):
    bundle = of_one_size(write_listener(tmp_path / "listener"), 20 * FRAME)
    sound = spelled("A" * 20 + "B")
    with open_session(bundle, backend="onnxruntime") as session:
        found = session.predict(sound)
        parts = [session.predict(one) for one in (sound[: 20 * FRAME], sound[-20 * FRAME :])]
    np.testing.assert_allclose(found.scores, np.mean([one.scores for one in parts], 0), atol=1e-6)


def of_one_size(bundle, samples):
    """The bundle as if its model took sounds of so many samples and no others."""
    fixed = {"samples": samples, "frames": samples // FRAME}

    def pinned(specs):
        return tuple(
            dataclasses.replace(spec, shape=tuple(fixed.get(axis, axis) for axis in spec.shape))
            for spec in specs
        )

    old = bundle.manifest.signature
    ranges = {axis: size for axis, size in old.ranges.items() if axis not in fixed}
    signature = Signature(pinned(old.inputs), pinned(old.outputs), ranges)
    return dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, signature=signature)
    )


@pytest.mark.parametrize(
    ("sound", "error", "message"),
    [
        (np.zeros(8, np.float32), FeedError, r"a sound is 0\.001 s, bundle takes 0\.\d+ s or more"),
        (np.zeros((2, 8000), np.float32), FeedError, r"a sound is float32\[2, 8000\], expected"),
        (np.zeros(8000, np.int16), FeedError, r"a sound is int16\[8000\], expected"),
        (np.full(8000, np.nan, np.float32), FeedError, "a sound holds NaN or infinity"),
        (3, FeedError, "a sound is int, expected the path of a WAV file, or an array"),
        ([], FeedError, "got an empty list, expected at least one sound"),
        ("nowhere.wav", DataError, "cannot read nowhere.wav"),
    ],
)
def test_what_is_no_sound(words, sound, error, message):
    with (
        open_session(words / "bundle", backend="onnxruntime") as session,
        pytest.raises(error, match=message),
    ):
        session.predict(sound)


def test_a_rate_that_cannot_be(words, sounds):
    with (
        open_session(words / "bundle", backend="onnxruntime") as session,
        pytest.raises(FeedError, match="sampling_rate is 0, expected 1 or more"),
    ):
        session.predict(sounds[0], sampling_rate=0)


def test_a_bundle_that_does_not_hear(tmp_path):
    bundle = write_bundle(tmp_path / "text")
    with pytest.raises(FeedError, match="text does not say how sound becomes arrays") as caught:
        SoundRunner(bundle, dict)
    assert caught.value.hint.startswith("Give arrays")


def test_a_bundle_that_needs_more_than_sound(words):
    bundle = open_bundle(words / "bundle")
    said = dataclasses.replace(bundle.manifest.processing, audio=AudioPreparation())
    bundle = with_processing(bundle, said)
    with pytest.raises(FeedError, match="bundle needs attention_mask beside sound"):
        SoundRunner(bundle, dict)


def with_processing(bundle, processing):
    manifest = dataclasses.replace(bundle.manifest, processing=processing)
    return dataclasses.replace(bundle, manifest=manifest)


def test_a_sound_that_is_too_long_where_windows_cannot_be_joined(words):
    bundle = narrowed(words, 3000)
    said = dataclasses.replace(bundle.manifest.processing, classification=None)
    with pytest.raises(FeedError, match=r"a sound is 0\.3 s, bundle takes 0\.2 s") as caught:
        answer_sounds(with_processing(bundle, said), dict, np.zeros(5000, np.float32))
    assert caught.value.hint == "Cut it in pieces."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classification": Classification("scores", ("a", "b", "c"))}, "an output 'scores'"),
        ({"classification": Classification("logits", ("a",))}, "logits has 3 classes, .* 1 labels"),
    ],
)
def test_outputs_that_do_not_fit_the_manifest(words, changes, message, sounds):
    bundle = open_bundle(words / "bundle")
    bundle = with_processing(bundle, dataclasses.replace(bundle.manifest.processing, **changes))
    with (
        open_session(bundle, backend="onnxruntime") as session,
        pytest.raises(BundleError, match=message),
    ):
        session.predict(sounds[0])


def test_without_a_head_each_sound_has_its_part_of_the_outputs(words, sounds):
    bundle = open_bundle(words / "bundle")
    said = dataclasses.replace(bundle.manifest.processing, classification=None)
    with open_session(with_processing(bundle, said), backend="onnxruntime") as session:
        found = session.predict(sounds)
    for sound, one in zip(sounds, found, strict=True):
        np.testing.assert_allclose(one["logits"], torch_logits(words, sound), atol=1e-4)
