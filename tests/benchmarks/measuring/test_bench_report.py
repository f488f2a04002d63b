import dataclasses
import io
import json
import re
from typing import get_args, get_type_hints

import numpy as np
import pytest
from rich.console import Console

from tfx.bench.measuring import report as report_module
from tfx.bench.measuring.accuracy import Accuracy, Change
from tfx.bench.measuring.machine import this_machine
from tfx.bench.measuring.report import (
    Agreement,
    BenchReport,
    Measurement,
    Row,
    Status,
    agreement_of,
    report_from,
)
from tfx.bench.measuring.workload import Plan
from tfx.bench.pages.table import show_report
from tfx.dtypes import DType
from tfx.errors import DataError
from tfx.runtime.backend import RunFacts
from tfx.runtime.clock import WarmUp
from tfx.runtime.stats import Comparison, Latency, Verdict
from tfx.signature import Signature, TensorSpec


def measured(median_ms=12.34, **changes):
    found = Measurement(
        facts=RunFacts("onnxruntime", "1.31.1", "CPUExecutionProvider", "cpu", "float32", 2),
        load_s=0.61,
        first_call_ms=40.0,
        peak_memory_mb=171.4,
        warm_up=WarmUp(15, 0.2, 12.3, True),
        rounds=40,
        latency=Latency(200, median_ms, 14.0, None, 11.9, 16.0),
        throughput_per_s=8 * 1000 / median_ms,
        round_ms=(median_ms,) * 40,
        percentiles_ms=tuple(np.linspace(11.9, 16.0, 101).tolist()),
    )
    return dataclasses.replace(found, **changes)


def names_in(kind, known):
    """Fields of a dataclass and of those within it."""
    for name, hint in get_type_hints(kind).items():
        known.add(name)
        for inner in (hint, *get_args(hint), *(a for one in get_args(hint) for a in get_args(one))):
            if dataclasses.is_dataclass(inner):
                names_in(inner, known)
    return known


def test_the_document_says_every_field():
    """A reader of the JSON document has no other description of it."""
    said = set(re.findall(r"\w+", report_module.__doc__))
    assert names_in(BenchReport, set()) - said == set()


def row(**changes):
    found = Row(
        bundle="minilm",
        digest="0" * 64,
        random_weights=False,
        backend="onnxruntime",
        precision="",
        sizes={"batch": 8, "sequence": 128},
        status=Status.MEASURED,
        reason="",
        measurement=measured(),
        agreement=(Agreement("last_hidden_state", 3e-6, 1e-6, 1.0, 2e-6, 1e-4),),
        no_reference="",
        comparison=Comparison("minilm on torch", 2.04, 2.01, 2.07, Verdict.FASTER),
    )
    return dataclasses.replace(found, **changes)


TORCH = row(
    backend="torch",
    measurement=measured(25.17),
    comparison=None,
)
ABSENT = row(
    backend="tensorrt",
    status=Status.NOT_RUN,
    reason="backend 'tensorrt' cannot run here: tensorrt is not installed",
    measurement=None,
    agreement=None,
    comparison=None,
)
WRONG = row(
    bundle="minilm-int8",
    status=Status.WRONG,
    reason="last_hidden_state is far from PyTorch's",
    measurement=None,
    comparison=None,
)

MANY = Latency(1000, 12.3, 14.0, 15.5, 11.9, 16.0)
UNSURE = Comparison("minilm on torch", 1.04, 0.99, 1.07, Verdict.UNSURE)


def shown(*rows, notes=()):
    out = io.StringIO()
    report = BenchReport(this_machine(), Plan(), tuple(notes), tuple(rows))
    show_report(Console(file=out, width=160, highlight=False), report)
    return out.getvalue()


def judged(reference, actual):
    """Agreement of an output "logits", within 1e-4."""
    inputs = (TensorSpec("x", DType.FLOAT32, ("batch",)),)
    signature = Signature(inputs, (TensorSpec("logits", DType.FLOAT32, ("batch", 3)),))
    feed = {"x": np.zeros(len(reference), np.float32)}
    return agreement_of(signature, feed, {"logits": reference}, {"logits": actual}, 1e-4)


def test_a_table_of_a_shape_with_its_conditions():
    lines = shown(row(), TORCH).splitlines()
    assert lines[0] == "minilm: batch 8, sequence 128"
    assert " ".join(lines[1].split()) == ("backend calls p50 p95 per s load MB error speed, 95 %")
    assert " ".join(lines[2].split()) == (
        "onnxruntime 200 12.3 14.0 648 0.6s 171 2e-06 2.04x 2.01-2.07 faster"
    )
    assert lines[3].split()[:3] == ["torch", "200", "25.2"]
    assert lines[3].split()[-2:] == ["1.00x", "baseline"]
    text = "\n".join(lines)
    assert "speed is against minilm on torch, with its 95 % bootstrap interval" in text
    assert "p50 is the median; times in ms but the load's" in text
    assert "200 calls a row in 40 interleaved rounds, threads 2, seed 0" in text
    assert str(this_machine()) in text


def test_the_table_says_how_many_processes_a_row_took():
    measurement = dataclasses.replace(TORCH.measurement, process_rounds=(20, 20))
    text = shown(row(), dataclasses.replace(TORCH, measurement=measurement))
    assert "200 calls a row in 40 interleaved rounds of 1..2 processes, threads 2" in text


def test_loads_of_several_processes_say_which_they_are():
    assert "load is the median" not in shown(row())
    text = shown(row(measurement=measured(loads_s=(9.0, 0.7, 0.5))))
    assert "load is the median of those after the first, which found in the caches" in text


def test_the_table_fits_100_columns_and_has_no_escapes():
    long = row(bundle="bert-base-int8", precision="bf16", comparison=UNSURE)
    text = shown(long, TORCH, WRONG, row(bundle="bert-base"))
    table = text.split("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 100
    assert "\x1b" not in text
    assert "…" not in text


def test_the_precision_asked_for_is_beside_the_backend():
    lines = shown(row(backend="openvino", precision="bf16"), TORCH).splitlines()
    assert lines[2].split()[:3] == ["openvino", "bf16", "200"]


def test_p99_is_a_column_only_where_a_row_has_it():
    lines = shown(row(measurement=measured(latency=MANY)), TORCH).splitlines()
    assert lines[1].split()[1:5] == ["calls", "p50", "p95", "p99"]
    assert lines[2].split()[1:5] == ["1000", "12.3", "14.0", "15.5"]
    assert lines[3].split()[1:5] == ["200", "25.2", "14.0", "-"]


def test_a_quick_run_has_no_column_of_p95():
    few = measured(latency=Latency(40, 12.0, None, None, 11.0, 15.0))
    lines = shown(row(measurement=few)).splitlines()
    assert lines[1].split()[1:4] == ["calls", "p50", "per"]


def test_rows_are_sorted_by_median():
    lines = shown(TORCH, row()).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["onnxruntime", "torch"]


def test_what_did_not_run_says_why():
    assert (
        "minilm on tensorrt not run: backend 'tensorrt' cannot run here: tensorrt is not installed"
        in shown(row(), ABSENT).splitlines()
    )


def test_what_did_not_run_at_one_shape_says_which():
    other = row(sizes={"batch": 1, "sequence": 128})
    assert "batch 8, sequence 128: minilm on tensorrt not run" in shown(row(), ABSENT, other)


def test_a_wrong_row_has_no_speed_and_says_how_it_is_wrong():
    lines = shown(TORCH, WRONG).splitlines()
    assert "minilm-int8 on onnxruntime is WRONG: last_hidden_state is far from PyTorch's" in lines
    assert not [line for line in lines if line.startswith("minilm-int8 onnxruntime")]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"random_weights": True}, "note: minilm has random weights"),
        (
            {"no_reference": "torch is not installed", "agreement": None},
            "note: minilm on onnxruntime has no reference: torch is not installed",
        ),
        (
            {"measurement": measured(warm_up=WarmUp(99, 20.1, 12.0, False))},
            "minilm on onnxruntime, batch 8, sequence 128 did not settle in 20 s of warm-up",
        ),
        (
            {"measurement": measured(latency=Latency(999, 12.0, 14.0, None, 11.0, 15.0))},
            "note: p95 needs 200 calls and p99 1000; more --rounds, and --seconds to make them in",
        ),
        (
            {"measurement": measured(rounds=7)},
            "note: no verdict from fewer than 8 rounds",
        ),
    ],
)
def test_what_a_reader_must_know_is_a_note(changes, note):
    assert note in shown(row(**changes))
    assert note not in shown(row(measurement=measured(latency=MANY)))


@pytest.mark.parametrize(("load", "busy"), [(0.9, False), (3.5, True)])
def test_a_busy_machine_is_said(load, busy):
    machine = dataclasses.replace(this_machine(), load_average=load, usable_cpus=2)
    out = io.StringIO()
    show_report(Console(file=out, width=160), BenchReport(machine, Plan(), (), (row(),)))
    assert ("note: the machine was busy: load average 3.5 on 2 CPUs" in out.getvalue()) is busy


def test_notes_of_the_report_are_shown_once():
    assert shown(row(), TORCH, notes=["batch 9 was clipped"]).count("batch 9 was clipped") == 1


@pytest.mark.parametrize(
    ("median_ms", "text"), [(0.01234, "0.0123"), (1.2, "1.20"), (99.96, "100.0"), (1234.5, "1234")]
)
def test_numbers_have_three_digits_and_no_exponent(median_ms, text):
    line = shown(row(measurement=measured(median_ms))).splitlines()[2]
    assert line.split()[2] == text


def test_json_has_no_nan_and_every_number_its_unit():
    (one,) = agreement = judged(np.ones((2, 3)), np.full((2, 3), np.nan))
    assert one.wrong == "logits has another shape than PyTorch's, or is not finite"
    report = BenchReport(this_machine(), Plan(), (), (row(agreement=agreement), ABSENT))
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["schema"] == 2
    assert document["plan"]["rounds"] == 40
    assert document["machine"]["usable_cpus"] >= 1
    first, second = document["rows"]
    assert first["digest"] == "0" * 64
    assert first["sizes"] == {"batch": 8, "sequence": 128}
    assert first["measurement"]["latency"]["median_ms"] == 12.34
    assert first["measurement"]["latency"]["samples"] == 200
    assert first["agreement"][0] == {
        "name": "logits",
        "max_abs": None,
        "max_rel": None,
        "min_cosine": None,
        "scaled_error": None,
        "tolerance": 1e-4,
    }
    assert first["comparison"]["verdict"] == "faster"
    assert second["status"] == "not run"
    assert second["measurement"] is None


def test_twice_the_output_is_wrong_although_it_points_the_same_way():
    reference = np.array([[1.0, -2.0, 3.0]])
    (one,) = judged(reference, reference * 2)
    assert one.min_cosine == 1
    assert one.wrong == (
        "logits has scaled error 1.0e+00 against PyTorch's, expected at most 1e-04"
    )


def test_rounding_around_zero_is_not_wrong_although_it_points_elsewhere():
    (one,) = judged(np.array([[1e-8, 0, 0], [1, 2, 3]]), np.array([[-1e-8, 0, 0], [1, 2, 3]]))
    assert one.min_cosine == -1
    assert one.wrong == ""


@pytest.mark.parametrize(("error", "wrong"), [(9e-5, False), (1.1e-4, True)])
def test_an_output_is_judged_by_its_tolerance(error, wrong):
    (one,) = judged(np.ones((1, 3)), np.array([[1, 1 + error, 1]]))
    assert one.scaled_error == pytest.approx(error)
    assert bool(one.wrong) is wrong


ACCURATE = Accuracy(
    "accuracy", "share", "higher", 0.9117, 0.89, 0.93, 872, "dev.tsv", "d", ("odd data",), "", None
)
LESS = dataclasses.replace(
    ACCURATE, value=0.9083, change=Change("minilm on torch", -0.0034, -0.008, 0.001)
)


def table_at(width):
    out = io.StringIO()
    rows = (
        row(bundle="minilm-sst2-int8", model_bytes=23_000_000, accuracy=LESS),
        row(bundle="minilm-sst2", backend="torch-compiled", precision="bf16", accuracy=LESS),
        dataclasses.replace(TORCH, bundle="minilm-sst2", accuracy=ACCURATE),
    )
    report = BenchReport(this_machine(), Plan(), (), rows)
    show_report(Console(file=out, width=width, highlight=False), report)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_with_accuracy_fits_the_terminal(width):
    text = table_at(width)
    table = text.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= width
    assert len(table) == 5 or width == 80  # there long names take two lines
    assert "…" not in text
    assert "0.9083 ±0.020 -0.0034 ±0.005" in " ".join(text.split())


def test_columns_that_have_no_room_are_named():
    assert "note: too narrow for the columns calls, load" in table_at(80)
    assert "too narrow" not in table_at(160)


def test_accuracy_has_its_conditions_as_notes():
    text = table_at(160)
    assert "note: accuracy on 872 samples of dev.tsv, ± half of its 95 % interval" in text
    assert "note: accuracy: odd data" in text
    refused = row(no_accuracy="minilm has random weights")
    assert "note: minilm on onnxruntime has no accuracy: minilm has random" in shown(refused)


def test_what_was_interrupted_is_said():
    out = io.StringIO()
    report = BenchReport(this_machine(), Plan(), (), (row(),), unfinished=("batch 1", "accuracy"))
    show_report(Console(file=out, width=160), report)
    assert "note: interrupted, so without: batch 1; accuracy" in out.getvalue()


def test_a_report_is_read_back_as_it_was():
    rows = (row(accuracy=LESS), ABSENT, WRONG)
    report = BenchReport(this_machine(), Plan(), ("a note",), rows, "2026-11-21T10:00:00+00:00")
    assert report_from(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "no result of tfx bench: schema is None, expected 2"),
        ({"schema": 1}, "no result of tfx bench: schema is 1, expected 2"),
        ({"schema": 2, "rows": []}, "no result of tfx bench: machine: missing"),
    ],
)
def test_another_document_is_no_report(document, message):
    with pytest.raises(DataError, match=message) as caught:
        report_from(document)
    assert caught.value.hint == "Measure again with: tfx bench --output FILE"
