"""Bundles that hear, made by hand: what they say of a sound is known without a model."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.processing import AudioPreparation, Classification, Processing, Transcription
from tfx.signature import ShapeRange, Signature, TensorSpec

from .bundles import write_bundle

FRAME = 100  # samples
LONGEST = 8000

# Token or class -> the level that a frame must reach for it.
LEVELS = (0.0, 0.2, 0.4, 0.6)
LETTERS = ("<pad>", "A", "|", "B")
NAMES = ("silent", "low", "middle", "loud")


def _model(nodes, logits) -> onnx.ModelProto:
    """Scores of the levels are ``level * x - level ** 2 / 2``: the nearest one has the highest."""
    levels = np.array(LEVELS, np.float32)
    tensors = {"levels": levels[None], "offset": -(levels**2) / 2, "size": np.array([0, -1, FRAME])}
    tensors |= {"axis": np.array([-1])}
    graph = helper.make_graph(
        nodes,
        "hearing",
        [helper.make_tensor_value_info("input_values", TensorProto.FLOAT, ["batch", "samples"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def _write(path: Path, nodes, logits, processing: Processing) -> Bundle:
    signature = Signature(
        (TensorSpec("input_values", DType.FLOAT32, ("batch", "samples")),),
        (TensorSpec("logits", DType.FLOAT32, logits),),
        {"batch": ShapeRange(1, 2, 4), "samples": ShapeRange(FRAME, FRAME, LONGEST)},
    )
    return write_bundle(path, _model(nodes, logits), signature=signature, processing=processing)


def write_speller(path: Path) -> Bundle:
    """A CTC head: the loudest sample of each 100 says which letter is heard, at 8 kHz.

    The sound must be whole frames long.
    """
    nodes = [
        helper.make_node("Reshape", ["input_values", "size"], ["frames"]),
        helper.make_node("ReduceMax", ["frames", "axis"], ["level"], keepdims=1),
        helper.make_node("Mul", ["level", "levels"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["logits"]),
    ]
    said = Transcription("logits", LETTERS, 0, "|", hop=FRAME)
    processing = Processing(audio=AudioPreparation(rate=8000), transcription=said)
    return _write(path, nodes, ("batch", "frames", len(LEVELS)), processing)


def write_listener(path: Path) -> Bundle:
    """A classifier: the loudest sample says which class it is, at 8 kHz."""
    nodes = [
        helper.make_node("ReduceMax", ["input_values", "axis"], ["level"], keepdims=1),
        helper.make_node("Mul", ["level", "levels"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["logits"]),
    ]
    processing = Processing(
        audio=AudioPreparation(rate=8000), classification=Classification("logits", NAMES)
    )
    return _write(path, nodes, ("batch", len(LEVELS)), processing)


def spelled(text: str) -> np.ndarray:
    """The sound of a text of ``LETTERS``; "_" is a blank, each character one frame."""
    levels = [LEVELS[LETTERS.index("<pad>" if one == "_" else one)] for one in text]
    return np.repeat(np.array(levels, np.float32), FRAME)
