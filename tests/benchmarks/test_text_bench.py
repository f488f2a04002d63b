import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.peers import stand_in

from tfx.bench import text as module
from tfx.bench.environments import Environment
from tfx.bench.measuring.machine import this_machine
from tfx.bench.measuring.workload import Way
from tfx.bench.pages.sheets import section_of
from tfx.bench.pages.stored import read_stored
from tfx.bench.peaks import GemmPeak, Peaks
from tfx.bench.peers.embedders import Job, load_tfx
from tfx.bench.peers.throughput import BATCHES, Corpus, TextRow
from tfx.bench.text import (
    WAYS,
    TextReport,
    contestants_of,
    notes_of,
    parse_pythons,
    show_texts,
    text,
)
from tfx.codec import decode
from tfx.dtypes import DType
from tfx.errors import BundleError, DataError
from tfx.processing import Embedding, Processing, Tokenization
from tfx.recipe import Source, SourceKind
from tfx.runtime.opening import open_session
from tfx.runtime.stats import Comparison, Verdict

PEAKS = Peaks("f", 0.0, (GemmPeak("torch", "2", DType.FLOAT32, 2, "9x9x9", 100.0),), ())
OWN = TextRow(
    "minilm on openvino",
    True,
    versions="openvino 3",
    precision="float32",
    batch=2,
    rounds=8,
    sentences_per_s=200.0,
    tokens_per_s=8000.0,
    gflops=60.0,
    peak_share=0.6,
    min_cosine=0.9999,
    mean_cosine=1.0,
    comparison=Comparison("fastembed", 1.6, 1.5, 1.7, Verdict.FASTER),
    any_comparison=Comparison("rough", 0.9, 0.8, 1.0, Verdict.UNSURE),
)
PEER = dataclasses.replace(
    OWN, name="fastembed", own=False, batch=32, note="sorted for it", comparison=None
)
ABSENT = TextRow("ctranslate2", False, "not installed: no wheel")
REPORT = TextReport(
    this_machine(), "2026-01-01T10:20:30.5", 20, 900, 99, 2, "st", PEAKS, (PEER, OWN, ABSENT)
)


@pytest.fixture
def embedder(tmp_path):
    """A bundle that embeds, of a checkpoint that is there."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").write_text("{}")

    def make(name, **changes):
        given = {
            "source": Source(SourceKind.CHECKPOINT, str(tmp_path / "checkpoint")),
            "processing": Processing(
                tokenization=Tokenization("tokenizer.json", 16),
                embedding=Embedding("last_hidden_state", ("mean",), True),
            ),
        }
        return write_bundle(tmp_path / name, files=tokenizer(), name=name, **given | changes)

    return make


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return {"tokenizer.json": made.to_str().encode()}


def test_every_bundle_runs_in_every_way_and_then_the_peers(embedder, tmp_path):
    bundles = [embedder("one"), embedder("two")]
    pythons = {
        "fastembed": Environment("fastembed", "/envs/python"),
        "optimum": Environment("optimum", "/other", "not installed: no wheel"),
    }
    chosen = ["sentence-transformers", "optimum-onnx", "fastembed"]
    found = contestants_of(bundles, WAYS[1:], chosen, pythons, 3)
    assert [one.name for one in found] == [
        "one on openvino",
        "one on openvino bf16",
        "two on openvino",
        "two on openvino bf16",
        *chosen,
    ]
    own, *_, torch, optimum, fastembed = found
    assert own.own
    assert own.job == {
        "checkpoint": str(tmp_path / "checkpoint"),
        "model": str(bundles[0].model),
        "threads": 3,
        "max_length": 16,
        "dim": 8,
        "bundle": str(bundles[0].path),
        "backend": "openvino",
        "precision": "",
    }
    assert own.batches == (1, 3)
    assert torch.batches == BATCHES
    assert torch.python == sys.executable
    assert not torch.problem
    assert optimum.problem == "not installed: no wheel"
    assert fastembed.python == "/envs/python"


def test_only_what_has_streams_chooses_how_many(embedder):
    ways = [Way("torch"), Way("openvino")]
    assert [one.batches for one in contestants_of([embedder("one")], ways, [], {}, 1)] == [(1,)] * 2
    found = contestants_of([embedder("two")], ways, [], {}, 2)
    assert [one.batches for one in found] == [(1,), (1, 2)]


def test_a_bundle_that_does_not_embed_is_refused(embedder):
    bundle = embedder("plain", processing=Processing())
    with pytest.raises(BundleError) as raised:
        contestants_of([bundle], WAYS, [], {}, 1)
    assert str(raised.value) == "plain does not embed: its answers are no vectors to compare"
    assert raised.value.hint == "Name bundles of an embedding model, such as minilm."


def test_bundles_of_two_models_are_refused(embedder, tmp_path):
    other = embedder("other", source=Source(SourceKind.CHECKPOINT, "elsewhere"))
    with pytest.raises(BundleError) as raised:
        contestants_of([embedder("one"), other], WAYS, [], {}, 1)
    assert str(raised.value) == "one and other are not of one model"


def test_pythons_are_by_the_name_of_an_environment():
    assert parse_pythons(["optimum=/a/b=c"]) == {"optimum": Environment("optimum", "/a/b=c")}


@pytest.mark.parametrize("given", ["optimum", "optimum=", "nobody=/python"])
def test_a_python_of_no_environment_is_refused(given):
    with pytest.raises(DataError) as raised:
        parse_pythons([given])
    assert str(raised.value) == f"--peer-python is {given!r}, expected NAME=PYTHON"
    assert raised.value.hint == "Use one of these names: ctranslate2, fastembed, optimum."


def test_the_table_has_every_row_and_what_its_numbers_are_against(capsys):
    show_texts(REPORT)
    shown = " ".join(capsys.readouterr().out.split())
    assert "20 texts of 45 tokens on average, the longest 99; 2 threads" in shown
    assert "float32 2 at once 200 8000 60% 0.9999 1.0000 1.60x 1.50 to 1.70" in shown
    assert "fastembed float32 32 200 8000 60% 0.9999 1.0000 - -" in shown
    assert "ctranslate2 not run: not installed: no wheel" in shown


def test_notes_say_what_is_best_and_against_what():
    assert notes_of(REPORT) == [
        "cosine: the least and the mean, with st",
        "ratio: to fastembed, the fastest peer whose cosine is 0.995 or more; of rows that were "
        "in the final",
        "peak in float32: 100 GFLOP/s (torch, 2 threads, 9x9x9); padding is not counted as work",
        "fastembed: sorted for it",
        "best of tfx: minilm on openvino, 1.60x fastembed (1.50 to 1.70: faster)",
        "the fastest peer of any cosine: 0.90x rough (0.80 to 1.00: cannot say)",
    ]
    behind = dataclasses.replace(REPORT, texts=2000, rows=(dataclasses.replace(PEER, rounds=1),))
    assert "over the first 1000 texts only, being far behind: fastembed" in notes_of(behind)
    alone = dataclasses.replace(REPORT, reference="", rows=(ABSENT,))
    assert notes_of(alone) == ["cosine: nothing to compare with, no row in float32 ran"]


def test_the_command_measures_stand_ins(embedder, tmp_path, monkeypatch):
    bundle = embedder("one")
    contestants = [
        stand_in(tmp_path, sys.executable, "tfx", own=True, us=20.0, best=2),
        stand_in(tmp_path, sys.executable, "sentence-transformers", us=60.0),
    ]
    asked = {}

    def chosen(bundles, ways, peers, pythons, threads):
        asked.update(ways=ways, peers=list(peers), pythons=pythons, threads=threads)
        return contestants

    monkeypatch.setattr(module, "contestants_of", chosen)
    monkeypatch.setattr(module, "read_sentences", lambda data, count, seed: ["a b"] * count)
    monkeypatch.setattr(module, "stored_peaks", lambda path: PEAKS)
    flops = np.full(30, 5.0)
    monkeypatch.setattr(
        module, "read_corpus", lambda bundle, texts: Corpus(tuple(texts), flops, flops)
    )
    arguments = [str(bundle.path), "--data", str(tmp_path), "--sentences", "30", "--rounds", "3"]
    arguments += ["--peer-python", "optimum=/x", "--peer", "optimum-onnx", "--threads", "2"]
    arguments += ["--backend", "openvino", "--precision", "bf16", "--precision", "fp32"]
    arguments += ["--save", str(tmp_path / "kept"), "--json"]
    done = CliRunner().invoke(text, arguments)
    assert done.exit_code == 0, done.output
    report = decode(TextReport, json.loads(done.stdout))
    assert [str(way) for way in asked["ways"]] == ["openvino bf16", "openvino fp32"]
    assert asked["peers"] == ["optimum-onnx"]
    assert asked["threads"] == report.threads == 2
    assert report.reference == "sentence-transformers"
    assert report.rows[0].comparison.speedup == pytest.approx(3.0)
    (kept,) = Path(tmp_path, "kept").iterdir()
    assert decode(TextReport, json.loads(kept.read_text())["result"]) == report
    sheet = section_of(read_stored(json.loads(kept.read_text()))).sheets[0]
    assert {line[0] for line in sheet.lines} <= {row.name for row in report.rows}
    assert sheet.lines


def test_the_command_says_what_is_missing(embedder, tmp_path):
    arguments = [str(embedder("one").path), "--data", str(tmp_path), "--no-peers"]
    done = CliRunner().invoke(text, arguments)
    assert done.exit_code == 1
    assert "sst2/dev.tsv cannot be read: No such file or directory" in done.output
    assert "Traceback" not in done.output


def test_tfx_runs_a_stream_of_texts_as_predict_does(embedder):
    bundle = embedder("one")
    job = Job("", "", "", 2, 16, 8, str(bundle.path), "onnxruntime")
    ready = load_tfx(job)
    assert ready.versions.startswith("onnxruntime ")
    assert ready.precision == "float32"
    texts = ["a b", "b", "a a b"]
    with open_session(bundle, backend="onnxruntime") as session:
        expected = session.predict(texts)
    for streams in (1, 2):
        assert np.allclose(ready.embed(texts, streams), expected, atol=1e-6)


def test_tokens_are_counted_by_the_bundles_own_tokenizer(embedder, monkeypatch):
    monkeypatch.setattr(module, "text_flops", lambda bundle, tokens: tokens * 2.0)
    corpus = module.read_corpus(embedder("one"), ["a b", "a", "a " * 40])
    assert corpus.tokens.tolist() == [2, 1, 16]
    assert corpus.flops.tolist() == [4, 2, 32]
