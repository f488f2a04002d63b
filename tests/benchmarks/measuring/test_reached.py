"""What rows reach of the machine's peaks, by numbers that are easily worked out."""

import dataclasses

import pytest
from support.bundles import write_bundle
from support.reports import made_up

from tfx.bench.measuring.flops import Flops
from tfx.bench.measuring.generation import Writing
from tfx.bench.measuring.reached import Work, limits_said, with_reached, work_of
from tfx.bench.measuring.report import report_from
from tfx.bench.measuring.scenario import Load
from tfx.bench.measuring.weights import Weights
from tfx.bench.measuring.workload import Plan
from tfx.bench.pages.html import page_of
from tfx.bench.pages.notes import notes_of
from tfx.bench.pages.output import write_csv
from tfx.bench.pages.table import gemm_text, memory_text
from tfx.bench.peaks import Bandwidth, GemmPeak, Peaks
from tfx.dtypes import DType
from tfx.errors import BundleError

PEAKS = Peaks(
    "f" * 16,
    0.1,
    (
        GemmPeak("torch", "2", DType.FLOAT32, 1, "512x1024x1024", 100.0),
        GemmPeak("openvino", "3", DType.FLOAT32, 2, "512x1024x1024", 200.0),
    ),
    (Bandwidth("copy", 1, 10.0), Bandwidth("triad", 2, 20.0)),
)
SHAPE = {"batch": 4, "sequence": 128}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("reached") / "minilm")


def report_of(bundle, **changes):
    """A row of PyTorch that takes 10 ms a call, of a bundle."""
    report = made_up({("minilm", "torch"): 10.0}, shapes=(SHAPE,), with_accuracy=False, noise=0.0)
    (row,) = report.rows
    median = dataclasses.replace(row.measurement.latency, median_ms=10.0)
    found = dataclasses.replace(row.measurement, latency=median, throughput_per_s=400.0)
    row = dataclasses.replace(row, digest=bundle.digest, measurement=found, **changes)
    return dataclasses.replace(report, rows=(row,))


def count(bundle, sizes):
    assert sizes == SHAPE
    return Work(10**9, Weights({"FLOAT": 10**7}))


def test_a_call_beside_the_best_engine_and_the_fastest_memory(bundle):
    report = with_reached(report_of(bundle), [bundle], PEAKS, count)
    found = report.rows[0].reached
    assert found.gflops == pytest.approx(100)  # 1 GFLOP, 100 calls of 4 samples a second
    assert found.gemm_share == pytest.approx(0.5)
    assert found.gb_per_s == pytest.approx(4)  # 4 bytes of 10^7 weights
    assert found.memory_share == pytest.approx(0.2)
    assert (gemm_text(report.rows[0]), memory_text(report.rows[0])) == ("50 %", "20 %")
    assert report_from(report.to_dict()) == report


def test_a_type_without_a_peak_has_no_share_of_it(bundle):
    report = report_of(bundle)
    (row,) = report.rows
    facts = dataclasses.replace(row.measurement.facts, precision="float16")
    row = dataclasses.replace(row, measurement=dataclasses.replace(row.measurement, facts=facts))
    report = with_reached(dataclasses.replace(report, rows=(row,)), [bundle], PEAKS, count)
    assert report.rows[0].reached.gemm_share is None
    assert report.rows[0].reached.memory_share == pytest.approx(0.1)
    assert gemm_text(report.rows[0]) == "-"


def test_a_token_reads_the_cache_too(bundle):
    sizes = {"batch": 2, "prompt": 100, "new": 56}
    writing = Writing(3, 20.0, None, 600.0, 150.0, 75.0, 1.0, cache_bytes_per_token=1000)
    report = report_of(bundle, sizes=sizes)
    (row,) = report.rows
    found = dataclasses.replace(row.measurement, writing=writing)
    report = dataclasses.replace(report, rows=(dataclasses.replace(row, measurement=found),))

    def halfway(bundle, sizes):
        assert {name: sizes[name] for name in ("batch", "sequence", "capacity", "kept")} == {
            "batch": 2, "sequence": 1, "capacity": 128, "kept": 1,
        }  # fmt: skip
        return Work(10**9, Weights({"FLOAT": 10**7}))

    (row,) = with_reached(report, [bundle], PEAKS, halfway).rows
    assert row.reached.gb_per_s == pytest.approx((4e7 + 1000 * 2 * 128) * 100 / 1e9)


def test_what_cannot_be_counted_says_why(bundle):
    def refuse(bundle, sizes):
        raise BundleError("it holds an engine")

    report = with_reached(report_of(bundle), [bundle], PEAKS, refuse)
    assert report.rows[0].reached is None
    assert "minilm has no share of the peaks: it holds an engine" in report.notes
    assert limits_said(report) == []


def test_lengths_that_are_drawn_are_not_counted(bundle):
    report = dataclasses.replace(report_of(bundle), plan=Plan(load=Load(lengths="zipf")))
    report = with_reached(report, [bundle], PEAKS, count)
    assert report.rows[0].reached is None
    assert "shares of the peaks are not known where lengths are drawn or read" in report.notes


def test_the_reports_say_them_and_what_they_are_of(bundle, tmp_path):
    report = with_reached(report_of(bundle), [bundle], PEAKS, count)
    (said,) = [note for note in notes_of(report) if note.startswith("GEMM")]
    assert "200 GFLOP/s in float32 (openvino); weights read at 20 GB/s" in said
    assert '<th scope="col">GEMM</th><th scope="col">memory</th>' in page_of(report)
    write_csv(tmp_path / "r.csv", report)
    head, line = (text.split(",") for text in (tmp_path / "r.csv").read_text().splitlines())
    assert line[head.index("gemm_share") - len(head)].startswith("0.5")
    assert "GEMM" not in page_of(report_of(bundle))


def test_a_graph_is_counted_by_its_products_and_weights(bundle, monkeypatch):
    monkeypatch.setattr("tfx.bench.measuring.reached.flops_of", lambda *_: Flops({"MatMul": 7}))
    assert work_of(bundle, SHAPE) == Work(7, Weights({}))
