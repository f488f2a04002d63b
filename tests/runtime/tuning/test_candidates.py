import dataclasses

import pytest
from support.bundles import write_bundle
from support.tuning import proof, write_child

from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.runtime.tuning import candidates
from tfx.runtime.tuning.candidates import (
    Outcome,
    candidates_of,
    descendants,
    is_proved,
    over_budget,
    thread_counts,
)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b")


def of(bundle, *children, backends=("onnxruntime", "openvino"), threads=(2, 1), max_drop=None):
    return candidates_of(bundle, children, backends=backends, threads=threads, max_drop=max_drop)


@pytest.fixture(autouse=True)
def every_backend_works(monkeypatch):
    class Works:
        def missing(self):
            return ""

    monkeypatch.setattr(candidates, "find_backend", lambda name: Works())


@pytest.mark.parametrize(
    ("usable", "counts"), [(1, (1,)), (2, (2, 1)), (3, (3, 1)), (4, (4, 2, 1)), (64, (64, 32, 16))]
)
def test_all_cpus_half_of_them_and_a_quarter(usable, counts):
    assert thread_counts(usable) == counts


def test_every_way_with_the_most_threads_comes_first(bundle):
    ways, dismissed = of(bundle)
    assert list(map(str, ways)) == [
        "b on onnxruntime, threads 2",
        "b on openvino, threads 2",
        "b on openvino fp16, threads 2",
        "b on openvino bf16, threads 2",
        "b on onnxruntime, threads 1",
        "b on openvino, threads 1",
        "b on openvino fp16, threads 1",
        "b on openvino bf16, threads 1",
    ]
    assert dismissed == []


def test_what_is_lowered_already_is_not_lowered_again(tmp_path):
    half = write_bundle(tmp_path / "half", precision=DType.BFLOAT16)
    ways, _ = of(half, threads=(1,))
    assert [str(way) for way in ways] == [
        "half on onnxruntime, threads 1",
        "half on openvino, threads 1",
    ]


def test_a_backend_that_is_missing_is_said_once(bundle, monkeypatch):
    class Missing:
        def __init__(self, name):
            self.name = name

        def missing(self):
            return "not there" if self.name == "openvino" else ""

    monkeypatch.setattr(candidates, "find_backend", Missing)
    ways, dismissed = of(bundle)
    assert {way.backend for way in ways} == {"onnxruntime"}
    assert [(one.candidate.backend, one.outcome, one.reason) for one in dismissed] == [
        ("openvino", Outcome.NOT_RUN, "not there")
    ]


def test_an_unknown_backend_is_an_error(bundle, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(BackendError, match="no backend called 'fast'"):
        of(bundle, backends=("fast",))


def test_descendants_are_found_at_any_depth_and_nothing_else(bundle, tmp_path):
    child = write_child(tmp_path / "child", bundle)
    grandchild = write_child(tmp_path / "grandchild", child, name="deep")
    stranger = write_bundle(tmp_path / "stranger", name="other")
    family = [grandchild, stranger, bundle, child]
    assert [one.name for one in descendants(bundle, family)] == ["grandchild", "child"]
    assert [one.name for one in descendants(child, family)] == ["grandchild"]
    assert descendants(grandchild, family) == []


@pytest.mark.parametrize(
    ("drops", "made_with", "asked", "reason"),
    [
        ([0.009], None, None, ""),
        ([0.011], None, None, "its accuracy dropped by 0.0110 on dev.tsv, 0.01 is allowed"),
        ([0.011], 0.02, None, ""),
        ([0.011], 0.02, 0.01, "its accuracy dropped by 0.0110 on dev.tsv, 0.01 is allowed"),
        ([0.011], None, 0.02, ""),
        ([0.0, 0.03], None, None, "its accuracy dropped by 0.0300 on dev.tsv, 0.01 is allowed"),
        # Made within a budget of one metric, the others are for information.
        ([0.0, 0.03], 0.005, None, ""),
        ([0.006, 0.0], 0.005, None, "its accuracy dropped by 0.0060 on dev.tsv, 0.005 is allowed"),
        ([float("nan")], None, None, "its accuracy dropped by nan on dev.tsv, 0.01 is allowed"),
        ([], None, 0.0, ""),
    ],
)
def test_the_budget_is_the_callers_or_the_childs_or_the_default(
    bundle, tmp_path, drops, made_with, asked, reason
):
    child = write_child(tmp_path / "c", bundle, max_drop=made_with)
    made = dataclasses.replace(
        child.manifest.quantization, accuracy=tuple(proof(drop) for drop in drops)
    )
    child = dataclasses.replace(
        child, manifest=dataclasses.replace(child.manifest, quantization=made)
    )
    assert over_budget(child, asked) == reason


def test_a_child_over_the_budget_is_not_tried(bundle, tmp_path):
    child = write_child(tmp_path / "c", bundle, proof(0.5))
    ways, dismissed = of(bundle, child)
    assert {way.bundle for way in ways} == {"b"}
    assert {(one.candidate.bundle, one.outcome) for one in dismissed} == {
        ("c", Outcome.OVER_BUDGET)
    }


def test_a_damaged_child_is_not_tried(bundle, tmp_path):
    child = write_child(tmp_path / "c", bundle)
    data = bytearray(child.model.read_bytes())
    data[-1] ^= 1
    child.model.write_bytes(data)
    ways, dismissed = of(bundle, child)
    assert {way.bundle for way in ways} == {"b"}
    assert dismissed[0].outcome is Outcome.NOT_RUN
    assert "sha256 is not the one" in dismissed[0].reason


def test_a_proof_is_of_the_backend_it_was_measured_on(bundle, tmp_path):
    child = write_child(tmp_path / "c", bundle, proof(0.0))
    assert is_proved(child, "onnxruntime")
    assert not is_proved(child, "openvino")
    assert not is_proved(bundle, "onnxruntime")
