"""Backend "openvino": the graph as it stands, in the precision asked for and in no other."""

import gc
import sys
import threading
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.bundles import HIDDEN, TEXT_SIGNATURE, VOCABULARY, text_graph, write_bundle
from support.proofs import text_cases, text_outputs, write_proven_bundle

import tfx
from tfx.dtypes import DType
from tfx.errors import BackendError, BundleError
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.backends import openvino as backend
from tfx.runtime.backends.openvino import OpenVino
from tfx.runtime.parity import check_bundle
from tfx.signature import Signature, TensorSpec

FEED = {"input_ids": np.ones((2, 3), np.int64), "attention_mask": np.ones((2, 3), np.int64)}
WIDTH = 64


def able(dtype):
    import openvino

    return backend.CAPABILITIES[dtype] in openvino.Core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    )


needs_bf16 = pytest.mark.skipif(not able(DType.BFLOAT16), reason="this CPU has no bfloat16")


def load(tmp_path, **options):
    return get_backend("openvino").load(write_bundle(tmp_path / "b"), RunOptions(**options))


def product_graph() -> onnx.ModelProto:
    """``y = x @ W + 1``, wide enough for the kernels of real models."""
    weight = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["xw"]),
        helper.make_node("Add", ["xw", "one"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.ones(WIDTH, np.float32), "one"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def product_bundle(path, **changes):
    signature = Signature(
        (TensorSpec("x", DType.FLOAT32, ("batch", WIDTH)),),
        (TensorSpec("y", DType.FLOAT32, ("batch", WIDTH)),),
    )
    return write_bundle(path, product_graph(), signature=signature, **changes)


def test_it_says_what_runs(tmp_path):
    import openvino

    facts = load(tmp_path, threads=1).facts
    assert (facts.backend, facts.engine, facts.device) == ("openvino", "CPU", "cpu")
    assert (facts.precision, facts.threads, facts.notes) == ("float32", 1, ())
    assert openvino.__version__.startswith(facts.version)


def test_outputs_are_those_of_the_graph(tmp_path, rng):
    executable = load(tmp_path, threads=2)
    for case in text_cases(rng, shapes=((2, 5), (1, 1), (3, 9))):
        outputs = executable.run(case.feed)
        assert list(outputs) == ["last_hidden_state"]
        assert outputs["last_hidden_state"].dtype == np.float32
        expected = text_outputs(case.feed)["last_hidden_state"]
        np.testing.assert_array_equal(outputs["last_hidden_state"], expected)


def test_outputs_stay_what_they_were(tmp_path):
    """They are the caller's, not the request's memory, which the next run writes to."""
    executable = load(tmp_path)
    first = executable.run(FEED)["last_hidden_state"]
    kept = first.copy()
    executable.run(FEED | {"input_ids": np.full((2, 3), 7)})
    np.testing.assert_array_equal(first, kept)
    executable.close()
    del executable
    gc.collect()
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # and may be written to


def test_feeds_that_are_not_contiguous_or_not_writeable(tmp_path, rng):
    executable = load(tmp_path)
    ids = rng.integers(0, VOCABULARY, (3, 2)).T
    mask = np.ones((2, 3), np.int64)
    mask.flags.writeable = False
    feed = {"input_ids": ids, "attention_mask": mask}
    np.testing.assert_array_equal(
        executable.run(feed)["last_hidden_state"], text_outputs(feed)["last_hidden_state"]
    )


def test_two_names_of_one_value_and_a_scalar(tmp_path):
    graph = text_graph()
    nodes = graph.graph.node
    nodes.append(helper.make_node("Identity", ["last_hidden_state"], ["again"]))
    nodes.append(helper.make_node("ReduceMax", ["last_hidden_state"], ["top"], keepdims=0))
    nodes.append(helper.make_node("Cast", ["mask"], ["kept"], to=TensorProto.BOOL))
    tokens = ["batch", "sequence"]
    graph.graph.output.extend(
        [
            helper.make_tensor_value_info("again", TensorProto.FLOAT, [*tokens, HIDDEN]),
            helper.make_tensor_value_info("top", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("kept", TensorProto.BOOL, tokens),
        ]
    )
    signature = Signature(
        TEXT_SIGNATURE.inputs,
        (
            *TEXT_SIGNATURE.outputs,
            TensorSpec("again", DType.FLOAT32, ("batch", "sequence", HIDDEN)),
            TensorSpec("top", DType.FLOAT32, ()),
            TensorSpec("kept", DType.BOOL, ("batch", "sequence")),
        ),
        TEXT_SIGNATURE.ranges,
    )
    bundle = write_bundle(tmp_path / "b", graph, signature=signature)
    outputs = OpenVino().load(bundle, RunOptions()).run(FEED)
    assert {n: (a.shape, a.dtype.name) for n, a in outputs.items()} == {
        "last_hidden_state": ((2, 3, HIDDEN), "float32"),
        "again": ((2, 3, HIDDEN), "float32"),
        "top": ((), "float32"),
        "kept": ((2, 3), "bool"),
    }
    np.testing.assert_array_equal(outputs["again"], outputs["last_hidden_state"])
    assert outputs["top"] == outputs["again"].max()


def test_outputs_that_the_signature_names_otherwise(tmp_path):
    signature = Signature(
        TEXT_SIGNATURE.inputs,
        (
            TensorSpec("states", DType.FLOAT32, ("batch", "sequence", HIDDEN)),
            TensorSpec("last_hidden_state", DType.INT64, ("batch", "sequence", HIDDEN)),
        ),
    )
    bundle = write_bundle(tmp_path / "b", signature=signature)
    with pytest.raises(BackendError) as caught:
        OpenVino().load(bundle, RunOptions())
    assert str(caught.value).splitlines() == [
        "openvino gives other outputs than the signature's:",
        "  states: not there",
        "  last_hidden_state: it is f32, expected int64",
    ]


def test_float32_is_float32_whatever_the_cpu_has(tmp_path, rng):
    """Left alone, OpenVINO rounds to bfloat16 where the CPU can multiply it."""
    with tfx.open_session(product_bundle(tmp_path / "b"), backend="openvino") as session:
        x = rng.normal(size=(4, WIDTH)).astype(np.float32)
        found = session.predict({"x": x})["y"]
    weight = numpy_helper.to_array(product_graph().graph.initializer[0])
    np.testing.assert_allclose(found, x @ weight + 1, rtol=1e-4, atol=1e-4)
    assert session.report.facts.precision == "float32"


@needs_bf16
def test_bfloat16_where_it_is_asked_for(tmp_path, rng):
    bundle = product_bundle(tmp_path / "b")
    with tfx.open_session(bundle, backend="openvino", precision="bf16") as session:
        x = rng.normal(size=(4, WIDTH)).astype(np.float32)
        found = session.predict({"x": x})["y"]
    weight = numpy_helper.to_array(product_graph().graph.initializer[0])
    error = np.abs(found - (x @ weight + 1)).max()
    assert 1e-3 < error < 0.3  # rounded, and only that
    assert session.report.facts.precision == "bfloat16"
    assert found.dtype == np.float32  # at the seam nothing changes


@needs_bf16
def test_a_bundles_own_precision_is_what_it_runs_in(tmp_path):
    bundle = product_bundle(tmp_path / "b", precision=DType.BFLOAT16)
    for precision, runs in (("", "bfloat16"), ("fp32", "float32")):
        with tfx.open_session(bundle, backend="openvino", precision=precision) as session:
            assert session.report.facts.precision == runs


def test_a_bundle_of_floats_the_cpu_has_not_runs_in_wider_ones(tmp_path, rng):
    bundle = product_bundle(tmp_path / "b", precision=DType.FLOAT16)
    if able(DType.FLOAT16):
        pytest.skip("this CPU multiplies float16")
    with tfx.open_session(bundle, backend="openvino") as session:
        assert session.report.facts.precision == "float32"
        assert "computes in float32: this CPU multiplies no float16" in session.report.facts.notes
    with pytest.raises(BackendError, match="here, not in float16"):
        tfx.open_session(bundle, backend="openvino", precision="fp16")


def test_what_the_cpu_cannot_do_is_refused(tmp_path, monkeypatch):
    import openvino

    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8", "BIN"]

    monkeypatch.setattr(openvino, "Core", Core)
    with pytest.raises(BackendError) as caught:
        OpenVino().load(write_bundle(tmp_path / "b"), RunOptions(precision="bf16"))
    assert str(caught.value) == "openvino multiplies matrices in float32 here, not in bfloat16"
    assert caught.value.hint == "Use precision='fp32', or another backend."


class Compiled:
    """A compiled model whose products run in ``types``, whatever was asked for."""

    def __init__(self, hint, types):
        self.hint, self.types = hint, types
        kind = SimpleNamespace(to_dtype=lambda: np.dtype("f4"))
        names = {"last_hidden_state"}
        self.outputs = [SimpleNamespace(get_names=lambda: names, get_element_type=lambda: kind)]

    def get_property(self, name):
        if name == "INFERENCE_PRECISION_HINT":
            return SimpleNamespace(get_type_name=lambda: self.hint)
        return 1 if name == "NUM_STREAMS" else 2

    def get_runtime_model(self):
        return SimpleNamespace(
            get_ops=lambda: [
                SimpleNamespace(get_rt_info=lambda one=one: rt_info(one)) for one in self.types
            ]
        )


def rt_info(name):
    """Of a product in ``name``; ``i8/f32`` is one of integers that a kernel of floats unpacks."""
    layer = "FullyConnected" if name else "Reshape"
    precision, _, kernel = (name or "bf16").partition("/")
    return {
        "layerType": SimpleNamespace(value=layer),
        "runtimePrecision": SimpleNamespace(value=precision),
        "primitiveType": SimpleNamespace(value=f"brgemm_avx512_{kernel or precision}"),
    }


def load_compiled(tmp_path, monkeypatch, hint, types, streams=1):
    import openvino

    class Core:
        def get_property(self, device, name):
            return list(backend.CAPABILITIES.values())

        def read_model(self, path):
            return SimpleNamespace(get_ordered_ops=list)

        def compile_model(self, model, device, settings):
            return Compiled(hint, types)

    monkeypatch.setattr(openvino, "Core", Core)
    options = RunOptions(threads=2, streams=streams)
    return OpenVino().load(write_bundle(tmp_path / "b"), options).facts


def test_another_precision_than_asked_for_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(BackendError, match="openvino gave precision bf16, not f32"):
        load_compiled(tmp_path, monkeypatch, "bf16", ["bf16"])


def test_other_streams_than_asked_for_are_an_error(tmp_path, monkeypatch):
    with pytest.raises(BackendError, match="openvino gave 1 streams, not 2"):
        load_compiled(tmp_path, monkeypatch, "f32", ["f32"], streams=2)


def test_streams_share_the_threads(tmp_path):
    facts = OpenVino().load(write_bundle(tmp_path / "b"), RunOptions(threads=2, streams=2)).facts
    assert (facts.threads, facts.streams) == (1, 2)


def test_a_graph_that_says_otherwise_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(BackendError, match="multiplies matrices in bfloat16, not in float32"):
        load_compiled(tmp_path, monkeypatch, "f32", ["f32", "bf16"])


def test_products_of_several_types_are_said(tmp_path, monkeypatch):
    facts = load_compiled(tmp_path, monkeypatch, "f32", ["u8", "i8", "u8", "f32", ""])
    assert facts.precision == "int8"
    assert facts.notes == ("of 4 matrix products 1 in float32, 3 in int8",)


def test_weights_that_are_unpacked_are_no_products_of_integers(tmp_path, monkeypatch):
    facts = load_compiled(tmp_path, monkeypatch, "f32", ["i8/f32", "i8/f32", "f32"])
    assert (facts.precision, facts.notes) == ("float32", ())


def test_no_such_precision(tmp_path):
    with pytest.raises(BackendError, match="no precision called 'tf32'") as caught:
        tfx.open_session(write_bundle(tmp_path / "b"), backend="openvino", precision="tf32")
    assert caught.value.hint == "Choose one of: fp32, bf16, fp16."


def test_no_such_device(tmp_path):
    with pytest.raises(BackendError, match="openvino runs on cpu here, not on 'cuda:0'"):
        load(tmp_path, device="cuda:0")


def test_a_damaged_graph(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    bundle.model.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"openvino cannot load .*model\.onnx: Unable to read"):
        OpenVino().load(bundle, RunOptions())


def test_an_operator_it_does_not_know(tmp_path):
    graph = text_graph()
    graph.graph.node[0].op_type = "NoSuchOperator"
    bundle = write_bundle(tmp_path / "b", graph)
    with pytest.raises(BackendError, match="No conversion rule found for operations: NoSuchOp"):
        OpenVino().load(bundle, RunOptions())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failing_run_says_so_and_leaves_the_next_one_alone(tmp_path, threads):
    executable = load(tmp_path, threads=threads)
    with pytest.raises(BackendError, match=r"openvino failed: .*[Ss]hape"):
        executable.run(FEED | {"attention_mask": np.ones((3, 2), np.int64)})
    with pytest.raises(BackendError, match=r"openvino failed: .*shape"):
        executable.run(FEED | {"attention_mask": np.ones((2, 3, 1), np.int64)})
    outputs = executable.run(FEED)["last_hidden_state"]
    np.testing.assert_array_equal(outputs, text_outputs(FEED)["last_hidden_state"])


def test_many_threads_get_their_own_answers(tmp_path):
    executable = load(tmp_path, threads=2)
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for case in text_cases(rng, shapes=[(1, 1 + seed), (3, 9), (2, 5)] * 30):
            found = executable.run(case.feed)["last_hidden_state"]
            if not np.array_equal(found, text_outputs(case.feed)["last_hidden_state"]):
                wrong.append(case.label)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closed_while_it_runs(tmp_path):
    """Every run of many threads ends well, or says that the session is closed."""
    executable = load(tmp_path, threads=1)
    started, problems = threading.Barrier(5), []

    def work():
        started.wait()
        try:
            while True:
                found = executable.run(FEED)["last_hidden_state"]
                if not np.array_equal(found, text_outputs(FEED)["last_hidden_state"]):
                    problems.append(found)
        except BackendError as error:
            if str(error) != "session is closed":
                problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    executable.close()
    executable.close()
    for thread in threads:
        thread.join()
    assert not problems
    with pytest.raises(BackendError, match=r"^session is closed$") as caught:
        executable.run(FEED)
    assert caught.value.hint == "Open another with open_session."


def test_the_stored_proof(tmp_path):
    report = check_bundle(write_proven_bundle(tmp_path / "b"), backend="openvino")
    assert report.passed
    assert report.backend.startswith("openvino ")


@needs_bf16
def test_the_stored_proof_in_bfloat16_has_its_own_tolerance(tmp_path):
    bundle = write_proven_bundle(tmp_path / "b")
    report = check_bundle(bundle, backend="openvino", precision="bf16")
    assert report.checks[0].tolerance > 1e-2


def test_a_precision_that_cannot_be_judged(tmp_path):
    bundle = write_proven_bundle(tmp_path / "b", precision=DType.FLOAT64)
    with pytest.raises(BundleError, match="no tolerance to judge by: got precision float64"):
        check_bundle(bundle, backend="openvino", precision="fp32")


def test_nothing_is_missing_where_it_is_installed():
    assert OpenVino().missing() == ""


def test_without_openvino_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "openvino is not installed (Run: pip install 'tfx-toolkit[openvino]')" in (
        OpenVino().missing()
    )


def test_a_machine_without_its_plugin(monkeypatch):
    import openvino

    class Core:
        available_devices = ("GPU.0",)

        def get_property(self, device, name):
            raise RuntimeError(f"no plugin for {device}")

    monkeypatch.setattr(openvino, "Core", Core)
    assert OpenVino().missing() == "openvino has no CPU plugin here, its devices are: GPU.0"


def test_auto_takes_it_where_onnxruntime_is_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with tfx.open_session(write_bundle(tmp_path / "b")) as session:
        assert session.report.facts.backend == "openvino"


def test_kernels_of_few_shapes_are_kept(tmp_path, monkeypatch):
    """Left alone, memory grows with every new shape for as long as anybody watches."""
    import openvino

    asked = []
    real = openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core, "compile_model", lambda *all: asked.append(all[-1]) or real(*all)
    )
    load(tmp_path).close()
    assert [one["CPU_RUNTIME_CACHE_CAPACITY"] for one in asked] == [backend.KERNELS]
