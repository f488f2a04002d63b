"""A bundle's graph to a serialized TensorRT engine: parse, set profiles and flags, build."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tfx.bundle import Bundle
from tfx.errors import BundleError, RecipeError, listing
from tfx.extras import need
from tfx.recipe import EngineBuild, EngineRecipe, Target
from tfx.runtime.cuda import describe_device
from tfx.runtime.engines import (
    compute_capability,
    errors_of,
    first_error,
    library_log,
    load_library,
)
from tfx.runtime.generation.kv_cache import KEPT, cache_specs
from tfx.signature import SEQUENCE, UNBOUNDED, ShapeRange, Signature

from ..passes.softcap import spell_out_shared_inputs, spell_out_softcaps
from .messages import build_error, parser_error

# Name that TensorRT's code generator gives to fused attention kernels in a plan.
FUSED_KERNEL = re.compile(rb"_gemm_mha_v2_0x[0-9a-f]+")

Profile = Mapping[str, ShapeRange]


@dataclass(frozen=True, slots=True)
class Engine:
    """What a build gives.

    Attributes:
        plan: The serialized engine.
        build: What it is and needs.
        timing_cache: The times of kernels measured so far, for the next build; empty where the
            library keeps none.
    """

    plan: bytes
    build: EngineBuild
    timing_cache: bytes = b""


def build_engine(
    bundle: Bundle,
    recipe: EngineRecipe,
    *,
    timing_cache: bytes | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Engine:
    """Build the engine of a bundle's graph; the precision is that of the graph.

    Args:
        bundle: With an ONNX graph.
        recipe: Library, GPUs, profiles, flags.
        timing_cache: Of an earlier build on this GPU, empty for a new one; None for none.
        on_progress: Called with the share done, 0 to 1, never less than before. What it raises
            stops the build and is raised again.

    Raises:
        RecipeError: If the library or the signature cannot do what the recipe asks.
        ExportError: If the library does not take the graph.
        BackendError: If the library is missing, or finds no engine.
        BundleError: If the graph cannot be read.
    """
    refuse_lacking(recipe, timing_cache=timing_cache is not None)
    profiles = resolve_profiles(bundle.manifest.signature, recipe.profiles)
    trt = load_library(recipe.target)
    with errors_of(trt) as errors:
        builder = trt.Builder(library_log(trt))
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, library_log(trt))
        spelled_out = _parse(bundle, recipe.target, parser)
        attention = decompose_attention(trt, network)
        config = builder.create_builder_config()
        _set_gpus(trt, config, recipe)
        _set_flags(trt, config, recipe)
        for sizes in profiles:
            profile = builder.create_optimization_profile()
            _fill_profile(profile, bundle.manifest.signature, sizes)
            if config.add_optimization_profile(profile) < 0:
                raise RecipeError(f"{recipe.target} refuses a profile: {first_error(errors)}")
        if timing_cache is not None:
            cache = config.create_timing_cache(timing_cache)
            if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
                raise RecipeError(
                    f"the timing cache is not of this GPU and library: {first_error(errors)}",
                    hint="Name another file with --timing-cache.",
                )
        monitor = _monitor(trt, on_progress)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor.raised is not None:
            raise monitor.raised
        if plan is None:
            raise build_error(bundle, recipe.target, errors)
    data = bytes(plan)
    here = None if recipe.gpus else describe_device(0)
    build = EngineBuild(
        recipe=recipe,
        version=trt.__version__,
        gpus=recipe.gpus if here is None else (here.capability,),
        profiles=profiles,
        device="" if here is None else here.name,
        driver="" if here is None else here.driver,
        attention=attention,
        fused_kernels=len(set(FUSED_KERNEL.findall(data))),
        spelled_out=spelled_out,
    )
    times = b"" if timing_cache is None else bytes(config.get_timing_cache().serialize())
    return Engine(data, build, times)


def refuse_lacking(recipe: EngineRecipe, *, timing_cache: bool) -> None:
    """Refuse what a flavour would ignore, or lacks a part of its library for.

    Raises:
        RecipeError: With everything that it lacks.
    """
    problems = []
    if recipe.target is Target.TENSORRT:
        hint = "Leave --gpu out, or use --target tensorrt-rtx."
        if recipe.gpus:
            problems.append(f"it builds for the GPU of this machine, not {', '.join(recipe.gpus)}")
    else:
        hint = "Leave it out, or use --target tensorrt on the GPU itself."
        if recipe.version_compatible:
            problems.append("its engines run on the version that built them alone")
        if recipe.hardware_compatible:
            problems.append("its engines run on the GPUs they are built for, which can be several")
        if timing_cache:
            problems.append("it measures no kernels, so there is no timing cache to keep")
    if problems:
        raise RecipeError(listing(f"{recipe.target} cannot build so:", problems), hint=hint)


def resolve_profiles(signature: Signature, asked: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """Sizes of every dynamic axis in every profile.

    Args:
        signature: Its ranges are what a profile does not say, and what none may leave.
        asked: Profiles by the axes they name; none for ``usual_profiles``.

    Raises:
        RecipeError: If an axis is unknown, has no largest size, or leaves its range.
    """
    axes = dict.fromkeys(
        axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)
    )
    problems, resolved = [], []
    for number, named in enumerate(asked or usual_profiles(signature)):
        where = f"profile {number}: " if len(asked) > 1 else ""
        problems += [f"{where}no input has an axis {axis!r}" for axis in named if axis not in axes]
        sizes = {}
        for axis in axes:
            allowed = signature.ranges.get(axis)
            chosen = named.get(axis, allowed)
            if chosen is None or chosen.max == UNBOUNDED:
                problems.append(f"{where}axis {axis!r} has no largest size")
                continue
            if allowed is not None and not (chosen.min in allowed and chosen.max in allowed):
                problems.append(
                    f"{where}axis {axis!r} is {chosen}, outside the signature's {allowed}"
                )
            sizes[axis] = chosen
        resolved.append(sizes)
    if problems:
        raise RecipeError(
            listing("the shapes do not fit the signature:", problems),
            hint="Give each axis its sizes: --shapes batch=1..8..32,sequence=1..128..512",
        )
    return tuple(resolved)


def usual_profiles(signature: Signature) -> tuple[Profile, ...]:
    """The signature's own ranges; of a graph with a cache also those of a step, one token each.

    A profile for prompts and steps at once would be tuned for prompts, and a text is nearly all
    steps.
    """
    if not cache_specs(signature):
        return ({},)
    one = ShapeRange(1, 1, 1)
    return ({}, {SEQUENCE: one, KEPT: one})


def decompose_attention(trt: ModuleType, network: Any) -> int:
    """Let every attention run as several kernels where no fused one takes it.

    Without it the build fails for them (all of float32, heads of fewer than 16). Where there
    is a fused kernel it is taken all the same: the plan has the same kernels with and without.

    Returns:
        How many there are.
    """
    count = 0
    for layer in _layers(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # A parsed network gives every layer as an ILayer; the class is what kind says.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
            count += 1
    return count


def _parse(bundle: Bundle, target: Target, parser: Any) -> int:
    """Give the parser the graph; how many attentions were spelled out for it."""
    ir = need("onnx_ir")
    try:
        model = ir.load(bundle.model)
    except Exception as error:  # protobuf and onnx_ir raise many kinds
        raise BundleError(f"cannot read {bundle.model}: {error}") from error
    if not (spelled_out := spell_out_softcaps(model) + spell_out_shared_inputs(model)):
        # From the file, not from memory: the library reads weights without a copy.
        if not parser.parse_from_file(str(bundle.model)):
            raise parser_error(bundle, target, parser, ir.to_proto(model).graph.node)
        return 0
    proto = ir.to_proto(model)
    # The path is where weights that lie in a file of their own are.
    if not parser.parse(proto.SerializeToString(), str(bundle.model)):
        raise parser_error(bundle, target, parser, proto.graph.node)
    return spelled_out


def _layers(network: Any) -> Iterator[Any]:
    for index in range(network.num_layers):
        yield network.get_layer(index)


def _strongly_typed(trt: ModuleType) -> int:
    """The flag that makes types those of the graph; TensorRT 11 and RTX have no other way."""
    kinds = getattr(trt, "NetworkDefinitionCreationFlag", None)
    flag = getattr(kinds, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_gpus(trt: ModuleType, config: Any, recipe: EngineRecipe) -> None:
    if recipe.target is Target.TENSORRT:
        return
    chosen = [compute_capability(trt, gpu) for gpu in recipe.gpus]
    config.num_compute_capabilities = max(len(chosen), 1)
    for index, capability in enumerate(chosen or [trt.ComputeCapability.CURRENT]):
        if not config.set_compute_capability(capability, index):
            raise RecipeError(
                f"{recipe.target} refuses {capability.name} as GPU {index}",
                hint="Name fewer GPUs, or those that it knows: --gpu sm80,sm89.",
            )


def _set_flags(trt: ModuleType, config: Any, recipe: EngineRecipe) -> None:
    flags = trt.BuilderFlag
    # On by default: products of float32 would have 10 bits of fraction, and the proof is of 23.
    config.clear_flag(flags.TF32)
    for asked, flag in (
        (recipe.version_compatible, "VERSION_COMPATIBLE"),
        (recipe.refit, "REFIT"),
        (recipe.strip, "STRIP_PLAN"),
        (recipe.weight_streaming, "WEIGHT_STREAMING"),
    ):
        if asked:
            config.set_flag(getattr(flags, flag))
    if recipe.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if recipe.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_bytes)
    # Layer names and kernels can then be read from the engine.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _fill_profile(profile: Any, signature: Signature, sizes: Profile) -> None:
    for spec in signature.inputs:
        if not any(isinstance(axis, str) for axis in spec.shape):
            continue
        chosen = [
            sizes[axis] if isinstance(axis, str) else ShapeRange(axis, axis, axis)
            for axis in spec.shape
        ]
        profile.set_shape(
            spec.name,
            [size.min for size in chosen],
            [size.opt for size in chosen],
            [size.max for size in chosen],
        )


def _monitor(trt: ModuleType, on_progress: Callable[[float], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Phases lie in each other: a phase's running part counts as a part of its next step.

        Nothing may be raised into the library, Ctrl-C included: ``raised`` keeps it.
        """

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self.phases: dict[str, tuple[str | None, int, int]] = {}  # parent, done, total
            self.share = 0.0

        def phase_start(self, phase: str, parent: str | None, total: int) -> None:
            self.phases[phase] = (parent, 0, total)

        def phase_finish(self, phase: str) -> None:
            self.phases.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                if phase in self.phases:
                    parent, _, total = self.phases[phase]
                    self.phases[phase] = (parent, step + 1, total)
                share = max(self._share(root) for root, (parent, *_) in self._of(None))
                if share > self.share:
                    self.share = share
                    on_progress(share)
            except BaseException as error:  # noqa: BLE001  raised again when the build returns
                self.raised = self.raised or error
            return self.raised is None

        def _of(self, parent: str | None) -> list[tuple[str, tuple[str | None, int, int]]]:
            return [item for item in self.phases.items() if item[1][0] == parent]

        def _share(self, phase: str) -> float:
            _, done, total = self.phases[phase]
            running = max((self._share(child) for child, _ in self._of(phase)), default=0.0)
            return min((done + running) / max(total, 1), 1.0)

    return Monitor()
