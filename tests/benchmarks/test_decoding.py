"""``python -m tfx.bench.decoding``: rows of what really ran, beside peers that did not."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.bundles import write_bundle
from support.generators import write_generator

from tfx.bench.decoding import (
    DecodingReport,
    DecodingRow,
    contestants_of,
    decoding,
    measure_decoding,
    notes_of,
    show_decoding,
)
from tfx.bench.environments import ENVIRONMENTS, Environment
from tfx.bench.measuring.machine import this_machine
from tfx.bench.pages.stored import read_stored
from tfx.bench.peers import generators
from tfx.bench.peers.contestants import Contestant
from tfx.bench.peers.genai import write_genai_graph
from tfx.bench.peers.generators import Server
from tfx.bench.peers.watch import Job, Watch, resident_mb
from tfx.console import progress
from tfx.errors import BundleError, FeedError
from tfx.export.pipeline import export_bundles
from tfx.recipe import Source, SourceKind

# Says that a token takes so many milliseconds, and which tokens it writes.
STAND_IN = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "load":
        job = asked["job"]
        if job.get("fails") == "load":
            answer = {"error": "ImportError: no such library", "hint": ""}
        else:
            answer = {"ok": {"versions": "stand-in 1", "precision": "float32", "note": "slow",
                             "resident_mb": 100.0}}
    else:
        count, ms = asked["count"], job["ms"]
        times = [ms / 1e3 * (step + 2) for step in range(count)]
        if job.get("unseen"):
            times = times[-1:]
        count -= job.get("short", 0)
        row = [step if step < job.get("right", 999) else -1 for step in range(count)]
        answer = {"ok": {"ids": [row] * len(asked["prompt"]), "times_s": times,
                         "cpu_s": 2 * times[-1], "copies": None, "peak_mb": 150.0}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoded")
    source = write_generator(folder / "source", "gpt2")
    return export_bundles(str(source), folder / "bundle", cache=True)[0]


def stand_in(folder, name, *, own=False, problem="", **job):
    script = folder / "peer.py"
    script.write_text(STAND_IN)
    return Contestant(name, own, sys.executable, name, job, script, problem)


def measured(contestants, count=9, **changes):
    options = {"rounds": 2, "limit_s": 60.0} | changes
    with progress() as shown:
        return measure_decoding(
            contestants, np.zeros((2, 3), np.int64), count, progress=shown, **options
        )


def test_rows_sum_up_what_each_says(tmp_path):
    who = [
        stand_in(tmp_path, "ours", own=True, ms=4.0),
        stand_in(tmp_path, "transformers", ms=8.0, right=3),
        stand_in(tmp_path, "at once", ms=2.0, unseen=True),
        stand_in(tmp_path, "broken", ms=1.0, fails="load"),
        stand_in(tmp_path, "absent", problem="not installed: no wheel", ms=1.0),
        stand_in(tmp_path, "ends early", ms=1.0, short=1),
    ]
    rows, reference = measured(who, rounds=6)
    assert reference == "transformers"
    ours, slow, once, broken, absent, early = rows
    assert (ours.first_ms, ours.rounds) == (pytest.approx(8), 6)
    for value in (ours.step_ms, ours.step_p95_ms, ours.early_ms, ours.late_ms):
        assert value == pytest.approx(4)
    assert ours.total_s == pytest.approx(0.04)
    assert ours.row_tokens_per_s == pytest.approx(9 / 0.04)
    assert ours.tokens_per_s == pytest.approx(18 / 0.04)
    assert (ours.same_tokens, slow.same_tokens) == (pytest.approx(3 / 9), 1)
    assert (ours.cpu_ratio, ours.grown_mb) == (1, 50)
    assert (slow.cpu_ratio, slow.cpu_low, slow.cpu_high) == pytest.approx((2, 2, 2))
    assert (once.first_ms, once.step_ms, once.late_ms) == (None, None, None)
    assert once.total_s == pytest.approx(0.02)
    assert broken.reason == "ImportError: no such library"
    assert absent.reason == "not installed: no wheel"
    assert early.reason == "it wrote 1 and 1 tokens, expected 2 in each of 2 rows"


def test_few_rounds_have_a_ratio_and_no_interval(tmp_path):
    (row,), _ = measured([stand_in(tmp_path, "ours", own=True, ms=4.0)], rounds=5)
    assert (row.cpu_ratio, row.cpu_low, row.cpu_high) == (1, None, None)


def report_on(*rows):
    return DecodingReport(this_machine(), "2026", 2, 3, 9, 2, 1.25, "", rows)


@pytest.mark.parametrize(
    ("rounds", "low", "said"),
    [
        (6, 1.0, "its 95 % interval"),
        (5, 1.0, "range of 5 rounds"),
        (5, None, "no interval of 5 rounds"),
    ],
)
def test_notes_say_what_a_ratio_has_around_it(rounds, low, said):
    row = DecodingRow("ours", True, rounds=rounds, cpu_low=low, cpu_high=low)
    (note,) = (one for one in notes_of(report_on(row)) if one.startswith("CPU ratio"))
    assert note == f"CPU ratio: of processor time, to the first row of tfx, {said}"


def test_without_transformers_the_first_row_is_what_others_are_compared_with(tmp_path):
    rows, reference = measured([stand_in(tmp_path, "ours", own=True, ms=1.0)])
    assert (reference, rows[0].same_tokens) == ("ours", 1)
    rows, reference = measured([stand_in(tmp_path, "absent", problem="why", ms=1.0)])
    assert (reference, rows[0].reason) == ("", "why")


def test_contestants(bundle, tmp_path):
    found = contestants_of(
        [bundle],
        ["onnxruntime", "openvino"],
        ["", "bf16"],
        ["transformers", "ctranslate2", "optimum-onnx"],
        {"ctranslate2": Environment("ctranslate2", "/p", "not installed: why")},
        2,
        60,
    )
    assert [one.name for one in found] == [
        "bundle on onnxruntime",
        "bundle on onnxruntime bf16",
        "bundle on openvino",
        "bundle on openvino bf16",
        "transformers",
        "ctranslate2",
        "optimum-onnx",
    ]
    assert found[3].job["precision"] == "bf16"
    assert found[0].job["layers"] == 2
    assert found[0].job["kind"] == "float32"
    assert found[4].problem == ""
    assert found[5].problem == "not installed: why"
    assert found[6].problem.startswith("no environment: make one with")
    with pytest.raises(FeedError, match="65 tokens are asked for, bundle takes 64"):
        contestants_of([bundle], ["openvino"], [""], [], {}, 2, 65)
    with pytest.raises(FeedError, match="tiny has no cache to generate with"):
        contestants_of([write_bundle(tmp_path / "tiny")], ["openvino"], [""], [], {}, 2, 6)
    manifest = dataclasses.replace(
        bundle.manifest, source=Source(SourceKind.CHECKPOINT, str(tmp_path / "other"))
    )
    with pytest.raises(BundleError, match="are not of one model"):
        contestants_of(
            [bundle, dataclasses.replace(bundle, manifest=manifest)],
            ["openvino"],
            [""],
            [],
            {},
            2,
            6,
        )


def test_every_peer_has_its_environment():
    named = {peer.environment for peer in generators.PEERS.values()}
    assert named <= {"", *ENVIRONMENTS}


def job_of(made, folder, **changes):
    fields = {
        "checkpoint": str(made.path.parent / "source"),
        "model": str(made.model),
        "folder": str(folder),
        "threads": torch.get_num_threads(),  # which it sets for the whole process
        "room": 20,
    }
    return Job(**fields | changes)


def test_transformers_and_tfx_write_the_same(bundle, tmp_path):
    ids = np.array([[5, 6, 7, 8], [9, 10, 11, 12]])
    texts = [generators.load_transformers(job_of(bundle, tmp_path)).write(ids, 6)]
    for backend in ("onnxruntime", "openvino"):
        own = job_of(bundle, tmp_path, bundle=str(bundle.path), backend=backend)
        ready = generators.load_tfx(own)
        assert (ready.versions.split()[0], ready.precision) == (backend, "float32")
        texts.append(ready.write(ids, 6))
        assert texts[-1].copies == 0
    for text in texts:
        assert text.ids == texts[0].ids
        assert np.shape(text.ids) == (2, 6)
        assert len(text.times_s) == 6
        assert text.cpu_s > 0


def test_the_graph_for_genai_makes_positions_itself(bundle, tmp_path, rng):
    """Run as genai does: past in a buffer of all places, a mask of the tokens so far."""
    import onnxruntime

    from tfx.runtime.backend import RunOptions, get_backend
    from tfx.runtime.generation.decoder import Decoder

    path = tmp_path / "model.onnx"
    write_genai_graph(bundle.model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = rng.integers(4, 60, (2, 5))
    decoder = Decoder(
        get_backend("onnxruntime").load(bundle, RunOptions()), bundle.manifest.signature
    )
    expected = [decoder.start(ids[:, :4], np.ones((2, 4), np.int64), 20), decoder.step(ids[:, 4])]
    pasts = [one.name for one in session.get_inputs() if one.name.startswith("past_")]
    cache = {name: np.zeros((2, 4, 20, 8), np.float32) for name in pasts}
    names = [one.name for one in session.get_outputs()]
    for tokens, end, wanted in ((ids[:, :4], 4, expected[0]), (ids[:, 4:], 5, expected[1])):
        feed = {"input_ids": tokens, "attention_mask": np.ones((2, end), np.int64), **cache}
        found = dict(zip(names, session.run(None, feed), strict=True))
        np.testing.assert_allclose(found["logits"][:, -1], wanted, rtol=1e-4, atol=1e-5)
        cache = {name: found[name.replace("past_", "present_")] for name in cache}


def test_the_server_answers(bundle, tmp_path):
    server = Server()
    own = job_of(bundle, tmp_path, bundle=str(bundle.path), backend="onnxruntime")
    loaded = server.answer({"do": "load", "peer": "tfx", "job": dataclasses.asdict(own)})
    assert loaded["precision"] == "float32"
    assert loaded["resident_mb"] > 1
    text = server.answer({"do": "write", "prompt": [[4, 5]], "count": 3})
    assert len(text["ids"][0]) == 3
    assert text["peak_mb"] > 1
    with pytest.raises(ValueError, match="no such question: sing"):
        server.answer({"do": "sing"})


def test_what_is_not_seen_is_one_time(tmp_path):
    text = Watch().text([[1, 2]])
    assert len(text.times_s) == 1
    assert text.copies is None
    assert resident_mb("VmRSS", tmp_path / "none") is None


def test_command(bundle, tmp_path):
    options = ["--prompt", "4", "--new-tokens", "6", "--rounds", "1", "--no-peers"]
    where = ["--save", str(tmp_path / "kept"), "--backend", "onnxruntime"]
    result = CliRunner().invoke(decoding, [str(bundle.path), *options, *where, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (row,) = document["rows"]
    assert ("reason" in row, row["same_tokens"], row["copies"]) == (False, 1, 0)
    (path,) = (tmp_path / "kept").iterdir()
    stored = read_stored(json.loads(path.read_text()))
    assert (stored.command, stored.result["reference"]) == ("decoding", "bundle on onnxruntime")
    refused = CliRunner().invoke(decoding, [str(bundle.path), "--prompt", "70"])
    assert refused.exit_code == 1
    assert "Ask for fewer tokens." in refused.output


def test_the_table(tmp_path, capsys):
    rows, reference = measured(
        [
            stand_in(tmp_path, "ours", own=True, ms=4.0),
            stand_in(tmp_path, "absent", problem="no wheel", ms=1.0),
        ]
    )
    show_decoding(DecodingReport(this_machine(), "2026", 2, 3, 9, 2, 1.25, reference, rows))
    shown = capsys.readouterr().out
    assert "batch 2, prompt 3, 9 new tokens, 2 threads" in shown
    assert "absent not run: no wheel" in shown
    assert "ours: slow" in shown
    assert "the cache is 1.2 MB" in shown
