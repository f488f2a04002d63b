"""Backends "onnxruntime" on CUDA and "onnxruntime-tensorrt", on stand-ins for GPU and library."""

import gc
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.bundles import TEXT_SIGNATURE, write_bundle
from support.cuda import host, on_gpu, plant_gpu
from support.engines import write_engine_bundle
from support.errors import lines_of
from support.onnxruntime_gpu import CPU, CUDA, TENSORRT, FakeOrt
from support.proofs import text_cases

import tfx
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.backends import onnxruntime_buffers as buffers
from tfx.runtime.backends import onnxruntime_gpu as backend
from tfx.runtime.backends.onnxruntime import OnnxRuntime
from tfx.runtime.backends.onnxruntime_buffers import MAX_GRAPHS
from tfx.runtime.backends.onnxruntime_gpu import OnnxRuntimeTensorRt
from tfx.signature import ShapeRange, Signature, TensorSpec, ValueRange

GPU = RunOptions(device="cuda:0")
CASES = text_cases(np.random.default_rng(0), ((2, 5), (3, 9), (1, 1)))


@pytest.fixture
def gpu(monkeypatch):
    """A machine with one GPU of sm89."""
    return plant_gpu(monkeypatch, backend)


@pytest.fixture
def library(gpu, monkeypatch):
    """onnxruntime-gpu, and tensorrt, which its provider needs."""
    ort = FakeOrt(gpu)
    modules = {"onnxruntime": ort.module(), "tensorrt": None}
    monkeypatch.setattr(backend, "need", modules.__getitem__)
    return ort


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b")


def load(bundle, options=GPU):
    return OnnxRuntime().load(bundle, options)


def same(bundle, executable, cases=CASES):
    """Outputs are the CPU's, from arrays of the host."""
    expected = OnnxRuntime().load(bundle, RunOptions())
    for case in cases:
        found, wanted = executable.run(case.feed), expected.run(case.feed)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
            assert found[name].dtype == array.dtype


def test_it_gives_what_the_cpu_gives(library, gpu, bundle):
    executable = load(bundle)
    for _ in range(4):
        same(bundle, executable)
        same(bundle, executable, CASES[::-1])
    executable.close()
    gc.collect()
    assert not gpu.memory
    assert not gpu.streams


def test_what_really_runs(library, bundle):
    facts = load(bundle).facts
    assert (facts.backend, facts.engine, facts.device) == ("onnxruntime", CUDA, "cuda:0")
    assert (facts.precision, facts.threads) == ("float32", 0)
    assert facts.notes == ("TF32 is off",)
    assert library.preloaded == 1
    options = library.sessions[0][CUDA]
    assert (options["device_id"], options["use_tf32"], options["enable_cuda_graph"]) == (
        "0",
        "0",
        "1",
    )
    assert options["user_compute_stream"]


def test_a_shape_that_comes_again_is_a_cuda_graph(library, gpu, bundle):
    executable = load(bundle)
    for _ in range(4):
        same(bundle, executable, CASES[:2])
    assert library.runs == ["-1", "-1", "1", "2", "1", "2", "1", "2"]


def test_graphs_are_bounded(library, bundle):
    executable = load(bundle)
    cases = text_cases(np.random.default_rng(1), [(1, size) for size in range(1, MAX_GRAPHS + 4)])
    for case in cases:
        same(bundle, executable, [case, case, case])
    assert {*library.runs} == {"-1", *(str(number) for number in range(1, MAX_GRAPHS + 1))}
    same(bundle, executable, cases)


def test_shapes_that_never_come_again_are_forgotten(library, bundle, monkeypatch):
    monkeypatch.setattr(buffers, "MAX_GRAPHS", 1 / 64)
    executable = load(bundle)
    for case in CASES:
        executable.run(case.feed)
    assert len(executable._state.seen) < 3


def test_tensors_on_the_gpu_are_read_there_and_left_there(library, gpu, bundle):
    executable = load(bundle)
    expected = OnnxRuntime().load(bundle, RunOptions())
    for case in (*CASES, *CASES):
        (wanted,) = expected.run(case.feed).values()
        feed = on_gpu(gpu, case.feed)
        for given in (feed, feed | {"input_ids": case.feed["input_ids"]}, case.feed):
            (kept,) = executable.run_on_gpu(given, keep=True).values()
            np.testing.assert_allclose(host(kept), wanted, rtol=1e-5)
            (copied,) = executable.run_on_gpu(given, keep=False).values()
            np.testing.assert_allclose(copied, wanted, rtol=1e-5)


def test_nothing_is_copied_between_host_and_gpu(library, gpu, bundle):
    executable = load(bundle)
    feed = on_gpu(gpu, CASES[0].feed)
    executable.run_on_gpu(feed, keep=True)
    assert gpu.kinds == {3: 1}  # the output, within the GPU
    executable.run_on_gpu(feed, keep=True)  # a CUDA graph has its own buffers
    assert gpu.kinds == {3: 4}


def test_kept_outputs_are_the_callers(library, gpu, bundle):
    executable = load(bundle)
    (kept,) = executable.run_on_gpu(CASES[0].feed, keep=True).values()
    before = host(kept).copy()
    executable.run({name: array * 0 for name, array in CASES[0].feed.items()})
    executable.close()
    gc.collect()
    np.testing.assert_array_equal(host(kept), before)
    assert list(gpu.memory) == [kept.address]


def test_outputs_are_the_callers_own(library, bundle):
    executable = load(bundle)
    for _ in range(3):
        first = executable.run(CASES[0].feed)["last_hidden_state"]
        kept = first.copy()
        executable.run({name: array * 0 for name, array in CASES[0].feed.items()})
        np.testing.assert_array_equal(first, kept)


NONZERO = Signature(
    (TensorSpec("x", DType.INT64, ("batch",), ValueRange(0, 9)),),
    (TensorSpec("y", DType.INT64, (1, "found")), TensorSpec("z", DType.INT64, ("batch",))),
    {"batch": ShapeRange(1, 2, 8)},
)


def test_sizes_that_depend_on_data(library, gpu, tmp_path):
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch"])],
        [
            helper.make_tensor_value_info("y", TensorProto.INT64, [1, "found"]),
            helper.make_tensor_value_info("z", TensorProto.INT64, ["batch"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model)
    executable = load(write_bundle(tmp_path / "nz", model, signature=NONZERO))
    for values in ([0, 3, 0, 4], [1, 1, 1, 1], [0, 0, 0, 0], [0, 3, 0, 4]):
        feed = {"x": np.array(values)}
        found = executable.run(feed)
        np.testing.assert_array_equal(found["y"], [np.flatnonzero(values)])
        np.testing.assert_array_equal(found["z"], -feed["x"])
        kept = executable.run_on_gpu(feed, keep=True)
        np.testing.assert_array_equal(host(kept["y"]), [np.flatnonzero(values)])
    assert {*library.runs} == {"-1"}


def test_from_many_threads(library, bundle):
    executable = load(bundle)
    failures = []

    def run():
        try:
            for _ in range(5):
                same(bundle, executable)
        except Exception as error:  # noqa: BLE001  shown by the assert
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_sizes_may_be_computed_on_the_cpu(library, bundle):
    library.placed = {"Unsqueeze": CPU, "Cast": CPU}
    assert load(bundle).facts.notes == ("TF32 is off", "2 nodes compute sizes on the CPU")


def test_nothing_else_falls_back_to_the_cpu(library, gpu, tmp_path):
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[b, 4] x) => (float[b, 4] y)'
        "{ s = Softmax(x)\n y = Relu(s) }"
    )
    signature = Signature(
        (TensorSpec("x", DType.FLOAT32, ("b", 4)),),
        (TensorSpec("y", DType.FLOAT32, ("b", 4)),),
        {"b": ShapeRange(1, 2, 4)},
    )
    bundle = write_bundle(tmp_path / "soft", graph, signature=signature)
    library.placed = {"Softmax": CPU, "Relu": CPU}
    with pytest.raises(BackendError) as caught:
        load(bundle)
    assert lines_of(str(caught.value)) == [
        "onnxruntime would run parts of soft on the CPU:",
        f"  Relu: {CUDA} has no kernel for it here",
        f"  Softmax: {CUDA} has no kernel for it here",
    ]
    assert "device='cpu'" in caught.value.hint
    assert not gpu.streams


def test_a_session_that_gets_another_provider(library, gpu, bundle):
    library.gives = CPU
    with pytest.raises(BackendError, match=f"onnxruntime gave {CPU}, not {CUDA}") as caught:
        load(bundle)
    assert "tfx-toolkit[gpu]" in caught.value.hint
    assert not gpu.streams


def test_a_library_without_the_provider(library, bundle):
    library.providers = [CPU]
    with pytest.raises(BackendError, match=f"here has no {CUDA}$") as caught:
        load(bundle)
    assert caught.value.hint == "Run: pip uninstall onnxruntime; pip install 'tfx-toolkit[gpu]'"
    assert OnnxRuntimeTensorRt().missing().endswith("pip install 'tfx-toolkit[gpu]')")


def test_a_machine_without_a_gpu(library, gpu, bundle):
    gpu.count = 0
    with pytest.raises(BackendError, match=r"onnxruntime cannot run on cuda:0: .*NoDevice"):
        load(bundle)
    assert "cudaErrorNoDevice" in OnnxRuntimeTensorRt().missing()


def test_a_graph_that_does_not_load(library, gpu, bundle):
    bundle.model.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=rf"cannot load .*model\.onnx with {CUDA}") as caught:
        load(bundle)
    assert caught.value.hint == "See what is missing with: tfx doctor"
    assert not gpu.streams


def test_a_run_that_fails(library, bundle):
    executable = load(bundle)
    library.fails = "out of memory"
    with pytest.raises(BackendError, match="onnxruntime failed: out of memory"):
        executable.run(CASES[0].feed)
    library.fails = ""
    same(bundle, executable)


def test_closed(library, bundle):
    executable = load(bundle)
    executable.close()
    executable.close()
    with pytest.raises(BackendError, match=r"^session is closed$"):
        executable.run(CASES[0].feed)


def test_another_precision_than_the_graphs(library, bundle):
    with pytest.raises(BackendError, match="onnxruntime multiplies matrices in float32 here"):
        load(bundle, RunOptions("cuda:0", precision="fp16"))
    load(bundle, RunOptions("cuda:0", precision="fp32"))


@pytest.mark.parametrize(
    ("precision", "notes"),
    [
        (DType.FLOAT16, ()),
        (
            DType.INT8,
            ("TF32 is off", "ONNX Runtime does not say whether it multiplies in int8 on a GPU"),
        ),
    ],
    ids=str,
)
def test_lower_precisions_run_the_graph_itself(library, tmp_path, precision, notes):
    low = write_bundle(
        tmp_path / "low",
        files={"for-cpu.onnx": b"none"},
        precision=precision,
        variants={"onnxruntime-cpu": "for-cpu.onnx"},
    )
    facts = load(low).facts
    assert (facts.precision, facts.notes) == (precision, notes)


def test_a_form_of_its_own(library, tmp_path):
    graph = write_bundle(tmp_path / "b").model.read_bytes()
    bundle = write_bundle(
        tmp_path / "v", files={"for.onnx": graph}, variants={"onnxruntime-cuda": "for.onnx"}
    )
    assert load(bundle).facts.notes[0] == "runs for.onnx, the form of the graph made for it"


def test_an_engine_is_no_graph(library, tmp_path):
    with pytest.raises(BackendError, match=r"onnxruntime-tensorrt runs graphs, and .* an engine"):
        OnnxRuntimeTensorRt().load(write_engine_bundle(tmp_path / "e"), GPU)


def test_a_device_that_is_no_gpu(library, bundle):
    with pytest.raises(BackendError, match="onnxruntime-tensorrt runs on GPUs, not on 'cpu'"):
        OnnxRuntimeTensorRt().load(bundle, RunOptions())


def test_a_session_on_the_gpu(library, gpu, bundle):
    with tfx.open_session(bundle, backend="onnxruntime", device="cuda:0") as session:
        (kept,) = session.predict(on_gpu(gpu, CASES[0].feed), outputs="dlpack").values()
        (found,) = session.predict(dict(CASES[0].feed)).values()
    np.testing.assert_array_equal(host(kept), found)


def test_tensorrt_inside(library, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFX_CACHE_MB", "10")
    library.placed = {"Cast": CUDA}
    executable = get_backend("onnxruntime-tensorrt").load(bundle, GPU)
    for _ in range(3):
        same(bundle, executable)
    assert executable.facts.engine == TENSORRT
    assert executable.facts.notes == (
        "TensorRT may multiply float32 as TF32",
        f"left to {CUDA}: Cast",
    )
    assert {*library.runs} == {"-1"}
    (providers,) = library.sessions
    assert list(providers) == [TENSORRT, CUDA]
    options = providers[TENSORRT]
    assert options["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert options["trt_profile_opt_shapes"] == "input_ids:4x16,attention_mask:4x16"
    assert options["trt_profile_max_shapes"] == "input_ids:16x32,attention_mask:16x32"
    assert not [name for name in options if "fp16" in name or "int8" in name]
    folder = tmp_path / "cache" / "tfx" / "onnxruntime-tensorrt" / bundle.digest
    assert options["trt_engine_cache_path"] == str(folder)
    assert folder.is_dir()


def test_tensorrt_inside_without_ranges_or_cache(library, tmp_path):
    free = Signature(TEXT_SIGNATURE.inputs, TEXT_SIGNATURE.outputs)
    low = write_bundle(tmp_path / "free", signature=free, precision=DType.FLOAT16)
    OnnxRuntimeTensorRt().load(low, GPU)
    options = library.sessions[0][TENSORRT]
    assert not [name for name in options if "profile" in name or "cache" in name]
    assert options["trt_fp16_enable"] == "1"


def test_tensorrt_itself_is_missing(library, monkeypatch):
    real = backend.need

    def need(name):
        if name == "tensorrt":
            raise BackendError("tensorrt is not installed", hint="Run: pip install it")
        return real(name)

    monkeypatch.setattr(backend, "need", need)
    assert OnnxRuntimeTensorRt().missing() == "tensorrt is not installed (Run: pip install it)"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-tensorrt"])
def test_a_real_gpu(name, bundle):
    chosen = get_backend(name)
    executable = chosen.load(bundle, GPU)
    for _ in range(4):
        same(bundle, executable)
    executable.close()
