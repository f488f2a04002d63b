import json

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

from tfx.bench.overhead import Overhead, measure_overhead, overhead


def test_a_planted_difference_is_found(rng):
    now = 0

    def take(microseconds):
        nonlocal now
        now += int((microseconds + rng.normal(0, 2)) * 1000)

    found = measure_overhead(
        lambda: take(130),
        lambda: take(100),
        shape="batch 1",
        seconds=0.05,
        rng=np.random.default_rng(0),
        clock=lambda: now,
    )
    assert found.low_us < 30 < found.high_us
    assert found.high_us - found.low_us < 2
    assert found.run_us == pytest.approx(100, abs=1)
    assert found.verdict == "yes"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(10, 50, "yes"), (40, 60, "cannot say"), (51, 60, "no")]
)
def test_verdict(low, high, verdict):
    assert Overhead("batch 1", 30, 100.0, (low + high) / 2, low, high).verdict == verdict


def test_the_command_measures_a_bundle(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    arguments = [str(bundle.path), "--batch", "1", "--seconds", "0.1", "--threads", "1"]
    found = CliRunner().invoke(overhead, arguments)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("batch 1, sequence 32: ")
    assert "within 50 us: " in found.stdout
    (entry,) = json.loads(CliRunner().invoke(overhead, [*arguments, "--json"]).stdout)
    assert entry["shape"] == "batch 1, sequence 32"
    # Far less than this only if the two calls were the same one; far more if a run is in it.
    assert 0.5 < entry["median_us"] < 200


def test_the_command_says_our_errors_without_a_traceback(tmp_path):
    found = CliRunner().invoke(overhead, [str(tmp_path)])
    assert found.exit_code == 1
    assert "is not a bundle" in found.stderr
