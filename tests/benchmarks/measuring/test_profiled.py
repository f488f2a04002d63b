"""``tfx bench --profile``: what each row's time goes to, after and apart from its timing."""

import dataclasses
import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console
from support.bundles import write_bundle
from support.reports import made_up

from tfx.bench.measuring.profiled import profile_row, show_spent, with_profiles
from tfx.bench.measuring.report import report_from
from tfx.bench.measuring.spent import KINDS, REST, Share, Spent, kind_of, kinds_of
from tfx.bench.measuring.workload import Plan, Shape, Way
from tfx.bench.pages.html import page_of
from tfx.bench.pages.notes import notes_of
from tfx.cli import main
from tfx.console import Progress
from tfx.errors import BackendError

OPS = (
    Share("MatMul", 6.0, 0.6, 12),
    Share("Attention", 3.0, 0.3, 2),
    Share("FusedMatMul", 0.5, 0.05, 1),
    *(Share(f"Odd{index} <&>", 0.05, 0.005, 1) for index in range(10)),
)


def report(**changes):
    speeds = {("tiny", "torch"): 20.0, ("tiny", "onnxruntime"): 10.0}
    return made_up(speeds, shapes=({"batch": 1, "sequence": 8},), with_accuracy=False, **changes)


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("MatMul", "matrix products"),
        ("MatMulIntegerToFloat", "matrix products"),
        ("FusedGemm", "matrix products"),
        ("FullyConnectedQuantizedLegacy", "matrix products"),
        ("Convolution", "matrix products"),
        ("Conv", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::mm", "matrix products"),
        ("aten::bmm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("Attention", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("ScaledDotProductAttention", "attention"),
        ("SkipLayerNormalization", "normalization"),
        ("MVN", "normalization"),
        ("aten::native_layer_norm", "normalization"),
        ("BiasGelu", "activations"),
        ("Softmax", "activations"),
        ("aten::tanh", "activations"),
        ("Convert", "moved and converted"),
        ("QuantizeLinear", "moved and converted"),
        ("DequantizeLinear", "moved and converted"),
        ("aten::copy_", "moved and converted"),
        ("Reorder", "moved and converted"),
        ("Add", REST),
        ("aten::add", REST),
        ("Comm", REST),
    ],
)
def test_kinds_by_the_names_of_three_engines(op, kind):
    assert kind_of(op) == kind


def test_kinds_come_in_their_order_and_leave_nothing_out():
    kinds = kinds_of(OPS)
    assert [one.name for one in kinds] == ["attention", "matrix products", REST]
    assert kinds[1].ms == pytest.approx(6.5)
    assert kinds[1].nodes == 13
    assert sum(one.share for one in kinds) == pytest.approx(sum(one.share for one in OPS))
    assert next(iter(KINDS)) == "attention"


def profiles(bundle, way, shape, plan):
    if way.backend == "torch":
        raise BackendError("it crashed", hint="Try again.")
    return Spent(OPS, 10)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny")


@pytest.fixture
def profiled(bundle):
    found = report()
    rows = tuple(dataclasses.replace(row, digest=bundle.digest) for row in found.rows)
    found = dataclasses.replace(found, rows=rows)
    kept = []
    done = with_profiles(found, [bundle], progress=Progress(), keep=kept.append, profiling=profiles)
    assert len(kept) == 2
    assert kept[-1] == done
    return done


def test_a_row_that_cannot_be_profiled_says_why_and_takes_no_other_along(profiled):
    first, second = profiled.rows
    assert first.spent == Spent(reason="it crashed (Try again.)")
    assert second.spent.ops == OPS
    assert [row.measurement for row in profiled.rows] == [row.measurement for row in report().rows]
    assert "tiny on torch does not say where its time goes: it crashed (Try again.)" in notes_of(
        profiled
    )


def test_what_was_profiled_is_not_profiled_again(profiled, bundle):
    def never(*asked):
        pytest.fail(f"asked for {asked}")

    assert with_profiles(profiled, [bundle], progress=Progress(), profiling=never) == profiled


def test_rows_come_back_from_json(profiled):
    assert report_from(json.loads(json.dumps(profiled.to_dict()))) == profiled


def test_the_page_has_a_bar_and_the_operators_of_each_row(profiled):
    page = page_of(profiled)
    assert page.count('<div class="share"') == 1
    assert 'aria-label="tiny on onnxruntime: attention 30%, 3.00 ms; matrix products 65%' in page
    assert "<summary>Operators of 1 tiny on onnxruntime</summary>" in page
    assert "5 others" in page
    assert "Odd0 &lt;&amp;&gt;" in page
    assert "Where the time goes" not in page_of(report())


def test_the_table_has_a_line_a_row(profiled):
    out = io.StringIO()
    show_spent(Console(file=out, width=100), profiled)
    text = " ".join(out.getvalue().split())
    assert "batch 1, sequence 8: where the time goes" in text
    assert "tiny on onnxruntime 30% 65% 5% MatMul 60%" in text
    out = io.StringIO()
    show_spent(Console(file=out, width=100), report())
    assert out.getvalue() == ""


def test_a_process_of_its_own_profiles(bundle):
    found = profile_row(
        bundle, Way("onnxruntime"), Shape({"batch": 1, "sequence": 8}), Plan(threads=1)
    )
    assert "Gather" in {one.name for one in found.ops}
    assert found.runs == 10
    with pytest.raises(BackendError, match="tensorrt does not say where its time goes"):
        profile_row(bundle, Way("tensorrt"), Shape({"batch": 1}), Plan())


def test_text_that_is_generated_is_left_alone(bundle):
    found = report()
    load = dataclasses.replace(found.plan.load, scenario="generation", new_tokens=4)
    plan = dataclasses.replace(found.plan, load=load)
    done = with_profiles(
        dataclasses.replace(found, plan=plan), [bundle], progress=Progress(), profiling=profiles
    )
    assert all(row.spent.reason.startswith("of text that is generated") for row in done.rows)


def test_the_command(bundle, tmp_path):
    found = CliRunner().invoke(
        main,
        ["bench", str(bundle.path), "--backend", "onnxruntime", "--batch", "1", "--length", "8",
         "--rounds", "1", "--threads", "1", "--profile", "-o", str(tmp_path / "r.json"),
         "--html", str(tmp_path / "r.html")],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "where the time goes" in found.stdout
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert row["spent"]["ops"]
    assert "Where the time goes" in (tmp_path / "r.html").read_text()
