"""Changes to PyTorch and models while they are traced, each with its reason; undone afterwards."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Patch:
    """One attribute, replaced while a module is traced.

    Attributes:
        target: ``"module:attribute.path"``.
        replacement: Stands in for it; called with the original, returns what to install.
        reason: What the original does that cannot be traced, and until when.
    """

    target: str
    replacement: Callable[[Any], Any]
    reason: str


def _stated_causality(_: Any) -> Any:
    def detect(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
        return bool(is_causal)

    return detect


PATCHES: tuple[Patch, ...] = (
    Patch(
        "torch.nn.modules.transformer:_detect_is_causal_mask",
        _stated_causality,
        "nn.TransformerEncoder and nn.TransformerDecoder compare the mask's values with a causal "
        "one to pick a kernel: a branch on data. The mask itself is applied either way. Until "
        "torch.export skips the check.",
    ),
)


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Apply ``PATCHES``; whatever happens, take them back."""
    with contextlib.ExitStack() as stack:
        for patch in PATCHES:
            module, _, path = patch.target.partition(":")
            owner: Any = importlib.import_module(module)
            *parents, name = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            original = getattr(owner, name)
            stack.callback(setattr, owner, name, original)
            setattr(owner, name, patch.replacement(original))
        yield
