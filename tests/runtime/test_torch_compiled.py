"""Backend "torch-compiled": the source as one compiled graph, or an error."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
from support.bundles import write_bundle
from support.modules import write_factories

import tfx
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.recipe import Source, SourceKind
from tfx.runtime.backends.torch_compiled import TorchCompiled
from tfx.runtime.pytorch.modules import factory_digest, load_module, weights_digest
from tfx.signature import Signature, TensorSpec

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")

LINEAR = Signature(
    (TensorSpec("input", DType.FLOAT32, ("batch", 4)),),
    (TensorSpec("output", DType.FLOAT32, ("batch", 3)),),
)

BREAKING = """
import torch

class Breaking(torch.nn.Linear):
    def forward(self, input):
        torch._dynamo.graph_break()
        return super().forward(input)

def breaking():
    return Breaking(4, 3), torch.ones(2, 4)
"""


def linear(tmp_path, location="", **changes):
    location = location or f"{write_factories(tmp_path)}:linear"
    source = Source(SourceKind.FACTORY, location, seed=1)
    source = dataclasses.replace(
        source, digest=weights_digest(load_module(source)), file_digest=factory_digest(source)
    )
    return write_bundle(tmp_path / "b", source=source, signature=LINEAR, **changes)


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, of itself
def test_it_gives_what_the_source_gives_at_every_shape(tmp_path, rng):
    bundle = linear(tmp_path)
    with (
        tfx.open_session(bundle, backend="torch-compiled", threads=1, trust=True) as session,
        tfx.open_session(bundle, backend="torch", threads=1, trust=True) as eager,
    ):
        for batch in (2, 3, 1):
            feed = {"input": rng.normal(size=(batch, 4)).astype(np.float32)}
            found, expected = session.predict(feed)["output"], eager.predict(feed)["output"]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    facts = session.report.facts
    assert (facts.backend, facts.engine) == ("torch-compiled", "inductor")
    assert (facts.precision, facts.threads) == ("float32", 1)
    assert facts.notes == ("the first calls of a new shape compile: they take seconds to minutes",)


def test_what_is_no_single_graph_is_an_error(tmp_path):
    (tmp_path / "breaking.py").write_text(BREAKING)
    bundle = linear(tmp_path, f"{tmp_path / 'breaking.py'}:breaking")
    with (
        tfx.open_session(bundle, backend="torch-compiled", trust=True) as session,
        pytest.raises(BackendError, match=r"torch failed: .*graph_break"),
    ):
        session.predict({"input": np.ones((2, 4), np.float32)})


def test_it_asks_for_trust_as_torch_does(tmp_path):
    with pytest.raises(BackendError, match="runs Python code of"):
        tfx.open_session(linear(tmp_path), backend="torch-compiled")


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert TorchCompiled().missing() == (
        "no C++ compiler no-such-compiler is on the path (Install g++, or name one in CXX.)"
    )
    monkeypatch.setenv("CXX", "sh")  # there is one of that name
    assert TorchCompiled().missing() == ""


def test_without_torch_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'tfx-toolkit[export]'" in TorchCompiled().missing()
