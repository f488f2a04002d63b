"""The generation scenario: the same tokens every way, times that fit each other, wrong ones out."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.generators import write_generator

from tfx.bench.measuring.family import same_model, usual_backends, usual_scenario
from tfx.bench.measuring.generation import (
    Written,
    cache_bytes,
    checked_feed,
    open_writer,
    same_share,
    text_of,
    writing_of,
)
from tfx.bench.measuring.report import report_from
from tfx.bench.measuring.scenario import Load
from tfx.bench.measuring.workload import Plan, Shape, shapes_of
from tfx.cli import main
from tfx.errors import BackendError, RecipeError
from tfx.export.pipeline import export_bundles

SHAPE = Shape({"batch": 2, "prompt": 5, "new": 6})
QUICK = ("--prompt-tokens", "5", "--new-tokens", "4", "--rounds", "2", "--seconds", "0.1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    source = write_generator(folder / "source", "gpt2")
    return export_bundles(str(source), folder / "bundle", cache=True)[0]


def tfx(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def opened(bundle, backend, **options):
    settings = {"precision": "", "threads": 1, "trust": False, "device": "", "seed": 0}
    return open_writer(bundle, backend=backend, shape=SHAPE, **settings | options)


def test_every_way_writes_the_same_and_agrees_after_each_token(bundle):
    found = {}
    for backend in ("torch", "onnxruntime", "openvino"):
        session, writer, load_s = opened(bundle, backend)
        with session:
            found[backend] = (writer.write(6), writer.logits())
        assert load_s > 0
    written, logits = found["torch"]
    assert written.ids.shape == (2, 6)
    assert logits.shape[:2] == (2, 6)
    for other, others in found.values():
        assert other.ids.tolist() == written.ids.tolist()
        assert len(other.times_ns) == 6
        assert list(other.times_ns) == sorted(other.times_ns)
        assert 0 < other.first_ns == other.times_ns[0]
        assert sum(other.steps_ns) == other.times_ns[-1] - other.first_ns
        np.testing.assert_allclose(others, logits, atol=1e-4)


def test_pytorch_in_bfloat16_gives_float32_logits(bundle):
    try:
        session, writer, _ = opened(bundle, "torch", precision="bf16")
    except BackendError:
        pytest.skip("no bfloat16 on this CPU")
    with session:
        assert writer.logits().dtype == np.float32
        assert writer.write(3).ids.shape == (2, 3)


def test_no_text_ends_before_its_last_token(tmp_path):
    """Without that, a row that meets an end token would do less work."""
    source = write_generator(tmp_path / "source", "llama", eos_token_id=list(range(4, 20)))
    (bundle,) = export_bundles(str(source), tmp_path / "bundle", cache=True)
    written = []
    for backend in ("torch", "onnxruntime"):
        session, writer, _ = opened(bundle, backend)
        with session:
            written.append(writer.write(6).ids)
    assert written[0].shape == (2, 6)
    assert written[0].tolist() == written[1].tolist()
    assert not set(range(4, 20)) & set(written[0].reshape(-1).tolist())


def test_prompts_are_real_words_and_the_same_for_one_seed(bundle):
    text = text_of(bundle, SHAPE, 0)
    assert text.shape == (2, 11)
    assert text.dtype == np.int64
    assert text.tolist() == text_of(bundle, SHAPE, 0).tolist()
    assert text.tolist() != text_of(bundle, SHAPE, 1).tolist()
    assert text[0].tolist() != text[1].tolist()


def test_compiled_pytorch_is_not_measured(bundle):
    with pytest.raises(BackendError, match="'torch-compiled' is not measured generating") as caught:
        opened(bundle, "torch-compiled")
    assert caught.value.hint == "Use --backend torch."
    assert "torch-compiled" not in usual_backends([bundle], writes=True)


def test_texts_are_summed_up(bundle):
    ids = np.zeros((2, 3), np.int64)
    texts = [Written((100, 110, 121), ids), Written((300, 320, 350), ids)]
    assert texts[1].steps_ns == [20, 30]
    found = writing_of(texts, 2, 0.5, bundle.manifest.signature)
    assert (found.texts, found.same_tokens, found.first_p95_ms) == (2, 0.5, None)
    assert found.first_ms == pytest.approx(200e-6)
    assert found.total_ms == pytest.approx(235.5e-6)
    assert found.row_tokens_per_s == pytest.approx(3 / 235.5e-9)
    assert found.tokens_per_s == pytest.approx(2 * found.row_tokens_per_s)
    # Keys and values of 2 layers, 32 floats each.
    assert found.cache_bytes_per_token == cache_bytes(bundle.manifest.signature) == 2 * 2 * 32 * 4


def test_tokens_count_until_the_first_that_differs():
    ids = np.array([[1, 2, 3, 4], [1, 9, 3, 4]])
    assert same_share(ids, ids) == 1
    assert same_share(ids, np.array([[1, 2, 3, 4], [1, 2, 3, 4]])) == 5 / 8


def test_the_checked_feed_has_no_padding(bundle):
    signature, feed = checked_feed(bundle.manifest.signature, SHAPE)
    assert [spec.name for spec in signature.inputs] == ["input_ids", "attention_mask"]
    assert feed["attention_mask"].tolist() == [[1] * 6] * 2


def test_sizes_are_clipped_to_what_the_cache_holds(bundle):
    load = Load("generation", new_tokens=50)
    plan = Plan(batches=(1, 500), lengths=(4, 60), load=load)
    shapes, notes = shapes_of([bundle.manifest.signature], plan)
    assert [tuple(shape.sizes.values()) for shape in shapes] == [
        (1, 4, 32), (1, 32, 32), (128, 4, 32), (128, 32, 32),
    ]  # fmt: skip
    assert str(shapes[0]) == "generation; batch 1, prompt 4, new 32"
    assert notes == (
        "new 50 was clipped to 32: the bundles admit 64 tokens in all",
        "prompt 60 was clipped to 32: the bundles admit 64 tokens in all",
        "batch 500 was clipped to 128: the bundles admit 1..128",
    )


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"new_tokens": 1}, r"new_tokens is 1, expected 2 or more"),
        ({"new_tokens": 4, "lengths": "zipf"}, "random tokens of one length: give --prompt-tokens"),
        ({"scenario": "offline", "new_tokens": 4}, "new_tokens are for scenario generation"),
    ],
)
def test_what_contradicts_itself(load, message):
    with pytest.raises(RecipeError, match=message):
        Plan(load=Load(**{"scenario": "generation"} | load))


def test_bench_writes_text_with_bundles_that_have_a_cache(bundle, tmp_path):
    (tmp_path / "texts.txt").write_text("A man is eating.\nTwo dogs run in the snow.\n" * 4)
    options = ("--batch", "2", "--backend", "torch", "--backend", "onnxruntime", "--threads", "1")
    files = ("--output", tmp_path / "o.json", "--csv", tmp_path / "o.csv")
    page = ("--html", tmp_path / "o.html", "--eval", tmp_path / "texts.txt")
    found = tfx("bench", bundle.path, *QUICK, *options, *files, *page)
    assert found.exit_code == 0, found.output
    assert "bundle: generation; batch 2, prompt 5, new 4" in found.stdout
    assert "first is to the first token; p50, p95, p99 and speed" in found.stdout
    document = json.loads((tmp_path / "o.json").read_text())
    torch, ort = report_from(document).rows
    for row in (torch, ort):
        assert row.measurement.writing.same_tokens == 1
        assert row.measurement.latency.samples == 2 * 3
        assert row.measurement.throughput_per_s == row.measurement.writing.tokens_per_s
        assert row.accuracy.metric == "perplexity"
    assert ort.accuracy.change.value == pytest.approx(0, abs=1e-3)
    assert ort.agreement[0].name == "logits"
    lines = list(csv.DictReader((tmp_path / "o.csv").read_text().splitlines()))
    assert float(lines[1]["first_ms"]) == ort.measurement.writing.first_ms
    assert lines[1]["same_tokens"] == "1.0"
    text = (tmp_path / "o.html").read_text()
    assert "first ms" in text
    assert "Most tokens a second" in text
    again = tfx("bench", bundle.path, *QUICK, *options, *page[2:], "--resume", tmp_path / "o.json")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "o.json").read_text())["rows"] == document["rows"]


def test_wrong_logits_are_not_timed(bundle, monkeypatch):
    def reference(*_):
        return {"logits": np.ones((1, 4, 64), np.float32), "tokens": np.zeros((1, 4), np.int64)}

    monkeypatch.setattr("tfx.bench.measuring.rounds._reference_of", reference)
    found = tfx("bench", bundle.path, *QUICK, "--batch", "1", "--backend", "onnxruntime")
    assert found.exit_code == 1
    assert "error: outputs are wrong: bundle on onnxruntime" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--length", "8", "--scenario", "generation"), 2, "takes --prompt-tokens"),
        (("--prompt-tokens", "8"), 2, "--prompt-tokens is for --scenario generation"),
        (("--scenario", "generation"), 1, "no cache to generate with: tiny"),
    ],
)
def test_options_for_the_other_scenario(tmp_path, arguments, code, message):
    tiny = write_bundle(tmp_path / "tiny")
    found = tfx("bench", tiny.path, *arguments)
    assert found.exit_code == code, found.output
    assert message in found.stderr


def test_what_is_usual(bundle, tmp_path):
    tiny = write_bundle(tmp_path / "tiny")
    assert usual_scenario([bundle]) == "generation"
    assert usual_scenario([bundle, tiny]) == usual_scenario([]) == "single-stream"
    assert same_model(bundle, bundle)
    assert not same_model(bundle, tiny)
