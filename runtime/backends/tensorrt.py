"""TensorRT and TensorRT-RTX: run an engine bundle on the GPU it was built for."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BackendError, BundleError, listing
from tfx.manifest import FILE_NAME
from tfx.recipe import EngineBuild, Target
from tfx.signature import Feed
from tfx.workspace import bundles_in

from ..backend import (
    RunFacts,
    RunOptions,
    float_type,
    gpu_index,
    precision_refused,
    session_closed,
)
from ..cuda import Device, call, cuda_runtime, describe_device, missing_gpu
from ..device_arrays import DeviceArray
from ..engines import errors_of, first_error, is_known_engine, library_log, load_library
from .tensorrt_kernels import Kernels, kernels_entry
from .tensorrt_lane import Lane, Loaded

# Runs at the same time: one computes while another's data is on its way.
LANES = 2

# The library's names of element types.
TYPES = {
    DType.BOOL: "BOOL",
    DType.UINT8: "UINT8",
    DType.INT8: "INT8",
    DType.INT32: "INT32",
    DType.INT64: "INT64",
    DType.FLOAT16: "HALF",
    DType.BFLOAT16: "BF16",
    DType.FLOAT32: "FLOAT",
    DType.FLOAT8_E4M3: "FP8",
}


class TensorRt:
    """Backend "tensorrt", of both flavours: which one is for an engine to say."""

    def missing(self) -> str:
        """Why this machine cannot run engines: the library, the bindings, the driver or the GPU."""
        reasons = []
        for target in Target:
            try:
                load_library(target)
                break
            except BackendError as error:
                reasons.append(error.with_hint)
        else:
            return "; ".join(reasons)
        return missing_gpu()

    def load(self, bundle: Bundle, options: RunOptions) -> TensorRtExecutable:
        """Deserialize the engine of ``bundle`` on a GPU that it was built for.

        Raises:
            BackendError: If the bundle holds a graph, the engine is of another GPU or another
                version of the library, it was built elsewhere and is not trusted, or does not
                load.
            BundleError: If the engine's file is not the one the manifest lists, or does not
                take what the signature says.
        """
        build = bundle.manifest.engine
        if build is None:
            raise BackendError(
                f"tensorrt runs engines, and {bundle.path} holds a graph",
                hint=f"Build one with: tfx build {bundle.path} --gpu sm89",
            )
        own = float_type(bundle, RunOptions())
        if (asked := float_type(bundle, options)) is not own:  # it was fixed by the build
            raise precision_refused("tensorrt", asked, [own])
        if not (options.trust or is_known_engine(bundle)):
            raise BackendError(
                f"{bundle.path} holds an engine that was not built here: it is a program, "
                "which runs with your rights",
                hint="Build it again from its parent, or use --trust if you know its maker.",
            )
        trt = load_library(build.recipe.target)
        device = describe_device(gpu_index(options.device, "tensorrt"))
        require_key(bundle, build, trt, device)
        plan = read_engine(bundle)
        cuda = cuda_runtime()
        call(cuda.cudaSetDevice, device.index)  # where the library puts the weights
        with errors_of(trt) as errors:
            runtime = trt.Runtime(library_log(trt))
            # Such a plan brings a runtime of its own version, which is code of the host.
            runtime.engine_host_code_allowed = build.recipe.version_compatible
            engine = _deserialize(bundle, trt, runtime, plan, errors)
            _require_signature(bundle, trt, engine)
            if build.recipe.strip:
                _put_weights_in(bundle, trt, engine, errors)
            if build.recipe.weight_streaming:
                engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
            kernels = None
            if build.recipe.target is Target.TENSORRT_RTX:
                entry = kernels_entry(bundle, trt.__version__, device)
                kernels = Kernels(trt, engine, entry)
        loaded = Loaded(
            trt,
            cuda,
            runtime,
            engine,
            device.index,
            bundle.manifest.signature,
            build.profiles,
            kernels=kernels,
        )
        facts = RunFacts(
            backend="tensorrt",
            version=trt.__version__,
            engine=f"{build.recipe.target} {device.capability}",
            device=f"cuda:{device.index}",
            precision=bundle.manifest.precision,
            threads=0,
            notes=_notes(build, bundle.manifest.precision, device),
        )
        return TensorRtExecutable(loaded, facts)


class TensorRtExecutable:
    """An engine on a GPU, with as many lanes as may run at once.

    Attributes:
        facts: What really runs.
        gpu: Index of the GPU.
    """

    def __init__(self, loaded: Loaded, facts: RunFacts) -> None:
        self.facts = facts
        self.gpu = loaded.device
        self._loaded: Loaded | None = loaded
        self._kernels = loaded.kernels
        self._saved = self._kernels is None
        self._lock = threading.Lock()
        # The last lane given back is the first taken: its buffers are warm. None: not made yet.
        self._lanes: queue.LifoQueue[Lane | None] = queue.LifoQueue()
        for _ in range(LANES - 1):
            self._lanes.put(None)
        self._lanes.put(Lane(loaded))  # what cannot be made is said when it is opened

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the engine once; outputs by name.

        Raises:
            FeedError: If no profile takes the feed's sizes.
            BackendError: If it is closed, or the library fails.
        """
        return self.run_on_gpu(feed, keep=False)  # type: ignore[return-value]

    def run_on_gpu(
        self, feed: Mapping[str, np.ndarray | DeviceArray], *, keep: bool
    ) -> dict[str, np.ndarray | DeviceArray]:
        """Run the engine once on arrays that may be on the GPU, as ``GpuExecutable`` says."""
        lane = self._lanes.get()
        try:
            loaded = self._loaded
            if loaded is None:
                raise session_closed()
            if lane is None:
                lane = Lane(loaded)
            return lane.run(feed, keep=keep)
        finally:
            self._give_back(lane)

    def close(self) -> None:
        """Free the lanes that nobody uses now, and the others when their run ends."""
        with self._lock:
            self._loaded = None
            self._settle()

    def _give_back(self, lane: Lane | None) -> None:
        with self._lock:
            self._lanes.put(lane)
            if self._loaded is None or not self._saved:
                self._settle()

    def _settle(self) -> None:
        """Close the lanes that nobody uses, if the engine is closed; save what it compiled.

        That takes all of them: nothing may run meanwhile. Once after a run, as a process may be
        killed, and at the end.
        """
        idle: list[Lane | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._lanes.get_nowait())
        try:
            for lane in idle:
                if self._loaded is None and lane is not None:
                    lane.close()
            if len(idle) == LANES:
                self._saved = True
                if self._kernels is not None:
                    self._kernels.save()
        finally:  # whoever waits for a lane would wait for ever
            for lane in reversed(idle):
                self._lanes.put(None if self._loaded is None else lane)


def require_key(bundle: Bundle, build: EngineBuild, trt: ModuleType, device: Device) -> None:
    """Refuse an engine of another GPU or another version of the library.

    Raises:
        BackendError: With what it needs, what is here, and how to build it again.
    """
    problems = []
    runs_here = device.capability in build.gpus
    if build.recipe.hardware_compatible:  # from Ampere on
        runs_here = int(device.capability.removeprefix("sm")) >= 80
    if not runs_here:
        needed = "Ampere or later" if build.recipe.hardware_compatible else ", ".join(build.gpus)
        problems.append(f"it is for {needed}, here is {device.capability} ({device.name})")
    later = build.recipe.version_compatible and _numbers(trt) >= _numbers_of(build.version)
    if build.version != trt.__version__ and not later:
        problems.append(
            f"it is for {build.recipe.target} {build.version}, here is {trt.__version__}"
        )
    if problems:
        parent = bundle.manifest.parent
        gpu = "" if build.recipe.target is Target.TENSORRT else f" --gpu {device.capability}"
        raise BackendError(
            listing(f"the engine of {bundle.path} does not run here:", problems),
            hint="Build it again from its parent: tfx build "
            f"{parent.name if parent else 'BUNDLE'} --target {build.recipe.target}{gpu}",
        )


def read_engine(bundle: Bundle) -> bytes:
    """The bytes of the engine, which are those the manifest lists.

    What is verified is what is run: the file is read once.

    Raises:
        BundleError: If they are others, or cannot be read.
    """
    try:
        plan = bundle.model.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {bundle.model}: {error.strerror}") from error
    digest = hashlib.sha256(plan).hexdigest()
    if digest not in {e.sha256 for e in bundle.manifest.files if e.path == bundle.manifest.model}:
        raise BundleError(
            f"{bundle.model} is damaged: its sha256 is not the one in {FILE_NAME}",
            hint="Build the engine again, or copy it again from where it came.",
        )
    return plan


def _deserialize(
    bundle: Bundle, trt: ModuleType, runtime: Any, plan: bytes, errors: list[str]
) -> Any:
    if (engine := runtime.deserialize_cuda_engine(plan)) is None:
        raise BackendError(
            f"{trt.__name__} cannot load {bundle.model}: {first_error(errors)}",
            hint="Build the engine again from its parent.",
        )
    return engine


def _require_signature(bundle: Bundle, trt: ModuleType, engine: Any) -> None:
    """The engine's tensors must be the manifest's: a feed is checked by those."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
    signature = bundle.manifest.signature
    problems = []
    for kind, specs, found in (
        ("input", signature.inputs, inputs),
        ("output", signature.outputs, set(names) - inputs),
    ):
        listed = {spec.name for spec in specs}
        problems += [f"{name}: an {kind} of the manifest alone" for name in sorted(listed - found)]
        problems += [f"{name}: an {kind} of the engine alone" for name in sorted(found - listed)]
        for spec in specs:
            if spec.name not in found:
                continue
            dtype = engine.get_tensor_dtype(spec.name).name
            if dtype != TYPES.get(spec.dtype):
                problems.append(f"{spec}: the engine has {dtype}")
    if problems:
        raise BundleError(
            listing(f"the engine of {bundle.path} is not the one of its manifest:", problems),
            hint="Do not use this bundle; build the engine again.",
        )


def _put_weights_in(bundle: Bundle, trt: ModuleType, engine: Any, errors: list[str]) -> None:
    """Give a stripped engine the weights of its parent's graph.

    Raises:
        BackendError: If the parent is not beside the bundle, or its weights do not fit.
    """
    parent = bundle.manifest.parent
    beside = bundles_in(bundle.path.resolve().parent)
    found = [one for one in beside if parent is not None and one.digest == parent.digest]
    if not found:
        name = parent.name if parent else "its parent"
        raise BackendError(
            f"{bundle.path} holds no weights: they are in {name}, which is not beside it",
            hint=f"Put the bundle {name} into the same folder.",
        )
    found[0].verify()
    refitter = trt.Refitter(engine, library_log(trt))
    parser = trt.OnnxParserRefitter(refitter, library_log(trt))
    if not (parser.refit_from_file(str(found[0].model)) and refitter.refit_cuda_engine()):
        raise BackendError(
            f"{trt.__name__} cannot take the weights of {found[0].path}: {first_error(errors)}",
            hint="Build the engine again without --strip.",
        )


def _notes(build: EngineBuild, precision: DType, device: Device) -> tuple[str, ...]:
    notes = []
    if precision not in (DType.FLOAT16, DType.BFLOAT16):
        notes.append("TF32 is off")
    if build.device and build.device != device.name:
        notes.append(f"built on {build.device}, runs on {device.name}: kernels are not its best")
    if build.attention and not build.fused_kernels:
        notes.append("attention runs as several kernels")
    if build.recipe.weight_streaming:
        notes.append("weights come from the host's memory as far as they do not fit")
    return tuple(notes)


def _numbers(trt: ModuleType) -> tuple[int, ...]:
    return _numbers_of(trt.__version__)


def _numbers_of(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
