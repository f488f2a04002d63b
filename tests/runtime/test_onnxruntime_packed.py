"""Graphs with packed weights in the user's cache: kept when asked for twice, of equal numbers."""

import logging
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.bundles import HIDDEN, VOCABULARY, write_bundle

import tfx
from tfx.dtypes import DType
from tfx.runtime import cache, sums
from tfx.runtime.backends import onnxruntime_packed as packed

INNER = 96
NOTE = "its packed weights came from the cache"
ROWS = {"input_ids": np.arange(21).reshape(3, 7), "attention_mask": np.ones((3, 7), np.int64)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache of this test alone, for graphs of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "10")
    monkeypatch.setattr(packed, "LEAST_BYTES", 0)
    return tmp_path / "cache" / "tfx" / "compiled"


def product_graph(*, convolution=False) -> onnx.ModelProto:
    """Embedding lookup, a product to ``INNER`` and back, masked."""
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("MatMul", ["vectors", "up"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "down"], ["narrow"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node(
            "Mul", ["mixed" if convolution else "narrow", "column"], ["last_hidden_state"]
        ),
    ]
    if convolution:
        nodes += [
            helper.make_node("Transpose", ["narrow"], ["channels"], perm=[0, 2, 1]),
            helper.make_node("Unsqueeze", ["channels", "last"], ["image"]),
            helper.make_node("Conv", ["image", "kernel"], ["filtered"], pads=[0, 1, 0, 1]),
            helper.make_node("Squeeze", ["filtered", "last"], ["rows"]),
            helper.make_node("Transpose", ["rows"], ["mixed"], perm=[0, 2, 1]),
        ]
        nodes.append(nodes.pop(6))
    tokens = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info(name, TensorProto.INT64, tokens) for name in ROWS],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*tokens, HIDDEN])],
        [
            weight("table", VOCABULARY, HIDDEN),
            weight("up", HIDDEN, INNER),
            weight("down", INNER, HIDDEN),
            numpy_helper.from_array(np.array([2]), "last"),
            *([weight("kernel", HIDDEN, HIDDEN, 1, 3)] if convolution else []),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b", product_graph())


def opened(bundle):
    """Notes of a session, and its numbers for ``ROWS``."""
    with tfx.open_session(bundle, backend="onnxruntime", threads=1) as session:
        return session.report.facts.notes, session.predict(ROWS)["last_hidden_state"]


def entries(folder):
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def test_kept_when_asked_for_twice_with_the_same_numbers(bundle, folder):
    first, expected = opened(bundle)
    assert entries(folder) == []  # what is opened once leaves nothing
    second, _ = opened(bundle)
    (entry,) = entries(folder)
    third, values = opened(bundle)
    assert (first, second, third) == ((), (), (NOTE,))
    np.testing.assert_array_equal(values, expected)
    assert {path.name for path in entry.iterdir()} == {packed.GRAPH, packed.WEIGHTS, sums.FILE_NAME}
    assert packed.kernels_in(entry / packed.GRAPH) == {"MatMul"}


def test_a_bundle_whose_weights_changed_has_another_entry(bundle, folder, tmp_path):
    for _ in range(2):
        opened(bundle)
    other = write_bundle(tmp_path / "c", product_graph(), name="other")
    assert opened(other)[0] == ()


def test_what_cannot_be_read_is_not_used(bundle, folder, caplog):
    _, expected = opened(bundle)
    opened(bundle)
    (entry,) = entries(folder)
    (entry / packed.GRAPH).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING, "tfx"):
        notes, values = opened(bundle)
    assert notes == ()
    assert f"not used: {entry}: its files are not as they were written" in caplog.text
    np.testing.assert_array_equal(values, expected)


def test_one_wrong_bit_of_the_weights_is_found_and_another_entry_made(bundle, folder):
    _, expected = opened(bundle)
    opened(bundle)
    (entry,) = entries(folder)
    weights = bytearray((entry / packed.WEIGHTS).read_bytes())
    weights[len(weights) // 2] ^= 64
    (entry / packed.WEIGHTS).write_bytes(weights)
    notes, values = opened(bundle)
    assert notes == ()
    np.testing.assert_array_equal(values, expected)
    assert entries(folder) == []  # nothing stands in the way of the next
    assert [opened(bundle)[0] for _ in range(2)] == [(), (NOTE,)]


def test_an_entry_that_the_library_refuses_is_removed(bundle, folder, caplog):
    def refuse(*all, **named):
        raise RuntimeError("of another opset")

    for _ in range(2):
        opened(bundle)
    (entry,) = entries(folder)
    ort = pytest.importorskip("onnxruntime")
    refusing = SimpleNamespace(
        GraphOptimizationLevel=ort.GraphOptimizationLevel, InferenceSession=refuse
    )
    assert packed.packed_session(refusing, entry, SimpleNamespace(), "any") is None
    assert f"not used: {entry}: of another opset" in caplog.text
    assert not entry.exists()


def test_of_a_damaged_bundle_nothing_is_kept(bundle, folder, caplog):
    """Its digest is the whole one's, which would take the entry."""
    caplog.set_level(logging.INFO, "tfx")
    weights = onnx.load(bundle.model).graph.initializer[1].raw_data
    graph = bundle.model.read_bytes()
    bundle.model.write_bytes(graph.replace(weights, bytes(4) + weights[4:]))
    for _ in range(3):
        with tfx.open_session(bundle.path, backend="onnxruntime", verify=False) as session:
            assert session.report.facts.notes == ()
    assert entries(folder) == []
    assert "sha256 is not the one in tfx.json" in caplog.text


def test_what_gives_other_numbers_is_not_kept(bundle, folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tfx")
    monkeypatch.setattr(packed, "_agree", lambda *all: False)
    for _ in range(3):
        assert opened(bundle)[0] == ()
    assert entries(folder) == []
    assert "it gives other numbers when it is read again" in caplog.text


def test_agreement_is_of_the_numbers(bundle):
    class Answering:
        def __init__(self, value):
            self.value = value

        def run(self, names, feed):
            assert feed["input_ids"].shape == (8, 8)
            return [np.full(2, self.value)]

    assert packed._agree(bundle, Answering(1.0), Answering(1.0))
    assert packed._agree(bundle, Answering(np.nan), Answering(np.nan))
    assert not packed._agree(bundle, Answering(1.0), Answering(1.0 + 1e-7))


def test_packed_convolutions_are_not_kept_and_not_tried_again(
    tmp_path, folder, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "tfx")
    bundle = write_bundle(tmp_path / "c", product_graph(convolution=True))
    monkeypatch.setattr(packed, "packed_session", lambda *all: None)  # it might end the process
    monkeypatch.setattr(packed, "kernels_in", lambda graph: {"MatMul", "Conv", "Aconv"})
    for _ in range(4):
        assert opened(bundle)[0] == ()
    assert entries(folder) == []
    assert caplog.text.count("not kept: ") == 1
    assert "it packs weights of Aconv, Conv" in caplog.text


def test_only_floats_of_some_size_that_fit_into_the_cache(bundle, monkeypatch, tmp_path):
    def entry(one=bundle):
        return packed.packed_entry(one, one.model, "1.0")

    assert entry() is not None
    integers = write_bundle(tmp_path / "i", product_graph(), precision=DType.INT8)
    assert entry(integers) is None
    monkeypatch.setattr(packed, "LEAST_BYTES", bundle.size_bytes + 1)
    assert entry() is None
    monkeypatch.setattr(packed, "LEAST_BYTES", 0)
    monkeypatch.setattr(packed, "GROWTH", 1e7 / bundle.size_bytes + 1)
    assert entry() is None
    monkeypatch.undo()  # the tests' own setting: nothing is kept
    assert entry() is None


def test_another_build_of_the_library_has_another_entry(bundle, folder, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    for _ in range(2):
        opened(bundle)
    monkeypatch.setattr(ort, "get_build_info", lambda: "of another compiler")
    assert opened(bundle)[0] == ()


def test_a_kernel_of_an_unknown_name_is_not_missed(tmp_path):
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"prepacked_0\x12AMatMul+12|3;4;0pprepacked_1\x12\x90\x01com.x:Odd|2")
    assert packed.kernels_in(path) == {"MatMul", packed.UNKNOWN}
    path.write_bytes(b"prepacked_0\x12\x90\x01Gemm+12|3;4;0")  # a value of more than 127 bytes
    assert packed.kernels_in(path) == {"Gemm"}


def test_kernels_are_read_from_the_graph(tmp_path):
    # The byte after the tag is a length, which may look like a letter.
    path = tmp_path / "graph.onnx"
    path.write_bytes(
        b"\x0a\x0bprepacked_0\x12AMatMul+12|3;4;0p\x0a\x0bprepacked_12\x12\nGemm+1|2;3;0"
    )
    assert packed.kernels_in(path) == {"MatMul", "Gemm"}


def test_one_of_many_processes_makes_it(folder):
    entry = folder / "x"
    assert [cache.wanted(entry) for _ in range(4)] == [False, True, False, False]


def test_it_is_tried_again_after_a_day(folder, monkeypatch):
    entry = folder / "x"
    assert [cache.wanted(entry) for _ in range(3)] == [False, True, False]
    later = cache.time.time() + cache.ABANDONED_S + 1
    monkeypatch.setattr(cache.time, "time", lambda: later)
    assert [cache.wanted(entry) for _ in range(2)] == [False, True]


def test_nothing_is_wanted_where_nothing_can_be_written(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tfx")
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert not cache.wanted(cache.cache_folder() / "compiled" / "x")
    assert "not kept: " in caplog.text


def test_folders_are_bounded_and_removed_as_files_are(folder):
    def fill(size):
        def write(path):
            path.mkdir()
            (path / "a").write_bytes(bytes(size // 2))
            (path / "b").write_bytes(bytes(size // 2))

        return write

    assert not cache.keep(folder / "large", fill(11_000_000))
    assert list(folder.iterdir()) == []
    assert cache.keep(folder / "old", fill(6_000_000))
    assert cache.keep(folder / "old", fill(6_000_000))  # made by another process meanwhile
    cache.os.utime(folder / "old", (1, 1))
    assert cache.keep(folder / "new", fill(6_000_000))
    assert [path.name for path in folder.iterdir()] == ["new"]
