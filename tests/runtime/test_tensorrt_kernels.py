"""Kernels that TensorRT-RTX compiles for a GPU are kept for the next process, on stand-ins."""

import dataclasses
import threading

import numpy as np
import pytest
from support.cuda import plant_gpu
from support.engines import write_engine_bundle
from support.proofs import text_cases
from support.tensorrt import FakeRuntimeConfig, plant_library

from tfx.recipe import EngineRecipe, Target
from tfx.runtime import cache as user_cache
from tfx.runtime.backend import RunOptions
from tfx.runtime.backends import tensorrt as backend
from tfx.runtime.backends.tensorrt import LANES, TensorRt
from tfx.runtime.backends.tensorrt_kernels import FILE, Kernels, kernels_entry
from tfx.runtime.cuda import Device

GPU = RunOptions(device="cuda:0", trust=True)
FIRST, SECOND = text_cases(np.random.default_rng(0), ((2, 5), (3, 9)))
L4 = Device(0, "NVIDIA L4", "sm89", "12.8")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFX_CACHE_MB")
    return tmp_path / "cache" / "tfx" / "compiled"


@pytest.fixture
def library(monkeypatch):
    return plant_library(monkeypatch, plant_gpu(monkeypatch, backend))


@pytest.fixture
def engine(tmp_path):
    return write_engine_bundle(tmp_path / "engine")


def kept(cache):
    return [(path / FILE).read_bytes() for path in cache.glob("tensorrt-rtx-*")]


def compiled(library):
    """How many shapes the last context opened with."""
    return len(library.kernels[-1].compiled)


def test_they_are_kept_after_the_first_run_and_at_the_end(library, engine, cache):
    executable = TensorRt().load(engine, GPU)
    assert kept(cache) == []
    executable.run(FIRST.feed)
    (first,) = kept(cache)
    executable.run(SECOND.feed)
    assert kept(cache) == [first]  # a run costs no file
    executable.close()
    (both,) = kept(cache)
    assert len(both) == len(first) + 1
    executable.close()


def test_the_next_process_has_them(library, engine, cache):
    executable = TensorRt().load(engine, GPU)
    executable.run(FIRST.feed)
    executable.close()
    again = TensorRt().load(engine, GPU)
    assert compiled(library) == 1
    again.run(SECOND.feed)
    again.close()
    (both,) = kept(cache)
    assert len(both) == 2


def test_what_is_unchanged_is_not_written_again(library, engine, cache, monkeypatch):
    with_kernels = TensorRt().load(engine, GPU)
    with_kernels.run(FIRST.feed)
    with_kernels.close()
    monkeypatch.setattr(user_cache, "keep", lambda *arguments: pytest.fail("written again"))
    again = TensorRt().load(engine, GPU)
    again.run(FIRST.feed)
    again.close()


def test_contexts_share_them(library, engine):
    library.function, waiting = _slow(library.function)
    executable = TensorRt().load(engine, GPU)
    threads = [threading.Thread(target=executable.run, args=(FIRST.feed,)) for _ in range(LANES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waiting.n_waiting == 0
    assert len(library.kernels) == LANES
    assert library.kernels[0] is library.kernels[1]


def _slow(function):
    """Runs that wait for each other, so that each has a context of its own."""
    barrier = threading.Barrier(LANES)

    def run(feed):
        barrier.wait(timeout=30)
        return function(feed)

    return run, barrier


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(L4, name="NVIDIA L40"),
        dataclasses.replace(L4, capability="sm90"),
        dataclasses.replace(L4, driver="13.0"),
    ],
    ids=["name", "capability", "driver"],
)
def test_they_are_of_a_gpu_a_driver_and_a_version(engine, tmp_path, other):
    entry = kernels_entry(engine, "1.7.1", L4)
    assert entry == kernels_entry(engine, "1.7.1", L4)
    assert entry.name.startswith("tensorrt-rtx-1.7.1-")
    different = write_engine_bundle(tmp_path / "different", notes=("other",))
    assert len({entry, kernels_entry(engine, "1.7.1", other)}) == 2
    assert (
        len({entry, kernels_entry(engine, "1.8", L4), kernels_entry(different, "1.7.1", L4)}) == 3
    )


def test_what_the_library_does_not_take_is_made_again(library, engine, cache, caplog):
    executable = TensorRt().load(engine, GPU)
    executable.run(FIRST.feed)
    executable.close()
    (entry,) = cache.glob("tensorrt-rtx-*")

    def foreign(folder):
        folder.mkdir()
        (folder / FILE).write_bytes(b"foreign kernels")

    user_cache.discard(entry)
    assert user_cache.keep(entry, foreign)
    again = TensorRt().load(engine, GPU)
    assert compiled(library) == 0
    assert "not of this GPU, driver or library" in caplog.text
    again.run(FIRST.feed)
    again.close()
    assert len(kept(cache)[0]) == 1


def test_damaged_bytes_are_not_loaded(library, engine, cache, caplog):
    executable = TensorRt().load(engine, GPU)
    executable.run(FIRST.feed)
    executable.close()
    (entry,) = cache.glob("tensorrt-rtx-*")
    (entry / FILE).write_bytes(b"damaged")
    TensorRt().load(engine, GPU).close()
    assert compiled(library) == 0
    assert "its files are not as they were written" in caplog.text


def test_a_save_that_fails_keeps_no_lane(library, engine, cache, monkeypatch):
    def fail(self):
        raise RuntimeError("out of memory")

    executable = TensorRt().load(engine, GPU)
    with monkeypatch.context() as patch:
        patch.setattr(Kernels, "save", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            executable.run(FIRST.feed)
    assert executable._lanes.qsize() == LANES
    executable.close()


def test_with_the_cache_off_nothing_is_kept(library, engine, cache, monkeypatch):
    monkeypatch.setenv("TFX_CACHE_MB", "0")
    executable = TensorRt().load(engine, GPU)
    executable.run(FIRST.feed)
    executable.close()
    assert kept(cache) == []
    assert compiled(library) == 1  # in memory the contexts share them all the same


def test_an_engine_without_a_cache_runs_all_the_same(library, engine, cache, monkeypatch, caplog):
    monkeypatch.setattr(FakeRuntimeConfig, "set_runtime_cache", lambda self, cache: False)
    executable = TensorRt().load(engine, GPU)
    executable.run(FIRST.feed)
    executable.close()
    assert kept(cache) == []
    assert "kernels are not kept: the library takes no cache for this engine" in caplog.text


def test_tensorrt_compiles_when_it_builds(library, tmp_path, cache):
    bundle = write_engine_bundle(tmp_path / "e", recipe=EngineRecipe(Target.TENSORRT))
    executable = TensorRt().load(bundle, GPU)
    executable.run(FIRST.feed)
    executable.close()
    assert (library.kernels, kept(cache)) == ([], [])


def test_an_engine_is_loaded_on_its_gpu(monkeypatch, tmp_path):
    gpu = plant_gpu(monkeypatch, backend, count=2)
    library = plant_library(monkeypatch, gpu)
    engine = write_engine_bundle(tmp_path / "e")
    TensorRt().load(engine, dataclasses.replace(GPU, device="cuda:1")).close()
    assert library.device == 1
