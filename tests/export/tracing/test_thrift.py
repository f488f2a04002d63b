"""What makes tracing cheaper leaves the graphs, and Python's garbage, as they are."""

import gc
import logging
import weakref

import pytest
import torch
from torch import nn

from tfx.export.tracing.patches import PATCHES
from tfx.export.tracing.thrift import domain_alone, no_stack_traces, promoted_in_place, unscanned
from tfx.export.tracing.tracer import trace

THRIFT = (no_stack_traces, domain_alone, promoted_in_place)


class Mixed(nn.Module):
    """Every kind of promotion: of a tensor, of a number, of the output of an integer."""

    def forward(self, x, count):
        ratio = count / 3  # integers divided are floats
        return x + count[:, None], (x * 2.5).sqrt() + ratio[:, None], torch.exp(count), count > 1.5


def graph_of(module, examples):
    dynamic = {name: ("batch",) + ("",) * (one.ndim - 1) for name, one in examples.items()}
    return trace(module, examples, dynamic, opset=23).model


def described(model):
    return [
        (node.op_type, [(str(one.dtype), str(one.shape)) for one in node.outputs])
        for node in model.graph.all_nodes()
    ]


def test_the_graph_is_the_same_with_and_without(monkeypatch):
    examples = {"x": torch.rand(3, 4), "count": torch.arange(3)}
    thrifty = described(graph_of(Mixed(), examples))
    rest = tuple(patch for patch in PATCHES if patch.replacement not in THRIFT)
    assert len(rest) == len(PATCHES) - len(THRIFT)
    monkeypatch.setattr("tfx.export.tracing.patches.PATCHES", rest)
    assert thrifty == described(graph_of(Mixed(), examples))
    assert "Cast" in {kind for kind, _ in thrifty}  # something was promoted


def test_domains_are_those_of_the_sources():
    from onnxscript._internal.values import TracedOnnxFunction
    from onnxscript.function_libs.torch_lib import ops, registration

    del ops  # fills the registry
    cheap = domain_alone(TracedOnnxFunction.function_ir)
    traced = [
        one
        for overloads in registration.default_registry.values()
        for one in overloads.overloads
        if isinstance(one, TracedOnnxFunction)
    ]
    assert len(traced) > 100
    for one in traced[::50]:
        assert cheap.fget(one).domain == one.function_ir.domain


@pytest.mark.parametrize(("level", "traces"), [(logging.WARNING, False), (logging.DEBUG, True)])
def test_stack_traces_are_for_reports(level, traces):
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(level)
    try:
        assert no_stack_traces(False) is not traces
    finally:
        logger.setLevel(before)


class Cycle:
    """Something that only the garbage collector takes away."""

    def __init__(self):
        self.itself = self


def test_what_is_made_inside_is_collected_and_what_was_before_stays():
    assert gc.get_freeze_count() == 0
    with unscanned():
        assert gc.get_freeze_count() > 100_000
        seen = weakref.ref(Cycle())
        gc.collect()
        assert seen() is None
    assert gc.get_freeze_count() == 0


def test_objects_are_unfrozen_after_an_error():
    with pytest.raises(RuntimeError, match="planted"), unscanned():
        raise RuntimeError("planted")
    assert gc.get_freeze_count() == 0


def test_a_caller_that_froze_objects_keeps_them_so():
    gc.freeze()
    try:
        with unscanned():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
