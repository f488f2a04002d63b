"""A cache as OpenVINO's state: what attention of it is fused, the same numbers, rows of beams."""

import dataclasses

import numpy as np
import onnx.parser
import pytest
from support.generators import write_generator

import tfx
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.export.pipeline import export_bundles
from tfx.feeds import random_feed
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.backends.openvino_state import StatefulExecutable, keep_state
from tfx.runtime.generation.decoder import Decoder
from tfx.signature import Signature, TensorSpec

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    source = write_generator(folder / "source", "llama")
    return export_bundles(str(source), folder / "bundle", cache=True)[0]


@pytest.fixture(scope="module")
def executable(bundle):
    return get_backend("openvino").load(bundle, RunOptions())


def test_the_plugin_keeps_the_cache_and_fuses_attention(executable):
    assert isinstance(executable, StatefulExecutable)
    kinds = [
        node.get_rt_info()["layerType"].value
        for node in executable.compiled.get_runtime_model().get_ops()
    ]
    assert kinds.count("MemoryInput") == 4
    assert kinds.count("ScaledDotProductAttention") == 2
    assert "Softmax" not in kinds
    assert executable.compiled.get_property("KV_CACHE_PRECISION") == openvino.Type.f32


def test_an_output_of_another_type_is_refused(executable):
    outputs = [
        dataclasses.replace(spec, dtype=DType.FLOAT16) if spec.name == "logits" else spec
        for spec in executable.signature.outputs
    ]
    other = dataclasses.replace(executable.signature, outputs=tuple(outputs))
    with pytest.raises(BackendError, match=r"logits: it is f32, expected float16") as caught:
        StatefulExecutable(executable.compiled, other, executable.facts)
    assert str(caught.value).startswith("openvino gives other outputs than the signature's:")


@pytest.mark.parametrize("first", [0, 5])
def test_a_run_gives_what_the_graph_gives(bundle, executable, rng, first):
    feed = random_feed(
        bundle.manifest.signature,
        {"batch": 3, "sequence": 4, "capacity": 12, "kept": 2},
        rng,
        padding="left",
    )
    feed["cache_position"] = np.arange(first, first + 4)
    feed["attention_mask"][:, first:] = 1
    expected = get_backend("onnxruntime").load(bundle, RunOptions()).run(feed)
    found = executable.run(feed)
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4)


def test_tokens_go_to_places_in_a_row(bundle, executable, rng):
    sizes = {"batch": 1, "sequence": 2, "capacity": 8, "kept": 1}
    feed = random_feed(bundle.manifest.signature, sizes, rng)
    feed["cache_position"] = np.array([0, 3])
    with pytest.raises(BackendError, match=r"follow each other, got cache_position \[0, 3\]"):
        executable.run(feed)


def test_a_decoder_copies_nothing(bundle, executable):
    decoder = Decoder(executable, bundle.manifest.signature)
    other = Decoder(
        get_backend("onnxruntime").load(bundle, RunOptions()), bundle.manifest.signature
    )
    ids = np.array([[7, 8, 9], [4, 5, 6]])
    for one in (decoder, other):
        one.start(ids, np.ones_like(ids), room=60)
    for rows in (None, [1, 0], [0, 0], None):
        if rows is not None:
            decoder.take(np.array(rows))
            other.take(np.array(rows))
        for token in range(20, 32):
            found, expected = (one.step(np.array([token, token + 1])) for one in (decoder, other))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert decoder.copied == 0
    assert other.copied == 2  # as often as rows were taken


def test_two_texts_at_once_have_a_state_each(bundle, executable):
    first, second = (Decoder(executable, bundle.manifest.signature) for _ in range(2))
    ids = np.array([[7, 8, 9]])
    alone = first.start(ids, np.ones_like(ids), 20), first.step(np.array([5]))
    again = first.start(ids, np.ones_like(ids), 20)
    second.start(ids + 20, np.ones_like(ids), 20)
    np.testing.assert_array_equal(again, alone[0])
    np.testing.assert_array_equal(first.step(np.array([5])), alone[1])


def test_beams_are_those_of_onnxruntime(bundle):
    found = []
    for backend in ("openvino", "onnxruntime"):
        with tfx.open_session(bundle, backend=backend) as session:
            found.append(session.generate([[5, 6, 7], [9]], max_new_tokens=10, num_beams=3))
    assert found[0] == found[1]


def test_it_is_closed(bundle):
    executable = get_backend("openvino").load(bundle, RunOptions())
    executable.close()
    with pytest.raises(BackendError, match="session is closed"):
        executable.in_place(bundle.manifest.signature)


def test_a_cache_that_is_read_otherwise_stays_an_input(tmp_path):
    text = """
        <ir_version: 10, opset_import: ["": 23]>
        cached (float[1, 2, c, 4] past_key_0, int64[1, c] attention_mask)
            => (float[1, 2, c, 4] present_key_0)
        { present_key_0 = Neg(past_key_0) }
    """
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    shape = (1, 2, "capacity", 4)
    signature = Signature(
        (TensorSpec("past_key_0", DType.FLOAT32, shape),),
        (TensorSpec("present_key_0", DType.FLOAT32, shape),),
    )
    model = openvino.Core().read_model(str(path))
    assert not keep_state(model, signature)
    assert {name for port in model.inputs for name in port.get_names()} == {
        "past_key_0",
        "attention_mask",
    }
