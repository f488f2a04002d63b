"""What tracing leaves behind and a bundle must not carry."""

from __future__ import annotations

import ast

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
SCOPE = "scope"


def clean_metadata(model: ir.Model) -> int:
    """Keep one metadata entry per node, ``scope``: the dotted name of its submodule.

    The trace also records stack traces, which hold paths of the machine it ran on, and
    take more bytes than the graph itself.

    Args:
        model: A traced graph; changed in place.

    Returns:
        How many nodes know their scope.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = None
    named = 0
    for node in model.graph.all_nodes():
        scope = _scope(node.metadata_props.get(SCOPES, ""))
        node.metadata_props.clear()
        node.doc_string = None
        if scope:
            node.metadata_props[SCOPE] = scope
            named += 1
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return named


def drop_unused_weights(model: ir.Model) -> int:
    """Remove initializers that nothing reads; returns how many.

    Args:
        model: Changed in place.
    """
    graph = model.graph
    unused = [
        name
        for name, value in graph.initializers.items()
        if not value.uses() and not value.is_graph_output()
    ]
    for name in unused:
        del graph.initializers[name]
    return len(unused)


def _scope(names: str) -> str:
    """``"['', 'bert', 'bert.encoder', 'linear']"`` to ``"bert.encoder"``.

    The last entry is the node itself.
    """
    try:
        scopes = ast.literal_eval(names) if names else []
    except (ValueError, SyntaxError):
        return ""
    return next((scope for scope in reversed(scopes[:-1]) if scope), "")
