"""Which axes stay as the example has them because the module takes no other size."""

import pytest
import torch

from tfx.export.tracing.sizes import fix_refused_axes

AXES = {"x": ("batch", "sequence", "")}


def within(low, high):
    """A module of axis 1 from ``low`` to ``high``, which names what it refuses."""

    def run(x):
        if not low <= x.shape[1] <= high:
            raise ValueError(f"{x.shape[1]} is refused\nat length")
        return x

    return run


@pytest.mark.parametrize(("low", "high"), [(1, 99), (1, 6), (6, 99)], ids=["any", "most", "least"])
def test_a_bound_fixes_nothing(low, high):
    kept, notes = fix_refused_axes(within(low, high), {"x": torch.ones(2, 6, 4)}, AXES)
    assert (kept, notes) == (AXES, [])


def test_one_size_alone():
    kept, notes = fix_refused_axes(within(6, 6), {"x": torch.ones(2, 6, 4)}, AXES)
    assert kept == {"x": ("batch", "", "")}
    assert notes == ["axis 1 of x is fixed at 6, the model fails on others: 13 is refused"]


def test_error_without_words_is_named():
    def run(x):
        if x.shape[1] != 6:
            raise ValueError

    _, notes = fix_refused_axes(run, {"x": torch.ones(2, 6, 4)}, AXES)
    assert notes == ["axis 1 of x is fixed at 6, the model fails on others: ValueError"]


def test_inputs_of_one_axis_vary_together():
    seen = []

    def run(x, mask):
        seen.append((x.shape[1], *mask.shape))
        return x * mask[0]

    axes = {"x": ("batch", "sequence"), "mask": ("sequence", "sequence")}
    examples = {"x": torch.ones(2, 6), "mask": torch.tril(torch.ones(6, 6))}
    assert fix_refused_axes(run, examples, axes) == (axes, [])
    assert seen == [(3, 3, 3)]


def test_neither_the_batch_nor_a_size_of_one_is_tried():
    def run(x):
        raise AssertionError

    kept, notes = fix_refused_axes(run, {"x": torch.ones(2, 1, 4)}, AXES)
    assert (kept, notes) == (AXES, [])


def ends(error, *, at):
    """A module that takes axis 1 of 6, ends with ``error`` at ``at``, and refuses the rest."""

    def run(x):
        if x.shape[1] == at:
            raise error
        if x.shape[1] != 6:
            raise ValueError("refused")

    return run


@pytest.mark.parametrize("at", [3, 13])
@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_fixes_nothing_and_is_said(error, at):
    kept, notes = fix_refused_axes(ends(error, at=at), {"x": torch.ones(2, 6, 4)}, AXES)
    assert kept == AXES
    assert notes == ["axis 1 of x was tried at 6 alone, memory did not last for another size"]


def test_pytorch_s_own_words_for_too_little_memory():
    def run(x):
        if x.shape[1] != 6:
            torch.ones(10**13)

    kept, notes = fix_refused_axes(run, {"x": torch.ones(2, 6, 4)}, AXES)
    assert kept == AXES
    assert "memory did not last" in notes[0]


def test_another_runtime_error_is_a_refusal():
    kept, _ = fix_refused_axes(
        ends(RuntimeError("no such size"), at=3), {"x": torch.ones(2, 6, 4)}, AXES
    )
    assert kept == {"x": ("batch", "", "")}
