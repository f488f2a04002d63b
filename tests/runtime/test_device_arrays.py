"""DLPack in and out. The struct is the same for every device, so NumPy and PyTorch can judge it."""

import ctypes
import gc
import weakref

import numpy as np
import pytest
import torch

from tfx.dtypes import DType
from tfx.errors import FeedError
from tfx.runtime import device_arrays as module
from tfx.runtime.device_arrays import CUDA, DeviceArray, device_array, outlines_of

CPU = 1


class OnGpu:
    """A tensor of PyTorch that says it lies on a GPU."""

    def __init__(self, tensor):
        self.tensor, self.streams = tensor, []

    def __dlpack_device__(self):
        return CUDA, 0

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        return self.tensor.__dlpack__()


def array_of(numpy_array, owner=None):
    dtype = DType.parse(numpy_array.dtype)
    address = numpy_array.ctypes.data
    return DeviceArray(address, dtype, numpy_array.shape, 0, owner or numpy_array)


@pytest.fixture
def host(monkeypatch):
    """Device arrays say that they are in the host's memory."""
    monkeypatch.setattr(module, "CUDA", CPU)


@pytest.mark.parametrize("dtype", [DType.INT64, DType.FLOAT16, DType.FLOAT32, DType.BOOL], ids=str)
def test_numpy_and_torch_read_what_is_lent(host, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype.numpy)
    for read in (np.from_dlpack, torch.from_dlpack):
        found = read(array_of(values))
        np.testing.assert_array_equal(np.asarray(found), values)
        assert DType.parse(found.dtype) is dtype


def test_torch_reads_bfloat16(host):
    values = np.array([1, 2.5, -3]).astype(DType.BFLOAT16.numpy)
    array = DeviceArray(values.ctypes.data, DType.BFLOAT16, (3,), 0, values)
    found = torch.from_dlpack(array)
    assert found.dtype is torch.bfloat16
    assert found.tolist() == [1, 2.5, -3]


@pytest.mark.parametrize("read", [np.from_dlpack, torch.from_dlpack, lambda array: None])
def test_memory_lives_as_long_as_its_last_reader(host, read):
    class Owner:
        pass

    owner = Owner()
    gone = weakref.ref(owner)
    values = np.ones((2, 2), np.float32)
    array = array_of(values, owner)
    before = len(module._lent)
    reader, capsule = read(array), array.__dlpack__()
    del array, owner
    gc.collect()
    assert gone() is not None
    del reader, capsule
    gc.collect()
    assert gone() is None
    assert len(module._lent) == before


def test_it_is_not_copied_nor_moved():
    array = array_of(np.ones(3, np.float32))
    assert array.__dlpack_device__() == (CUDA, 0)
    for options in ({"copy": True}, {"dl_device": (CPU, 0)}):
        with pytest.raises(BufferError, match=r"float32\[3\] on cuda:0\) is shared where it is"):
            array.__dlpack__(**options)
    assert array.__dlpack__(dl_device=(CUDA, 0), copy=False, max_version=(1, 0), stream=1)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3),
        torch.ones(4, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.arange(8, dtype=torch.float32)[2:5],
        torch.tensor(3.0),
        torch.ones(1, 3).t()[:, :1],
    ],
    ids=str,
)
def test_a_tensor_on_a_gpu_is_the_same_memory(tensor):
    source = OnGpu(tensor)
    array = device_array(source, "x")
    assert array.address == tensor.data_ptr()
    assert array.shape == tuple(tensor.shape)
    assert array.dtype is DType.parse(tensor.dtype)
    assert (array.device, array.size_bytes) == (0, tensor.nbytes)
    data = ctypes.string_at(array.address, array.size_bytes)
    assert data == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    array.wait_on(77)
    assert source.streams == [-1, 77]  # the work it waits for is the producer's


@pytest.mark.parametrize(("asked", "waits"), [(None, 1), (5, 5), (-1, None)])
def test_who_reads_it_waits_for_who_makes_it(asked, waits):
    source = OnGpu(torch.ones(2))
    device_array(source, "x").__dlpack__(stream=asked)
    assert source.streams == [-1] + [waits] * (waits is not None)


def test_what_is_no_tensor_on_a_gpu_is_left_alone():
    for value in (np.ones(2), torch.ones(2), "text", None):
        assert device_array(value, "x") is None
    array = array_of(np.ones(2, np.float32))
    assert device_array(array, "x") is array
    array.wait_on(3)


def test_elements_out_of_order():
    with pytest.raises(FeedError, match=r"^x: its elements do not lie in order") as caught:
        device_array(OnGpu(torch.ones(2, 3).t()), "x")
    assert caught.value.hint == "Make it contiguous first."


def test_a_tensor_that_is_not_shared():
    with pytest.raises(
        FeedError, match=r"^x: got a OnGpu that is not shared: .*gradient"
    ) as caught:
        device_array(OnGpu(torch.ones(2, requires_grad=True)), "x")
    assert caught.value.hint.startswith("Detach it")


def test_a_type_that_no_input_has():
    with pytest.raises(FeedError, match=r"^x: got elements of DLPack's type 5 with 64 bits"):
        device_array(OnGpu(torch.ones(2, dtype=torch.complex64)), "x")


def test_an_outline_has_type_and_shape_and_no_values():
    array = array_of(np.full((2, 3), 9))
    host = np.ones(4)
    outlined = outlines_of({"x": array, "y": array, "z": host}, {"y": 5})
    assert outlined["z"] is host
    assert (outlined["x"].shape, outlined["x"].dtype) == ((2, 3), np.int64)
    assert outlined["x"].max() == 0
    assert outlined["y"].min() == 5
    assert outlined["y"].strides == (0, 0)
