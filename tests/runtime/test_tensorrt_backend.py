"""Backend "tensorrt": which engines it opens, and how it runs them, on stand-ins for the GPU.

The same bodies run on a real one: see ``test_a_real_engine``.
"""

import dataclasses
import json
import threading

import numpy as np
import pytest
from support.bundles import TEXT_SIGNATURE, write_bundle
from support.cuda import plant_gpu
from support.engines import write_engine_bundle
from support.errors import lines_of
from support.proofs import text_cases, text_outputs
from support.tensorrt import PLAN, CudaGraphStrategy, FakeRuntime, plant_library

import tfx
from tfx.dtypes import DType
from tfx.errors import BackendError, BundleError, FeedError
from tfx.manifest import Parent
from tfx.recipe import EngineRecipe, Target
from tfx.runtime import cuda as cuda_module
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.backends import tensorrt as backend
from tfx.runtime.backends.tensorrt import LANES, TensorRt
from tfx.runtime.backends.tensorrt_lane import MAX_GRAPHS, choose_profile
from tfx.runtime.engines import is_known_engine, remember_engine
from tfx.signature import ShapeRange, Signature, TensorSpec

TRT = EngineRecipe(Target.TENSORRT)
GPU = RunOptions(device="cuda:0", trust=True)
HALF = dataclasses.replace(GPU, precision="fp16")
CASES = text_cases(np.random.default_rng(0), ((2, 5), (3, 9), (1, 1)))


@pytest.fixture
def gpu(monkeypatch):
    """A machine with one GPU of sm89."""
    return plant_gpu(monkeypatch, backend)


@pytest.fixture
def library(gpu, monkeypatch):
    """TensorRT, of either flavour, whose every plan computes the text graph."""
    return plant_library(monkeypatch, gpu)


def load(bundle, options=GPU):
    return TensorRt().load(bundle, options)


def same(executable, cases=CASES):
    for case in cases:
        found, expected = executable.run(case.feed), text_outputs(case.feed)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


@pytest.mark.parametrize("recipe", [EngineRecipe(gpus=("sm89",)), TRT], ids=["rtx", "full"])
def test_it_runs_what_the_engine_computes(library, tmp_path, recipe):
    executable = load(write_engine_bundle(tmp_path / "e", recipe=recipe))
    for _ in range(4):  # the third of a shape is a recorded one
        same(executable)
        same(executable, CASES[::-1])


def test_what_really_runs(library, tmp_path):
    facts = load(write_engine_bundle(tmp_path / "e", attention=2)).facts
    assert (facts.backend, facts.version, facts.device) == ("tensorrt", "1.7.1.116", "cuda:0")
    assert (facts.engine, facts.precision, facts.threads) == ("tensorrt-rtx sm89", "float32", 0)
    assert facts.notes == ("TF32 is off", "attention runs as several kernels")
    moved = load(write_engine_bundle(tmp_path / "f", recipe=TRT, device="NVIDIA L4")).facts
    assert moved.notes[1:] == ("built on NVIDIA L4, runs on Fake GPU: kernels are not its best",)
    short = load(write_engine_bundle(tmp_path / "g", precision=DType.FLOAT16), HALF).facts
    assert short.notes == ()


def test_outputs_are_the_callers_own(library, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    first = executable.run(CASES[0].feed)["last_hidden_state"]
    kept = first.copy()
    executable.run({name: array * 0 for name, array in CASES[0].feed.items()})
    np.testing.assert_array_equal(first, kept)


def test_buffers_are_reused(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    same(executable, [CASES[1]])  # the largest
    made = gpu.calls["cudaMalloc"]
    assert made == 3
    same(executable)
    assert gpu.calls["cudaMalloc"] == made
    executable.close()
    assert not gpu.memory
    assert not gpu.streams


def test_a_shape_that_comes_again_is_a_recorded_run(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e", recipe=TRT))
    for _ in range(5):
        same(executable, [CASES[0]])
    assert gpu.calls["cudaGraphInstantiate"] == 1
    assert gpu.calls["cudaGraphLaunch"] == 4
    same(executable, [CASES[1]])  # larger: new buffers, so the old graph is gone
    assert len(gpu.graphs) == 0
    same(executable, [CASES[0]])
    executable.close()


def test_graphs_are_bounded_and_freed(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e", recipe=TRT))
    same(executable, text_cases(np.random.default_rng(1), ((1, 32),)))
    cases = text_cases(np.random.default_rng(1), [(1, size) for size in range(1, MAX_GRAPHS + 4)])
    for case in cases:
        same(executable, [case, case, case])
    assert len(gpu.graphs) == MAX_GRAPHS
    same(executable, cases)
    executable.close()
    assert not gpu.graphs


def test_an_engine_that_cannot_be_recorded_runs_without(library, gpu, tmp_path, caplog):
    gpu.capturable = False
    executable = load(write_engine_bundle(tmp_path / "e", recipe=TRT))
    for _ in range(3):
        same(executable)
        same(executable, [CASES[2]])
    assert "cudaGraphInstantiate" not in gpu.calls
    assert caplog.messages == [
        "runs without CUDA graphs: tensorrt fails to run: cannot be captured"
    ]


def test_rtx_records_by_itself(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    for _ in range(3):
        same(executable, [CASES[0]])
    assert library.strategies == [CudaGraphStrategy.WHOLE_GRAPH_CAPTURE]
    assert "cudaStreamBeginCapture" not in gpu.calls


def test_sizes_that_depend_on_data(library, tmp_path):
    library.later = {"last_hidden_state"}
    executable = load(write_engine_bundle(tmp_path / "e", recipe=TRT))
    for _ in range(3):
        same(executable)


def test_tensors_that_the_host_reads(library, gpu, tmp_path):
    library.on_host = {"attention_mask"}
    executable = load(write_engine_bundle(tmp_path / "e"))
    same(executable, [CASES[0]])
    assert gpu.calls["cudaMemcpyAsync"] == 2


def test_the_nearest_profile_is_chosen(library, tmp_path):
    whole = TEXT_SIGNATURE.ranges["sequence"]
    profiles = (
        {"batch": ShapeRange(1, 1, 2), "sequence": whole},
        {"batch": ShapeRange(1, 8, 16), "sequence": whole},
    )
    executable = load(write_engine_bundle(tmp_path / "e", profiles=profiles))
    for shape in ((1, 4), (2, 4), (5, 4), (1, 4)):
        same(executable, text_cases(np.random.default_rng(0), (shape,)))
    assert library.profiles == [0, 0, 1, 0]


def test_nearest_is_by_ratio():
    profiles = [{"batch": ShapeRange(1, opt, 64)} for opt in (1, 4, 32)]
    chosen = [choose_profile(profiles, {"batch": size}) for size in (1, 2, 3, 6, 11, 12, 64)]
    assert chosen == [0, 0, 1, 1, 1, 2, 2]


def test_sizes_between_the_profiles(library, tmp_path):
    profiles = (
        {"batch": ShapeRange(1, 1, 1), "sequence": ShapeRange(1, 16, 32)},
        {"batch": ShapeRange(4, 4, 4), "sequence": ShapeRange(1, 8, 8)},
    )
    executable = load(write_engine_bundle(tmp_path / "e", profiles=profiles))
    with pytest.raises(FeedError) as caught:
        executable.run(text_cases(np.random.default_rng(0), ((4, 9),))[0].feed)
    assert str(caught.value) == (
        "no profile of the engine takes batch 4, sequence 9, they take "
        "batch 1..1, sequence 1..32; batch 4..4, sequence 1..8"
    )
    assert "--shapes" in caught.value.hint
    same(executable, CASES[2:])  # the lane came back


def test_a_run_that_fails(library, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    library.fails = "illegal address"
    with pytest.raises(BackendError, match=r"^tensorrt fails to run: illegal address$"):
        executable.run(CASES[0].feed)
    library.fails = ""
    same(executable)


def test_memory_that_is_not_there(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    gpu.memory_bytes = 100
    with pytest.raises(BackendError, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        executable.run(CASES[1].feed)
    gpu.memory_bytes = 1 << 20
    same(executable)


def test_threads_have_lanes_of_their_own(library, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    failures = []

    def work():
        try:
            for _ in range(20):
                same(executable)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert 1 <= library.contexts <= LANES


def test_closed(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    same(executable)
    executable.close()
    executable.close()
    with pytest.raises(BackendError, match="session is closed"):
        executable.run(CASES[0].feed)
    assert not gpu.memory


def test_closed_while_it_runs(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    lane = executable._lanes.get()
    executable.close()
    assert gpu.streams  # the run may go on
    executable._give_back(lane)
    assert not gpu.streams


def test_a_graph_is_not_an_engine(library, tmp_path):
    bundle = write_bundle(tmp_path / "g")
    with pytest.raises(
        BackendError, match=r"tensorrt runs engines, and .* holds a graph"
    ) as caught:
        load(bundle)
    assert "tfx build" in caught.value.hint


def test_an_engine_of_another_gpu_and_version(library, gpu, tmp_path):
    gpu.capability = (8, 6)
    bundle = write_engine_bundle(tmp_path / "e", gpus=("sm89", "sm120"), version="1.6.0")
    with pytest.raises(BackendError) as caught:
        load(bundle)
    assert lines_of(str(caught.value)) == [
        f"the engine of {bundle.path} does not run here:",
        "  it is for sm89, sm120, here is sm86 (Fake GPU)",
        "  it is for tensorrt-rtx 1.6.0, here is 1.7.1.116",
    ]
    assert caught.value.hint == (
        "Build it again from its parent: tfx build tiny --target tensorrt-rtx --gpu sm86"
    )
    full = write_engine_bundle(tmp_path / "f", recipe=TRT)
    with pytest.raises(BackendError, match="it is for sm89, here is sm86") as caught:
        load(full)
    assert caught.value.hint.endswith("tfx build tiny --target tensorrt")


def test_engines_made_to_run_elsewhere(library, gpu, tmp_path):
    recipe = dataclasses.replace(TRT, hardware_compatible=True, version_compatible=True)
    gpu.capability = (12, 0)
    same(load(write_engine_bundle(tmp_path / "e", recipe=recipe, version="1.6.9")))
    assert library.host_code  # of the runtime that such a plan brings
    gpu.capability = (7, 5)
    with pytest.raises(BackendError, match="it is for Ampere or later, here is sm75"):
        load(write_engine_bundle(tmp_path / "f", recipe=recipe))
    gpu.capability = (8, 9)
    with pytest.raises(BackendError, match=r"it is for tensorrt 1\.8\.0, here is 1\.7\.1\.116"):
        load(write_engine_bundle(tmp_path / "g", recipe=recipe, version="1.8.0"))


def test_another_precision_than_the_builds(library, tmp_path):
    bundle = write_engine_bundle(tmp_path / "e")
    with pytest.raises(BackendError, match="in float32 here, not in float16"):
        load(bundle, dataclasses.replace(GPU, precision="fp16"))
    load(bundle, dataclasses.replace(GPU, precision="fp32"))


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "npu:0"])
def test_a_device_that_is_no_gpu(library, tmp_path, device):
    with pytest.raises(BackendError, match=f"tensorrt runs on GPUs, not on '{device}'") as caught:
        load(write_engine_bundle(tmp_path / "e"), dataclasses.replace(GPU, device=device))
    assert caught.value.hint == "Use device='cuda:0'."


def test_a_gpu_that_is_not_there(library, tmp_path):
    with pytest.raises(BackendError, match="cudaGetDeviceProperties failed: cudaErrorNoDevice"):
        load(write_engine_bundle(tmp_path / "e"), dataclasses.replace(GPU, device="cuda:1"))


def test_what_was_verified_is_what_runs(library, tmp_path):
    bundle = write_engine_bundle(tmp_path / "e")
    bundle.model.write_bytes(PLAN[::-1])  # after it was opened
    with pytest.raises(
        BundleError, match=r"model\.engine is damaged: its sha256 is not the one in"
    ):
        load(bundle)
    bundle.model.unlink()
    with pytest.raises(BundleError, match=r"cannot read .*: No such file"):
        load(bundle)


def test_an_engine_that_does_not_load(library, tmp_path):
    bundle = write_engine_bundle(tmp_path / "e", plan=b"something else")
    with pytest.raises(BackendError, match=r"cannot load .*model\.engine: bad magic$") as caught:
        load(bundle)
    assert caught.value.hint == "Build the engine again from its parent."


def test_an_engine_that_is_not_the_manifests(library, tmp_path):
    ids, mask = TEXT_SIGNATURE.inputs
    (hidden,) = TEXT_SIGNATURE.outputs
    other = Signature(
        (ids, dataclasses.replace(mask, name="mask")),
        (dataclasses.replace(hidden, dtype=DType.FLOAT16),),
        TEXT_SIGNATURE.ranges,
    )
    bundle = write_engine_bundle(tmp_path / "e", signature=other)
    with pytest.raises(BundleError) as caught:
        load(bundle)
    assert lines_of(str(caught.value)) == [
        f"the engine of {bundle.path} is not the one of its manifest:",
        "  mask: an input of the manifest alone",
        "  attention_mask: an input of the engine alone",
        "  last_hidden_state: float16[batch, sequence, 8]: the engine has FLOAT",
    ]


def test_a_foreign_engine_needs_trust(library, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFX_CACHE_MB", "10")
    bundle = write_engine_bundle(tmp_path / "e")
    with pytest.raises(BackendError, match="holds an engine that was not built here") as caught:
        load(bundle, RunOptions("cuda:0"))
    assert "--trust" in caught.value.hint
    assert not is_known_engine(bundle)
    remember_engine(bundle)
    load(bundle, RunOptions("cuda:0"))
    other = write_engine_bundle(tmp_path / "f", notes=("tampered",))
    assert not is_known_engine(other)


def test_nothing_is_noted_with_the_cache_off(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = write_engine_bundle(tmp_path / "e")
    remember_engine(bundle)
    assert not is_known_engine(bundle)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tfx").write_text("a file where a folder must be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFX_CACHE_MB", "10")
    remember_engine(write_engine_bundle(tmp_path / "e"))
    assert "will need --trust to run" in caplog.text


def test_a_stripped_engine_takes_its_parents_weights(library, tmp_path):
    recipe = dataclasses.replace(TRT, strip=True)
    with pytest.raises(BackendError, match="holds no weights: they are in tiny, which is not be"):
        load(write_engine_bundle(tmp_path / "e", recipe=recipe))
    parent = write_bundle(tmp_path / "tiny")
    child = write_engine_bundle(tmp_path / "f", recipe=recipe, parent=parent.as_parent())
    same(load(child))
    assert not library.host_code
    assert library.refitted == str(parent.model)
    other = write_engine_bundle(tmp_path / "g", recipe=recipe, parent=Parent("tiny", "1" * 64))
    with pytest.raises(BackendError, match="not beside it") as caught:
        load(other)
    assert caught.value.hint == "Put the bundle tiny into the same folder."


def test_streamed_weights(library, tmp_path):
    executable = load(
        write_engine_bundle(tmp_path / "e", recipe=dataclasses.replace(TRT, weight_streaming=True))
    )
    assert library.budget == 4096
    assert executable.facts.notes[-1] == (
        "weights come from the host's memory as far as they do not fit"
    )


def test_a_session_finds_backend_and_device(library, gpu, tmp_path):
    bundle = write_engine_bundle(tmp_path / "e")
    with tfx.open_session(bundle, trust=True) as session:
        assert session.report.facts.device == "cuda:0"
        outputs = session.predict(dict(CASES[0].feed))
    np.testing.assert_array_equal(
        outputs["last_hidden_state"], text_outputs(CASES[0].feed)["last_hidden_state"]
    )


def test_what_is_missing(monkeypatch, gpu):
    monkeypatch.setattr(backend, "load_library", lambda target: None)
    assert TensorRt().missing() == ""
    gpu.count = 0
    assert TensorRt().missing() == (
        "cudaGetDeviceCount failed: cudaErrorNoDevice "
        "(Install an NVIDIA driver, or use a machine that has one.)"
    )
    monkeypatch.setattr(cuda_module, "count_devices", lambda: 0)
    assert TensorRt().missing() == "the NVIDIA driver finds no GPU"


def test_no_library_is_installed(monkeypatch):
    def load_library(target):
        raise BackendError(f"{target} is not installed", hint="Run: pip install it")

    monkeypatch.setattr(backend, "load_library", load_library)
    assert TensorRt().missing() == (
        "tensorrt is not installed (Run: pip install it); "
        "tensorrt-rtx is not installed (Run: pip install it)"
    )
    with pytest.raises(BackendError, match="backend 'tensorrt' cannot run here"):
        get_backend("tensorrt")


@pytest.mark.parametrize(
    "spec",
    [TensorSpec("x", DType.BFLOAT16, ("b", 3)), TensorSpec("x", DType.BOOL, ("b", 3))],
    ids=str,
)
def test_types_that_numpy_has_not_or_are_small(gpu, monkeypatch, tmp_path, spec):
    signature = Signature(
        (spec,), (dataclasses.replace(spec, name="y"),), {"b": ShapeRange(1, 2, 4)}
    )
    runtime = FakeRuntime(gpu, signature, lambda feed: {"y": feed["x"]})
    module = runtime.module()
    monkeypatch.setattr(backend, "load_library", lambda target: module)
    bundle = write_engine_bundle(
        tmp_path / "e", signature=signature, profiles=(signature.ranges,), precision=DType.FLOAT32
    )
    feed = {"x": np.array([[0, 1, 1], [1, 0, 0]]).astype(spec.dtype.numpy)}
    found = load(bundle).run(feed)["y"]
    np.testing.assert_array_equal(found, feed["x"])
    assert found.dtype == feed["x"].dtype


@pytest.mark.gpu
def test_a_real_engine(tmp_path):
    """Builds for the GPU here and runs the same feeds; the one test that needs one."""
    if reason := TensorRt().missing():
        pytest.skip(reason)
    from tfx.export.engines.bundle import build_bundle

    parent = write_bundle(tmp_path / "tiny")
    for target in Target:
        try:
            bundle = build_bundle(parent, tmp_path / target, EngineRecipe(target))
        except BackendError as error:
            if "not installed" in str(error):
                continue
            raise
        executable = load(bundle)
        for _ in range(4):
            same(executable)
        executable.close()
        assert json.loads((bundle.path / "tfx.json").read_text())["engine"]["device"]
