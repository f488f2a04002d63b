"""Weights of 4 bits: engines round what they are multiplied with, unless float32 is asked for."""

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from support.bundles import write_bundle

from tfx.dtypes import DType
from tfx.runtime.backend import ROUNDED, RunOptions, get_backend
from tfx.runtime.cpus import read_cpu
from tfx.signature import Signature, TensorSpec

ROWS, COLUMNS, BLOCK = 64, 32, 32
SIGNATURE = Signature(
    (TensorSpec("x", DType.FLOAT32, ("batch", "sequence", ROWS)),),
    (TensorSpec("y", DType.FLOAT32, ("batch", "sequence", COLUMNS)),),
)
BODY = f"""<ir_version: 10, opset_import: ["" : 23]>
g (float[batch, sequence, {ROWS}] x) => (float[batch, sequence, {COLUMNS}] y) {{
  w = DequantizeLinear<axis = 0, block_size = {BLOCK}>(integers, steps)
  y = MatMul(x, w)
}}"""
VNNI = {"avx512_vnni", "avx_vnni"}


@pytest.fixture
def weights(rng):
    return rng.integers(-8, 8, (ROWS, COLUMNS)).astype(np.float32)


@pytest.fixture
def bundle(tmp_path, weights):
    model = onnx.parser.parse_model(BODY)
    steps = np.ones((ROWS // BLOCK, COLUMNS), np.float32)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(weights.astype(ml_dtypes.int4), "integers"),
            numpy_helper.from_array(steps, "steps"),
        ]
    )
    return write_bundle(tmp_path / "b", model, signature=SIGNATURE, precision=DType.INT4)


def error_of(executable, weights, rng):
    """The largest of some outputs, beside the largest output."""
    x = rng.standard_normal((2, 7, ROWS)).astype(np.float32)
    expected = x @ weights
    found = executable.run({"x": x})["y"]
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_float32_by_name_rounds_nothing(bundle, weights, rng, backend):
    pytest.importorskip(backend)
    exact = get_backend(backend).load(bundle, RunOptions(precision="fp32"))
    assert ROUNDED not in exact.facts.notes
    assert error_of(exact, weights, rng) < 1e-6


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_left_alone_the_facts_say_that_it_rounds(bundle, weights, rng, backend):
    pytest.importorskip(backend)
    rounded = get_backend(backend).load(bundle, RunOptions())
    assert ROUNDED in rounded.facts.notes
    if VNNI & read_cpu().flags:  # elsewhere kernels may keep floats
        assert 1e-4 < error_of(rounded, weights, rng) < 1e-2


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_other_bundles_say_nothing_of_it(tmp_path, backend):
    pytest.importorskip(backend)
    assert (
        ROUNDED
        not in get_backend(backend).load(write_bundle(tmp_path / "b"), RunOptions()).facts.notes
    )
