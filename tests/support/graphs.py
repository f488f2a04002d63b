"""Small ONNX graphs as text, and ways to run and read them."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import parser
from onnx.reference import ReferenceEvaluator

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def graph_of(text: str) -> ir.Model:
    """A model from ONNX text syntax, without its header; shapes inferred."""
    proto = onnx.shape_inference.infer_shapes(parser.parse_model(HEADER + text))
    return ir.from_proto(proto)


def operators(model: ir.Model) -> list[str]:
    """Operator of each node, in order."""
    return [node.op_type for node in model.graph.all_nodes()]


def run_reference(model: ir.Model, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs by onnx's own reference implementation."""
    return ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feed))


def run_ort(model: ir.Model, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feed))


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """Every standard Attention of a graph."""
    return [
        node for node in model.graph.all_nodes() if node.op_type == "Attention" and not node.domain
    ]


def fill_constants(
    model: ir.Model, rng: np.random.Generator, *, inputs: tuple[str, ...] = ("x",)
) -> ir.Model:
    """Give every input but ``inputs`` random numbers, as an initializer."""
    for value in list(model.graph.inputs):
        if value.name not in inputs:
            model.graph.inputs.remove(value)
            array = rng.normal(size=[int(size) for size in value.shape]).astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            model.graph.register_initializer(value)
    return model
