import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

from tfx.bench import cpu as module
from tfx.bench.cpu import BATCHES, WAYS, CpuRow, cpu, rows_of, show_rows, verdicts_of
from tfx.bench.measuring.machine import this_machine
from tfx.bench.measuring.report import Agreement, BenchReport, Measurement, Row, Status
from tfx.bench.measuring.workload import Plan
from tfx.bench.pages.sheets import section_of
from tfx.bench.pages.stored import read_stored
from tfx.bench.peaks import GemmPeak, Peaks
from tfx.codec import decode
from tfx.dtypes import DType
from tfx.errors import BundleError
from tfx.recipe import Source, SourceKind
from tfx.runtime.backend import RunFacts
from tfx.runtime.clock import WarmUp
from tfx.runtime.stats import Comparison, Latency, Verdict

PEAKS = Peaks("f", 0.0, (GemmPeak("torch", "2", DType.FLOAT32, 2, "9x9x9", 100.0),), ())
SIZES = {"batch": 1, "sequence": 8}


def measured(bundle, backend, median_ms, *, precision="float32", cosine=1.0, against="", ratio=1.0):
    latency = Latency(9, median_ms, None, None, median_ms, median_ms)
    facts = RunFacts(backend, "1", "CPU", "cpu", precision, 2)
    comparison = Comparison(against, ratio, ratio - 0.5, ratio + 0.5, Verdict.FASTER)
    return Row(
        bundle,
        "d",
        False,
        backend,
        "",
        SIZES,
        Status.MEASURED,
        "",
        Measurement(facts, 0.1, 1.0, None, WarmUp(1, 1.0, 1.0, True), 9, latency, 1.0, (), ()),
        (Agreement("y", 0.0, 0.0, 1.0, 0.0, 0.1), Agreement("z", 0.0, 0.0, cosine, 0.0, 0.1)),
        "",
        comparison if against else None,
    )


FAILED = dataclasses.replace(
    measured("b", "openvino", 1.0), measurement=None, status=Status.NOT_RUN, reason="no openvino"
)


def report_of(*rows):
    return BenchReport(this_machine(), Plan(), (), rows, "2026-01-01T00:00:00")


def test_rows_say_what_they_reach_of_the_machine():
    report = report_of(
        measured("b", "torch", 20.0),
        measured("b", "onnxruntime", 4.0, against="b on torch", ratio=5.0, cosine=0.99),
        measured("b", "openvino", 4.0, precision="bfloat16", against="c on onnxruntime"),
        FAILED,
    )
    torch, ort, half, failed = rows_of(report, {"batch 1, sequence 8": 2e8}, PEAKS)
    assert ort.gflops == pytest.approx(50.0)
    assert ort.peak_share == pytest.approx(0.5)
    assert ort.min_cosine == 0.99
    assert not ort.right
    assert ort.comparison.speedup == 5.0
    assert torch.comparison is None
    assert half.peak_share is None  # bfloat16 has no peak there
    assert half.comparison is None  # not against PyTorch
    assert (failed.median_ms, failed.reason) == (None, "no openvino")


def row(name, ratio, low, high, cosine=0.9999, shape="batch 1"):
    comparison = Comparison("b on torch", ratio, low, high, Verdict.FASTER)
    return CpuRow(shape, name, "bfloat16", 2.0, 50.0, 0.5, cosine, comparison)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(5.0, 6.0, "yes"), (4.0, 4.9, "no"), (4.9, 5.1, "cannot say")]
)
def test_the_verdict_is_of_the_interval(low, high, said):
    (verdict,) = verdicts_of([row("b on x", 5.0, low, high), row("c on x", 2.0, 1.0, 3.0)])
    assert verdict == (
        f"batch 1: b on x in bfloat16, 5.00x PyTorch in float32 ({low:.2f} to {high:.2f}), "
        f"cosine 0.9999; 5x or more: {said}"
    )


def test_what_is_too_far_from_float32_is_not_best():
    verdicts = verdicts_of(
        [
            row("near", 4.0, 3.9, 4.1),
            row("far", 9.0, 8.0, 10.0, cosine=0.9),
            row("far", 9.0, 8.0, 10.0, cosine=0.9, shape="batch 2"),
        ]
    )
    assert "batch 1: near in bfloat16, 4.00x" in verdicts[0]
    assert verdicts[1] == "batch 2: no row of cosine 0.995 or more beside PyTorch's"


def test_the_table_has_what_ran_and_why_the_rest_did_not(capsys):
    show_rows([row("b on x", 5.0, 4.8, 5.2), CpuRow("batch 1", "b on y", reason="no y here")])
    shown = " ".join(capsys.readouterr().out.split())
    assert "b on x bfloat16 2.00 50 50% 0.9999 5.00x 4.80 to 5.20" in shown
    assert "b on y not timed: no y here" in shown


def test_the_command_measures_every_way_and_keeps_the_result(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    asked = {}

    def measure(bundles, plan, ways, machine, progress):
        asked.update(plan=plan, ways=ways)
        return report_of(measured("b", "torch", 20.0), FAILED)

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "stored_peaks", lambda path: PEAKS)
    arguments = [str(bundle.path), "--length", "8", "--save", str(tmp_path / "kept"), "--json"]
    done = CliRunner().invoke(cpu, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert asked["ways"] == WAYS
    assert (asked["plan"].batches, asked["plan"].lengths) == (BATCHES, (8,))
    assert decode(Peaks, document["peaks"]) == PEAKS
    assert [one["name"] for one in document["rows"]] == ["b on torch", "b on openvino"]
    assert document["report"]["rows"][1]["reason"] == "no openvino"
    (kept,) = Path(tmp_path, "kept").glob("*-cpu-*.json")
    assert json.loads(kept.read_text())["result"] == document
    assert section_of(read_stored(json.loads(kept.read_text()))).sheets


def test_what_cannot_be_counted_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    def refuse(bundle, sizes):
        raise BundleError("b cannot be counted: Loop of x is not counted")

    monkeypatch.setattr(module, "flops_of", refuse)
    monkeypatch.setattr(module, "measure", lambda *given, **more: pytest.fail("too late"))
    done = CliRunner().invoke(cpu, [str(write_bundle(tmp_path / "b").path)])
    assert done.exit_code == 1
    assert "b cannot be counted" in done.output


def test_bundles_of_two_models_are_refused(tmp_path):
    one = write_bundle(tmp_path / "one", name="one")
    other = write_bundle(
        tmp_path / "other", name="other", source=Source(SourceKind.MODULE, "elsewhere")
    )
    done = CliRunner().invoke(cpu, [str(one.path), str(other.path)])
    assert done.exit_code == 1
    assert "one and other are not of one model" in done.output
