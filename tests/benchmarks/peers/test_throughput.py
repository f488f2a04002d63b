import sys

import numpy as np
import pytest
from support.bundles import write_bundle
from support.peers import stand_in

from tfx.bench.peaks import GemmPeak, Peaks
from tfx.bench.peers import throughput as module
from tfx.bench.peers.contestants import PeerProcess
from tfx.bench.peers.throughput import Corpus, Limits, cosines, measure_texts, text_flops
from tfx.console import Progress
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.runtime.stats import Verdict

TEXTS = tuple("x" * (1 + index % 7) for index in range(24))
TOKENS = np.array([len(text) for text in TEXTS])
CORPUS = Corpus(TEXTS, TOKENS, TOKENS * 1000.0)
PEAKS = Peaks("f", 0.0, (GemmPeak("torch", "2", DType.FLOAT32, 1, "1x1x1", 0.08),), ())
LIMITS = Limits(seconds=100.0, rounds=9, limit_s=300.0)


@pytest.fixture(autouse=True)
def small_rounds(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 12)


def measure(contestants, limits=LIMITS, reference=("exact",), clock=lambda: 0.0):
    rows, judge = measure_texts(
        contestants,
        CORPUS,
        limits,
        PEAKS,
        reference=reference,
        progress=Progress(),
        clock=clock,
        sleep=lambda seconds: None,
    )
    return {row.name: row for row in rows}, judge


@pytest.fixture
def make(tmp_path):
    return lambda name, **given: stand_in(tmp_path, sys.executable, name, **given)


def test_rates_are_of_texts_and_of_tokens_that_are_no_padding(make):
    rows, judge = measure([make("exact", us=100.0)])
    row = rows["exact"]
    assert judge == "exact"
    assert row.batch == 32  # where the stand-in is fastest
    assert row.rounds == 9
    assert row.sentences_per_s == pytest.approx(1e4)
    share = 5 * TOKENS[:12].sum() + 4 * TOKENS[12:].sum()
    assert row.tokens_per_s == pytest.approx(share / (9 * 12 * 100e-6))
    assert row.gflops == pytest.approx(row.tokens_per_s * 1000 / 1e9)
    assert row.peak_share == pytest.approx(row.gflops / 0.08)
    assert row.min_cosine == pytest.approx(1.0)
    assert row.comparison is None


@pytest.mark.parametrize("best", [1, 2])
def test_tfx_chooses_how_many_batches_run_at_once(make, best):
    rows, _ = measure([make("exact"), make("own", own=True, best=best)])
    assert rows["own"].batch == best


def test_the_ratio_is_to_the_fastest_peer_that_is_right(make):
    rows, _ = measure(
        [
            make("own", own=True, us=100.0, best=2),
            make("exact", us=400.0),
            make("fast", us=200.0),
            make("wrong", us=150.0, wrong=0.2),
        ]
    )
    own = rows["own"]
    assert own.comparison.against == "fast"
    assert own.comparison.speedup == pytest.approx(2.0)
    assert own.comparison.low == pytest.approx(own.comparison.high)
    assert own.comparison.verdict is Verdict.FASTER
    assert own.any_comparison.against == "wrong"
    assert own.any_comparison.speedup == pytest.approx(1.5)
    assert rows["fast"].comparison is None
    assert not rows["wrong"].right
    assert rows["wrong"].min_cosine == pytest.approx(np.cos(0.2))
    assert rows["exact"].comparison.speedup == pytest.approx(0.5)


def test_only_the_fastest_go_on(make, monkeypatch):
    monkeypatch.setattr(module, "FINALISTS", {True: 1, False: 1})
    rows, _ = measure([make("exact", us=200.0), make("fast", us=100.0), make("own", own=True)])
    assert {name: row.rounds for name, row in rows.items()} == {"exact": 2, "fast": 9, "own": 9}
    assert rows["exact"].comparison is None
    assert rows["exact"].sentences_per_s == pytest.approx(1e6 / 200)


def test_who_is_far_behind_embeds_the_texts_of_one_round(make):
    contestants = [
        make("exact", us=900.0),  # judges the others, so it embeds all
        make("slow", us=300.0, wrong=0.1),
        make("fast", us=100.0),
        make("own", own=True),
    ]
    rows, judge = measure(contestants)
    assert judge == "exact"
    assert rows["slow"].rounds == 1
    assert rows["slow"].min_cosine == pytest.approx(np.cos(0.1))
    assert rows["slow"].sentences_per_s == pytest.approx(1e6 / 300)
    assert rows["fast"].rounds == 9
    assert rows["exact"].rounds == 9  # there are only two peers


def test_the_final_ends_with_its_time_but_has_rounds_enough_for_a_verdict(make):
    times = iter(range(0, 9000, 200))
    rows, _ = measure([make("exact")], Limits(100.0, 99, 300.0), clock=lambda: next(times))
    assert rows["exact"].rounds == 8


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("load", "ImportError: no such library"),
        ("try", "the process ended: exit code 1, out of memory"),
        ("embed", "the process ended: exit code 1, out of memory"),
    ],
)
def test_one_that_fails_is_a_row_and_takes_no_other_along(make, fails, said):
    rows, _ = measure([make("broken", fails=fails), make("exact")])
    assert rows["broken"].reason == said
    assert rows["broken"].sentences_per_s is None
    assert rows["exact"].rounds == 9


def test_a_page_of_reasons_is_cut(make):
    rows, _ = measure([make("broken", fails="load", page=400), make("exact")])
    assert rows["broken"].reason.startswith("ImportError: no such library line line")
    assert rows["broken"].reason.endswith(" line ...")
    assert len(rows["broken"].reason) <= 300


def test_one_with_a_problem_is_not_tried(make):
    rows, _ = measure([make("absent", problem="not installed: no wheel"), make("exact")])
    assert rows["absent"].reason == "not installed: no wheel"
    assert rows["absent"].versions == ""


def test_embeddings_of_another_size_are_no_match(make):
    rows, _ = measure([make("exact"), make("short", dim=1)])
    assert rows["short"].reason == "its embeddings are [24, 1], those of exact [24, 2]"


def test_the_first_reference_that_ran_judges(make):
    contestants = [make("absent", problem="gone"), make("other", own=True), make("off", wrong=0.3)]
    rows, judge = measure(contestants, reference=("absent", "other"))
    assert judge == "other"
    assert rows["off"].mean_cosine == pytest.approx(np.cos(0.3))
    rows, judge = measure(contestants, reference=("absent",))
    assert judge == ""
    assert rows["other"].min_cosine is None
    assert rows["other"].comparison is None


def test_a_type_without_a_peak_has_no_share(make):
    rows, _ = measure([make("exact"), make("odd", kind="int8"), make("strange", kind="i8f32")])
    assert rows["odd"].peak_share is None
    assert rows["strange"].peak_share is None


def test_no_interpreter_is_said(tmp_path):
    process = PeerProcess(str(tmp_path / "python"), tmp_path / "x.py", 1.0)
    with pytest.raises(BackendError) as raised:
        process.start()
    assert str(raised.value) == f"{tmp_path / 'python'}: No such file or directory"
    process.close()


def test_cosines_of_rows_of_any_length():
    left = np.array([[3.0, 0], [1, 1], [np.nan, 1], [0, 0]], np.float32)
    right = np.array([[5.0, 0], [1, 0], [1, 1], [1, 0]], np.float32)
    assert cosines(left, right) == pytest.approx([1.0, 0.5**0.5, -1.0, 0.0])


def test_operations_of_a_text_follow_from_three_lengths(tmp_path, monkeypatch):
    class Counted:
        def __init__(self, total):
            self.total = total

    def count(bundle, sizes):
        assert sizes["batch"] == 1
        return Counted(100 + 10 * sizes["sequence"] + 2 * sizes["sequence"] ** 2)

    monkeypatch.setattr(module, "flops_of", count)
    bundle = write_bundle(tmp_path / "tiny")
    assert text_flops(bundle, np.array([1, 30])) == pytest.approx([112, 100 + 300 + 1800])
