"""OpenVINO: runs the bundle's own graph on the CPU plugin, in the precision that was asked for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BackendError, listing
from tfx.extras import need, version_of
from tfx.signature import Feed, Signature

from ..backend import RunFacts, RunOptions, float_type, precision_refused, session_closed
from .openvino_graph import repeat_heads

PLUGIN = "CPU"

# What the plugin calls the types it can compute in: a capability, a hint, and in its graph.
CAPABILITIES = {DType.FLOAT32: "FP32", DType.BFLOAT16: "BF16", DType.FLOAT16: "FP16"}
HINTS = {DType.FLOAT32: "f32", DType.BFLOAT16: "bf16", DType.FLOAT16: "f16"}
TYPES = {
    **{name: dtype for dtype, name in HINTS.items()},
    "i8": DType.INT8,
    "u8": DType.INT8,  # the weights it is multiplied with are signed
}

# Nodes of its execution graph that multiply matrices.
PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention"})


class OpenVino:
    """Backend "openvino"."""

    def missing(self) -> str:
        """Why this machine cannot use OpenVINO, or ""."""
        try:
            openvino = need("openvino")
        except BackendError as error:
            return f"{error} ({error.hint})"
        if PLUGIN not in (devices := openvino.Core().available_devices):
            found = ", ".join(devices) or "none"
            return f"openvino has no {PLUGIN} plugin here, its devices are: {found}"
        return ""

    def load(self, bundle: Bundle, options: RunOptions) -> OpenVinoExecutable:
        """Compile the graph of ``bundle``.

        Raises:
            BackendError: If the device is no CPU, the graph is refused, or OpenVINO would
                compute in another type than asked for.
        """
        openvino = need("openvino")  # heavy: only when a model is loaded
        if options.device != "cpu":
            raise BackendError(
                f"openvino runs on cpu here, not on {options.device!r}", hint="Use device='cpu'."
            )
        core = openvino.Core()
        floats = float_type(bundle, options)
        capabilities = core.get_property(PLUGIN, "OPTIMIZATION_CAPABILITIES")
        able = [dtype for dtype, name in CAPABILITIES.items() if name in capabilities]
        if floats not in able:
            raise precision_refused("openvino", floats, able)
        signature = bundle.manifest.signature
        try:
            model = core.read_model(str(bundle.model))
            repeat_heads(model, signature)
            compiled = core.compile_model(model, PLUGIN, settings_of(options.threads, floats))
        except Exception as error:  # RuntimeError, and others of its frontend
            raise BackendError(f"openvino cannot load {bundle.model}: {_said(error)}") from error
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if hint != HINTS[floats]:
            raise BackendError(f"openvino gave precision {hint}, not {HINTS[floats]}")
        found = products_of(compiled)
        lower = [t for t in found if t.is_floating and t.itemsize < floats.itemsize]
        if lower:
            raise BackendError(f"openvino multiplies matrices in {lower[0]}, not in {floats}")
        facts = RunFacts(
            backend="openvino",
            version=version_of("openvino") or openvino.__version__,
            engine=PLUGIN,
            device=options.device,
            precision=max(found, key=lambda dtype: found[dtype], default=floats),
            threads=compiled.get_property("INFERENCE_NUM_THREADS"),
            notes=_notes(found),
        )
        return OpenVinoExecutable(compiled, signature, facts)


def settings_of(threads: int, floats: DType) -> dict[str, Any]:
    """The plugin's configuration for runs of one at a time, each on all ``threads``.

    Args:
        threads: CPU threads of one run.
        floats: Element type of float products. Left alone, the plugin takes bfloat16 wherever
            the CPU has it.
    """
    return {
        "INFERENCE_PRECISION_HINT": HINTS[floats],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # Pinned, its threads wait for whatever else runs on their CPU, another session's above
        # all: MiniLM 1x128 took 61 ms instead of 40 ms beside one busy process on 2 cores.
        "ENABLE_CPU_PINNING": False,
    }


def products_of(compiled: Any) -> Counter[DType]:
    """How many matrix products of a compiled model run in which type, by its execution graph."""
    found: Counter[DType] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        if about["layerType"].value in PRODUCTS:
            name = about["runtimePrecision"].value
            found[TYPES[name] if name in TYPES else DType.parse(name)] += 1
    return found


class OpenVinoExecutable:
    """A graph compiled by OpenVINO.

    Attributes:
        facts: What really runs.
        compiled: OpenVINO's own ``CompiledModel``; None once closed.
    """

    def __init__(self, compiled: Any, signature: Signature, facts: RunFacts) -> None:
        self.facts = facts
        self.compiled = compiled
        self._outputs = _ports(compiled.outputs, signature)
        # A request runs one feed at a time. There are as many as there were runs at once; the
        # one used last has the warmest memory.
        self._idle: deque[Any] = deque()

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the graph once; outputs by name, in memory of their own.

        Raises:
            BackendError: If it is closed, or OpenVINO fails.
        """
        compiled, idle = self.compiled, self._idle  # its own references: close() may come
        if compiled is None:
            raise session_closed()
        try:
            request = idle.pop() if idle else compiled.create_infer_request()
        except IndexError:  # another thread took the last one
            request = compiled.create_infer_request()
        try:
            # Not infer(): with one thread it swallows what goes wrong and gives stale outputs
            # (openvino 2026.4.1).
            request.start_async(feed, share_inputs=True)
            request.wait()
            outputs = {
                name: np.array(request.get_output_tensor(index).data)
                for name, index in self._outputs.items()
            }
        except Exception as error:
            raise BackendError(f"openvino failed: {_said(error)}") from error
        idle.append(request)
        return outputs

    def close(self) -> None:
        """Let go of the model; requests that run end as they would have."""
        self.compiled, self._idle = None, deque()


def _ports(outputs: Sequence[Any], signature: Signature) -> dict[str, int]:
    """Index of each output of the signature among the compiled model's; one may have two names.

    Raises:
        BackendError: If one is not there, or has another type.
    """
    found, problems = {}, []
    for spec in signature.outputs:
        ports = [index for index, port in enumerate(outputs) if spec.name in port.get_names()]
        if not ports:
            problems.append(f"{spec.name}: not there")
        elif outputs[ports[0]].get_element_type().to_dtype() != spec.dtype.numpy:
            kind = outputs[ports[0]].get_element_type().get_type_name()
            problems.append(f"{spec.name}: it is {kind}, expected {spec.dtype}")
        else:
            found[spec.name] = ports[0]
    if problems:
        raise BackendError(listing("openvino gives other outputs than the signature's:", problems))
    return found


def _notes(found: Mapping[DType, int]) -> tuple[str, ...]:
    """What one element type cannot say of products in several."""
    if len(found) < 2:
        return ()
    counts = ", ".join(f"{count} in {dtype}" for dtype, count in sorted(found.items()))
    return (f"of {sum(found.values())} matrix products {counts}",)


def _said(error: Exception) -> str:
    """Its message on one line, without the lines of OpenVINO's own source that raised it."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said) or type(error).__name__
