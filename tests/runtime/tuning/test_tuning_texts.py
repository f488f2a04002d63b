"""Bundles with a cache: texts are timed, their logits compared, and the choice generates."""

import numpy as np
import pytest
from support.generators import write_generator

import tfx
from tfx.console import Progress
from tfx.errors import FeedError
from tfx.export.pipeline import export_bundles
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.generation.sample_texts import sample_ids
from tfx.runtime.tuning.candidates import Outcome
from tfx.runtime.tuning.choices import stored_choice
from tfx.runtime.tuning.plan import TuningPlan
from tfx.runtime.tuning.shapes import default_shapes, label_of, shape_of
from tfx.runtime.tuning.texts import TextRun, compared_feed, default_texts, text_feed, text_sizes
from tfx.runtime.tuning.tuner import tune_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    source = write_generator(folder / "source", "llama")
    return export_bundles(str(source), folder / "bundle", cache=True)[0]


def test_sizes_of_a_text(bundle):
    signature = bundle.manifest.signature
    assert shape_of("2x10+4", signature) == {"batch": 2, "prompt": 10, "new": 4}
    assert text_sizes("1x8", signature) == {"batch": 1, "prompt": 8, "new": 32}
    assert label_of({"batch": 2, "prompt": 10, "new": 4}) == "2x10+4"
    # 64 tokens in all, half of them written.
    assert default_shapes(signature) == default_texts(signature)
    assert [label_of(sizes) for sizes in default_texts(signature)] == ["1x32+32", "8x32+32"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("long", "shape is 'long', expected one like 1x128+64"),
        ("1x8+", "shape is '1x8+', expected one like 1x128+64"),
        ("1x60+5", "shape '1x60+5' is 1 times 60 and 5 tokens, the model takes 1 to 128 times"),
        ("999x8+5", "is 999 times 8 and 5 tokens"),
        ("1x0+5", "is 1 times 0 and 5 tokens"),
    ],
)
def test_sizes_that_cannot_be(bundle, text, message):
    with pytest.raises(FeedError) as caught:
        shape_of(text, bundle.manifest.signature)
    assert message in str(caught.value)
    assert caught.value.hint.startswith("Give BATCHxPROMPT")


def test_texts_are_of_real_words_by_the_seed(bundle):
    ids = sample_ids(bundle, 2, 40, 0)
    assert (ids.shape, ids.dtype) == ((2, 40), np.int64)
    assert ids.tolist() == sample_ids(bundle, 2, 40, 0).tolist()
    assert ids.tolist() != sample_ids(bundle, 2, 40, 1).tolist()


def test_steps_give_the_logits_of_the_whole_text(bundle):
    executable = get_backend("onnxruntime").load(bundle, RunOptions(threads=1))
    run = TextRun(executable, bundle.manifest.signature)
    feed = text_feed(bundle, {"batch": 2, "prompt": 5, "new": 4}, 0)
    whole = {"input_ids": feed["input_ids"], "attention_mask": np.ones((2, 40), np.int64)}
    expected = run.whole(whole)["logits"][:, 4:8]
    found = run.outputs(feed)["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert compared_feed(feed)["input_ids"].shape == found.shape[:2]
    run.write(feed)


def test_the_choice_is_measured_by_texts_and_generates(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TFX_CACHE_MB", "100")
    sizes = {"batch": 1, "prompt": 5, "new": 4}
    plan = TuningPlan(
        shapes=(sizes,), backends=("onnxruntime",), threads=(1,), seconds=1, torch=False
    )
    tuning, problem = tune_bundle(bundle, plan, progress=Progress())
    assert problem is None
    assert tuning.chosen.outcome is Outcome.CHOSEN
    assert list(tuning.chosen.medians_ms) == ["1x5+4"]
    assert (
        "each time is of a whole text: its prompt is read, new tokens are written" in tuning.notes
    )
    assert stored_choice(bundle) == tuning
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        expected = session.generate("alpha of", max_new_tokens=6)
    with tfx.open_session(bundle, backend="auto") as session:
        assert session.generate("alpha of", max_new_tokens=6) == expected
        assert any("chosen by tune" in note for note in session.report.facts.notes)
