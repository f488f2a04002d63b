import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

from tfx.bench.overhead import (
    COLD,
    LEAST_PAIRS,
    MOST_PAIRS,
    WARM,
    Overhead,
    Replay,
    Stopwatch,
    measure_overhead,
    overhead,
)
from tfx.bench.pages.sheets import section_of
from tfx.bench.pages.stored import read_stored


class World:
    """A model whose runs vary by far more than what is around them."""

    def __init__(self, rng):
        self.rng = rng
        self.now = 0

    def clock(self):
        return self.now

    def take(self, microseconds, noise):
        self.now += int(abs(microseconds + self.rng.normal(0, noise)) * 1000)

    def run(self, names, feed, options):
        self.take(10_000, 2000)
        return names


def test_a_planted_difference_is_found_under_the_noise_of_runs(rng):
    world = World(rng)
    watch = Stopwatch(world, world.clock)

    def call(before, after):
        world.take(before, 1)
        watch.run([], {})
        world.take(after, 1)

    found = measure_overhead(
        lambda: call(30, 7),
        lambda: call(6, 6),
        watch,
        shape="batch 1",
        caches=COLD,
        seconds=5,
        rng=np.random.default_rng(0),
        clock=world.clock,
    )
    assert found.low_us < 25 < found.high_us
    assert found.high_us - found.low_us < 1
    assert found.run_us == pytest.approx(10_000, rel=0.1)
    assert found.verdict == "yes"
    assert 200 < found.pairs < 300  # 20 ms each


def test_pairs_are_neither_too_few_nor_too_many(rng):
    def pairs(seconds):
        world = World(rng)
        watch = Stopwatch(Replay([]), world.clock)

        def call():
            world.take(100, 1)
            watch.run([], {})

        return measure_overhead(
            call,
            call,
            watch,
            shape="",
            caches=WARM,
            seconds=seconds,
            rng=np.random.default_rng(0),
            clock=world.clock,
        ).pairs

    assert pairs(1e-9) == LEAST_PAIRS
    assert pairs(1e9) == MOST_PAIRS


def test_a_stopwatch_has_what_it_stands_in_for():
    class Native:
        kind = "native"

        def asked(self):
            return "answer"

        def run(self, names, feed, options):
            pytest.fail("ran what it stands in for")

    watch = Stopwatch(Replay([1]), iter([10, 17]).__next__, Native())
    assert (watch.kind, watch.asked()) == ("native", "answer")
    assert watch.run([], {}) == [1]
    assert watch.inside_ns == 7


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(10, 30, "yes"), (20, 40, "cannot say"), (31, 40, "no")]
)
def test_verdict(low, high, verdict):
    assert Overhead("batch 1", COLD, 30, 100.0, (low + high) / 2, low, high).verdict == verdict


def test_the_command_measures_a_bundle(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    arguments = [str(bundle.path), "--batch", "1", "--seconds", "0.1", "--threads", "1"]
    found = CliRunner().invoke(overhead, arguments)
    assert found.exit_code == 0, found.output
    header, *rows, load = found.stdout.splitlines()
    assert load.startswith("load average ")
    assert header.endswith("within 30 us")
    assert [re.split(" {2,}", row)[:2] for row in rows] == [
        ["batch 1, sequence 32", COLD],
        ["batch 1, sequence 32", WARM],
    ]
    assert found.stderr == "note: sequence 128 was clipped to 32: the bundles admit 1..32\n"
    where = ["--save", str(tmp_path / "kept"), "--json"]
    document = json.loads(CliRunner().invoke(overhead, [*arguments, *where]).stdout)
    cold, warm = document["rows"]
    (kept,) = (tmp_path / "kept").glob("*-overhead-*.json")
    stored = read_stored(json.loads(kept.read_text()))
    assert stored.result == document
    (sheet,) = section_of(stored).sheets
    assert [line[:2] for line in sheet.lines] == [
        ("batch 1, sequence 32", COLD),
        ("batch 1, sequence 32", WARM),
    ]
    assert (cold["shape"], cold["caches"]) == ("batch 1, sequence 32", COLD)
    assert (warm["shape"], warm["caches"]) == ("batch 1, sequence 32", WARM)
    # Less than this only if the check was left out; more only if a run is in it.
    assert 0.1 < warm["median_us"] < 200
    assert abs(cold["median_us"]) < 200
    assert {one["verdict"] for one in (cold, warm)} <= {"yes", "no", "cannot say"}
    assert warm["run_us"] < cold["run_us"]


def test_the_command_says_our_errors_without_a_traceback(tmp_path):
    found = CliRunner().invoke(overhead, [str(tmp_path)])
    assert found.exit_code == 1
    assert "is not a bundle" in found.stderr
