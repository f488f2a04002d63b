"""What we call of TensorRT and of CUDA is there, by these names and with so many arguments."""

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
from support import tensorrt as fake
from support.cuda import FakeCuda

from tfx.export.engines.engine import _set_flags
from tfx.recipe import Target
from tfx.runtime.engines import MODULES

ROOT = Path(__file__).parents[1]

# What a name is an object of, by file.
KINDS = {
    "export/engines/engine.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "attention": "IAttention",
        "flags": "BuilderFlag",
    },
    "export/engines/messages.py": {"parser": "OnnxParser", "error": "ParserError"},
    "runtime/backends/tensorrt.py": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "refitter": "Refitter",
        "parser": "OnnxParserRefitter",
    },
    "runtime/backends/tensorrt_lane.py": {
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "_context": "IExecutionContext",
    },
    "runtime/backends/tensorrt_kernels.py": {
        "engine": "ICudaEngine",
        "config": "IRuntimeConfig",
        "cache": "IRuntimeCache",
    },
}

# A stand-in, and what it stands for.
STANDS_FOR = {
    fake.Config: "IBuilderConfig",
    fake.Profile: "IOptimizationProfile",
    fake.FakeEngine: "ICudaEngine",
    fake.FakeContext: "IExecutionContext",
    fake.FakeRuntimeConfig: "IRuntimeConfig",
    fake.FakeRuntimeCache: "IRuntimeCache",
}

# Of TensorRT-RTX alone.
ITS_KERNELS = {
    "runtime/backends/tensorrt_kernels.py",
    fake.FakeRuntimeConfig,
    fake.FakeRuntimeCache,
}

# What TensorRT has not and is not asked for: it builds for the GPU here, and graphs are ours.
OF_RTX = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "cuda_graph_strategy",
    "num_compute_capabilities",
    "set_compute_capability",
}

# What tests read of a stand-in.
OF_TESTS = {"pools", "profiles", "capabilities", "cache", "compiled"}


@pytest.fixture(params=MODULES.values())
def trt(request):
    """The library itself."""
    return pytest.importorskip(request.param, reason=f"needs {request.param}")


def skip_what_rtx_has_alone(trt, what):
    if what in ITS_KERNELS and trt.__name__ != MODULES[Target.TENSORRT_RTX]:
        pytest.skip("TensorRT compiles its kernels when it builds")


def uses(file):
    """What a file asks of the library: class or "", name, and the call if it is one."""
    tree = ast.parse((ROOT / file).read_text())
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        name = getattr(owner, "id", getattr(owner, "attr", ""))
        if name == "trt":
            yield "", node.attr, None
        elif getattr(getattr(owner, "value", None), "id", "") == "trt":
            yield owner.attr, node.attr, None  # trt.Kind.MEMBER
        elif name in KINDS[file]:
            yield KINDS[file][name], node.attr, calls.get(id(node))


def overloads(function):
    """Names of the parameters, without self, of each way to call it."""
    name = function.__name__
    found = re.findall(rf"\b{name}\((.*?)\) ->", function.__doc__ or "")
    return [
        [part.partition(":")[0].strip() for part in one.split(", ")[1:]]
        for one in found
        if not one.startswith("*")
    ]


def takes(parameters, call):
    """Whether a call has arguments for these parameters; those with a default may lack."""
    given = len(call.args)
    names = {keyword.arg for keyword in call.keywords}
    return given + len(names) <= len(parameters) and names <= set(parameters[given:])


@pytest.mark.parametrize("file", KINDS)
def test_what_we_use_is_there(trt, file):
    skip_what_rtx_has_alone(trt, file)
    found = set()
    absent = OF_RTX if trt.__name__ == MODULES[Target.TENSORRT] else set()
    for kind, name, call in uses(file):
        if {kind, name} & absent:
            continue
        owner = getattr(trt, kind) if kind else trt
        assert hasattr(owner, name), f"{trt.__name__}.{kind} has no {name}"
        function = getattr(owner, name)
        known = overloads(function) if callable(function) and call is not None else []
        assert not known or any(takes(one, call) for one in known), f"{name}: {known}"
        found.add((kind, name))
    assert len(found) > 3, found  # the names above are those of the file


def test_flags_that_are_named_in_text(trt):
    named = set(re.findall(r'"([A-Z_]{4,})"', inspect.getsource(_set_flags)))
    assert {"REFIT", "STRIP_PLAN"} <= named
    assert named <= set(trt.BuilderFlag.__members__)


@pytest.mark.parametrize(
    ("file", "base"),
    [
        ("runtime/backends/tensorrt_lane.py", "IOutputAllocator"),
        ("export/engines/engine.py", "IProgressMonitor"),
        ("runtime/engines.py", "ILogger"),
    ],
)
def test_what_the_library_calls_of_ours(trt, file, base):
    (ours,) = (
        node
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.ClassDef)
        and getattr(node.bases and node.bases[0], "attr", "") == base
    )
    kind = getattr(trt, base)
    documented = dict(re.findall(r"def (\w+)\((.*?)\)", kind.__doc__ or ""))
    called = 0
    for method in ours.body:
        if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
            continue
        arguments = len(method.args.args) - 1
        if method.name in documented:
            assert len(documented[method.name].split(",")) - 1 == arguments, method.name
        else:
            assert arguments in map(len, overloads(getattr(kind, method.name))), method.name
        called += 1
    assert called


@pytest.mark.parametrize("stand_in", STANDS_FOR, ids=lambda one: one.__name__)
def test_stand_ins_have_nothing_that_the_library_lacks(trt, stand_in):
    skip_what_rtx_has_alone(trt, stand_in)
    kind = getattr(trt, STANDS_FOR[stand_in])
    names = {name for name in vars(stand_in) if not name.startswith("_")}
    assert names
    absent = OF_RTX if trt.__name__ == MODULES[Target.TENSORRT] else set()
    assert {name for name in names - OF_TESTS - absent if not hasattr(kind, name)} == set()


def test_what_we_use_of_cuda_is_there():
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    names = set()
    for folder in ("runtime", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            names |= set(
                re.findall(r"\bcuda(?:_runtime\(\))?\.(cuda\w+(?:\.cuda\w+)?)", path.read_text())
            )
    assert len(names) > 10, names
    for name in names:
        first, _, member = name.partition(".")
        assert hasattr(cuda, first), name
        assert not member or member in getattr(cuda, first).__members__, name
    stand_in = {name for name in dir(FakeCuda) if name.startswith("cuda")}
    assert {name for name in stand_in if not hasattr(cuda, name)} == set()


def test_a_name_that_is_gone_is_seen(monkeypatch):
    module = ModuleType("gone")
    monkeypatch.setitem(KINDS, "runtime/backends/tensorrt.py", {"engine": "ICudaEngine"})
    module.ICudaEngine = type("ICudaEngine", (), {"num_io_tensors": 0})
    with pytest.raises((AssertionError, AttributeError)):
        test_what_we_use_is_there(module, "runtime/backends/tensorrt.py")
