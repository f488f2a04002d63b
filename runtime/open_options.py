"""What a caller asks of ``open_session``, handed on as one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfx.errors import BackendError

from .counts import count_problem

if TYPE_CHECKING:
    from .text.batcher import Batching


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """The arguments of ``open_session`` besides the bundle, which says what each means."""

    backend: str
    device: str
    threads: int | None
    precision: str
    verify: bool
    trust: bool
    tune: bool | None
    streams: int | None
    batching: Batching | None
    encoder: str | os.PathLike[str]

    def __post_init__(self) -> None:
        for name in ("threads", "streams"):
            value = getattr(self, name)
            if value is not None and (problem := count_problem(name, value)):
                raise BackendError(problem)
