"""Backend "onnxruntime": the graph as it stands, on the provider asked for."""

import numpy as np
import pytest
from support.bundles import text_graph, write_bundle

from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.runtime.backend import RunOptions, float_type, get_backend
from tfx.runtime.backends.onnxruntime import OnnxRuntime

FEED = {"input_ids": np.ones((2, 3), np.int64), "attention_mask": np.ones((2, 3), np.int64)}


def load(tmp_path, **options):
    bundle = write_bundle(tmp_path / "b")
    return get_backend("onnxruntime").load(bundle, RunOptions(**options))


def test_it_says_what_runs(tmp_path):
    import onnxruntime

    facts = load(tmp_path, threads=1).facts
    assert (facts.backend, facts.engine, facts.device) == (
        "onnxruntime",
        "CPUExecutionProvider",
        "cpu",
    )
    assert (facts.precision, facts.threads) == ("float32", 1)
    assert facts.version == onnxruntime.__version__


def test_outputs_are_those_of_the_graph(tmp_path):
    outputs = load(tmp_path).run(FEED)
    assert list(outputs) == ["last_hidden_state"]
    assert outputs["last_hidden_state"].shape == (2, 3, 8)
    assert outputs["last_hidden_state"].dtype == np.float32


def test_threads_are_those_asked_for(tmp_path):
    assert load(tmp_path, threads=2).inference.get_session_options().intra_op_num_threads == 2


def test_settings_suit_changing_shapes_beside_other_work(tmp_path):
    settings = load(tmp_path).inference.get_session_options()
    assert settings.enable_cpu_mem_arena
    assert not settings.enable_mem_pattern
    assert settings.get_session_config_entry("session.intra_op.spin_duration_us") == "50"


def test_another_precision_than_the_graphs_is_refused(tmp_path):
    with pytest.raises(BackendError) as caught:
        load(tmp_path, precision="bf16")
    assert str(caught.value) == "onnxruntime multiplies matrices in float32 here, not in bfloat16"
    assert caught.value.hint == "Use precision='fp32', or another backend."


def test_a_form_of_its_own_runs_in_float32_and_may_be_asked_to(tmp_path):
    graph = text_graph().SerializeToString()
    bundle = write_bundle(
        tmp_path / "half",
        files={"for-cpu.onnx": graph},
        precision=DType.FLOAT16,
        variants={"onnxruntime-cpu": "for-cpu.onnx"},
    )
    for precision in ("", "fp32"):
        facts = OnnxRuntime().load(bundle, RunOptions(precision=precision)).facts
        assert facts.precision == "float32"
        assert facts.notes == ("runs for-cpu.onnx, the form of the graph made for it",)
    with pytest.raises(BackendError, match="in float32 here, not in float16"):
        OnnxRuntime().load(bundle, RunOptions(precision="fp16"))


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FLOAT8_E4M3])
def test_what_8_bits_leave_is_float32(tmp_path, dtype):
    bundle = write_bundle(tmp_path / "b", precision=dtype)
    assert float_type(bundle, RunOptions()) is DType.FLOAT32
    assert float_type(bundle, RunOptions(precision="bf16")) is DType.BFLOAT16


def test_no_such_device(tmp_path):
    with pytest.raises(BackendError, match="tpu"):
        load(tmp_path, device="tpu")


def test_another_provider_than_asked_for_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tfx.runtime.backends.onnxruntime.PROVIDERS", {"cpu": "NoSuchExecutionProvider"}
    )
    with pytest.raises(BackendError, match=r"onnxruntime (gave|cannot load)"):
        load(tmp_path)


def test_a_damaged_graph(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    bundle.model.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"onnxruntime cannot load .*model\.onnx"):
        OnnxRuntime().load(bundle, RunOptions())


def test_an_operator_it_does_not_know(tmp_path):
    graph = text_graph()
    graph.graph.node[0].op_type = "NoSuchOperator"
    bundle = write_bundle(tmp_path / "b", graph)
    with pytest.raises(BackendError, match="NoSuchOperator"):
        OnnxRuntime().load(bundle, RunOptions())


def test_a_failing_run(tmp_path):
    with pytest.raises(BackendError, match="onnxruntime failed"):
        load(tmp_path).run(FEED | {"input_ids": np.full((2, 3), 10_000)})


def test_nothing_is_missing_where_it_is_installed():
    assert OnnxRuntime().missing() == ""


def test_closed_while_it_runs(tmp_path):
    executable = load(tmp_path)
    executable.close()
    executable.close()
    with pytest.raises(BackendError, match=r"^session is closed$") as caught:
        executable.run(FEED)
    assert caught.value.hint == "Open another with open_session."


def test_what_was_checked_is_not_looked_at_again(tmp_path, monkeypatch):
    """And ``InferenceSession.run`` would answer a failed provider by another one."""
    import onnxruntime

    executable = load(tmp_path)
    expected = executable.inference.run(None, FEED)
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda *all: pytest.fail("went through Python")
    )
    np.testing.assert_array_equal(executable.run(FEED)["last_hidden_state"], expected[0])
