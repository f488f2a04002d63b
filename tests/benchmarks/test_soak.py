import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.texts import MEAN, write_text_bundle

from tfx.bench.pages.sheets import section_of
from tfx.bench.pages.stored import read_stored
from tfx.bench.soak import Growth, Soak, slope_of, soak, soak_session


@pytest.mark.parametrize("planted", [0.0, 0.5, -2.0])
def test_a_planted_slope_is_found(planted):
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, 3, 160)
        slope, low, high = slope_of(100 + planted * np.arange(160) * 0.5 + noise, 0.5)
        assert low < slope < high
        inside += low <= planted <= high
    assert inside >= 34  # of 40, where 95 % is 38


def test_a_line_has_no_error():
    slope, low, high = slope_of(np.arange(33) * 3.0, 1.5)
    assert (slope, low, high) == pytest.approx((2.0, 2.0, 2.0))


def soaked(low, high, predicts=20_000):
    return Soak("arrays", "x", predicts, 1.0, 9, (1.0,), (low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("low", "high", "predicts", "verdict"),
    [
        (-0.5, 0.9, 20_000, Growth.STEADY),
        (0.5, 1.5, 20_000, Growth.UNSURE),
        (1.1, 1.5, 20_000, Growth.GROWS),
        (30.0, 40.0, 400, Growth.UNSURE),  # 0.9 MB: caches that fill
        (40.0, 50.0, 400, Growth.GROWS),
    ],
)
def test_verdict(low, high, predicts, verdict):
    assert soaked(low, high, predicts).verdict is verdict


def test_memory_is_noted_at_even_distances():
    asked = []
    noted, each = soak_session(
        lambda rng: asked.append(int(rng.integers(100))),
        1000,
        resident=lambda: len(asked) * 1_000_000,
    )
    assert each == 5
    np.testing.assert_array_equal(noted, np.arange(5, 1001, 5))
    assert len(set(asked)) > 50


@pytest.mark.parametrize("how", ["arrays", "texts", "async"])
def test_the_command_says_what_memory_did(tmp_path, how):
    bundle = write_text_bundle(tmp_path / "tiny", embedding=MEAN)
    arguments = [str(bundle.path), "--predicts", "200", "--how", how, "--threads", "1"]
    found = CliRunner().invoke(soak, arguments)
    assert "growth over 10,000 runs, after the first 25%" in found.stdout
    assert re.search(r"so memory: (grows|does not grow|cannot say)", found.stdout)
    assert f"({how})" in found.stdout
    assert "after 100%" in found.stdout


def test_the_command_as_json(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    found = CliRunner().invoke(
        soak, [str(bundle.path), "--predicts", "80", "--json", "--save", str(tmp_path / "kept")]
    )
    document = json.loads(found.stdout)
    (kept,) = (tmp_path / "kept").glob("*-soak-*.json")
    assert json.loads(kept.read_text())["result"] == document
    assert section_of(read_stored(json.loads(kept.read_text()))).sheets[0].lines
    assert document["verdict"] in [*Growth]
    assert len(document["soak"]["resident_mb"]) == 80
    assert 1 < document["soak"]["shapes"] <= 80
    assert document["machine"]["usable_cpus"] >= 1


def test_memory_that_grows_is_an_error(tmp_path, monkeypatch):
    kept = []

    class Process:
        def memory_info(self):
            kept.append(1)
            return type("Memory", (), {"rss": 10**8 + len(kept) * 10**6})

    monkeypatch.setattr("tfx.bench.soak.psutil.Process", Process)
    found = CliRunner().invoke(
        soak, [str(write_bundle(tmp_path / "tiny").path), "--predicts", "200"]
    )
    assert found.exit_code == 1
    assert "memory grows from run to run" in found.stderr


def test_our_errors_come_without_a_traceback(tmp_path):
    found = CliRunner().invoke(soak, [str(tmp_path)])
    assert found.exit_code == 1
    assert "is not a bundle" in found.stderr
