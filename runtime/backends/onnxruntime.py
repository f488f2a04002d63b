"""ONNX Runtime: runs the bundle's graph as it stands, on the CPU or, by CUDA, on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.extras import install_hint, need
from tfx.signature import Feed, Signature

from ..backend import (
    PRECISIONS,
    ROUNDED,
    Executable,
    RunFacts,
    RunOptions,
    precision_refused,
    require_graph,
    rounds_activations,
    session_closed,
)
from .onnxruntime_packed import keep_packed, packed_entry, packed_session
from .onnxruntime_settings import settings_of

if TYPE_CHECKING:
    from ..generation.decoder import OnnxInPlace

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# Fusions whose kernel for the CPU is slower than what it stands for. With them MiniLM takes 1.14
# times the processor time at 1x128 and 1.08 at 8x128, in int8 1.27 and 1.34 (ONNX Runtime 1.31.1,
# AVX-512 with VNNI): `python -m tfx.bench.graphs`, its row "every fusion".
SLOWER_FUSIONS: tuple[str, ...] = ("SkipLayerNormFusion", "BiasGeluFusion")


class OnnxRuntime:
    """Backend "onnxruntime"."""

    def missing(self) -> str:
        """Why this machine cannot use ONNX Runtime, or ""."""
        try:
            need("onnxruntime")
        except BackendError as error:
            return f"{error} ({error.hint or install_hint('onnxruntime')})"
        return ""

    def load(self, bundle: Bundle, options: RunOptions) -> Executable:
        """Create an inference session on the graph of ``bundle``.

        Raises:
            BackendError: If there is no provider for the device, the graph is refused, or
                ONNX Runtime gives another provider than asked for.
        """
        ort = need("onnxruntime")  # heavy: only when a model is loaded
        require_graph(bundle, "onnxruntime")
        kind = options.device.partition(":")[0]
        if kind not in PROVIDERS:
            raise BackendError(
                f"onnxruntime runs on {' and '.join(PROVIDERS)}, not on {options.device!r}",
                hint="Use device='cpu' or device='cuda:0'.",
            )
        if kind == "cuda":
            from .onnxruntime_gpu import load_on_gpu  # not needed on a CPU

            return load_on_gpu(bundle, options, PROVIDERS[kind])
        provider = PROVIDERS[kind]
        variant = bundle.manifest.variants.get(f"onnxruntime-{kind}")
        graph = bundle.path / variant if variant else bundle.model
        precision = bundle.manifest.precision
        if variant and precision.is_floating:
            # The form of a half-precision graph for a CPU casts its weights when it loads them.
            precision = DType.FLOAT32
        runs_in = precision if precision.is_floating else DType.FLOAT32
        if options.precision and PRECISIONS[options.precision] is not runs_in:
            raise precision_refused("onnxruntime", PRECISIONS[options.precision], [runs_in])
        notes: tuple[str, ...] = (
            (f"runs {variant}, the form of the graph made for it",) if variant else ()
        )
        if rounds_activations(bundle, options):
            notes += (ROUNDED,)
        # One version is built by several compilers, and with other kernels.
        build = ort.get_build_info()
        entry = packed_entry(bundle, graph, ort.__version__, build, *SLOWER_FUSIONS)
        session = None
        if entry is not None:
            session = packed_session(ort, entry, settings_for(ort, bundle, options), provider)
        if session is not None:
            notes += ("its packed weights came from the cache",)
        else:
            session = self._loaded(ort, bundle, graph, options, provider, entry)
        if session.get_providers()[0] != provider:  # it falls back to CPU without an error
            raise BackendError(
                f"onnxruntime gave {session.get_providers()[0]}, not {provider}",
                hint="Install a build of onnxruntime for this device, or name another one.",
            )
        facts = RunFacts(
            backend="onnxruntime",
            version=ort.__version__,
            engine=provider,
            device=options.device,
            precision=precision,
            threads=options.run_threads,
            streams=options.streams,
            notes=notes,
        )
        return OnnxExecutable(session, facts)

    def _loaded(
        self,
        ort: Any,
        bundle: Bundle,
        graph: Path,
        options: RunOptions,
        provider: str,
        entry: Path | None,
    ) -> Any:
        settings = settings_for(ort, bundle, options)
        try:
            session = ort.InferenceSession(
                str(graph), settings, providers=[provider], disabled_optimizers=SLOWER_FUSIONS
            )
        except Exception as error:  # its pybind exceptions share no public base
            raise BackendError(f"onnxruntime cannot load {graph}: {error}") from error
        if entry is not None:
            keep_packed(
                ort,
                bundle,
                entry,
                graph=graph,
                settings=(
                    settings_for(ort, bundle, options),
                    settings_for(ort, bundle, options),
                ),
                provider=provider,
                without=SLOWER_FUSIONS,
                session=session,
            )
        return session


def settings_for(ort: Any, bundle: Bundle, options: RunOptions) -> Any:
    """ONNX Runtime's ``SessionOptions`` for a bundle on a CPU."""
    settings = settings_of(ort, options.run_threads)
    if bundle.manifest.precision is DType.FLOAT8_E4M3:
        # 1.31 fuses a product of 8-bit floats into the kernel for integers, and then finds
        # that this takes none: INVALID_GRAPH, type of MatMulIntegerToFloat.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if not rounds_activations(bundle, options):
        # Left alone it is 4, by which products with 4-bit weights round the other side to 8 bits.
        settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return settings


class OnnxExecutable:
    """A graph loaded by ONNX Runtime.

    Attributes:
        facts: What really runs.
        inference: ONNX Runtime's own ``InferenceSession``; None once closed.
        native: What runs inside of it; None once closed.
    """

    def __init__(self, session: Any, facts: RunFacts) -> None:
        self.facts = facts
        self.inference = session
        # InferenceSession.run looks at the feed in Python, as ``predict`` has done, which takes
        # longer than all that ``predict`` does where a model just run has emptied the caches; and
        # where a provider fails it goes on with another one by itself.
        self.native = getattr(session, "_sess", session)
        self._outputs = [output.name for output in session.get_outputs()]
        # Not zip, whose code takes 10 us more to run when a model just run has emptied the caches.
        self._numbered = [*enumerate(self._outputs)]

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the graph once; outputs by name.

        Raises:
            BackendError: If it is closed, or ONNX Runtime fails.
        """
        native = self.native  # its own reference: close() may come while it runs
        if native is None:
            raise session_closed()
        try:
            values = native.run(self._outputs, feed, None)
        except Exception as error:  # its pybind exceptions share no public base
            raise BackendError(f"onnxruntime failed: {error}") from error
        outputs = {}
        for number, name in self._numbered:
            outputs[name] = values[number]
        return outputs

    def in_place(self, signature: Signature) -> OnnxInPlace:
        """What runs a graph with a cache without a copy of it.

        Raises:
            BackendError: If it is closed.
        """
        from ..generation.decoder import OnnxInPlace  # few graphs have a cache

        if self.inference is None:
            raise session_closed()
        return OnnxInPlace(self.inference, signature)

    def close(self) -> None:
        """Let go of the session."""
        self.inference = self.native = None
