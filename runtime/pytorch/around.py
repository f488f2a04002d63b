"""The base of modules around a model, where what it computes is no graph as it stands."""

from __future__ import annotations

import functools
from typing import Any

from tfx.extras import need


@functools.cache
def around() -> Any:
    """The class of a module that holds others by name and is in eval mode: ``forward`` is missing.

    It is made when asked for, so that torch is imported by those alone who have a model::

        class Reader(around()):  # type: ignore[misc]
            def forward(self, input_ids):
                return self.model(input_ids).logits

        Reader(model=model)
    """
    torch = need("torch")

    class Around(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, **parts: Any) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)
            self.eval()

    return Around
