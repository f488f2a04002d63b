"""What makes tracing cheaper and leaves every graph as it is."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import types
from collections.abc import Iterator
from typing import Any

from tfx.extras import need


@contextlib.contextmanager
def unscanned() -> Iterator[None]:
    """Leave what the libraries have made by now out of Python's garbage collection.

    PyTorch and transformers are half a million objects that stay for good; each full
    collection of an export would read them all again. Whoever froze some already decides.
    """
    need("onnxscript")
    need("transformers.exporters.exporter_onnx")
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def no_stack_traces(_: bool) -> bool:
    """Nodes without a record of the code they come from, unless ``-vv`` shows PyTorch's reports."""
    return not logging.getLogger().isEnabledFor(logging.INFO)


def domain_alone(original: property) -> property:
    """Of a traced function only the domain, where its whole source was parsed."""

    def function_ir(self: Any) -> types.SimpleNamespace:
        return types.SimpleNamespace(domain=self.opset.domain)

    return property(function_ir, doc=original.__doc__)


def promoted_in_place(run_node: Any) -> Any:
    """Promotion of types that computes a node again only where it is another one now."""

    @functools.wraps(run_node)
    def run(self: Any, node: Any) -> Any:
        if node.op != "call_function" or node.meta.get("val") is None:
            return run_node(self, node)
        from torch.onnx._internal.fx.passes import type_promotion

        with self._set_current_node(node):
            rule = type_promotion.get_type_promotion_rule(node, self.type_promotion_table)
            if rule:
                self._maybe_promote_node(node, rule)
        return node.meta["val"]  # of the type it had: promotion casts back

    return run
