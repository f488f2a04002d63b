"""What TensorRT-RTX compiles for the GPU that is here, kept from one process to the next."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from tfx.bundle import Bundle

from .. import cache as user_cache
from ..cuda import Device

log = logging.getLogger(__name__)

# The one file of an entry; a folder, so that its CRC-32 is kept beside it.
FILE = "kernels.bin"


def kernels_entry(bundle: Bundle, version: str, device: Device) -> Path | None:
    """Where what is compiled of an engine is kept; None where nothing is to be.

    Args:
        bundle: The engine, by its digest.
        version: Of TensorRT-RTX.
        device: The GPU, with its driver.
    """
    here = (device.name, device.capability, device.driver)
    return user_cache.entry_for(bundle, f"tensorrt-rtx {version}", *here)


class Kernels:
    """The kernels of one engine: its plan holds none for this very GPU, they come with the runs.

    All its contexts share them. Not thread-safe: a context may not run while they are saved.

    Attributes:
        config: ``IRuntimeConfig``, for every context.
        cache: ``IRuntimeCache``.
    """

    def __init__(self, trt: ModuleType, engine: Any, entry: Path | None) -> None:
        """Take what an earlier process has compiled; the GPU must be the thread's device.

        Args:
            trt: TensorRT-RTX.
            engine: ``ICudaEngine``.
            entry: From ``kernels_entry``.
        """
        self.config = engine.create_runtime_config()
        self.config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.cache = self.config.create_runtime_cache()
        self._entry = entry
        self._saved = self._read()
        if not self.config.set_runtime_cache(self.cache):
            log.warning("kernels are not kept: the library takes no cache for this engine")
            self._entry = None

    def save(self) -> None:
        """Keep what was compiled since; that it could not be kept is no error."""
        if self._entry is None or (made := bytes(self.cache.serialize())) == self._saved:
            return

        def write(folder: Path) -> None:
            folder.mkdir(mode=0o700)
            (folder / FILE).write_bytes(made)

        user_cache.discard(self._entry)  # a folder is not replaced by another
        user_cache.keep(self._entry, write)
        self._saved = made

    def _read(self) -> bytes:
        """What is kept, now loaded; empty where that is nothing, or nothing for this GPU."""
        if self._entry is None or not user_cache.found(self._entry):
            return b""
        try:
            kept = (self._entry / FILE).read_bytes()
        except OSError:  # another process cleans
            return b""
        if self.cache.deserialize(kept):
            return kept
        log.warning("not used: %s: not of this GPU, driver or library", self._entry)
        return b""
