"""What tracing leaves behind and a bundle must not carry."""

from __future__ import annotations

import ast

import onnx_ir as ir

from ..graph import name_outputs
from .reshapes import settle_reshapes

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


def simplify(model: ir.Model) -> None:
    """Merge what rewrites leave side by side, and remove what nothing reads.

    Transposes, reshapes and casts in a row become one, and the targets of reshapes constants;
    equal nodes become one; unused nodes and weights go.

    Args:
        model: Changed in place.
    """
    from onnx_ir.passes import common
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common as rules

    in_a_row = [
        rules.no_op_transpose_rule,
        rules.transpose_transpose_rule,
        rules.reshape_reshape_rule,
        rules.unsqueeze_unsqueeze_rule,
    ]
    names = [str(value.name) for value in model.graph.outputs]
    rewrite(model, pattern_rewrite_rules=in_a_row)
    settle_reshapes(model)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    name_outputs(model.graph, names)


def _scope(names: str) -> str:
    """``"['', 'bert', 'bert.encoder', 'linear']"`` to ``"bert.encoder"``.

    The last entry is the node itself.
    """
    try:
        scopes = ast.literal_eval(names) if names else []
    except (ValueError, SyntaxError):
        return ""
    # Names that PyTorch makes up start with an underscore.
    return next((scope for scope in reversed(scopes[:-1]) if scope[:1] not in ("", "_")), "")
