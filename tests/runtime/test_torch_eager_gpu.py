"""Backends "torch" and "torch-compiled" on a GPU: the same bodies on a CPU that stands for it."""

import dataclasses

import numpy as np
import pytest
import torch
from support.bundles import write_bundle
from support.modules import write_factories

import tfx
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.recipe import Source, SourceKind
from tfx.runtime import device_arrays
from tfx.runtime.backend import GpuExecutable, RunOptions, get_backend
from tfx.runtime.backends import torch_eager
from tfx.runtime.device_arrays import DeviceArray, array_of_tensor
from tfx.runtime.pytorch import gpu as torch_gpu
from tfx.runtime.pytorch.gpu import torch_device
from tfx.runtime.pytorch.modules import factory_digest, load_module, weights_digest
from tfx.signature import Signature, TensorSpec

LINEAR = Signature(
    (TensorSpec("input", DType.FLOAT32, ("batch", 4)),),
    (TensorSpec("output", DType.FLOAT32, ("batch", 3)),),
)
ERRORS = {"": 1e-6, "fp32": 1e-6, "fp16": 5e-3, "bf16": 4e-2}


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where PyTorch's "cuda:0" is: the CPU, or a GPU."""
    if request.param == "real":
        return torch_device("cuda:0")
    monkeypatch.setattr(torch_eager, "torch_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(device_arrays, "CUDA", 1)  # the host, for DLPack, which has no streams
    monkeypatch.setattr(DeviceArray, "wait_on", lambda self, stream: None)
    return torch.device("cpu")


@pytest.fixture
def source(tmp_path):
    source = Source(SourceKind.FACTORY, f"{write_factories(tmp_path)}:linear", seed=1)
    return dataclasses.replace(
        source, digest=weights_digest(load_module(source)), file_digest=factory_digest(source)
    )


@pytest.fixture
def linear(tmp_path, source):
    return write_bundle(tmp_path / "linear", source=source, signature=LINEAR)


def load(bundle, name="torch", **options):
    return get_backend(name).load(bundle, RunOptions("cuda:0", trust=True, **options))


def expected_of(source, feed):
    return load_module(source)(torch.from_numpy(feed["input"])).detach().numpy()


@pytest.mark.parametrize("precision", ERRORS)
def test_each_precision(device, linear, source, rng, precision):
    feed = {"input": rng.normal(size=(5, 4)).astype(np.float32)}
    executable = load(linear, precision=precision)
    (found,) = executable.run(feed).values()
    error = np.abs(found - expected_of(source, feed)).max()
    assert found.dtype == np.float32
    assert error < ERRORS[precision]
    assert (error > 1e-6) == (precision in ("fp16", "bf16"))
    low = {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32")
    facts = executable.facts
    assert (facts.backend, facts.engine, facts.device) == ("torch", "eager", "cuda:0")
    assert (facts.precision, facts.threads) == (low, 0)
    assert facts.notes == (() if low != "float32" else ("TF32 is off",))


def test_tensors_there_are_taken_and_left_there(device, linear, source, rng):
    feed = {"input": rng.normal(size=(5, 4)).astype(np.float32)}
    tensor = torch.from_numpy(feed["input"]).to(device)
    executable = load(linear)
    assert isinstance(executable, GpuExecutable)
    for given in ({"input": array_of_tensor(tensor, "input")}, feed):
        (kept,) = executable.run_on_gpu(given, keep=True).values()
        assert isinstance(kept, DeviceArray)
        found = torch.from_dlpack(kept)
        assert found.device.type == device.type
        np.testing.assert_allclose(found.cpu(), expected_of(source, feed), atol=1e-6)


def test_a_tensor_there_is_not_copied(device, linear, monkeypatch):
    tensor = torch.ones(2, 4, device=device)
    seen = []
    executable = load(linear)
    executable._module = lambda input: seen.append(input.data_ptr()) or {"output": input}
    executable.run_on_gpu({"input": array_of_tensor(tensor, "input")}, keep=True)
    assert seen == [tensor.data_ptr()]


def test_float32_is_float32_while_it_runs(device, linear, rng):
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [place.fp32_precision for place in places]
    executable = load(linear)
    inner, seen = executable._module, []

    def watched(**inputs):
        seen.append([place.fp32_precision for place in places])
        return inner(**inputs)

    executable._module = watched
    places[0].fp32_precision = "tf32"
    try:
        executable.run({"input": np.ones((2, 4), np.float32)})
        assert places[0].fp32_precision == "tf32"
    finally:
        places[0].fp32_precision = before[0]
    assert seen == [["ieee", "ieee"]]
    assert [place.fp32_precision for place in places] == before


def test_a_session_there(device, linear, source, rng):
    feed = {"input": rng.normal(size=(3, 4)).astype(np.float32)}
    with tfx.open_session(linear, backend="torch", device="cuda", trust=True) as session:
        (found,) = session.predict(feed).values()
        (kept,) = session.predict(feed, outputs="dlpack").values()
        assert session.report.facts.device == "cuda:0"
    np.testing.assert_allclose(found, expected_of(source, feed), atol=1e-6)
    assert torch.from_dlpack(kept).shape == (3, 3)


def test_what_the_model_raises_and_closed(device, linear):
    executable = load(linear)

    def fail(**inputs):
        raise ValueError("odd")

    executable._module = fail
    with pytest.raises(BackendError, match="torch failed: odd"):
        executable.run({"input": np.ones((2, 4), np.float32)})
    executable.close()
    with pytest.raises(BackendError, match="session is closed"):
        executable.run({"input": np.ones((2, 4), np.float32)})


def test_compiled_says_where_it_runs(device, linear):
    facts = load(linear, "torch-compiled", precision="fp16").facts
    assert (facts.engine, facts.device, facts.precision) == ("inductor", "cuda:0", "float16")
    assert facts.notes[0].startswith("the first calls of a new shape compile")


def test_a_build_for_cpus(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError, match="is built for CPUs alone") as caught:
        torch_device("cuda:0")
    assert caught.value.hint == "Install a build of PyTorch for CUDA, or use device='cpu'."


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert torch_device("cuda") == torch_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(BackendError, match="torch finds 1 GPUs, so there is no 'cuda:1'"):
        torch_device("cuda:1")
    assert torch_gpu.torch_device("cpu") == torch.device("cpu")
