import dataclasses
import sys
import threading

import numpy as np
import pytest
import torch
from support import checkpoints
from support.bundles import TEXT_SIGNATURE, write_bundle
from support.modules import write_factories

import tfx
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.recipe import Source, SourceKind
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.backends import torch_eager
from tfx.runtime.backends.torch_eager import BFLOAT16_FLAGS
from tfx.runtime.cpus import Cpu, read_cpu
from tfx.runtime.pytorch.modules import factory_digest, load_module, weights_digest
from tfx.signature import Signature, TensorSpec

LINEAR = Signature(
    (TensorSpec("input", DType.FLOAT32, ("batch", 4)),),
    (TensorSpec("output", DType.FLOAT32, ("batch", 3)),),
)
FEED = {"input": np.ones((2, 4), np.float32)}


@pytest.fixture
def source(tmp_path):
    """A factory of ``nn.Linear(4, 3)``, with the digest of its weights."""
    source = Source(SourceKind.FACTORY, f"{write_factories(tmp_path)}:linear", seed=1)
    return dataclasses.replace(
        source, digest=weights_digest(load_module(source)), file_digest=factory_digest(source)
    )


@pytest.fixture
def linear(tmp_path, source):
    return write_bundle(tmp_path / "linear", source=source, signature=LINEAR)


def refusal(bundle, **options):
    with pytest.raises(BackendError) as caught:
        tfx.open_session(bundle, backend="torch", **options)
    return str(caught.value), caught.value.hint


def test_it_runs_the_source(linear, source):
    with tfx.open_session(linear, backend="torch", threads=1, trust=True) as session:
        outputs = session.predict(FEED)
    expected = load_module(source)(torch.ones(2, 4)).detach().numpy()
    np.testing.assert_array_equal(outputs["output"], expected)
    facts = session.report.facts
    assert (facts.backend, facts.engine, facts.device) == ("torch", "eager", "cpu")
    assert (facts.precision, facts.threads) == ("float32", 1)
    assert facts.version == tfx.extras.version_of("torch")


@pytest.mark.skipif(not BFLOAT16_FLAGS & read_cpu().flags, reason="this CPU has no bfloat16")
def test_bfloat16_where_it_is_asked_for(linear, source):
    feed = {"input": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)}
    with tfx.open_session(linear, backend="torch", precision="bf16", trust=True) as session:
        found = session.predict(feed)["output"]
    expected = load_module(source)(torch.from_numpy(feed["input"])).detach().numpy()
    assert found.dtype == np.float32
    assert 1e-5 < np.abs(found - expected).max() < 2e-2  # rounded, and only that
    assert session.report.facts.precision == "bfloat16"


def test_bfloat16_is_refused_where_the_cpu_has_none(linear, monkeypatch):
    monkeypatch.setattr(torch_eager, "read_cpu", lambda: Cpu("old", frozenset({"avx2"})))
    message, hint = refusal(linear, precision="bf16", trust=True)
    assert message == "torch multiplies matrices in float32 here, not in bfloat16"
    assert hint == "Use precision='fp32', or another backend."


def test_it_is_float32_whatever_the_bundle_is(tmp_path, source):
    bundle = write_bundle(
        tmp_path / "low", source=source, signature=LINEAR, precision=DType.BFLOAT16
    )
    with tfx.open_session(bundle, backend="torch", trust=True) as session:
        assert session.report.facts.precision == "float32"


def test_only_the_signatures_outputs_come_back(tmp_path):
    folder = checkpoints.bert(tmp_path / "from")
    source = Source(SourceKind.CHECKPOINT, str(folder), "BertModel")
    source = dataclasses.replace(source, digest=weights_digest(load_module(source)))
    bundle = write_bundle(tmp_path / "bert", source=source)  # no pooler_output in its signature
    feed = {"input_ids": np.ones((2, 5), np.int64), "attention_mask": np.ones((2, 5), np.int64)}
    with tfx.open_session(bundle, backend="torch", threads=2) as session:
        outputs = session.predict(feed)
    assert list(outputs) == [spec.name for spec in TEXT_SIGNATURE.outputs]


def test_code_runs_only_where_it_is_trusted(linear, source):
    message, hint = refusal(linear)
    assert message == f"the torch reference of linear runs Python code of {source.location}"
    assert hint == "Use --trust (trust=True) if you trust that code."


def test_other_weights_are_refused(tmp_path, source):
    other = dataclasses.replace(source, seed=2)
    bundle = write_bundle(tmp_path / "other", source=other, signature=LINEAR)
    message, hint = refusal(bundle, trust=True)
    assert "holds other weights now: sha256 " in message
    assert f"the bundle was made from {source.digest[:12]}" in message
    assert hint == "Export it again."


def test_source_that_is_gone(linear, tmp_path):
    (path,) = tmp_path.glob("*.py")
    path.unlink()
    message, _ = refusal(linear, trust=True)
    assert message == f"the source of linear cannot be loaded: no such file: {path}"


def test_source_that_cannot_be_read(linear, tmp_path, monkeypatch):
    (path,) = tmp_path.glob("*.py")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    message, _ = refusal(linear, trust=True)
    assert (
        message == f"the source of linear cannot be loaded: cannot read {path}: Permission denied"
    )


def test_code_without_a_digest_does_not_run(tmp_path, source):
    source = dataclasses.replace(source, file_digest="")
    bundle = write_bundle(tmp_path / "old", source=source, signature=LINEAR)
    message, hint = refusal(bundle, trust=True)
    assert message == f"old does not say which file {source.location} was: it has no sha256"
    assert hint == "Export it again."


def test_module_in_memory_cannot_be_loaded_again(tmp_path):
    message, hint = refusal(write_bundle(tmp_path / "b"))  # its source is SourceKind.MODULE
    assert message == "b was exported from a module in memory, which cannot be loaded again"
    assert hint == "Export it from file.py:factory to be able to."


def test_other_devices_are_refused(linear):
    message, hint = refusal(linear, device="npu:0", trust=True)
    assert message == "torch runs on cpu and cuda, not on 'npu:0'"
    assert hint == "Use device='cpu' or device='cuda:0'."


def test_without_torch_it_says_how_to_get_it(linear, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message, hint = refusal(linear, trust=True)
    assert "backend 'torch' cannot run here: torch is not installed" in message
    assert "pip install 'tfx-toolkit[export]'" in message
    assert hint == "See what is missing with: tfx doctor"


def test_what_the_model_raises_is_a_backend_error(tmp_path, source):
    wide = Signature(
        (TensorSpec("input", DType.FLOAT32, ("batch", "features")),),
        (TensorSpec("output", DType.FLOAT32, ("batch", 3)),),
    )
    bundle = write_bundle(tmp_path / "wide", source=source, signature=wide)
    with (
        tfx.open_session(bundle, backend="torch", trust=True) as session,
        pytest.raises(BackendError, match="torch failed: mat1 and mat2 shapes cannot be"),
    ):
        session.predict({"input": np.ones((2, 5), np.float32)})


WATCHED = """
import time
import torch

class Watched(torch.nn.Linear):
    def forward(self, input):
        enabled = torch.backends.mha.get_fastpath_enabled()
        time.sleep(0.005)  # for another run to get in between
        enabled |= torch.backends.mha.get_fastpath_enabled()
        seen = torch.tensor([[float(enabled), float(torch.get_num_threads()), 0.0]])
        return seen.expand(len(input), 3)

def watched():
    return Watched(4, 3), torch.ones(2, 4)
"""


def test_settings_are_those_of_the_run_and_put_back(tmp_path, source):
    """They are the whole process's, and sessions run in many threads."""
    (tmp_path / "watched.py").write_text(WATCHED)
    source = dataclasses.replace(source, location=f"{tmp_path / 'watched.py'}:watched")
    source = dataclasses.replace(source, file_digest=factory_digest(source))
    bundle = write_bundle(tmp_path / "watched", source=source, signature=LINEAR)
    before = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    found = {1: [], 3: []}

    def run(threads):
        with tfx.open_session(bundle, backend="torch", threads=threads, trust=True) as session:
            for _ in range(5):
                found[threads].append(session.predict(FEED)["output"][0].tolist())

    workers = [threading.Thread(target=run, args=(threads,)) for threads in found]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    run(3)
    assert found[1] == [[0.0, 1.0, 0.0]] * 5
    assert found[3] == [[0.0, 3.0, 0.0]] * 10
    assert (torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()) == before


def test_closed_while_it_runs(linear):
    executable = get_backend("torch").load(linear, RunOptions(trust=True))
    executable.close()
    executable.close()
    with pytest.raises(BackendError, match=r"^session is closed$") as caught:
        executable.run(FEED)
    assert caught.value.hint == "Open another with open_session."
