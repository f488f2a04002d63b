"""A stand-in for TensorRT's module: records what a build asks of it, runs NumPy for an engine."""

import ctypes
import enum
from types import ModuleType, SimpleNamespace

import numpy as np

from support.bundles import TEXT_SIGNATURE
from support.proofs import text_outputs
from tfx.dtypes import DType
from tfx.runtime.backends import tensorrt as backend
from tfx.runtime.backends.tensorrt import TYPES

PLAN = b"a plan with _gemm_mha_v2_0x12ab and _gemm_mha_v2_0x12ab in it"

Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
LayerType = enum.IntEnum("LayerType", "ATTENTION_INPUT MATRIX_MULTIPLY", start=0)
BuilderFlag = enum.IntEnum(
    "BuilderFlag", "VERSION_COMPATIBLE REFIT STRIP_PLAN WEIGHT_STREAMING TF32", start=0
)
ComputeCapability = enum.IntEnum("ComputeCapability", "CURRENT SM80 SM89", start=0)
HardwareCompatibilityLevel = enum.IntEnum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS", start=0)
MemoryPoolType = enum.IntEnum("MemoryPoolType", "WORKSPACE TACTIC_DRAM", start=0)
ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED", start=0)


TensorIOMode = enum.IntEnum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
TensorLocation = enum.IntEnum("TensorLocation", "DEVICE HOST", start=0)
CudaGraphStrategy = enum.IntEnum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE", start=0)


class Config:
    """What a build was asked for, to be read by tests."""

    def __init__(self):
        self.flags, self.pools, self.profiles = {BuilderFlag.TF32}, {}, []
        self.num_compute_capabilities = 0
        self.capabilities = {}
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.progress_monitor = None
        self.cache = None

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.remove(flag)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def set_compute_capability(self, capability, index):
        self.capabilities[index] = capability
        return True

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return None if data == b"foreign" else SimpleNamespace(serialize=lambda: data + b"+")

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class Profile:
    """Shapes by input: smallest, tuned, largest."""

    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, *sizes):
        self.shapes[name] = sizes


def fake_library():
    """A module with what a build touches; its ``configs`` are those of all builds.

    ``networks`` are the flags of every network.
    """
    configs, networks = [], []

    class ILogger:
        pass

    for member in Severity:
        setattr(ILogger, member.name, member)

    class IProgressMonitor:
        pass

    class IAttentionInputLayer:
        pass

    class Layer:
        def __init__(self, kind):
            self.type = kind
            self.attention = SimpleNamespace(decomposable=False)

    class Builder:
        def __init__(self, log):
            self.layers = [Layer(LayerType.ATTENTION_INPUT), Layer(LayerType.MATRIX_MULTIPLY)]

        def create_network(self, flags):
            networks.append(flags)
            return SimpleNamespace(
                num_layers=len(self.layers), get_layer=lambda index: self.layers[index]
            )

        def create_builder_config(self):
            configs.append(Config())
            return configs[-1]

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            assert [layer.attention.decomposable for layer in self.layers] == [True, False]
            monitor = config.progress_monitor
            monitor.phase_start("whole", None, 2)
            monitor.phase_start("half", "whole", 2)
            going = True
            for phase, step in (("half", 0), ("half", 1), ("whole", 0), ("whole", 1)):
                if phase == "whole":
                    monitor.phase_finish("half")
                going = going and monitor.step_complete(phase, step)
            return PLAN if going else None

    class OnnxParser:
        def __init__(self, network, log):
            pass

        def parse_from_file(self, path):
            return True

    module = ModuleType("tensorrt")
    vars(module).update(
        __version__="11.0.0",
        configs=configs,
        networks=networks,
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        IAttentionInputLayer=IAttentionInputLayer,
        Builder=Builder,
        OnnxParser=OnnxParser,
        LayerType=LayerType,
        BuilderFlag=BuilderFlag,
        ComputeCapability=ComputeCapability,
        HardwareCompatibilityLevel=HardwareCompatibilityLevel,
        MemoryPoolType=MemoryPoolType,
        ProfilingVerbosity=ProfilingVerbosity,
    )
    return module


class FakeRuntime:
    """What running an engine takes: ``function`` stands for the plan.

    Attributes:
        refitted: Path of the graph whose weights were put in, once they were.
        profiles: Profile of each run.
        contexts: How many there are.
        strategies: CUDA graph strategy of each context, where one was given.
        kernels: Runtime cache of each context, where one was given.
        device: GPU that the last plan was loaded on.
        fails: What the next run says instead of running.
        later: Outputs whose shape is known only after a run.
        host_code: Whether the last plan could bring code of the host.
    """

    def __init__(self, cuda, signature, function, *, plan=PLAN, version="1.7.1.116"):
        self.cuda, self.signature, self.function, self.plan = cuda, signature, function, plan
        self.version = version
        self.refitted, self.profiles, self.contexts, self.strategies = "", [], 0, []
        self.kernels, self.device = [], None
        self.fails, self.later, self.on_host = "", set(), set()
        self.log = None
        self.budget = None
        self.host_code = False

    def module(self) -> ModuleType:
        """The library."""
        module = fake_library()
        outer = self

        class IOutputAllocator:
            pass

        class Runtime:
            def __init__(self, log):
                outer.log = log
                self.engine_host_code_allowed = False

            def deserialize_cuda_engine(self, plan):
                outer.host_code = self.engine_host_code_allowed
                outer.device = outer.cuda.device
                if plan != outer.plan:
                    outer.log.log(module.ILogger.ERROR, "bad magic")
                    return None
                return FakeEngine(outer)

        class Refitter:
            def __init__(self, engine, log):
                pass

            def refit_cuda_engine(self):
                return bool(outer.refitted)

        class OnnxParserRefitter:
            def __init__(self, refitter, log):
                pass

            def refit_from_file(self, path):
                outer.refitted = path
                return True

        vars(module).update(
            __version__=self.version,
            IOutputAllocator=IOutputAllocator,
            Runtime=Runtime,
            Refitter=Refitter,
            OnnxParserRefitter=OnnxParserRefitter,
            TensorIOMode=TensorIOMode,
            TensorLocation=TensorLocation,
            CudaGraphStrategy=CudaGraphStrategy,
        )
        return module


def plant_library(monkeypatch, gpu):
    """TensorRT, of either flavour, whose every plan computes the text graph."""
    runtime = FakeRuntime(gpu, TEXT_SIGNATURE, text_outputs)
    module = runtime.module()
    monkeypatch.setattr(backend, "load_library", lambda target: module)
    return runtime


class FakeEngine:
    """``ICudaEngine`` of a signature."""

    def __init__(self, runtime):
        self.runtime = runtime
        signature = runtime.signature
        self.modes = dict.fromkeys((s.name for s in signature.inputs), TensorIOMode.INPUT)
        self.modes |= dict.fromkeys((s.name for s in signature.outputs), TensorIOMode.OUTPUT)
        self.specs = {s.name: s for s in (*signature.inputs, *signature.outputs)}
        self.num_io_tensors = len(self.modes)

    def get_tensor_name(self, index):
        return list(self.modes)[index]

    def get_tensor_mode(self, name):
        return self.modes[name]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=TYPES[self.specs[name].dtype])

    def get_tensor_location(self, name):
        return TensorLocation.HOST if name in self.runtime.on_host else TensorLocation.DEVICE

    def get_weight_streaming_automatic_budget(self):
        return 4096

    @property
    def weight_streaming_budget_v2(self):
        return self.runtime.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget):
        self.runtime.budget = budget

    def create_runtime_config(self):
        return FakeRuntimeConfig()

    def create_execution_context(self, config=None):
        self.runtime.contexts += 1
        if config is not None:
            self.runtime.strategies.append(config.cuda_graph_strategy)
            self.runtime.kernels.append(config.cache)
        return FakeContext(self, None if config is None else config.cache)


class FakeRuntimeConfig:
    """``IRuntimeConfig``."""

    def __init__(self):
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.cache = None

    def create_runtime_cache(self):
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class FakeRuntimeCache:
    """``IRuntimeCache``: a byte for each shape that was compiled; "foreign" is of another GPU."""

    def __init__(self):
        self.compiled = b""

    def deserialize(self, blob):
        if blob.startswith(b"foreign"):
            return False
        self.compiled = bytes(blob)
        return True

    def serialize(self):
        return self.compiled


class FakeContext:
    """``IExecutionContext``: shapes and addresses in, work into a stream."""

    def __init__(self, engine, kernels):
        self.engine, self.runtime, self.kernels = engine, engine.runtime, kernels
        self.shapes, self.addresses, self.allocators, self.profile = {}, {}, {}, 0

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name, allocator):
        self.allocators[name] = allocator
        return True

    def _size(self):
        return sum(map(sum, self.shapes.values())) % 256

    def infer_shapes(self):
        return [s.name for s in self.runtime.signature.inputs if s.name not in self.shapes]

    def get_tensor_shape(self, name):
        if name in self.shapes:
            return self.shapes[name]
        if name in self.runtime.later:
            return (-1,)
        sizes = {
            axis: size
            for spec in self.runtime.signature.inputs
            for axis, size in zip(spec.shape, self.shapes[spec.name], strict=True)
        }
        return tuple(sizes.get(axis, axis) for axis in self.engine.specs[name].shape)

    def execute_async_v3(self, stream):
        runtime, cuda = self.runtime, self.runtime.cuda
        if runtime.fails or (stream in cuda.capturing and not cuda.capturable):
            runtime.log.log(Severity.ERROR, runtime.fails or "cannot be captured")
            return False
        runtime.profiles.append(self.profile)
        if (cache := self.kernels) is not None and (size := self._size()) not in cache.compiled:
            cache.compiled += bytes([size])
        signature, shapes, addresses = runtime.signature, dict(self.shapes), dict(self.addresses)

        def compute():
            feed = {s.name: _array(addresses[s.name], s, shapes[s.name]) for s in signature.inputs}
            for name, value in runtime.function(feed).items():
                spec = self.engine.specs[name]
                value = np.ascontiguousarray(value, spec.dtype.numpy)
                if name in self.allocators:
                    allocator = self.allocators[name]
                    addresses[name] = allocator.reallocate_output_async(
                        name, 0, value.nbytes, 256, stream
                    )
                    allocator.notify_shape(name, value.shape)
                _array(addresses[name], spec, value.shape)[...] = value

        cuda.enqueue(stream, compute)
        if self.allocators:
            cuda.cudaStreamSynchronize(stream)
        return True


def _array(address, spec, shape):
    dtype = DType(spec.dtype).numpy
    size = int(np.prod(shape)) * dtype.itemsize
    memory = (ctypes.c_uint8 * size).from_address(address)
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
