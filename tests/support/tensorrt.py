"""A stand-in for TensorRT's module: records what a build asks of it, and builds nothing real."""

import enum
from types import ModuleType, SimpleNamespace

PLAN = b"a plan with _gemm_mha_v2_0x12ab and _gemm_mha_v2_0x12ab in it"

Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
LayerType = enum.IntEnum("LayerType", "ATTENTION_INPUT MATRIX_MULTIPLY", start=0)
BuilderFlag = enum.IntEnum(
    "BuilderFlag", "VERSION_COMPATIBLE REFIT STRIP_PLAN WEIGHT_STREAMING", start=0
)
ComputeCapability = enum.IntEnum("ComputeCapability", "CURRENT SM80 SM89", start=0)
HardwareCompatibilityLevel = enum.IntEnum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS", start=0)
MemoryPoolType = enum.IntEnum("MemoryPoolType", "WORKSPACE TACTIC_DRAM", start=0)
ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED", start=0)


class Config:
    """What a build was asked for, to be read by tests."""

    def __init__(self):
        self.flags, self.pools, self.profiles = set(), {}, []
        self.num_compute_capabilities = 0
        self.capabilities = {}
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.progress_monitor = None
        self.cache = None

    def set_flag(self, flag):
        self.flags.add(flag)

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
    """A module with what a build touches; its ``configs`` are those of all builds."""
    configs = []

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
