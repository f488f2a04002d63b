"""``python -m tfx.bench.contexts``: steps and memory by context, against what the cache takes."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from support.generators import write_generator

from tfx.bench import contexts as module
from tfx.bench.contexts import ContextReport, contexts, measure_contexts, show_contexts
from tfx.bench.measuring.machine import this_machine
from tfx.bench.pages.stored import read_stored
from tfx.bench.peers.contestants import Contestant
from tfx.console import progress
from tfx.errors import FeedError
from tfx.export.pipeline import export_bundles

# A token takes 1 ms, and 1 us more for each before it; memory grows by 10 kB with each.
STAND_IN = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "load":
        answer = {"ok": {"versions": "stand-in 1", "precision": "float32", "note": "",
                         "resident_mb": 50.0}}
    else:
        prompt, count = len(asked["prompt"][0]), asked["count"]
        times = [0.0]
        for step in range(count - 1):
            times.append(times[-1] + 1e-3 + 1e-6 * (prompt + step + 1))
        answer = {"ok": {"ids": [[0] * count] * len(asked["prompt"]), "times_s": times,
                         "cpu_times_s": [2 * one for one in times], "cpu_s": 1.0, "copies": None,
                         "resident_mb": [100 + 0.01 * step for step in range(count)]}}
        if BLIND:
            answer["ok"]["times_s"] = times[-1:]
    print(json.dumps(answer), flush=True)
"""


def measured(folder, *names, places=(64, 128), problem=""):
    found = []
    for name in names:
        script = folder / f"{name}.py"
        script.write_text(f"BLIND = {name == 'blind'}\n{STAND_IN}")
        found.append(Contestant(name, True, sys.executable, name, {}, script, problem))
    with progress() as shown:
        return measure_contexts(
            found,
            np.zeros((2, 16), np.int64),
            places,
            dict.fromkeys(names, 5000),
            10.0,
            rounds=1,
            limit_s=60.0,
            progress=shown,
        )


def test_a_step_and_memory_are_those_at_the_context(tmp_path):
    first, second = measured(tmp_path, "ours")
    # The median of the 32 steps that end at the context.
    assert first.step_ms == pytest.approx(1 + (64 - 15.5) / 1e3)
    assert second.step_ms == pytest.approx(1 + (128 - 15.5) / 1e3)
    assert first.cpu_ms == pytest.approx(2 * first.step_ms)
    assert first.tokens_per_s == pytest.approx(2e3 / first.step_ms)
    assert (first.later_ms, first.later_cpu_ms, first.later_mb, first.read_ms) == (0, 0, 0, 0)
    assert second.later_ms == pytest.approx(0.064)
    assert second.later_cpu_ms == pytest.approx(0.128)
    assert second.resident_mb == pytest.approx(100 + 0.01 * 112)
    assert second.later_mb == pytest.approx(0.64)
    # Two rows of 64 tokens more, of 5000 bytes each, at 10 GB/s.
    assert second.cache_mb == pytest.approx(0.64)
    assert second.read_ms == pytest.approx(0.064)


def test_what_cannot_be_measured_says_why(tmp_path, capsys):
    (blind,) = measured(tmp_path, "blind")
    assert blind.reason == "it does not say when a token is there"
    (absent,) = measured(tmp_path, "absent", problem="no wheel")
    assert absent.reason == "no wheel"
    rows = (*measured(tmp_path, "ours"), blind)
    show_contexts(ContextReport(this_machine(), "2026", 2, 16, 1, 2, 10.0, rows))
    shown = capsys.readouterr().out
    assert "batch 2, 2 threads, one text after 16 tokens" in shown
    assert "blind not run: it does not say when a token is there" in shown
    assert "takes at 10.0 GB/s" in shown


def test_a_context_before_the_steps_it_needs(tmp_path):
    with pytest.raises(FeedError, match="context 40 is too short, expected 48 or more") as caught:
        measured(tmp_path, "ours", places=(40, 64))
    assert caught.value.hint == "Name a longer one with --at."


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contexts")
    source = write_generator(folder / "source", "gpt2")
    return export_bundles(str(source), folder / "bundle", cache=True)[0]


def test_command(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "bandwidth", lambda threads: 20.0)
    options = ["--at", "48", "--at", "56", "--rounds", "1", "--backend", "onnxruntime"]
    result = CliRunner().invoke(
        contexts, [str(bundle.path), *options, "--save", str(tmp_path), "--json"]
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["context"] for row in rows] == [48, 56]
    # Keys and values of 2 layers, 32 wide, in float32.
    assert rows[1]["cache_mb"] == pytest.approx(8 * 2 * 2 * 32 * 4 / 1e6)
    (path,) = tmp_path.glob("*.json")
    assert read_stored(json.loads(path.read_text())).command == "contexts"
    refused = CliRunner().invoke(contexts, [str(bundle.path)])
    assert refused.exit_code == 1
    assert "1001 tokens are asked for, bundle takes 64" in refused.output
