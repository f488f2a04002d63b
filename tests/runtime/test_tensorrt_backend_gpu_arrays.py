"""Backend "tensorrt" with tensors on the GPU, on stand-ins: read there, left there."""

import ctypes
import gc

import numpy as np
import pytest
from support.cuda import host, on_gpu, plant_gpu
from support.engines import write_engine_bundle
from support.proofs import text_cases, text_outputs
from support.tensorrt import plant_library

import tfx
from tfx.dtypes import DType
from tfx.errors import FeedError
from tfx.recipe import EngineRecipe, Target
from tfx.runtime.backend import RunOptions
from tfx.runtime.backends import tensorrt as backend
from tfx.runtime.backends.tensorrt import TensorRt
from tfx.runtime.device_arrays import DeviceArray

TRT = EngineRecipe(Target.TENSORRT)
CASES = text_cases(np.random.default_rng(0), ((2, 5), (3, 9), (1, 1)))


@pytest.fixture
def gpu(monkeypatch):
    """A machine with one GPU of sm89."""
    return plant_gpu(monkeypatch, backend)


@pytest.fixture
def library(gpu, monkeypatch):
    """TensorRT, of either flavour, whose every plan computes the text graph."""
    return plant_library(monkeypatch, gpu)


def load(bundle):
    return TensorRt().load(bundle, RunOptions(device="cuda:0", trust=True))


@pytest.mark.parametrize("recipe", [EngineRecipe(gpus=("sm89",)), TRT], ids=["rtx", "full"])
def test_tensors_on_the_gpu_are_read_there_and_left_there(library, gpu, tmp_path, recipe):
    executable = load(write_engine_bundle(tmp_path / "e", recipe=recipe))
    for case in (*CASES, *CASES):
        feed, expected = on_gpu(gpu, case.feed), text_outputs(case.feed)
        mixed = feed | {"input_ids": case.feed["input_ids"]}
        for given in (feed, feed, feed, mixed, mixed, mixed):
            (found,) = executable.run_on_gpu(given, keep=True).values()
            assert found.device == 0
            np.testing.assert_array_equal(host(found), expected["last_hidden_state"])
            (copied,) = executable.run_on_gpu(given, keep=False).values()
            np.testing.assert_array_equal(copied, expected["last_hidden_state"])


def test_nothing_is_copied_between_host_and_gpu(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    feed = on_gpu(gpu, CASES[0].feed)
    before = gpu.calls.get("cudaMemcpyAsync", 0)
    executable.run_on_gpu(feed, keep=True)
    assert gpu.calls["cudaMemcpyAsync"] == before + 1  # the output, within the GPU
    assert gpu.kinds[3] == 1


def test_a_recorded_run_is_of_these_addresses(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e", recipe=TRT))
    feeds = [
        on_gpu(gpu, CASES[0].feed),
        on_gpu(gpu, CASES[0].feed | {"input_ids": CASES[0].feed["input_ids"][::-1].copy()}),
    ]
    for feed in (feeds[0], feeds[0], feeds[0], feeds[1], feeds[0], feeds[1]):
        (found,) = executable.run_on_gpu(feed, keep=True).values()
        expected = text_outputs({name: host(array) for name, array in feed.items()})
        np.testing.assert_array_equal(host(found), expected["last_hidden_state"])
    assert gpu.calls["cudaGraphInstantiate"] == 2
    assert gpu.calls["cudaGraphLaunch"] == 4


def test_kept_outputs_are_the_callers_until_dropped(library, gpu, tmp_path):
    executable = load(write_engine_bundle(tmp_path / "e"))
    (kept,) = executable.run_on_gpu(CASES[0].feed, keep=True).values()
    before = host(kept).copy()
    executable.run({name: array * 0 for name, array in CASES[0].feed.items()})
    executable.close()
    np.testing.assert_array_equal(host(kept), before)
    assert list(gpu.memory) == [kept.address]
    del kept
    gc.collect()
    assert not gpu.memory


@pytest.mark.parametrize("keep", [False, True])
def test_a_tensor_on_the_gpu_that_the_host_reads(library, gpu, tmp_path, keep):
    library.on_host = {"attention_mask"}
    executable = load(write_engine_bundle(tmp_path / "e"))
    feed = on_gpu(gpu, CASES[0].feed)
    (found,) = executable.run_on_gpu(feed, keep=keep).values()
    expected = text_outputs(CASES[0].feed)["last_hidden_state"]
    np.testing.assert_array_equal(host(found) if keep else found, expected)


def test_kept_outputs_of_sizes_that_depend_on_data(library, gpu, tmp_path):
    library.later = {"last_hidden_state"}
    executable = load(write_engine_bundle(tmp_path / "e", recipe=TRT))
    for case in CASES:
        (found,) = executable.run_on_gpu(case.feed, keep=True).values()
        np.testing.assert_array_equal(host(found), text_outputs(case.feed)["last_hidden_state"])


def test_whoever_makes_a_tensor_is_waited_for(library, gpu, tmp_path):
    """The work that fills it is in the stream before the run is."""
    executable = load(write_engine_bundle(tmp_path / "e", recipe=TRT))
    ids = np.zeros_like(CASES[0].feed["input_ids"])
    feed = CASES[0].feed | {"input_ids": on_gpu(gpu, {"input_ids": ids})["input_ids"]}
    array = feed["input_ids"]
    wanted = CASES[0].feed["input_ids"]

    class Producer:
        def __dlpack__(self, *, stream):
            source = wanted.copy()
            gpu.enqueue(
                stream,
                lambda: ctypes.memmove(array.address, source.ctypes.data, source.nbytes),
            )

    array._producer = Producer()
    for wanted in (CASES[0].feed["input_ids"], ids, CASES[0].feed["input_ids"], ids):
        (found,) = executable.run_on_gpu(feed, keep=True).values()
        expected = text_outputs(feed | {"input_ids": wanted})["last_hidden_state"]
        np.testing.assert_array_equal(host(found), expected)


def test_a_session_takes_and_gives_tensors_on_the_gpu(library, gpu, tmp_path):
    bundle = write_engine_bundle(tmp_path / "e")
    feed, expected = on_gpu(gpu, CASES[0].feed), text_outputs(CASES[0].feed)
    with tfx.open_session(bundle, trust=True) as session:
        for given in (feed, CASES[0].feed):
            (found,) = session.predict(given, outputs="dlpack").values()
            np.testing.assert_array_equal(host(found), expected["last_hidden_state"])
        (found,) = session.predict(feed).values()
        np.testing.assert_array_equal(found, expected["last_hidden_state"])
        elsewhere = DeviceArray(1, DType.INT64, (2, 5), 3, None)
        with pytest.raises(FeedError, match="on cuda:3, expected one on cuda:0") as caught:
            session.predict(feed | {"input_ids": elsewhere})
        assert caught.value.hint == "Copy it there first."
        with pytest.raises(FeedError, match="outputs is 'torch', expected one of numpy, dlpack"):
            session.predict(feed, outputs="torch")
        short = on_gpu(gpu, {"input_ids": CASES[0].feed["input_ids"][:1]})
        with pytest.raises(FeedError, match="axis 'batch' is 2, elsewhere 1"):
            session.predict(feed | short)
