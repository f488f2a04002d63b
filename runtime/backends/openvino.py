"""OpenVINO: runs the bundle's own graph on the CPU plugin, in the precision that was asked for."""

from __future__ import annotations

import functools
import logging
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.extras import need
from tfx.feeds import trial_feed
from tfx.signature import Feed, Signature

from ..backend import (
    ROUNDED,
    RunFacts,
    RunOptions,
    float_type,
    precision_refused,
    require_graph,
    rounds_activations,
    session_closed,
)
from ..cache import entry_for, keep, reopened
from ..generation.kv_cache import cache_specs
from .mapped_weights import give_back_pages, mapped_places
from .openvino_attention import drop_number_checks, join_projections
from .openvino_graph import choose_masks, repeat_heads
from .openvino_requests import output_ports, run_request, said
from .openvino_state import StatefulExecutable, keep_state

log = logging.getLogger(__name__)

PLUGIN = "CPU"

# What the plugin calls the types it can compute in: a capability, a hint, and in its graph.
CAPABILITIES = {DType.FLOAT32: "FP32", DType.BFLOAT16: "BF16", DType.FLOAT16: "FP16"}
HINTS = {DType.FLOAT32: "f32", DType.BFLOAT16: "bf16", DType.FLOAT16: "f16"}
TYPES = {
    **{name: dtype for dtype, name in HINTS.items()},
    "i8": DType.INT8,
    "u8": DType.INT8,  # the weights it is multiplied with are signed
    "i4": DType.INT4,  # weights
    "u4": DType.INT4,  # weights with zero points
}

# The file of an entry of the cache.
BLOB = "model.blob"

# What a graph is changed by before it is compiled: another list makes other entries of the cache.
CHANGES = "repeat_heads choose_masks drop_number_checks join_projections(int8) keep_state"

# How many activations share a scale where they are rounded to be multiplied with 4-bit weights.
GROUP = 32

# Kernels that it keeps for shapes that may come again; those used longest ago go first. Left alone
# it keeps 5000, about 2 MB for each shape of MiniLM, and memory grows with every shape that is new.
# With these it stops growing, in the same time: docs/runtime-cost.md has figures.
KERNELS = 500

# Nodes of its execution graph that multiply matrices.
PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention"})


class OpenVino:
    """Backend "openvino"."""

    def missing(self) -> str:
        """Why this machine cannot use OpenVINO, or ""."""
        try:
            openvino = need("openvino")
        except BackendError as error:
            return error.with_hint
        core = openvino.Core()
        try:
            core.get_property(PLUGIN, "FULL_DEVICE_NAME")  # loads no other plugin: 10 ms less
        except RuntimeError:
            found = ", ".join(core.available_devices) or "none"
            return f"openvino has no {PLUGIN} plugin here, its devices are: {found}"
        return ""

    def load(self, bundle: Bundle, options: RunOptions) -> OpenVinoExecutable | StatefulExecutable:
        """Compile the graph of ``bundle``.

        Raises:
            BackendError: If the device is no CPU, the graph is refused, or OpenVINO would
                compute in another type than asked for.
        """
        openvino = need("openvino")  # heavy: only when a model is loaded
        require_graph(bundle, "openvino")
        if options.device != "cpu":
            raise BackendError(
                f"openvino runs on cpu here, not on {options.device!r}", hint="Use device='cpu'."
            )
        core = openvino.Core()
        floats = float_type(bundle, options)
        capabilities = core.get_property(PLUGIN, "OPTIMIZATION_CAPABILITIES")
        able = [dtype for dtype, name in CAPABILITIES.items() if name in capabilities]
        wider: tuple[str, ...] = ()
        if floats not in able:
            if options.precision:
                raise precision_refused("openvino", floats, able)
            # A child bundle runs wherever its parent does: in more bits than it was made for.
            wider = (f"computes in float32: this CPU multiplies no {floats}",)
            floats = DType.FLOAT32
        rounds = rounds_activations(bundle, options)
        settings = settings_of(options.threads, floats, options.streams, rounds=rounds)
        version = openvino.__version__.partition("-")[0]  # less its build
        entry = entry_for(bundle, f"openvino {version}", floats, CHANGES, *["rounds"] * rounds)
        kept = None
        if entry is not None:
            kept = reopened(entry, lambda folder: _read_back(openvino, core, folder, settings))
        others = mapped_places(bundle.path)
        compiled = _compiled(core, bundle, settings) if kept is None else kept
        notes = () if kept is None else ("its compiled model came from the cache",)
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if hint != HINTS[floats]:
            raise BackendError(
                f"openvino gave precision {hint}, not {HINTS[floats]}",
                hint="Leave the precision out, or name another backend.",
            )
        if (streams := compiled.get_property("NUM_STREAMS")) != options.streams:
            raise BackendError(
                f"openvino gave {streams} streams, not {options.streams}",
                hint="Ask for fewer streams.",
            )
        products = products_of(compiled)
        lower = [t for t in products if t.is_floating and t.itemsize < floats.itemsize]
        if lower:
            raise BackendError(
                f"openvino multiplies matrices in {lower[0]}, not in {floats}",
                hint="Leave the precision out, or name another backend.",
            )
        facts = RunFacts(
            backend="openvino",
            version=version,
            engine=PLUGIN,
            device=options.device,
            precision=max(products, key=lambda dtype: products[dtype], default=floats),
            threads=max(1, compiled.get_property("INFERENCE_NUM_THREADS") // streams),
            streams=streams,
            notes=wider + _notes(products) + (ROUNDED,) * rounds + notes,
        )
        executable = executable_of(compiled, bundle.manifest.signature, facts)
        if kept is None and entry is not None:
            _keep(openvino, core, bundle, entry, settings, executable)
        if kept is None or entry is None:
            give_back_pages(bundle.path, others)
        else:
            give_back_pages(entry)  # nobody unmaps it: ``_mapped``
        return executable


def settings_of(
    threads: int, floats: DType, streams: int = 1, *, rounds: bool = False
) -> dict[str, Any]:
    """The plugin's configuration.

    Args:
        threads: CPU threads of all runs at once.
        floats: Element type of float products. Left alone, the plugin takes bfloat16 wherever
            the CPU has it.
        streams: Runs at once, each on its share of the threads.
        rounds: Whether what 4-bit weights are multiplied with is rounded to 8 bits.
    """
    return {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if rounds else 0,
        "INFERENCE_PRECISION_HINT": HINTS[floats],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,
        # Pinned, its threads wait for whatever else runs on their CPU, another session's above
        # all: MiniLM 1x128 took 61 ms instead of 40 ms beside one busy process on 2 cores.
        "ENABLE_CPU_PINNING": False,
        # Left alone, it keeps a state of keys and values in 8 bits.
        "KV_CACHE_PRECISION": HINTS[floats],
        "CPU_RUNTIME_CACHE_CAPACITY": KERNELS,
        # The kernels it makes of several operators at run time give wrong attention when the
        # length grows from one run to the next (2026.4.1). Without them MiniLM is as fast,
        # within what other work on the machine makes of it.
        "SNIPPETS_MODE": "DISABLE",
    }


def read_graph(core: Any, bundle: Bundle) -> Any:
    """A bundle's graph as OpenVINO's ``Model``, with what is changed of it before it is compiled.

    Its cache of keys and values, if it has one, is still among its inputs and outputs.
    """
    model = core.read_model(str(bundle.model))
    repeat_heads(model, bundle.manifest.signature)
    choose_masks(model)
    drop_number_checks(model)
    join_projections(model, bundle.manifest.signature)
    return model


def _compiled(core: Any, bundle: Bundle, settings: Mapping[str, Any]) -> Any:
    try:
        model = read_graph(core, bundle)
        keep_state(model, bundle.manifest.signature)
        return core.compile_model(model, PLUGIN, settings)
    except Exception as error:  # RuntimeError, and others of its frontend
        raise BackendError(f"openvino cannot load {bundle.model}: {said(error)}") from error


def _keep(
    openvino: Any,
    core: Any,
    bundle: Bundle,
    entry: Path,
    settings: Mapping[str, Any],
    made: OpenVinoExecutable | StatefulExecutable,
) -> None:
    """Write a compiled model into the cache, if it gives the same numbers when it is read again.

    It may not: rotary positions of a Llama came back as others (2026.4.1), with errors of 1e-3.
    """
    signature = made.signature
    try:
        bundle.verify()  # its digest names the entry, and it may have been opened without
        content = np.frombuffer(made.compiled.export_model().getbuffer(), np.uint8)
        again = core.import_model(openvino.Tensor(content, shared_memory=True), PLUGIN, settings)
        feed = trial_feed(signature)
        expected = made.run(feed)
        outputs = executable_of(again, signature, made.facts).run(feed)
    except Exception as error:  # noqa: BLE001  the model runs all the same
        log.warning("not kept: %s: %s", entry, said(error))
        return
    if all(np.array_equal(expected[name], outputs[name], equal_nan=True) for name in expected):
        keep(entry, lambda folder: _write_blob(folder, content))
    else:
        log.info("not kept: %s: it gives other numbers when it is read again", entry)


def _write_blob(folder: Path, content: np.ndarray) -> None:
    folder.mkdir()
    (folder / BLOB).write_bytes(content.data)


def _read_back(openvino: Any, core: Any, folder: Path, settings: Mapping[str, Any]) -> Any:
    blob = folder / BLOB
    content = openvino.Tensor(_mapped(blob, blob.stat().st_ino), shared_memory=True)
    try:
        return core.import_model(content, PLUGIN, settings)
    except Exception as error:  # RuntimeError, and others of its plugin
        raise BackendError(said(error)) from error


@functools.cache
def _mapped(blob: Path, inode: int) -> np.ndarray:
    """A blob's bytes, mapped for as long as the process lives.

    A compiled model reads its weights there, and so do requests that outlive it; OpenVINO does
    not keep what it was given alive. It costs addresses and no memory: pages of a private
    mapping are the file's own until somebody writes to them. Twice as fast as reading them.

    Args:
        blob: Of the cache; it is removed, never written to.
        inode: Of the file; another one under the same name is mapped anew.
    """
    return np.memmap(blob, np.uint8, "c")  # OpenVINO takes no read-only array


def executable_of(
    compiled: Any, signature: Signature, facts: RunFacts
) -> OpenVinoExecutable | StatefulExecutable:
    """What runs a compiled model, with a cache inside it or not."""
    if cache_specs(signature) and compiled.create_infer_request().query_state():
        return StatefulExecutable(compiled, signature, facts)
    return OpenVinoExecutable(compiled, signature, facts)


def products_of(compiled: Any) -> Counter[DType]:
    """How many matrix products of a compiled model run in which type, by its execution graph."""
    products: Counter[DType] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        if about["layerType"].value in PRODUCTS:
            name = about["runtimePrecision"].value
            dtype = TYPES[name] if name in TYPES else DType.parse(name)
            kernel = about["primitiveType"].value.rpartition("_")[2]
            if dtype is DType.INT8 and kernel in HINTS.values():
                dtype = TYPES[kernel]  # its weights are integers, unpacked on the way
            products[dtype] += 1
    return products


class OpenVinoExecutable:
    """A graph compiled by OpenVINO.

    Attributes:
        facts: What really runs.
        signature: What it takes and gives.
        compiled: OpenVINO's own ``CompiledModel``; None once closed.
    """

    def __init__(self, compiled: Any, signature: Signature, facts: RunFacts) -> None:
        self.facts = facts
        self.signature = signature
        self.compiled = compiled
        self._outputs = output_ports(compiled.outputs, signature.outputs)
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
        outputs = run_request(request, feed, self._outputs)
        idle.append(request)
        return outputs

    def close(self) -> None:
        """Let go of the model; requests that run end as they would have."""
        self.compiled, self._idle = None, deque()


def _notes(products: Mapping[DType, int]) -> tuple[str, ...]:
    """What one element type cannot say of products in several."""
    if len(products) < 2:
        return ()
    counts = ", ".join(f"{count} in {dtype}" for dtype, count in sorted(products.items()))
    return (f"of {sum(products.values())} matrix products {counts}",)
