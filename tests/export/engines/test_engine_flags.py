"""What a build asks of the library, with a stand-in for it: both flavours, every flag."""

import dataclasses
from types import SimpleNamespace

import pytest
from support import tensorrt as fake
from support.bundles import TEXT_SIGNATURE, write_bundle
from support.errors import lines_of

from tfx.errors import RecipeError
from tfx.export.engines import engine as engine_module
from tfx.export.engines.engine import build_engine
from tfx.recipe import EngineRecipe, Target
from tfx.runtime.cuda import Device
from tfx.signature import ShapeRange

HERE = Device(0, "NVIDIA L4", "sm89", "12.8")
FULL = EngineRecipe(Target.TENSORRT)
RTX = EngineRecipe(gpus=("sm80", "sm89"))


@pytest.fixture
def library(monkeypatch):
    """The stand-in, on a machine with one GPU."""
    module = fake.fake_library()
    monkeypatch.setattr(engine_module, "load_library", lambda target: module)
    monkeypatch.setattr(engine_module, "describe_device", lambda index: HERE)
    return module


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny")


def config_of(library):
    (config,) = library.configs
    return config


def test_rtx_builds_for_the_gpus_that_are_named(library, bundle):
    engine = build_engine(bundle, RTX)
    assert config_of(library).capabilities == {
        0: fake.ComputeCapability.SM80,
        1: fake.ComputeCapability.SM89,
    }
    assert (engine.build.gpus, engine.build.device) == (("sm80", "sm89"), "")
    assert engine.timing_cache == b""


def test_types_are_those_of_the_graph(library, bundle):
    build_engine(bundle, FULL)  # a library that knows no other way
    library.NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
    build_engine(bundle, FULL)  # TensorRT 10
    assert library.networks == [0, 2]


def test_rtx_builds_for_the_gpu_here(library, bundle):
    engine = build_engine(bundle, EngineRecipe())
    assert config_of(library).capabilities == {0: fake.ComputeCapability.CURRENT}
    assert (engine.build.gpus, engine.build.device) == (("sm89",), "NVIDIA L4")


def test_tensorrt_builds_for_the_gpu_here_alone(library, bundle):
    engine = build_engine(bundle, FULL)
    assert config_of(library).num_compute_capabilities == 0  # it has no such setting
    assert (engine.build.gpus, engine.build.driver) == (("sm89",), "12.8")
    assert engine.build.version == "11.0.0"
    assert (engine.build.attention, engine.build.fused_kernels) == (1, 1)
    assert engine.plan == fake.PLAN


def test_profiles_give_each_input_three_shapes(library, bundle):
    single = {"batch": ShapeRange(1, 1, 1), "sequence": ShapeRange(1, 8, 32)}
    build_engine(bundle, dataclasses.replace(FULL, profiles=(single, {})))
    ranges = TEXT_SIGNATURE.ranges
    shapes = [[1, 1], [1, 8], [1, 32]]
    whole = [[getattr(ranges[a], k) for a in ("batch", "sequence")] for k in ("min", "opt", "max")]
    assert [profile["input_ids"] for profile in config_of(library).profiles] == [
        tuple(shapes),
        tuple(whole),
    ]


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("version_compatible", "VERSION_COMPATIBLE"),
        ("refit", "REFIT"),
        ("strip", "STRIP_PLAN"),
        ("weight_streaming", "WEIGHT_STREAMING"),
    ],
)
def test_flags(library, bundle, field, flag):
    build_engine(bundle, FULL)
    build_engine(bundle, dataclasses.replace(FULL, **{field: True}))
    assert [config.flags for config in library.configs] == [set(), {fake.BuilderFlag[flag]}]


def test_float32_is_multiplied_as_such(library, bundle):
    build_engine(bundle, RTX)
    assert fake.BuilderFlag.TF32 not in config_of(library).flags  # the library sets it


def test_workspace_and_hardware_compatibility(library, bundle):
    build_engine(bundle, FULL)
    build_engine(
        bundle, dataclasses.replace(FULL, workspace_bytes=1 << 20, hardware_compatible=True)
    )
    assert [config.pools for config in library.configs] == [
        {},
        {fake.MemoryPoolType.WORKSPACE: 1 << 20},
    ]
    assert [config.hardware_compatibility_level.name for config in library.configs] == [
        "NONE",
        "AMPERE_PLUS",
    ]


def test_timing_cache(library, bundle):
    assert build_engine(bundle, FULL, timing_cache=b"times").timing_cache == b"times+"
    with pytest.raises(RecipeError, match="is not of this GPU and library") as caught:
        build_engine(bundle, FULL, timing_cache=b"foreign")
    assert caught.value.hint == "Name another file with --timing-cache."


def test_what_tensorrt_lacks(library, bundle):
    with pytest.raises(RecipeError) as caught:
        build_engine(bundle, dataclasses.replace(FULL, gpus=("sm80", "sm89")))
    assert str(caught.value) == (
        "tensorrt cannot build so: it builds for the GPU of this machine, not sm80, sm89"
    )
    assert "--target tensorrt-rtx" in caught.value.hint


def test_what_rtx_lacks(library, bundle):
    asked = dataclasses.replace(RTX, version_compatible=True, hardware_compatible=True)
    with pytest.raises(RecipeError) as caught:
        build_engine(bundle, asked, timing_cache=b"")
    assert lines_of(str(caught.value)) == [
        "tensorrt-rtx cannot build so:",
        "  its engines run on the version that built them alone",
        "  its engines run on the GPUs they are built for, which can be several",
        "  it measures no kernels, so there is no timing cache to keep",
    ]
    assert "--target tensorrt" in caught.value.hint


def test_progress_counts_a_phase_inside_another(library, bundle):
    shares = []
    build_engine(bundle, FULL, on_progress=shares.append)
    assert shares == [0.25, 0.5, 1.0]


def test_what_progress_raises_stops_the_build(library, bundle):
    def stop(share):
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, FULL, on_progress=stop)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"gpus": ("ada",)}, "gpu is 'ada', expected a compute capability such as sm89"),
        ({"gpus": ("sm89", "sm89")}, "gpus are sm89, sm89, expected each once"),
        ({"workspace_bytes": -1}, "workspace_bytes is -1, expected 0 or more"),
    ],
)
def test_a_recipe_that_makes_no_sense(changes, problem):
    with pytest.raises(RecipeError) as caught:
        EngineRecipe(**changes)
    assert str(caught.value) == f"no engine can be built so: {problem}"
    assert ("sm90" in caught.value.hint) == ("ada" in problem)
