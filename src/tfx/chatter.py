"""What third-party libraries print, warn and log, kept from the user who did not ask for it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

CHATTY = ("transformers", "huggingface_hub", "torch", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what libraries print, warn and log, unless ``-vv`` asked for it."""
    if logging.getLogger().isEnabledFor(logging.INFO):
        yield
        return
    chatty = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in chatty]
    said = io.StringIO()
    try:
        for logger in chatty:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)
