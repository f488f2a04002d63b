"""Axes and outputs of modules as people write them, traced."""

import pytest
import torch
from torch import nn

from tfx.errors import ExportError
from tfx.export.passes.cleanup import simplify
from tfx.export.passes.shapes import settle_axes
from tfx.export.tracing.examples import plan_examples
from tfx.export.tracing.tracer import trace


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        y = self.linear(x)
        return {"first": y, "second": y, "same": x}


class Cross(nn.Module):
    def forward(self, x, memory):
        return (x @ memory.mT).softmax(-1) @ memory


def traced(module, examples):
    plan = plan_examples(module.eval(), examples, {})
    return plan, trace(module, plan.examples, plan.dynamic, opset=23)


def test_smallest_size_of_a_convolution():
    _, found = traced(nn.Sequential(nn.Conv1d(8, 8, 5)), torch.randn(2, 8, 20))
    assert list(found.lower_bounds.values()) == [5]
    assert not found.upper_bounds


def test_output_returned_twice_is_two_outputs():
    _, found = traced(Twice(), torch.randn(2, 8))
    simplify(found.model)
    assert [value.name for value in found.model.graph.outputs] == ["first", "second", "same"]
    assert [value.name for value in found.model.graph.inputs] == ["x"]


def test_axes_taken_for_one_are_said():
    plan, found = traced(Cross(), (torch.randn(2, 7, 16), torch.randn(2, 7, 16)))
    settled, notes = settle_axes(found.model, plan.dynamic)
    assert settled["memory"][:2] == ("batch", "sequence")
    assert any(
        note.startswith("axis 1 of memory and axis 1 of x are one, 'sequence', for the examples")
        for note in notes
    )


def test_axes_of_different_examples_are_two():
    plan, found = traced(Cross(), (torch.randn(2, 7, 16), torch.randn(2, 9, 16)))
    settled, notes = settle_axes(found.model, plan.dynamic)
    assert settled["memory"][1] == "memory_dim1"
    assert not any("are one" in note for note in notes)


def test_opset_pytorch_does_not_write():
    module = nn.Linear(4, 4).eval()
    with pytest.raises(ExportError, match=r"^PyTorch wrote opset \d+, expected 99$"):
        trace(module, {"input": torch.randn(2, 4)}, {"input": ("batch", "")}, opset=99)
