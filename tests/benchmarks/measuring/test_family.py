"""Which ways a bundle is run in: engines by TensorRT, graphs by the others."""

import pytest
from support.bundles import write_bundle
from support.engines import write_engine_bundle

from tfx.bench.measuring import family
from tfx.bench.measuring.family import pairs_of, same_model, usual_backends
from tfx.bench.measuring.workload import Way
from tfx.recipe import Source, SourceKind
from tfx.runtime.backend import BACKENDS, GPU_BACKENDS

WAYS = [Way("torch"), Way("onnxruntime"), Way("tensorrt")]


@pytest.fixture
def graph(tmp_path):
    return write_bundle(tmp_path / "graph", name="graph")


@pytest.fixture
def engine(tmp_path):
    return write_engine_bundle(tmp_path / "engine", name="engine")


@pytest.fixture
def works(monkeypatch):
    """Backends that work here; the others miss something."""
    found = set()

    class Backend:
        def __init__(self, name):
            self.name = name

        def missing(self):
            return "" if self.name in found else "no GPU"

    monkeypatch.setattr(family, "find_backend", Backend)
    return found


def names(pairs):
    return [(bundle.name, str(way)) for bundle, way in pairs]


def test_tensorrt_runs_engines_and_the_others_graphs(graph, engine):
    found = pairs_of([graph, engine], WAYS, {graph.path: "", engine.path: ""})
    assert names(found) == [
        ("graph", "torch"),
        ("graph", "onnxruntime"),
        ("engine", "tensorrt"),
    ]


def test_a_way_that_is_asked_for_alone_says_why_not(graph):
    assert names(pairs_of([graph], [Way("tensorrt")], {graph.path: ""})) == [("graph", "tensorrt")]


def test_without_a_gpu_its_backends_are_left_out(graph, engine, works):
    usual = [name for name in BACKENDS if name not in GPU_BACKENDS]
    assert usual_backends([graph]) == usual
    assert usual_backends([engine]) == [*usual, "tensorrt"]  # its row says what is missing


def test_with_a_gpu_they_are_there(graph, engine, works):
    works |= set(GPU_BACKENDS)
    assert "onnxruntime-tensorrt" in usual_backends([graph])
    assert "tensorrt" not in usual_backends([graph])
    assert usual_backends([graph, engine]) == list(BACKENDS)


def test_one_model_named_from_two_folders(tmp_path):
    (tmp_path / "below").mkdir()
    near, far, other = (
        write_bundle(tmp_path / folder, source=Source(SourceKind.CHECKPOINT, location))
        for folder, location in (
            ("near", "weights"),
            ("below/far", "../weights"),
            ("below/other", "weights"),
        )
    )
    assert same_model(near, far)
    assert same_model(far, near)
    assert not same_model(near, other)
