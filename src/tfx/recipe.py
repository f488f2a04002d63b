"""How a bundle is made: frozen, serialisable answers that the manifest keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from .errors import RecipeError, listing


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


@dataclass(frozen=True, slots=True)
class Source:
    """The PyTorch model a bundle was made from, precise enough to load it again.

    Attributes:
        kind: How to read ``location``.
        location: Folder, hub id, package resource, alias or ``file.py:factory``.
        class_name: The transformers class, e.g. ``BertForSequenceClassification``; ""
            for hand-written modules.
        revision: Commit of a hub repository; "" where there is none.
        seed: Of the random weights, or of the factory call.
        random_weights: Whether the weights are random: fit for latency work, not for accuracy.
        part: "encoder" or "decoder" of an encoder-decoder; "" for the whole model.
        digest: sha256 over the names, shapes and bytes of all weights; "" until loaded.
    """

    kind: SourceKind
    location: str
    class_name: str = ""
    revision: str = ""
    seed: int = 0
    random_weights: bool = False
    part: str = ""
    digest: str = ""

    def __str__(self) -> str:
        text = f"{self.part} of " if self.part else ""
        text += f"{self.kind} {self.location}"
        if self.class_name:
            text += f" ({self.class_name})"
        return text + (", random weights" if self.random_weights else "")


@dataclass(frozen=True, slots=True)
class ExportRecipe:
    """Everything that decides which graph an export writes, besides the weights.

    Attributes:
        part: "encoder" or "decoder" of an encoder-decoder; "" for a whole model.
        task: A task of optimum's ``TasksManager``, or "auto" for the checkpoint's own head.
        opset: ONNX operator set; 23 brought ``Attention`` and ``RotaryEmbedding``.
        max_batch: Largest batch the signature admits.
        max_sequence: Largest sequence length; 0 for all the model has positions for.
        image_size: Height and width of images, for models that take any size and whose graph
            takes one; empty for the default.
        dynamic: Axis names of a hand-written module's inputs, e.g.
            ``{"x": ("batch", "", "")}``; "" is a fixed axis. Empty: inferred.
        seed: Of the random weights, and of the parity feeds.
    """

    task: str = "auto"
    part: str = ""
    opset: int = 23
    max_batch: int = 128
    max_sequence: int = 0
    image_size: tuple[int, ...] = ()
    dynamic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
        if self.image_size and (len(self.image_size) != 2 or min(self.image_size) < 1):
            problems.append(f"image_size is {self.image_size}, expected height and width")
        if problems:
            raise RecipeError(listing("recipe cannot be followed:", problems))
