"""What building and running TensorRT engines share: the library, its log, names of GPUs."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tfx.bundle import Bundle
from tfx.errors import BackendError
from tfx.extras import need
from tfx.recipe import Target

from .cache import cache_folder, limit_mb, make_folder

# Both flavours have one API; the module is all that differs by name.
MODULES = {Target.TENSORRT: "tensorrt", Target.TENSORRT_RTX: "tensorrt_rtx_bindings"}

# Where in the library an error arose: of no use to who reads it.
SOURCE_PLACES = tuple(
    map(
        re.compile,
        (
            r"\s*In \w+ at /\S+",
            r"^(?:\[\w+\.\w+::\w+::\d+\]|\w+::\w+:) Error Code \d+: [\w ]+ \((?:\w+Exception: )?",
            r"\[\w+\.\w+:\d+: \w+\] (?:\w+Exception: )?",
            r"^\w+\.cpp:\d+: ",
        ),
    )
)

_log = logging.getLogger(__name__)


def load_library(target: Target) -> ModuleType:
    """Import the library of ``target``.

    Raises:
        BackendError: If it is not installed, or does not import.
    """
    return need(MODULES[target])


@functools.cache
def library_log(trt: ModuleType) -> Any:
    """The one ``ILogger`` that everything of the library is made with.

    It lives as long as the process: the library keeps a pointer to the first it is given, and
    crashes at the next builder if that is gone. Errors go to ``errors_of``, warnings to our log.
    """
    severe = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.listeners: dict[int, list[str]] = {}

        def log(self, severity: Any, message: str) -> None:  # from any thread
            if severity in severe:
                for heard in tuple(self.listeners.values()):
                    heard.append(message)
            if severity != trt.ILogger.VERBOSE:
                _log.info("%s", message)

    return Log()


@contextlib.contextmanager
def errors_of(trt: ModuleType) -> Iterator[list[str]]:
    """What the library says of errors while the block runs, oldest first, in any thread."""
    listeners = library_log(trt).listeners
    heard: list[str] = []
    listeners[id(heard)] = heard
    try:
        yield heard
    finally:
        del listeners[id(heard)]


def first_error(errors: Sequence[str]) -> str:
    """The first error that is not the echo of a missing driver, without source places."""
    telling = [text for text in errors if not text.startswith("[checkMacros.cpp")] or errors
    if not telling:
        return "it does not say why"
    text = telling[0].strip()
    for place in SOURCE_PLACES:
        text = place.sub("", text)
    return text.strip(" (.)")


def remember_engine(bundle: Bundle) -> None:
    """Note that this user built an engine here; without it, opening one takes trust.

    That it could not be noted is no error: the cache may be off, or read only.
    """
    if not limit_mb():
        return
    mark = _mark(bundle)
    try:
        make_folder(mark.parent)
        mark.touch()
    except OSError as error:
        _log.warning("%s will need --trust to run: %s", bundle.path, error)


def is_known_engine(bundle: Bundle) -> bool:
    """Whether this user built this very bundle here."""
    return _mark(bundle).is_file()


def _mark(bundle: Bundle) -> Path:
    return cache_folder() / "engines-built-here" / bundle.digest


def compute_capability(trt: ModuleType, gpu: str) -> Any:
    """The library's own name of a GPU, e.g. "sm89".

    Raises:
        BackendError: If the library knows no such GPU.
    """
    members = trt.ComputeCapability.__members__
    if gpu.upper() not in members:
        known = ", ".join(name.lower() for name in members if name.startswith("SM"))
        raise BackendError(
            f"{trt.__name__} {trt.__version__} builds for {known}, not for {gpu}",
            hint="Name GPUs it builds for with --gpu.",
        )
    return members[gpu.upper()]
