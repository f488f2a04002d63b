"""What TensorRT says of a graph, told in the model's terms: layer, operator, what to change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tfx.bundle import Bundle
from tfx.errors import BackendError, ExportError, listing
from tfx.extras import need
from tfx.recipe import Target
from tfx.runtime.engines import first_error

MORE_SCRATCH = "Allow more scratch memory with --workspace."

# A word of the library's errors, and what to do then; the first that is found counts.
BUILD_HINTS = {
    "graph_jit.cpp": "Build it on a machine with a GPU, or leave --refit and --strip out.",
    "Turing": "Build a float16 bundle for sm75: it has no float32 matrix product there.",
    "workspace": MORE_SCRATCH,
    "OutOfMemory": MORE_SCRATCH,
    "CUDA driver version": "Name the GPUs to build for, e.g. --gpu sm89: no GPU is needed then.",
}
LOG_HINT = "Run it with -vv to see the library's log."


def parser_error(bundle: Bundle, target: Target, parser: Any, nodes: Sequence[Any]) -> ExportError:
    """What an ``OnnxParser`` refused, each node by the submodule it comes from.

    Args:
        bundle: Whose graph it is.
        target: The library.
        parser: After ``parse``.
        nodes: ``NodeProto`` of the graph that was parsed.
    """
    problems, said = [], ""
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        said += error.desc()
        place, scope = error.node(), ""
        if 0 <= place < len(nodes) and nodes[place].op_type == error.node_operator():
            scope = _scope(nodes[place])
        name = scope or error.node_name() or f"node {place}"
        problems.append(f"{name}: {error.node_operator()}: {_reason(error.desc())}")
    return ExportError(
        listing(f"{target} does not take the graph of {bundle.name}:", dict.fromkeys(problems)),
        hint=_parser_hint(said),
    )


def _scope(node: Any) -> str:
    """The submodule a node comes from, as ``clean_metadata`` recorded it."""
    return next((entry.value for entry in node.metadata_props if entry.key == "scope"), "")


def _with_scopes(said: str, bundle: Bundle) -> str:
    """Put the submodule behind each name of a node."""
    graph = need("onnx").load(str(bundle.model), load_external_data=False).graph
    for node in graph.node:
        if node.name and (scope := _scope(node)):
            said = said.replace(f"'{node.name}'", f"'{node.name}' ({scope})")
    return said


def _reason(text: str) -> str:
    """The parser's words without its source places; some checks only say "false"."""
    if text in ("", "false"):
        return "the operator is not supported"
    for line in text.splitlines():
        if found := re.search(r"API Usage Error \((?:\S+: )?(.*?)\.?(?: In \w+ at |$)", line):
            return found[1]
    return text.splitlines()[0].removeprefix("Assertion failed: ")


def _parser_hint(said: str) -> str:
    if "shiftIsAllZeros" in said:
        return "Quantize symmetrically: TensorRT takes int8 with zero point 0 alone."
    if "same input types" in said:
        return "Make the graph again in one precision: TensorRT casts nothing by itself."
    return "Replace the PyTorch operators they come from."


def build_error(bundle: Bundle, target: Target, errors: list[str]) -> BackendError:
    """Why there is no engine, from what the library logged while it built."""
    said, raw = first_error(errors), " ".join(errors)
    if "graph_jit.cpp" in raw:
        said = "engines to refit or strip are compiled on a GPU, and there is none here"
    said = said.replace("Requested size was", "there is too little scratch memory: it asks for")
    return BackendError(
        f"{target} cannot build {bundle.name}: {_with_scopes(said, bundle)}",
        hint=next((hint for word, hint in BUILD_HINTS.items() if word in raw), LOG_HINT),
    )
