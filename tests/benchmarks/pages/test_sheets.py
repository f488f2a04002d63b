"""What each command stored becomes a section of the page of results."""

import pytest
from support.reports import MACHINE, made_up

from tfx.bench.pages.sheets import FORMS, section_of
from tfx.bench.pages.stored import Stored

WHEN = "2026-01-01T10:20:30+00:00"
COMPARISON = {"against": "x", "speedup": 2.0, "low": 1.9, "high": 2.1, "verdict": "faster"}


def section(command, result):
    return section_of(Stored(command, WHEN, MACHINE, result))


def test_cpu_rows_by_shape_fastest_first():
    found = section(
        "cpu",
        {
            "verdicts": ["b on x: 5x or more: no"],
            "rows": [
                {"shape": "batch 1", "name": "b on torch", "precision": "float32",
                 "median_ms": 20.0, "gflops": 1234.5, "peak_share": 0.5, "min_cosine": 1.0},
                {"shape": "batch 1", "name": "b on x", "precision": "int8", "median_ms": 10.0,
                 "comparison": COMPARISON},
                {"shape": "batch 1", "name": "b on y", "reason": "no y"},
            ],
        },
    )  # fmt: skip
    (sheet,) = found.sheets
    assert sheet.title == "batch 1"
    assert sheet.lines == (
        ("b on x", "int8", "10.0", "-", "-", "-", "2.00x 1.90-2.10"),
        ("b on torch", "float32", "20.0", "1,234", "50%", "1.0000", "1.00x"),
    )
    assert found.notes == ("b on x: 5x or more: no", "b on y, batch 1, not timed: no y")
    assert "b on y" in found.subject


def test_a_report_of_tfx_bench_names_what_failed():
    report = made_up(with_accuracy=False, failed=[("minilm-sst2", "tensorrt")])
    found = section("bench", report.to_dict())
    assert [sheet.title for sheet in found.sheets] == list(report.by_shape())
    assert found.sheets[0].heads[-1] == "error"
    assert found.notes[0].startswith("minilm-sst2 on tensorrt, batch 1, sequence 128, not run: ")


def test_callers():
    row = {"way": "predict_async", "clients": 64, "per_second": 1000.4, "p50_ms": 60.0,
           "p99_ms": 90.25, "speedup": 3.1, "low": 3.0, "high": 3.2, "processor_ratio": 2.5,
           "lost": 1, "wrong": 1, "asked": 640}  # fmt: skip
    found = section("clients", {"bundle": "minilm", "ran": "onnxruntime", "rows": [row]})
    assert found.sheets[0].title == "minilm on onnxruntime"
    assert found.sheets[0].lines == (
        ("predict_async", "64", "1,000", "60.0", "90.2", "3.10 3.00..3.20", "2.50", "2 of 640"),
    )


def test_memory():
    soak = {"how": "texts", "ran": "onnxruntime", "predicts": 20000, "seconds": 61.2, "shapes": 0,
            "resident_mb": [300.0, 310.0, 311.0], "slope_mb": 0.1, "low_mb": -0.1,
            "high_mb": 0.3}  # fmt: skip
    found = section("soak", {"bundle": "minilm", "soak": soak, "verdict": "does not grow"})
    assert found.sheets[0].lines == (
        ("texts", "20,000", "0", "61", "300", "311", "+0.10 (-0.10 to +0.30)", "does not grow"),
    )


@pytest.mark.parametrize("timed", [True, False])
def test_int8_beside_float32(timed):
    about = {"metric": "accuracy", "parent": 0.9117, "value": 0.9071, "drop": 0.0046,
             "drop_low": -0.001, "drop_high": 0.01, "samples": 1744, "data": "dev.tsv"}  # fmt: skip
    case = {"model": "minilm", "accuracy": [about], "size_share": 0.27, "quantize_s": 30.0,
            "quantize_peak_bytes": 1 << 30}  # fmt: skip
    row = {"shape": "1x128", "backend": "x", "precision": "float32", "p50_ms": 20.0}
    speed = [row, row | {"precision": "int8", "p50_ms": 10.0}] if timed else []
    found = section("quantization", {"cases": [case], "speed": speed})
    assert found.sheets[0].lines[0][:3] == ("minilm", "accuracy", "dev.tsv")
    assert found.sheets[0].lines[0][5:] == (
        "+0.0046 (-0.0010 to +0.0100)", "1,744", "0.270x", "30", "1,024",
    )  # fmt: skip
    if timed:
        assert found.sheets[1].lines[1] == ("1x128", "x", "int8", "10.0", "2.00x")
    else:
        assert len(found.sheets) == 1


def test_documents_of_any_other_form_are_shown_as_they_are():
    rows = [
        {"name": "openvino", "first_ms": 12.345, "same": True, "times": [1, 2]},
        {"name": "transformers", "first_ms": None, "same": False, "comparison": COMPARISON},
    ]
    found = section("anything", {"machine": "here", "bundle": "gpt2", "ways": rows, "deep": {}})
    (sheet,) = found.sheets
    assert sheet.title == "ways"
    assert sheet.heads == ("name", "first ms", "same", "comparison")
    assert sheet.lines == (
        ("openvino", "12.3", "yes", "-"),
        ("transformers", "-", "no", "2.00x 1.90-2.10"),
    )
    assert found.notes == ("bundle: gpt2",)
    assert found.subject == ("gpt2", "openvino", "transformers")


def test_every_standing_comparison_has_a_place():
    assert list(FORMS) == [
        "cpu", "text", "bench", "quantization", "decoding", "contexts", "clients",
        "opening", "overhead", "soak", "planted",
    ]  # fmt: skip
