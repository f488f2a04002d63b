import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from tfx.bench import peaks as module
from tfx.bench.measuring.gemm import PRODUCTS, Size, product_model
from tfx.bench.measuring.machine import this_machine
from tfx.bench.peaks import (
    TRAFFIC,
    Bandwidth,
    GemmPeak,
    Peaks,
    array_bytes,
    best_time,
    fingerprint_of,
    measure_bandwidth,
    measure_peaks,
    peaks,
    show_peaks,
    stored_peaks,
)
from tfx.codec import decode, encode
from tfx.dtypes import DType
from tfx.errors import BackendError, DataError
from tfx.extras import need

TINY = Size(8, 16, 32)

FOUND = Peaks(
    "abc",
    0.5,
    (
        GemmPeak("torch", "2", DType.FLOAT32, 1, "8x16x32", 50.0),
        GemmPeak("torch", "2", DType.FLOAT32, 2, "8x16x32", 90.0),
        GemmPeak("openvino", "3", DType.FLOAT32, 2, "8x16x32", 100.0),
        GemmPeak("onnxruntime", "1", DType.INT8, 2, "8x16x32", 400.0),
    ),
    (Bandwidth("copy", 1, 9.5),),
    {"torch bfloat16": "this CPU multiplies no bfloat16"},
)


@pytest.mark.parametrize(("engine", "dtype"), PRODUCTS)
def test_every_product_runs_or_says_why(engine, dtype):
    try:
        call = PRODUCTS[engine, dtype](dtype, TINY, 1)
    except BackendError as error:
        if dtype is DType.FLOAT32:
            raise
        pytest.skip(str(error))
    call()
    call()


def test_the_model_of_integers_multiplies_what_they_stand_for():
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_from_string(product_model(DType.INT8, TINY))
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
    x = np.full((8, 16), 138, np.uint8)
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    expected = (x.astype(np.float64) - 128) / 255 @ (weights / 127.0)
    assert np.allclose(y, expected, atol=1e-5)


def test_a_model_that_quantizes_first_multiplies_the_same():
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_from_string(product_model(DType.INT8, TINY, quantize=True))
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
    x = np.full((8, 16), 10 / 255, np.float32)
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.allclose(y, x.astype(np.float64) @ (weights / 127.0), atol=1e-5)


def test_openvino_multiplies_integers_where_it_says_so():
    capabilities = need("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "INT8" not in capabilities:
        pytest.skip("OpenVINO multiplies no integers on this CPU")
    PRODUCTS["openvino", DType.INT8](DType.INT8, TINY, 1)()


def test_the_best_engine_of_a_type_is_the_peak():
    assert FOUND.best(DType.FLOAT32).engine == "openvino"
    assert FOUND.best(DType.FLOAT32, threads=1).gflops == 50
    assert FOUND.best(DType.BFLOAT16) is None


def test_a_share_is_of_the_peak_in_the_same_type():
    assert FOUND.share(50e9, 1.0, DType.FLOAT32) == pytest.approx(0.5)
    assert FOUND.share(50e9, 0.5, DType.INT8) == pytest.approx(0.25)
    assert FOUND.share(25e9, 1.0, DType.FLOAT32, threads=1) == pytest.approx(0.5)
    assert FOUND.share(1.0, 1.0, DType.FLOAT16) is None
    assert FOUND.share_of_named(50e9, 0.5, "int8") == pytest.approx(0.25)
    assert FOUND.share_of_named(50e9, 0.5, "int8_float32") is None


def test_the_fastest_call_counts():
    times = iter([0, 9, 10, 15, 20, 24, 30, 38, 40, 49, 50, 59])
    assert best_time(lambda: None, 0, clock=lambda: next(times)) == pytest.approx(4e-9)


@pytest.mark.parametrize("kind", TRAFFIC)
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_moved_by_one_and_by_many(kind, threads):
    assert measure_bandwidth(kind, threads, 1 << 20, 0.01) > 0


def test_the_triad_is_one():
    target, left, right = np.empty(40_000), np.arange(40_000.0), np.full(40_000, 2.0)
    TRAFFIC["triad"][0](target, left, right)
    assert np.array_equal(target, left + 6)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (["48K", "1024K", "32768K"], 128 << 20),
        (["32K"], 64 << 20),
        (["900M"], 512 << 20),
        ([], 128 << 20),
    ],
)
def test_arrays_are_larger_than_the_caches(tmp_path, sizes, expected, monkeypatch):
    room = dataclasses.make_dataclass("Memory", ["available"])(1 << 40)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: room)
    for index, size in enumerate(sizes):
        folder = tmp_path / f"devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")
    assert array_bytes(tmp_path) == expected


def test_arrays_leave_room_for_others(tmp_path, monkeypatch):
    room = dataclasses.make_dataclass("Memory", ["available"])(80 << 20)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: room)
    assert array_bytes(tmp_path) == 10 << 20


def test_a_machine_is_known_by_what_peaks_depend_on():
    machine = this_machine()
    busy = dataclasses.replace(machine, load_average=machine.load_average + 3)
    other = dataclasses.replace(machine, versions={"torch": "0.1"})
    assert fingerprint_of(busy) == fingerprint_of(machine)
    assert fingerprint_of(other) != fingerprint_of(machine)


def test_an_engine_that_cannot_says_why_and_takes_no_other_along(monkeypatch):
    def absent(dtype, size, threads):
        raise BackendError("torch is not installed")

    table = {
        ("torch", DType.FLOAT32): absent,
        ("here", DType.FLOAT32): lambda dtype, size, threads: lambda: None,
    }
    monkeypatch.setattr(module, "PRODUCTS", table)
    monkeypatch.setattr(module, "array_bytes", lambda: 1 << 16)
    monkeypatch.setattr(module, "usable_cpus", lambda: 2)
    found = measure_peaks(this_machine(), seconds=0.001, sizes=[TINY])
    assert [(one.engine, one.threads) for one in found.products] == [("here", 1), ("here", 2)]
    assert found.not_run == {"torch float32": "torch is not installed"}
    assert [(one.kind, one.threads) for one in found.memory] == [
        ("copy", 1),
        ("copy", 2),
        ("triad", 1),
        ("triad", 2),
    ]


def test_peaks_of_this_machine_are_read_and_others_measured_again(tmp_path):
    path = tmp_path / "peaks.json"
    own = dataclasses.replace(FOUND, fingerprint=fingerprint_of(this_machine()))
    assert stored_peaks(path, lambda: FOUND) == FOUND
    assert stored_peaks(path, lambda: own) == own  # FOUND is of another machine
    assert stored_peaks(path, lambda: pytest.fail("they are in the file")) == own
    assert stored_peaks(None, lambda: own) == own


def test_a_file_of_something_else_is_not_overwritten(tmp_path):
    path = tmp_path / "peaks.json"
    path.write_text("{}")
    with pytest.raises(DataError) as raised:
        stored_peaks(path, lambda: FOUND)
    assert str(raised.value).startswith(f"{path} holds no peaks: fingerprint: missing")
    assert raised.value.hint == "Delete it, to measure again."
    assert path.read_text() == "{}"


def test_peaks_that_cannot_be_kept_or_read_are_our_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*peaks\.json"):
        stored_peaks(tmp_path / "file" / "peaks.json", lambda: FOUND)
    with pytest.raises(DataError, match="holds no peaks"):
        stored_peaks(tmp_path, lambda: FOUND)


def test_a_process_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(DataError) as raised:
        module.machine_peaks(0.123)
    assert str(raised.value) == "the peaks were not measured: 1"


def test_the_table_shows_what_did_not_run(capsys):
    show_peaks(FOUND)
    shown = capsys.readouterr().out
    assert "not run: this CPU multiplies no bfloat16" in shown
    assert shown.index("openvino 3") < shown.index("torch 2   ", shown.index("openvino 3"))
    assert "9.5" in shown


def test_the_command_prints_what_can_be_read_back(monkeypatch):
    monkeypatch.setattr(module, "measure_peaks", lambda machine, seconds: FOUND)
    done = CliRunner().invoke(peaks, ["--json"])
    assert decode(Peaks, json.loads(done.stdout)) == FOUND
    assert decode(Peaks, encode(FOUND)) == FOUND
