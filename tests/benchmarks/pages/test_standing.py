"""Standing comparisons on the page of results: the columns that a terminal shows, and no others."""

import dataclasses

import pytest
from support.reports import MACHINE

from tfx.bench import contexts, decoding, opening, planted
from tfx.bench.measuring.baseline import Outcome
from tfx.bench.pages.sheets import section_of
from tfx.bench.pages.stored import Stored
from tfx.codec import encode

WHEN = "2026-01-01T10:20:30+00:00"


def section(command, result):
    return section_of(Stored(command, WHEN, MACHINE, result))


def writers():
    ours = decoding.DecodingRow(
        "gpt2 on onnxruntime", True, versions="onnxruntime 1.31.1", precision="float32", rounds=3,
        first_ms=103.4, step_ms=17.26, step_p95_ms=20.0, early_ms=17.2, late_ms=17.3, total_s=2.4,
        cpu_s=4.5, row_tokens_per_s=13.25, tokens_per_s=53.0, cpu_ratio=1.0, cpu_low=1.0,
        cpu_high=1.0, same_tokens=0.5, copies=1, loaded_mb=563.0, grown_mb=183.0,
    )  # fmt: skip
    faster = dataclasses.replace(ours, name="other", own=False, cpu_s=3.0, copies=None, note="odd")
    absent = decoding.DecodingRow("absent", False, "no wheel")
    rows = (ours, absent, faster)
    return decoding.DecodingReport(MACHINE, WHEN, 4, 128, 64, 2, 75.5, "other", rows)


def test_writing_has_the_columns_of_the_terminal():
    found = section("decoding", encode(writers()))
    (sheet,) = found.sheets
    assert sheet.title == "batch 4, prompt 128, 64 new tokens, 2 threads"
    assert sheet.heads == ("row", *(head for head, _, _ in decoding.COLUMNS))
    assert [line[0] for line in sheet.lines] == ["other", "gpt2 on onnxruntime"]
    assert sheet.lines[1][1:4] == ("103", "17.26", "20.00")
    assert sheet.lines[0][-3:] == ("-", "563", "183")
    assert found.subject == ("batch 4", "gpt2 on onnxruntime")
    assert {"absent not run: no wheel", "other: odd"} <= set(found.notes)
    assert "more MB: at most, by writing; the cache is 75.5 MB" in found.notes


def test_contexts_name_their_row_in_each_line():
    rows = [
        contexts.ContextRow(
            "a on x", at, "", "int8", 7.5, 14.0, 133.3, later, 0.5, 0.25, 600.0, 1.5, 2.0
        )
        for at, later in ((128, 0.0), (1000, 3.25))
    ]  # fmt: skip
    report = contexts.ContextReport(
        MACHINE, WHEN, 1, 16, 2, 2, 34.5, (*rows, contexts.ContextRow("b", 128, "no b"))
    )
    found = section("contexts", encode(report))
    (sheet,) = found.sheets
    assert sheet.heads == ("row", *(head for head, _, _ in contexts.COLUMNS))
    assert [line[:2] for line in sheet.lines] == [("a on x", "128"), ("a on x", "1000")]
    assert "+3.25" in sheet.lines[1]
    assert found.notes[0] == "b not run: no b"
    assert found.notes[-1] == "read: what reading those takes at 34.5 GB/s"


def test_openings_say_what_they_are_made_of():
    row = opening.Row(
        "openvino", "openvino 2026 CPU float32", 10, 2.25, 416.0, 382.0, 442.0, 339.0, 56.0, 4.1,
        661.0, 224.0, dict.fromkeys(opening.PARTS, 12.0),
    )  # fmt: skip
    found = section("opening", {"bundle": "minilm", "machine": {}, "rows": [encode(row)]})
    (sheet,) = found.sheets
    assert sheet.title == "minilm"
    assert len(sheet.heads) == len(sheet.lines[0])
    assert sheet.lines[0][:4] == ("openvino", "2", "416", "382..442")
    assert sheet.lines[0][-2:] == ("224", "no")
    assert "load ms" in sheet.heads
    assert found.notes == ("openvino: openvino 2026 CPU float32, 10 processes",)


@pytest.mark.parametrize(("planted_share", "shown"), [(0.0, "-"), (0.15, "15%")])
def test_planted_slowdowns_say_what_was_flagged(planted_share, shown):
    one = planted.Try(planted_share, 12.4, 1.18, 1.14, 1.22, Outcome.FAILED, 3)
    found = section(
        "planted",
        {"bundle": "minilm", "backend": "x", "share": 0.15, "limit": 0.1,
         "tries": [encode(one) | {"right": one.right}]},
    )  # fmt: skip
    (sheet,) = found.sheets
    assert sheet.title == "minilm on x, --fail-on 10%"
    right = "yes" if planted_share else "WRONG"
    assert sheet.lines == ((shown, "12.4", "3", "1.180x", "1.140..1.220", "failed", right),)
    assert found.notes[-1].endswith("1 of 1 flagged")
