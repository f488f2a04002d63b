"""A bundle's graph to a serialized TensorRT engine: parse, set profiles, build."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tfx.bundle import Bundle
from tfx.errors import BackendError, ExportError, RecipeError, listing
from tfx.extras import need
from tfx.recipe import EngineRecipe, Target
from tfx.runtime.engines import compute_capability, errors_of, library_log, load_library
from tfx.signature import UNBOUNDED, ShapeRange, Signature

from .passes.cleanup import SCOPE

# Name that TensorRT's code generator gives to fused attention kernels in a plan.
FUSED_KERNEL = re.compile(rb"_gemm_mha_v2_0x[0-9a-f]+")

Profile = Mapping[str, ShapeRange]


@dataclass(frozen=True, slots=True)
class Engine:
    """What a build gives.

    Attributes:
        plan: The serialized engine.
        version: Of the library that built it, and that it needs.
        profiles: Sizes of each dynamic axis, one mapping per optimization profile.
        attention: ``Attention`` layers of the graph.
        attention_kernels: Different fused attention kernels in the plan; 0 means that every
            attention runs as several kernels.
    """

    plan: bytes
    version: str
    profiles: tuple[Profile, ...]
    attention: int
    attention_kernels: int


def build_engine(
    bundle: Bundle,
    recipe: EngineRecipe,
    *,
    on_phase: Callable[[str, int, int], bool] = lambda phase, done, total: True,
) -> Engine:
    """Build the engine of a bundle's graph; the precision is that of the graph.

    Args:
        bundle: With an ONNX graph.
        recipe: Library, GPUs, profiles, flags.
        on_phase: Called with a phase's name, its steps done and their number, from any thread;
            False stops the build.

    Raises:
        RecipeError: If the library or the signature cannot do what the recipe asks.
        ExportError: If the library does not take the graph.
        BackendError: If the library is missing, or finds no engine.
    """
    trt = load_library(recipe.target)
    profiles = resolve_profiles(bundle.manifest.signature, recipe.profiles)
    with errors_of(trt) as errors:
        builder = trt.Builder(library_log(trt))
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, library_log(trt))
        # From the file, not from memory: weights may lie in a file beside it.
        if not parser.parse_from_file(str(bundle.model)):
            raise _parser_error(bundle, recipe.target, parser)
        attention = decompose_attention(trt, network)
        config = builder.create_builder_config()
        _set_gpus(trt, config, recipe)
        for sizes in profiles:
            profile = builder.create_optimization_profile()
            _fill_profile(profile, bundle.manifest.signature, sizes)
            if config.add_optimization_profile(profile) < 0:
                raise RecipeError(f"{recipe.target} refuses a profile: {_said(errors)}")
        monitor = _monitor(trt, on_phase)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BackendError(
                f"{recipe.target} {trt.__version__} cannot build {bundle.name}: {_said(errors)}",
                hint=_build_hint(errors),
            )
    data = bytes(plan)
    kernels = set(FUSED_KERNEL.findall(data))
    return Engine(data, trt.__version__, profiles, attention, len(kernels))


def resolve_profiles(signature: Signature, asked: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """Sizes of every dynamic axis in every profile.

    Args:
        signature: Its ranges are what a profile does not say, and what none may leave.
        asked: Profiles by the axes they name; none for one with the signature's own ranges.

    Raises:
        RecipeError: If an axis is unknown, has no largest size, or leaves its range.
    """
    axes = dict.fromkeys(
        axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)
    )
    problems, resolved = [], []
    for number, named in enumerate(asked or ({},)):
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


def _layers(network: Any) -> Iterator[Any]:
    for index in range(network.num_layers):
        yield network.get_layer(index)


def _set_gpus(trt: ModuleType, config: Any, recipe: EngineRecipe) -> None:
    if recipe.target is Target.TENSORRT:
        if recipe.gpus:
            raise RecipeError(
                f"tensorrt builds for the GPU of this machine only, not for "
                f"{', '.join(recipe.gpus)}",
                hint="Leave --gpu out, or use --target tensorrt-rtx.",
            )
        return
    chosen = [compute_capability(trt, gpu) for gpu in recipe.gpus]
    config.num_compute_capabilities = max(len(chosen), 1)
    for index, capability in enumerate(chosen or [trt.ComputeCapability.CURRENT]):
        if not config.set_compute_capability(capability, index):
            raise RecipeError(f"{recipe.target} refuses {capability.name} as GPU {index}")


def _fill_profile(profile: Any, signature: Signature, sizes: Profile) -> None:
    for spec in signature.inputs:
        chosen = [
            sizes[axis] if isinstance(axis, str) else ShapeRange(axis, axis, axis)
            for axis in spec.shape
        ]
        if any(isinstance(axis, str) for axis in spec.shape):
            profile.set_shape(
                spec.name,
                [size.min for size in chosen],
                [size.opt for size in chosen],
                [size.max for size in chosen],
            )


def _monitor(trt: ModuleType, on_phase: Callable[[str, int, int], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, total: int) -> None:
            self.totals[phase] = total
            on_phase(phase, 0, total)

        def phase_finish(self, phase: str) -> None:
            self.totals.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            return on_phase(phase, step + 1, self.totals.get(phase, 0))

    return Monitor()


def _parser_error(bundle: Bundle, target: Target, parser: Any) -> ExportError:
    onnx = need("onnx")
    nodes = onnx.load(str(bundle.model), load_external_data=False).graph.node
    problems, said = [], ""
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        said += error.desc()
        place = error.node()
        scope = ""
        if 0 <= place < len(nodes) and nodes[place].op_type == error.node_operator():
            scope = next((p.value for p in nodes[place].metadata_props if p.key == SCOPE), "")
        name = scope or error.node_name() or f"node {place}"
        problems.append(f"{name}: {error.node_operator()}: {_reason(error.desc())}")
    return ExportError(
        listing(f"{target} does not take the graph of {bundle.name}:", dict.fromkeys(problems)),
        hint=_parser_hint(said),
    )


def _reason(text: str) -> str:
    """The parser's words without its source places; some checks only say "false"."""
    if text in ("", "false"):
        return "the operator is not supported"
    for line in text.splitlines():
        if found := re.search(r"API Usage Error \((?:\S+: )?(.*?)\.?(?: In \w+ at |$)", line):
            return found[1]
    return text.splitlines()[0].removeprefix("Assertion failed: ")


def _parser_hint(said: str) -> str:
    if "ero zero point" in said or "shiftIsAllZeros" in said:
        return "Quantize symmetrically: TensorRT takes int8 with zero point 0 alone."
    if "same input types" in said:
        return "Make the graph again in one precision: TensorRT casts nothing by itself."
    return "Replace the PyTorch operators they come from."


def _said(errors: list[str]) -> str:
    """The first error that is not the echo of a missing driver."""
    telling = [text for text in errors if not text.startswith("[checkMacros.cpp")] or errors
    return telling[0].strip() if telling else "it does not say why"


def _build_hint(errors: list[str]) -> str:
    text = " ".join(errors)
    if "CUDA driver" in text:
        return "Name the GPUs to build for, e.g. --gpu sm89; only for them no GPU is needed here."
    if "workspace" in text:
        return "Allow more scratch memory with --workspace."
    if "Turing" in text:
        return "Build a float16 bundle for sm75: it has no float32 matrix product there."
    return "See what is not supported in the message; -vv shows the library's log."
