"""ONNX Runtime on NVIDIA GPUs: the execution providers of CUDA and TensorRT, with bound buffers."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

from tfx.bundle import Bundle
from tfx.chatter import quiet
from tfx.dtypes import DType
from tfx.errors import BackendError, listing
from tfx.extras import need, version_of
from tfx.signature import Signature

from ..backend import (
    PRECISIONS,
    RunFacts,
    RunOptions,
    gpu_index,
    precision_refused,
    require_graph,
)
from ..cache import cache_folder, limit_mb, make_folder
from ..cuda import call, cuda_runtime, missing_gpu
from .onnxruntime_buffers import GpuOnnxExecutable
from .onnxruntime_settings import settings_of

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# ONNX Runtime keeps nodes on the CPU that compute sizes, which the host needs anyway. All of these
# have a CUDA kernel too: one that is on the CPU is there for that. Any other has fallen back.
OF_SIZES = frozenset(
    [
        "Add",
        "And",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Gather",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Range",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "Reshape",
        "ScatterND",
        "Shape",
        "Size",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    ]
)

# Types that TensorRT takes inside ONNX Runtime only where it is told to; its names of them.
LOWERED = {DType.FLOAT16: "fp16", DType.BFLOAT16: "bf16", DType.INT8: "int8"}


class OnnxRuntimeTensorRt:
    """Backend "onnxruntime-tensorrt": TensorRT inside ONNX Runtime, built when it is loaded."""

    def missing(self) -> str:
        """Why this machine cannot use it: a library, the provider, the driver or the GPU."""
        try:
            ort = need("onnxruntime")
        except BackendError as error:
            return error.with_hint
        if TENSORRT not in ort.get_available_providers():
            return _no_provider(ort, TENSORRT).with_hint
        try:
            need("tensorrt")
        except BackendError as error:
            return error.with_hint
        return missing_gpu()

    def load(self, bundle: Bundle, options: RunOptions) -> GpuOnnxExecutable:
        """Build the graph's engines, or take them from the cache, and load them.

        Raises:
            BackendError: As the backend "onnxruntime".
        """
        return load_on_gpu(bundle, options, TENSORRT)


def load_on_gpu(bundle: Bundle, options: RunOptions, provider: str) -> GpuOnnxExecutable:
    """Create an inference session on a GPU, with nothing but sizes left to the CPU.

    Raises:
        BackendError: If the provider or the GPU is missing, another precision than the graph's
            is asked for, or ONNX Runtime would run a part of it elsewhere.
    """
    name = "onnxruntime" if provider == CUDA else "onnxruntime-tensorrt"
    gpu = gpu_index(options.device, name)
    require_graph(bundle, name)
    ort = need("onnxruntime")
    if provider not in ort.get_available_providers():
        raise _no_provider(ort, provider)
    if reason := missing_gpu():
        raise BackendError(f"{name} cannot run on {options.device}: {reason}")
    precision = bundle.manifest.precision
    runs_in = precision if precision in PRECISIONS.values() else DType.FLOAT32
    if options.precision and PRECISIONS[options.precision] is not runs_in:
        raise precision_refused(name, PRECISIONS[options.precision], [runs_in])
    if provider == TENSORRT:
        need("tensorrt")  # importing it loads the libraries that the provider is linked to
    cuda = cuda_runtime()
    call(cuda.cudaSetDevice, gpu)
    stream = call(cuda.cudaStreamCreate)
    variant = bundle.manifest.variants.get("onnxruntime-cuda")
    graph = bundle.path / variant if variant else bundle.model
    try:
        session = _session(ort, graph, _providers(bundle, provider, gpu, int(stream)))
        on_cpu, on_cuda = _placement(session, provider, bundle)
    except BaseException:
        with contextlib.suppress(BackendError):
            call(cuda.cudaStreamDestroy, stream)
        raise
    facts = RunFacts(
        backend=name,
        version=version_of("onnxruntime-gpu") or ort.__version__,
        engine=provider,
        device=f"cuda:{gpu}",
        precision=precision,
        threads=0,
        notes=_notes(session, provider, precision, variant or "", on_cpu, on_cuda),
    )
    return GpuOnnxExecutable(
        ort,
        cuda,
        session,
        stream,
        bundle.manifest.signature,
        facts,
        gpu=gpu,
        capture=provider == CUDA and not on_cuda,
    )


def _no_provider(ort: ModuleType, provider: str) -> BackendError:
    return BackendError(
        f"onnxruntime {ort.__version__} here has no {provider}",
        hint="Run: pip uninstall onnxruntime; pip install 'tfx-toolkit[gpu]'",
    )


def _session(ort: ModuleType, graph: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
    settings = settings_of(ort, 1)
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        with quiet():
            # Of CUDA and cuDNN, as installed by pip; it prints what it does not find.
            ort.preload_dlls()
            # Without enable_fallback=0 an error of the provider is printed, and the CPU taken.
            session = ort.InferenceSession(
                str(graph), settings, providers=providers, enable_fallback=0
            )
    except Exception as error:  # its pybind exceptions share no public base
        raise BackendError(
            f"onnxruntime cannot load {graph} with {providers[0][0]}: {error}",
            hint="See what is missing with: tfx doctor",
        ) from error
    if (first := session.get_providers()[0]) != providers[0][0]:
        raise BackendError(
            f"onnxruntime gave {first}, not {providers[0][0]}",
            hint="Install the libraries of its version: pip install 'tfx-toolkit[gpu]'",
        )
    return session


def _providers(
    bundle: Bundle, provider: str, gpu: int, stream: int
) -> list[tuple[str, dict[str, str]]]:
    """Providers and their options, the one asked for first."""
    cuda = {
        "device_id": str(gpu),
        "user_compute_stream": str(stream),
        # Products of float32 would have 10 bits of fraction, and parity says float32.
        "use_tf32": "0",
        # Exhaustive search, its default, tries every algorithm anew for each shape.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if provider == CUDA:
        return [(CUDA, cuda | {"enable_cuda_graph": "1"})]
    precision = bundle.manifest.precision
    tensorrt = {"device_id": str(gpu), "user_compute_stream": str(stream)}
    if precision in LOWERED:
        tensorrt[f"trt_{LOWERED[precision]}_enable"] = "1"
    tensorrt |= _profile(bundle.manifest.signature)
    if limit_mb():
        folder = cache_folder() / "onnxruntime-tensorrt" / bundle.digest
        make_folder(folder)
        tensorrt |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }
    return [(TENSORRT, tensorrt), (CUDA, cuda)]


def _profile(signature: Signature) -> dict[str, str]:
    """The signature's ranges as one profile; without it an engine is built for each new shape."""
    axes = {axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)}
    if not axes or axes - signature.ranges.keys():
        return {}
    return {
        f"trt_profile_{end}_shapes": ",".join(
            f"{spec.name}:"
            + "x".join(
                str(axis if isinstance(axis, int) else getattr(signature.ranges[axis], end))
                for axis in spec.shape
            )
            for spec in signature.inputs
        )
        for end in ("min", "opt", "max")
    }


def _placement(session: Any, provider: str, bundle: Bundle) -> tuple[int, tuple[str, ...]]:
    """Where the nodes are.

    Returns:
        How many compute sizes on the CPU; operators that the TensorRT provider left to CUDA.

    Raises:
        BackendError: If any other node is on the CPU.
    """
    sizes, fallen, left = 0, set(), set()
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            if part.ep_name not in (CUDA, TENSORRT):
                if node.op_type in OF_SIZES and not node.domain:
                    sizes += 1
                else:
                    fallen.add(node.op_type)
            elif part.ep_name != provider:
                left.add(node.op_type)
    if fallen:
        raise BackendError(
            listing(
                f"onnxruntime would run parts of {bundle.name} on the CPU:",
                [f"{op}: {provider} has no kernel for it here" for op in sorted(fallen)],
            ),
            hint="Use device='cpu', another precision of the bundle, or backend='tensorrt'.",
        )
    return sizes, tuple(sorted(left))


def _notes(
    session: Any,
    provider: str,
    precision: DType,
    variant: str,
    on_cpu: int,
    on_cuda: tuple[str, ...],
) -> tuple[str, ...]:
    notes = []
    if variant:
        notes.append(f"runs {variant}, the form of the graph made for it")
    if provider == TENSORRT:
        notes.append("TensorRT may multiply float32 as TF32")
    elif precision not in (DType.FLOAT16, DType.BFLOAT16):
        tf32 = session.get_provider_options().get(CUDA, {}).get("use_tf32") != "0"
        notes.append(f"TF32 is {'on' if tf32 else 'off'}")
    if precision not in PRECISIONS.values():
        notes.append(f"ONNX Runtime does not say whether it multiplies in {precision} on a GPU")
    if on_cuda:
        notes.append(f"left to {CUDA}: {', '.join(on_cuda)}")
    if on_cpu:
        notes.append(f"{on_cpu} nodes compute sizes on the CPU")
    return tuple(notes)
