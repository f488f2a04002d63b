"""Bytes of weights that a run reads, of graphs written out."""

import pytest
from onnx import parser
from support.engines import write_engine_bundle

from tfx.bench.measuring.weights import Weights, weights_of, weights_of_graph
from tfx.errors import BundleError

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def elements(text):
    return weights_of_graph(parser.parse_model(HEADER + text).graph).elements


def test_weights_of_a_product_are_read_and_a_table_is_not():
    text = """g (int64[n] ids) => (float[n, 2] y)
        <float[3, 2] table = {1, 2, 3, 4, 5, 6}, float[2, 2] w = {1, 2, 3, 4}, int64[1] axis = {0}>
    {
        rows = Gather(table, ids)
        y = MatMul(rows, w)
    }"""
    assert elements(text) == {"FLOAT": 4}


def test_a_table_that_is_multiplied_too_is_read():
    text = """g (int64[n] ids) => (float[n, 3] y)
        <float[3, 2] table = {1, 2, 3, 4, 5, 6}>
    {
        rows = Gather(table, ids)
        t = Transpose(table)
        y = MatMul(rows, t)
    }"""
    assert elements(text) == {"FLOAT": 6}


def test_integers_are_followed_to_what_uses_them():
    text = """g (int64[n] ids) => (float[n, 2] y)
        <int8[3, 2] table = {1, 2, 3, 4, 5, 6}, int8[2, 2] w = {1, 2, 3, 4}, float one = {1}>
    {
        floats = DequantizeLinear(table, one)
        rows = Gather(floats, ids)
        right = DequantizeLinear(w, one)
        y = MatMul(rows, right)
    }"""
    assert elements(text) == {"INT8": 4, "FLOAT": 1}


@pytest.mark.parametrize(
    ("precision", "of_source", "size"),
    [
        ("float32", False, 400 + 8 + 8),
        ("bfloat16", False, 200 + 8 + 8),
        ("int8", False, 400 + 8 + 8),
        ("float32", True, 4 * (100 + 8 + 16)),
        ("bfloat16", True, 2 * (100 + 8 + 16)),
    ],
)
def test_bytes_by_the_type_that_runs(precision, of_source, size):
    weights = Weights({"FLOAT": 100, "INT8": 8, "INT4": 16})
    assert weights.bytes_in(precision, of_source=of_source) == size


def test_an_engine_has_no_graph(tmp_path):
    bundle = write_engine_bundle(tmp_path / "tiny")
    with pytest.raises(BundleError, match="tiny holds an engine, and weights are counted in a"):
        weights_of(bundle)
