"""``tfx predict``, ``tfx inspect``, ``tfx check`` and ``tfx doctor``: arguments in, one call, its report out."""

from __future__ import annotations
