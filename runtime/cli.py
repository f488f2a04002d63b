"""``tfx predict``, ``inspect``, ``check`` and ``doctor``: read arguments, call one function, print."""

from __future__ import annotations
