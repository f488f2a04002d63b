"""PyTorch compiled: the model a bundle was made from, as one graph of generated code."""

from __future__ import annotations

import os
import shutil

from tfx.bundle import Bundle
from tfx.errors import BackendError
from tfx.extras import need

from ..backend import Executable, RunOptions
from .torch_eager import executable_of, facts_of, load_source

NOTE = "the first calls of a new shape compile: they take seconds to minutes"


class TorchCompiled:
    """Backend "torch-compiled"."""

    def missing(self) -> str:
        """Why this machine cannot compile PyTorch models, or ""."""
        try:
            need("torch")
        except BackendError as error:
            return error.with_hint
        compiler = os.environ.get("CXX") or "g++"  # as torch.compile looks for it on Linux
        if shutil.which(compiler) is None:
            return f"no C++ compiler {compiler} is on the path (Install g++, or name one in CXX.)"
        return ""

    def load(self, bundle: Bundle, options: RunOptions) -> Executable:
        """Load the bundle's source again; it is compiled when it is first called.

        Raises:
            BackendError: As the backend "torch".
        """
        module, precision, device = load_source(bundle, options, compiled=True)
        facts = facts_of("torch-compiled", "inductor", options, precision, (NOTE,))
        return executable_of(module, bundle, device, facts)
