"""How a bundle is made: frozen, serialisable answers that the manifest keeps."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from .errors import RecipeError, listing
from .signature import ShapeRange


class SourceKind(StrEnum):
    """Where a model comes from."""

    CHECKPOINT = "checkpoint"  # a local folder in the Hugging Face layout
    PACKAGE = "package"  # such a folder inside an installed Python package
    HUB = "hub"  # a repository of the Hugging Face hub, cached or fetched
    CONFIG = "config"  # an architecture of known sizes, with random weights
    FACTORY = "factory"  # `file.py:function`, returns a module and example inputs
    MODULE = "module"  # an nn.Module handed over in Python; cannot be loaded again


# The graphs an encoder-decoder becomes; a whole model is the part "".
ENCODER, DECODER = "encoder", "decoder"
PARTS = (ENCODER, DECODER)

# A causal language model with its cache of keys and values as inputs and outputs.
GENERATOR = "generator"

# An encoder-decoder that generates: the encoder also gives what the decoder's layers make of its
# states, and the decoder has its cache as inputs and outputs.
GENERATING_ENCODER, GENERATING_DECODER = "generator-encoder", "generator-decoder"
GENERATING_PARTS = (GENERATING_ENCODER, GENERATING_DECODER)


@dataclass(frozen=True, slots=True)
class Changes:
    """What was done to a model of transformers between loading and tracing.

    Layers and heads are numbered from 0, as in the model before anything was taken out.

    Attributes:
        adapter: Folder of the PEFT adapter merged into the weights; "" for none.
        layers: Layers kept, in order; empty for all.
        drop_heads: Attention heads taken out, as (layer, head).
        attentions: Whether attention maps are outputs too.
    """

    adapter: str = ""
    layers: tuple[int, ...] = ()
    drop_heads: tuple[tuple[int, ...], ...] = ()
    attentions: bool = False

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise RecipeError(listing("the model cannot be changed so:", problems))

    def __bool__(self) -> bool:
        return self != Changes()

    def __str__(self) -> str:
        texts = [f"adapter {self.adapter}"] if self.adapter else []
        if self.layers:
            texts.append(f"layers {spans(self.layers)}")
        if self.drop_heads:
            count = len(self.drop_heads)
            texts.append(f"without {count} head{'s' if count > 1 else ''}")
        if self.attentions:
            texts.append("with attention maps")
        return ", ".join(texts)

    def _problems(self) -> list[str]:
        problems = []
        if any(layer < 0 for layer in self.layers):
            problems.append(f"layers are {list(self.layers)}, expected numbers from 0")
        elif list(self.layers) != sorted(set(self.layers)):
            problems.append(f"layers are {list(self.layers)}, expected each once and in order")
        if any(len(pair) != 2 or min(pair) < 0 for pair in self.drop_heads):
            problems.append(f"drop_heads are {self.drop_heads}, expected (layer, head) from 0")
        elif len(set(self.drop_heads)) < len(self.drop_heads):
            problems.append(f"drop_heads are {self.drop_heads}, expected each once")
        elif self.layers and (gone := {layer for layer, _ in self.drop_heads} - {*self.layers}):
            problems.append(
                f"heads of layer {spans(sorted(gone))} are dropped, and the layer is not kept"
            )
        return problems


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers as people write them: ``[0, 1, 2, 5]`` is "0-2,5"."""
    texts: list[str] = []
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            first, last = numbers[start], numbers[end - 1]
            texts.append(str(first) if first == last else f"{first}-{last}")
            start = end
    return ",".join(texts)


@dataclass(frozen=True, slots=True)
class Source:
    """The PyTorch model a bundle was made from, precise enough to load it again.

    Attributes:
        kind: How to read ``location``.
        location: Folder, hub id, package resource, alias or ``file.py:factory``. In a manifest
            a relative path leads from the folder that the bundle lies in (``seen_from``).
        class_name: The transformers class, e.g. ``BertForSequenceClassification``; ""
            for hand-written modules.
        revision: Commit of a hub repository; "" where there is none.
        seed: Of the random weights, or of the factory call.
        random_weights: Whether the weights are random: fit for latency work, not for accuracy.
        part: "encoder" or "decoder" of an encoder-decoder, with "generator-" before it where they
            generate with a cache; "generator" for a causal language model with its cache; "" for
            the whole model.
        changes: What was done to the model since it was loaded.
        digest: sha256 over the names, shapes and bytes of all weights; "" until loaded.
        file_digest: sha256 of the factory's file; "" for other kinds, and until loaded.
    """

    kind: SourceKind
    location: str
    class_name: str = ""
    revision: str = ""
    seed: int = 0
    random_weights: bool = False
    part: str = ""
    changes: Changes = field(default_factory=Changes)
    digest: str = ""
    file_digest: str = ""

    def __str__(self) -> str:
        halves = (*PARTS, *GENERATING_PARTS)
        text = f"{self.part.removeprefix('generator-')} of " if self.part in halves else ""
        text += f"{self.kind} {self.location}"
        if self.class_name:
            text += f" ({self.class_name})"
        if self.changes:
            text += f", {self.changes}"
        return text + (", random weights" if self.random_weights else "")

    def seen_from(self, folder: Path) -> Source:
        """The source as a bundle in ``folder`` records it: relative paths lead from there.

        So bundle and model can be moved together, and no path of this machine is written down
        that was not given from the root.
        """
        return self._with_paths(lambda path: _relative(path, folder.resolve()))

    def found_from(self, folder: Path) -> Source:
        """The source that a bundle in ``folder`` records, with paths that lead from anywhere."""
        root = folder.resolve()
        return self._with_paths(lambda path: os.path.normpath(root / path))

    def moved(self, before: Path, after: Path) -> Source:
        """The source as a bundle in ``after`` records what its parent in ``before`` does.

        Paths that lead from the root stay; the others lead from ``after`` then.
        """
        root, other = before.resolve(), after.resolve()

        def lead(path: str) -> str:
            if Path(path).is_absolute():
                return path
            return _relative_to(Path(os.path.normpath(root / path)), other)

        return self if root == other else self._with_paths(lead)

    def _with_paths(self, change: Callable[[str], str]) -> Source:
        location, changes = self.location, self.changes
        if self.kind is SourceKind.CHECKPOINT:
            location = change(location)
        elif self.kind is SourceKind.FACTORY:
            file, _, function = location.rpartition(":")
            location = f"{change(file)}:{function}"
        if changes.adapter:
            changes = replace(changes, adapter=change(changes.adapter))
        return replace(self, location=location, changes=changes)


def _relative(path: str, folder: Path) -> str:
    if Path(path).is_absolute():
        return path
    whole = Path(path).absolute()
    # The folders on the way are followed, for .. to lead back; the last may stay a link.
    return _relative_to(whole.parent.resolve() / whole.name, folder)


def _relative_to(whole: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(whole, folder)).as_posix()
    except ValueError:  # on another drive
        return str(whole)


@dataclass(frozen=True, slots=True)
class ExportRecipe:
    """Everything that decides which graph an export writes, besides the weights.

    Attributes:
        part: "encoder" or "decoder" of an encoder-decoder, with "generator-" before it where they
            generate with a cache; "generator" for a causal language model with its cache; "" for
            a whole model.
        task: A task of optimum's ``TasksManager``, or "auto" for the checkpoint's own head.
        opset: ONNX operator set; 23 brought ``Attention`` and ``RotaryEmbedding``.
        max_batch: Largest batch the signature admits.
        max_sequence: Largest sequence length; 0 for all the model has positions for.
        image_size: Height and width of images, for models that take any size and whose graph
            takes one; empty for the default.
        dynamic: Axis names of a hand-written module's inputs, e.g.
            ``{"x": ("batch", "", "")}``; "" is a fixed axis. Empty: inferred.
        changes: Adapter, trimming and attention maps, for models of transformers.
        seed: Of the random weights, and of the parity feeds.
    """

    task: str = "auto"
    part: str = ""
    opset: int = 23
    max_batch: int = 128
    max_sequence: int = 0
    image_size: tuple[int, ...] = ()
    dynamic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)
    random_weights: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.opset < 23:
            problems.append(f"opset is {self.opset}, Attention needs 23 or later")
        if self.max_batch < 1:
            problems.append(f"max_batch is {self.max_batch}, expected 1 or more")
        if self.max_sequence < 0:
            problems.append(f"max_sequence is {self.max_sequence}, expected 0 or more")
        if self.seed < 0:
            problems.append(f"seed is {self.seed}, expected 0 or more")
        if self.image_size and (len(self.image_size) != 2 or min(self.image_size) < 1):
            problems.append(f"image_size is {self.image_size}, expected height and width")
        if problems:
            raise RecipeError(listing("recipe cannot be followed:", problems))


class Target(StrEnum):
    """A library that builds and runs engines: one API, two flavours."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


GPU_HINT = (
    "See what yours has with nvidia-smi --query-gpu=name,compute_cap --format=csv, where 8.9 is "
    "sm89; an A100 is sm80, an L4 sm89, an H100 sm90."
)


@dataclass(frozen=True, slots=True)
class EngineRecipe:
    """Everything that decides which engine a build writes, besides the graph.

    Attributes:
        target: The library that builds it, and alone can run it.
        gpus: Compute capabilities it runs on, e.g. ``("sm86", "sm89")``; empty for the GPU of
            the machine that builds.
        profiles: Axis name to sizes, one mapping per optimization profile; an axis that one
            does not name keeps the signature's range. Empty: one profile, the signature's.
        workspace_bytes: Largest scratch memory of one layer; 0 for all there is.
        version_compatible: Whether later versions of the library run it too.
        hardware_compatible: Whether it runs on every GPU from Ampere on.
        refit: Whether its weights can be replaced.
        strip: Whether the weights are left out, to be put in from the parent when it is opened.
        weight_streaming: Whether weights may stay in the host's memory.
    """

    target: Target = Target.TENSORRT_RTX
    gpus: tuple[str, ...] = ()
    profiles: tuple[Mapping[str, ShapeRange], ...] = ()
    workspace_bytes: int = 0
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False
    strip: bool = False
    weight_streaming: bool = False

    def __post_init__(self) -> None:
        unknown = [gpu for gpu in self.gpus if not re.fullmatch(r"sm[1-9][0-9]{1,2}", gpu)]
        problems = [
            f"gpu is {gpu!r}, expected a compute capability such as sm89" for gpu in unknown
        ]
        if len(set(self.gpus)) < len(self.gpus):
            problems.append(f"gpus are {', '.join(self.gpus)}, expected each once")
        if self.workspace_bytes < 0:
            problems.append(f"workspace_bytes is {self.workspace_bytes}, expected 0 or more")
        if problems:
            raise RecipeError(
                listing("no engine can be built so:", problems), hint=GPU_HINT if unknown else ""
            )


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """What an engine is and what it needs: it is opened with nothing else.

    Attributes:
        recipe: What was asked for.
        version: Of the library that built it.
        gpus: Compute capabilities it runs on.
        device: Name of the GPU it was built on and for; "" where it was built without one.
        driver: Version of that GPU's driver.
        profiles: Sizes of every dynamic axis, one mapping per optimization profile.
        attention: ``Attention`` layers of its graph.
        fused_kernels: Different fused attention kernels found in it; 0 where every attention
            runs as several.
        spelled_out: Attentions beside those, made of single operators: the library takes no
            soft cap.
    """

    recipe: EngineRecipe
    version: str
    gpus: tuple[str, ...]
    profiles: tuple[Mapping[str, ShapeRange], ...]
    device: str = ""
    driver: str = ""
    attention: int = 0
    fused_kernels: int = 0
    spelled_out: int = 0

    def __str__(self) -> str:
        where = ", ".join(self.gpus) + (f" ({self.device})" if self.device else "")
        return f"{self.recipe.target} {self.version} for {where}"
