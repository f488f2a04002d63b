import dataclasses

import numpy as np
import pytest
import torch
import transformers
from support import checkpoints
from support.bundles import write_bundle
from support.modules import ManyOutputs, write_factories
from torch import nn

from tfx.bundle import open_bundle
from tfx.dtypes import DType
from tfx.errors import BackendError, SourceError
from tfx.recipe import Source, SourceKind
from tfx.runtime.backend import RunOptions
from tfx.runtime.backends.torch_eager import TorchEager
from tfx.runtime.opening import open_session
from tfx.runtime.pytorch.modules import factory_digest, load_module, run_module, weights_digest
from tfx.runtime.pytorch.names import forward_names, named_outputs
from tfx.signature import Signature, TensorSpec

TOKENS = ("batch", "sequence")
BERT = Signature(
    (
        TensorSpec("input_ids", DType.INT64, TOKENS),
        TensorSpec("attention_mask", DType.INT64, TOKENS),
    ),
    (TensorSpec("last_hidden_state", DType.FLOAT32, (*TOKENS, 32)),),
)
LINEAR = Signature(
    (TensorSpec("input", DType.FLOAT32, ("batch", 4)),),
    (TensorSpec("output", DType.FLOAT32, ("batch", 3)),),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.bert(tmp_path_factory.mktemp("torch") / "bert", tokenizer=False)


def source_of(folder, **changes):
    source = Source(SourceKind.CHECKPOINT, str(folder), "BertModel", **changes)
    return dataclasses.replace(source, digest=weights_digest(load_module(source)))


def loaded(bundle, **options):
    return TorchEager().load(bundle, RunOptions(**options))


def refused(bundle, **options):
    with pytest.raises(BackendError) as caught:
        loaded(bundle, **options)
    return str(caught.value), caught.value.hint


# load and run


def test_it_runs_the_source(folder, tmp_path, rng):
    bundle = write_bundle(tmp_path / "tiny", signature=BERT, source=source_of(folder))
    feed = {
        "input_ids": rng.integers(0, 64, (2, 5)),
        "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }
    with open_session(bundle, backend="torch", threads=1) as session:
        found = session.predict(feed)
        facts = session.report.facts
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(a) for name, a in feed.items()})
    assert list(found) == ["last_hidden_state"]  # the pooler is no output of this signature
    np.testing.assert_allclose(
        found["last_hidden_state"], expected.last_hidden_state.numpy(), atol=1e-5
    )
    assert (facts.backend, facts.engine, facts.precision) == ("torch", "eager", "float32")
    assert (facts.device, facts.threads, facts.version) == ("cpu", 1, torch.__version__)


def test_weights_changed_after_the_export(folder, tmp_path):
    bundle = write_bundle(tmp_path / "tiny", signature=BERT, source=source_of(folder))
    moved = checkpoints.bert(tmp_path / "moved", tokenizer=False)
    model = transformers.BertModel.from_pretrained(moved)
    with torch.no_grad():
        model.encoder.layer[1].attention.self.query.weight[0, 0] += 1e-3
    model.save_pretrained(moved)
    changed = dataclasses.replace(bundle.manifest.source, location=str(moved))
    bundle = write_bundle(tmp_path / "changed", signature=BERT, source=changed)
    message, hint = refused(bundle)
    assert message.startswith(f"checkpoint {moved} (BertModel) holds other weights now: sha256 ")
    assert message.endswith(f"the bundle was made from {changed.digest[:12]}")
    assert hint == "Export it again."


def test_module_in_memory_cannot_be_loaded_again(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    assert refused(bundle) == (
        "tiny was exported from a module in memory, which cannot be loaded again",
        "Export it from file.py:factory to be able to.",
    )
    with pytest.raises(SourceError, match="handed over in memory cannot be loaded again"):
        load_module(bundle.manifest.source)


def test_model_that_fails(folder, tmp_path):
    bundle = write_bundle(tmp_path / "tiny", signature=BERT, source=source_of(folder))
    executable = loaded(bundle)
    ids = np.full((1, 3), 64)  # beyond the vocabulary
    with pytest.raises(BackendError, match=r"^torch failed: index out of range"):
        executable.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})


# factories: only with trust


def factory_bundle(tmp_path, text=None):
    file = write_factories(tmp_path)
    source = Source(SourceKind.FACTORY, f"{file}:linear", seed=3)
    source = dataclasses.replace(
        source, digest=weights_digest(load_module(source)), file_digest=factory_digest(source)
    )
    if text is not None:
        file.write_text(text)
    return write_bundle(tmp_path / "tiny", signature=LINEAR, source=source)


def test_factory_needs_trust(tmp_path):
    ran = tmp_path / "ran"
    bundle = factory_bundle(tmp_path, text=f"open({str(ran)!r}, 'w')\n")
    message, hint = refused(bundle)
    assert message == (
        f"the torch reference of tiny runs Python code of {tmp_path / 'factories.py'}:linear"
    )
    assert hint == "Use --trust (trust=True) if you trust that code."
    assert not ran.exists()


def test_factory_with_another_seed_has_other_weights(tmp_path):
    bundle = factory_bundle(tmp_path)
    other = dataclasses.replace(bundle.manifest.source, seed=4)
    bundle = write_bundle(tmp_path / "other", signature=LINEAR, source=other)
    assert "holds other weights now" in refused(bundle, trust=True)[0]


def test_opening_a_bundle_never_runs_its_factory(tmp_path):
    ran = tmp_path / "ran"
    bundle = factory_bundle(tmp_path, text=f"open({str(ran)!r}, 'w')\n")
    open_bundle(bundle.path)
    assert not ran.exists()


def test_factory_runs_as_it_would_by_itself(tmp_path):
    """Our own ``from __future__`` lines are not its own."""
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n"
        "def make(width: int = 2):\n"
        "    assert make.__annotations__ == {'width': int}\n"
        "    return nn.Linear(width, 3), None\n"
    )
    module = load_module(Source(SourceKind.FACTORY, f"{tmp_path / 'plain.py'}:make"))
    assert module.in_features == 2


# classes


@pytest.mark.parametrize("name", ["NoSuchModel", "pipeline", "AutoModel", "BertConfig", "torch"])
def test_class_that_is_no_model(name, folder):
    source = Source(SourceKind.CHECKPOINT, str(folder), name)
    with pytest.raises(SourceError) as caught:
        load_module(source)
    assert str(caught.value) == f"transformers {transformers.__version__} has no model {name!r}"


# random weights


def test_random_weights_come_from_the_seed(folder):
    digests = [source_of(folder, random_weights=True, seed=seed).digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] != source_of(folder).digest


# pieces


def test_named_outputs():
    x = torch.ones(2)
    nested = {"a": x, "b": {"c": (x, [x])}, "none": None, "number": 3}
    assert list(named_outputs(nested)) == ["a", "b.c.0", "b.c.1.0"]
    assert list(named_outputs(x)) == ["output"]
    assert list(named_outputs((x, None, x))) == ["output.0", "output.2"]
    assert named_outputs(None) == {}


def test_run_module_keeps_names_and_takes_no_gradients(rng):
    outputs = run_module(ManyOutputs(), {"x": rng.normal(size=(2, 4)).astype(np.float32)})
    assert list(outputs) == ["logits", "states.0", "states.1"]
    assert {array.dtype for array in outputs.values()} == {np.dtype(np.float32)}


class Doubling(nn.Module):
    def forward(self, x):
        x *= 2
        return x


def test_arrays_are_never_written_to():
    array = np.ones((2, 3), np.float32)
    array.setflags(write=False)
    np.testing.assert_array_equal(run_module(Doubling(), {"x": array})["output"], array * 2)
    np.testing.assert_array_equal(array, np.ones((2, 3)))


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0)[::-1], np.ones((4, 6))[:, ::2], np.array(3.0)],
    ids=["reversed", "strided", "scalar"],
)
def test_arrays_of_every_layout(array):
    found = run_module(Doubling(), {"x": array})["output"]
    np.testing.assert_array_equal(found, array * 2)
    assert found.shape == array.shape


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("planted")


@pytest.mark.parametrize("enabled", [True, False])
def test_fast_path_of_pytorch_is_put_back(enabled):
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        run_module(nn.Identity(), {"input": np.ones(2, np.float32)})
        assert torch.backends.mha.get_fastpath_enabled() is enabled
        with pytest.raises(RuntimeError, match="planted"):
            run_module(Failing(), {"x": np.ones(2, np.float32)})
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_forward_names():
    class Module(nn.Module):
        def forward(self, x, y=None, *rest, flag=False, **more):
            return x

    assert forward_names(Module()) == ["x", "y", "flag"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.weight.data.add_(1e-6),
        lambda m: setattr(m, "bias", None),
        lambda m: m.double(),
        lambda m: m.register_buffer("more", torch.ones(1)),
        lambda m: m.register_buffer("unsaved", torch.ones(1), persistent=False),
        lambda m: setattr(m, "weight", nn.Parameter(m.weight.data.reshape(4, 3))),
    ],
    ids=["value", "missing", "dtype", "more", "unsaved", "shape"],
)
def test_digest_sees_every_change(change):
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    before = weights_digest(module)
    assert weights_digest(module) == before
    change(module)
    assert weights_digest(module) != before


def test_digest_of_weights_numpy_has_no_type_for():
    module = nn.Linear(2, 2).bfloat16()
    module.register_buffer("count", torch.tensor(3))
    assert len(weights_digest(module)) == 64


def test_digest_has_every_name_of_a_tied_weight():
    """Which of them a module's own walk keeps depends on the order of its attributes."""

    def tied(*names):
        module, weight = nn.Module(), nn.Parameter(torch.ones(2))
        for name in names:
            module.register_parameter(name, weight)
        return weights_digest(module)

    assert tied("a", "b") == tied("b", "a") != tied("a")
