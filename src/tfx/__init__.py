"""tfx: PyTorch Transformers, exported, quantized, run and measured, with proof."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfx.export.pipeline import export_bundle as export_bundle
    from tfx.quantize.pipeline import quantize_bundle as quantize_bundle
    from tfx.runtime.opening import open_session as open_session
    from tfx.runtime.session import Session as Session
    from tfx.runtime.speech.fallback import Fallback as Fallback
    from tfx.runtime.text.batcher import Batching as Batching

    from .bundle import Bundle as Bundle
    from .bundle import open_bundle as open_bundle
    from .errors import TfxError as TfxError
    from .quantization import QuantizeRecipe as QuantizeRecipe
    from .recipe import ExportRecipe as ExportRecipe
    from .signature import ShapeRange as ShapeRange
    from .signature import Signature as Signature
    from .signature import TensorSpec as TensorSpec

__version__ = "0.1.0"

# Public name -> module it lives in; imported on first use, so `import tfx` loads nothing heavy.
_PUBLIC = {
    "Batching": "tfx.runtime.text.batcher",
    "Bundle": "tfx.bundle",
    "ExportRecipe": "tfx.recipe",
    "Fallback": "tfx.runtime.speech.fallback",
    "QuantizeRecipe": "tfx.quantization",
    "Session": "tfx.runtime.session",
    "ShapeRange": "tfx.signature",
    "Signature": "tfx.signature",
    "TensorSpec": "tfx.signature",
    "TfxError": "tfx.errors",
    "export_bundle": "tfx.export.pipeline",
    "open_bundle": "tfx.bundle",
    "open_session": "tfx.runtime.opening",
    "quantize_bundle": "tfx.quantize.pipeline",
}

__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tfx' has no attribute {name!r}")
    from .extras import optional_imports

    with optional_imports():
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
