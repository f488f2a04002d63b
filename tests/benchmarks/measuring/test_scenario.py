"""Scenarios and lengths: what a row is asked, and when."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.texts import WORDS, write_classifier

from tfx.bench.measuring.energy import EnergyMeter
from tfx.bench.measuring.scenario import (
    LEAST_ARRIVALS,
    MOST_ARRIVALS,
    Load,
    Served,
    poisson_arrivals,
    queries_of,
    serve,
    zipf_length,
)
from tfx.bench.measuring.worker import ProcessWorker
from tfx.bench.measuring.workload import Plan, Shape, shapes_of
from tfx.cli import main
from tfx.errors import DataError, FeedError, RecipeError
from tfx.runtime.opening import open_session

SIZES = {"batch": 2, "sequence": 16}
QUICK = ("--rounds", 2, "--seconds", 0.1, "--batch", 2, "--length", 8, "--threads", 1)


@pytest.fixture
def texts(tmp_path):
    """Forty texts of one to eight words."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(" ".join(WORDS[4 : 5 + index % 8]) for index in range(40)))
    return path


@pytest.fixture
def session(tmp_path):
    with open_session(
        write_classifier(tmp_path / "classifier"), backend="onnxruntime", threads=1
    ) as opened:
        yield opened


def bench(bundle, *arguments):
    asked = ("bench", bundle, "--backend", "onnxruntime", *QUICK, *arguments)
    return CliRunner().invoke(main, list(map(str, asked)))


def lengths(queries):
    return [query["input_ids"].shape[1] for query in queries]


def test_zipf_draws_short_lengths_more_often(rng):
    drawn = [zipf_length(1, 64, rng) for _ in range(3000)]
    assert min(drawn) == 1
    assert max(drawn) <= 64
    assert drawn.count(1) / drawn.count(4) == pytest.approx(4, rel=0.35)


def test_arrivals_are_a_poisson_process(rng):
    gaps = np.diff(poisson_arrivals(20000, 50.0, rng))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)  # of an exponential, as its mean


class Clock:
    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)


def test_a_query_that_waits_for_another_counts_its_waiting():
    clock = Clock()
    served = serve(
        [lambda: clock.sleep(0.010)],
        np.array([0.100, 0.102, 0.200]),
        clock=clock,
        sleep=clock.sleep,
    )
    assert [round(one / 1e6) for one in served.samples_ns] == [10, 18, 10]
    assert round(served.elapsed_ns / 1e6) == 210


def test_a_server_that_cannot_keep_up_gives_up():
    clock = Clock()
    served = serve(
        [lambda: clock.sleep(1)], np.linspace(0.1, 2.0, 1000), clock=clock, sleep=clock.sleep
    )
    # Twice the two seconds in which they arrive, not a thousand.
    assert served.answered == 4
    assert round(served.elapsed_ns / 1e9, 3) == 4.1
    # Rounds are of one length: the last waited from its arrival at 2 s to the end.
    assert len(served.samples_ns) == 1000
    assert round(served.samples_ns[-1] / 1e9, 3) == 2.1
    once = serve([lambda: clock.sleep(9)], np.array([0.1, 0.2]), clock=clock, sleep=clock.sleep)
    assert once.answered == 1


def test_zipf_queries_differ_in_length_and_are_the_same_for_a_seed(session):
    asked = Load(lengths="zipf")
    queries, _ = queries_of(session, asked, SIZES, seed=3)
    again, _ = queries_of(session, asked, SIZES, seed=3)
    assert len(set(lengths(queries))) > 5
    assert max(lengths(queries)) <= 16
    assert all(
        (one["input_ids"] == two["input_ids"]).all()
        for one, two in zip(queries, again, strict=True)
    )


def test_lengths_of_a_file_are_those_of_its_texts(session, texts):
    queries, samples = queries_of(session, Load(lengths=str(texts)), SIZES, seed=0)
    assert len(queries) == 20
    assert samples == 40
    assert len(set(lengths(queries))) > 1
    sent, _ = queries_of(session, Load(lengths=str(texts), preprocessing=True), SIZES, seed=0)
    assert isinstance(sent[0][0], str)
    assert len(sent[0]) == 2


@pytest.mark.parametrize(
    ("load", "alike"),
    [
        (Load(), True),
        (Load(lengths="zipf"), False),
        (Load("offline", "zipf"), True),  # each call answers all of them
        (Load("server", qps=3), False),  # how long a query waits is what is asked
    ],
)
def test_whether_the_fastest_call_says_how_fast_all_are(load, alike):
    assert load.alike is alike


def test_offline_all_samples_are_one_call_sorted_by_length(session, texts):
    load = Load("offline", str(texts))
    queries, samples = queries_of(session, load, SIZES, seed=0)
    assert samples == 40
    assert lengths(queries) == sorted(lengths(queries), reverse=True)
    (whole,), samples = queries_of(session, Load("offline", str(texts), True), SIZES, seed=0)
    assert len(whole) == samples == 40
    fixed, samples = queries_of(session, Load("offline"), SIZES, seed=0)
    assert (len(fixed), samples) == (32, 64)


def test_texts_need_a_tokenizer_and_enough_of_them(tmp_path, session, texts):
    tiny = write_bundle(tmp_path / "tiny")
    with (
        open_session(tiny, backend="onnxruntime") as arrays,
        pytest.raises(FeedError, match="tiny has no tokenizer"),
    ):
        queries_of(arrays, Load(lengths=str(texts)), SIZES, seed=0)
    texts.write_text("alpha")
    with pytest.raises(DataError, match=r"texts.txt has 1 texts, a query needs 2"):
        queries_of(session, Load(lengths=str(texts)), SIZES, seed=0)


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        (Load(preprocessing=True), "preprocessing needs texts: give --lengths FILE"),
        (Load("server"), "qps is 0 with scenario server: the server scenario needs one above 0"),
        (Load("offline", qps=3.0), "qps is 3 with scenario offline"),
    ],
)
def test_what_contradicts_itself_is_refused(load, problem):
    with pytest.raises(RecipeError, match=problem):
        Plan(load=load)


def test_titles_keep_apart_what_must_not_be_mixed():
    sizes = {"batch": 8, "sequence": 128}
    assert str(Shape(sizes)) == "batch 8, sequence 128"
    loads = {
        Load("offline"): "offline; batch 8, sequence 128",
        Load("server", qps=20.0): "server at 20 queries per s; batch 8, sequence 128",
        Load(lengths="zipf"): "lengths of Zipf, tokenization not included; batch 8",
        Load(lengths="a/dev.tsv", preprocessing=True): "lengths of dev.tsv, tokenization included; "
        "batch 8",
    }
    assert {load: str(Shape(sizes, str(load))) for load in loads} == loads


def test_lengths_that_are_drawn_are_one_workload(tmp_path):
    signature = write_bundle(tmp_path / "tiny").manifest.signature
    plan = Plan(batches=(1,), lengths=(8, 16), load=Load(lengths="zipf"))
    (shape,), _ = shapes_of([signature], plan)
    assert shape.sizes["sequence"] == 16


def test_the_server_reports_what_it_answers_and_when_it_does_not_keep_up(tmp_path):
    bundle = write_classifier(tmp_path / "classifier").path
    found = bench(bundle, "--scenario", "server", "--qps", 200, "--json")
    assert found.exit_code == 0, found.output
    (row,) = json.loads(found.stdout)["rows"]
    assert row["load"] == "server at 200 queries per s"
    assert row["measurement"]["latency"]["samples"] == 2 * 400
    assert row["measurement"]["throughput_per_s"] > 0
    too_many = bench(bundle, "--scenario", "server", "--qps", 10**8)
    assert "does not keep up" in too_many.stdout


def test_rows_that_gave_up_are_compared(tmp_path, monkeypatch):
    bundle = write_classifier(tmp_path / "classifier")
    given_up = iter(range(3, 99))

    def answer(self, arrivals, qps, seed):
        done = next(given_up)
        return Served([10**6] * arrivals, 10**9, done)

    monkeypatch.setattr(ProcessWorker, "serve", answer)
    found = bench(bundle.path, "--scenario", "server", "--qps", 500, "--rounds", 8, "--json")
    assert found.exit_code == 0, found.output
    (row,) = json.loads(found.stdout)["rows"]
    rounds = row["measurement"]["rounds"]
    total = sum(range(3, 3 + rounds))
    assert row["measurement"]["throughput_per_s"] == pytest.approx(2 * total / rounds)


def test_a_block_has_some_seconds_of_arrivals_within_limits():
    counts = [Load("server", qps=qps).arrivals for qps in (1.0, 50.0, 1e6)]
    assert counts == [LEAST_ARRIVALS, 100, MOST_ARRIVALS]


def test_offline_counts_samples_of_whole_passes(tmp_path, texts):
    bundle = write_classifier(tmp_path / "classifier").path
    load = ("--scenario", "offline", "--lengths", texts, "--with-preprocessing", "--json")
    found = bench(bundle, *load)
    assert found.exit_code == 0, found.output
    (row,) = json.loads(found.stdout)["rows"]
    measured = row["measurement"]
    assert measured["latency"]["samples"] == 2  # a pass a round
    assert measured["throughput_per_s"] == pytest.approx(
        40 * 1000 / measured["latency"]["median_ms"]
    )


def zone(folder, name, energy, most="1000000", kind="package-0"):
    (folder / name).mkdir(parents=True)
    (folder / name / "name").write_text(f"{kind}\n")
    (folder / name / "energy_uj").write_text(str(energy))
    (folder / name / "max_energy_range_uj").write_text(most)
    return folder / name / "energy_uj"


def test_energy_is_that_of_all_packages(tmp_path):
    first, second = zone(tmp_path, "intel-rapl:0", 100), zone(tmp_path, "intel-rapl:1", 900_000)
    zone(tmp_path, "intel-rapl:0:0", 5, kind="core")
    board = zone(tmp_path, "intel-rapl:2", 0, kind="psys")
    (tmp_path / "intel-rapl:3").mkdir()  # it says nothing of itself
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    first.write_text("500100\n")
    second.write_text("100000")  # it began anew
    board.write_text("900000")
    assert meter.joules(before, meter.read()) == pytest.approx(0.5 + 0.2)


def test_where_the_machine_tells_no_energy_there_is_no_number(tmp_path):
    meter = EnergyMeter(tmp_path / "none")
    assert meter.joules(meter.read(), meter.read()) is None
