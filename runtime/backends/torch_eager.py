"""PyTorch eager: the model a bundle was made from, run as the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BackendError, SourceError
from tfx.extras import need, version_of
from tfx.recipe import SourceKind
from tfx.signature import Feed

from ..backend import (
    PRECISIONS,
    Executable,
    RunFacts,
    RunOptions,
    precision_refused,
    session_closed,
)
from ..modules import load_module, run_module, weights_digest

if TYPE_CHECKING:
    import torch


class TorchEager:
    """Backend "torch"."""

    def missing(self) -> str:
        """Why this machine cannot use PyTorch, or ""."""
        try:
            need("torch")
        except BackendError as error:
            return f"{error} ({error.hint})"
        return ""

    def load(self, bundle: Bundle, options: RunOptions) -> Executable:
        """Load the bundle's source again and check that its weights are the same.

        Raises:
            BackendError: If the source cannot be loaded here, needs trust it was not
                given, or is not the code or the weights that the bundle was made from.
        """
        source = bundle.manifest.source.found_from(bundle.path.resolve().parent)
        if options.device != "cpu":
            raise BackendError(
                f"torch runs on cpu here, not on {options.device!r}", hint="Use device='cpu'."
            )
        asked = PRECISIONS.get(options.precision, DType.FLOAT32)  # the source's, for every bundle
        if asked is not DType.FLOAT32:
            raise precision_refused("torch", asked, [DType.FLOAT32])
        if source.kind is SourceKind.MODULE:
            raise BackendError(
                f"{bundle.name} was exported from a module in memory, which cannot be loaded again",
                hint="Export it from file.py:factory to be able to.",
            )
        if source.kind is SourceKind.FACTORY and not options.trust:
            raise BackendError(
                f"the torch reference of {bundle.name} runs Python code of {source.location}",
                hint="Use --trust (trust=True) if you trust that code.",
            )
        if source.kind is SourceKind.FACTORY and not source.file_digest:
            raise BackendError(
                f"{bundle.name} does not say which file {source.location} was: it has no sha256",
                hint="Export it again.",
            )
        try:
            module = load_module(source)
        except SourceError as error:
            raise BackendError(
                f"the source of {bundle.name} cannot be loaded: {error}", hint=error.hint
            ) from error
        if (found := weights_digest(module)) != source.digest:
            raise BackendError(
                f"{source} holds other weights now: sha256 {found[:12]}, "
                f"the bundle was made from {source.digest[:12]}",
                hint="Export it again.",
            )
        return _Executable(module, bundle, options)


class _Executable:
    """A module in eval mode, called with the feed's names."""

    def __init__(self, module: torch.nn.Module, bundle: Bundle, options: RunOptions) -> None:
        self._module: torch.nn.Module | None = module
        self._names = [spec.name for spec in bundle.manifest.signature.outputs]
        self._threads = options.threads
        self.facts = RunFacts(
            backend="torch",
            version=version_of("torch") or "",
            engine="eager",
            device="cpu",
            precision="float32",
            threads=options.threads,
        )

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the module once; only the outputs of the bundle's signature are returned."""
        module = self._module  # its own reference: close() may come while it runs
        if module is None:
            raise session_closed()
        try:
            outputs = run_module(module, feed, threads=self._threads)
        except Exception as error:  # anything a model's own code raises
            raise BackendError(f"torch failed: {error}") from error
        return {name: outputs[name] for name in self._names}

    def close(self) -> None:
        """Drop the module."""
        self._module = None
