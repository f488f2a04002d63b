"""Axes that tracing lets vary and the module itself does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tfx.chatter import quiet
from tfx.extras import need
from tfx.signature import BATCH

if TYPE_CHECKING:
    import torch

Axes = Mapping[str, tuple[str, ...]]


def fix_refused_axes(
    run: Callable[..., object], examples: Mapping[str, torch.Tensor], axes: Axes
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Fix the guessed axes of which a module takes no other size than the example's.

    Tracing leaves out guards that it cannot solve: that the patches of an image are as many
    as a table has positions, ``(h//8)*(w//8) == 16``. An axis stays as it is where half the
    size or twice and one more works, which a bound does not forbid; so does one of size 1, and
    one that memory did not last to try.

    Args:
        run: The module, called with the examples by name.
        examples: Input name to example tensor.
        axes: Input name to an axis name per dimension, "" for a fixed one.

    Returns:
        ``axes`` with "" for those; and a sentence for each, and for each that was not tried.
    """
    sizes = {
        label: size
        for name, labels in axes.items()
        for label, size in zip(labels, examples[name].shape, strict=True)
        if label not in ("", BATCH) and size > 1
    }
    refused, said = set(), {}
    for label, size in sizes.items():
        try:
            problem = _refusal(run, examples, axes, label, (size // 2, 2 * size + 1))
        except MemoryError:
            said[label] = f"was tried at {size} alone, memory did not last for another size"
        else:
            if problem:
                refused.add(label)
                said[label] = f"is fixed at {size}, the model fails on others: {problem}"
    notes = [
        f"axis {axis} of {name} {said[label]}"
        for name, labels in axes.items()
        for axis, label in enumerate(labels)
        if label in said
    ]
    kept = {
        name: tuple("" if label in refused else label for label in labels)
        for name, labels in axes.items()
    }
    return kept, notes


def _refusal(
    run: Callable[..., object],
    examples: Mapping[str, torch.Tensor],
    axes: Axes,
    label: str,
    sizes: tuple[int, ...],
) -> str:
    """Why the module takes none of ``sizes``; "" where it takes one.

    Raises:
        MemoryError: If memory did not last to find out.
    """
    problem = ""
    for size in sizes:
        try:
            feed = {name: _resized(one, axes[name], label, size) for name, one in examples.items()}
            with quiet(), need("torch").no_grad():
                run(**feed)
        except Exception as error:
            if _is_out_of_memory(error):
                raise MemoryError from error
            problem = str(error).strip().partition("\n")[0] or type(error).__name__
        else:
            return ""
    return problem


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not last, which says nothing of what the module takes."""
    if isinstance(error, MemoryError | need("torch").OutOfMemoryError):
        return True
    # PyTorch's allocator on the CPU has no class of its own for it (2.13).
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _resized(example: torch.Tensor, labels: tuple[str, ...], label: str, size: int) -> torch.Tensor:
    """``example`` with ``size`` rows along its axes of that name, taken from its own."""
    torch = need("torch")
    for axis, one in enumerate(labels):
        if one == label:
            rows = torch.arange(size, device=example.device) * example.shape[axis] // size
            example = example.index_select(axis, rows)
    return example
