"""``tfx predict``, ``inspect``, ``check``, ``doctor``: arguments in, one call, its report out."""

from __future__ import annotations
