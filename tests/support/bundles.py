"""Tiny bundles made by hand, for tests that need one and not the exporter."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tfx.bundle import Bundle, create_bundle, open_bundle
from tfx.dtypes import DType
from tfx.manifest import Manifest, Step
from tfx.processing import Processing
from tfx.recipe import ExportRecipe, Source, SourceKind
from tfx.signature import ShapeRange, Signature, TensorSpec, ValueRange

VOCABULARY = 64
HIDDEN = 8

TEXT_SIGNATURE = Signature(
    inputs=(
        TensorSpec("input_ids", DType.INT64, ("batch", "sequence"), ValueRange(0, VOCABULARY - 1)),
        TensorSpec("attention_mask", DType.INT64, ("batch", "sequence"), ValueRange(0, 1)),
    ),
    outputs=(TensorSpec("last_hidden_state", DType.FLOAT32, ("batch", "sequence", HIDDEN)),),
    ranges={"batch": ShapeRange(1, 4, 16), "sequence": ShapeRange(1, 16, 32)},
)


def text_graph(seed: int = 0) -> onnx.ModelProto:
    """Embedding lookup, masked: ``last_hidden_state = E[input_ids] * attention_mask``."""
    table = np.random.default_rng(seed).normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["vectors", "column"], ["last_hidden_state"]),
    ]
    tokens = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, tokens),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, tokens),
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*tokens, HIDDEN])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "last")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def manifest(**changes) -> Manifest:
    """A valid manifest of the text graph; ``changes`` replace fields."""
    base = Manifest(
        name="tiny",
        step=Step.EXPORT,
        task="feature-extraction",
        precision=DType.FLOAT32,
        model="model.onnx",
        signature=TEXT_SIGNATURE,
        source=Source(SourceKind.MODULE, "tests"),
        recipe=ExportRecipe(),
        processing=Processing(),
        parity=None,
        tools={"tfx-toolkit": "0.0.0"},
        created="2026-01-01T00:00:00.000000Z",
    )
    return dataclasses.replace(base, **changes)


def write_bundle(
    path: Path, graph: onnx.ModelProto | None = None, *, files=None, **changes
) -> Bundle:
    """Write a bundle at ``path``.

    Args:
        path: Folder to make.
        graph: Its model, by default ``text_graph()``.
        files: More files, relative name to bytes.
        **changes: Manifest fields.
    """
    with create_bundle(path) as staging:
        onnx.save(graph or text_graph(), staging.path / "model.onnx")
        for name, data in (files or {}).items():
            file = staging.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        staging.finish(manifest(**changes))
    return open_bundle(path)
