"""PEFT adapters: read one without running anything, and merge it into the model it was made for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.errors import SourceError, listing
from tfx.extras import need

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Kinds whose weights become part of the model's own; prompts and prefixes have nowhere to go.
MERGED_KINDS = ("LORA", "ADALORA")

# How PEFT prefixes the names of the model's own tensors.
PREFIX = "base_model.model."

# A line of what torch says when a state dict does not fit.
MISMATCH = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\((.*?)\) from checkpoint, "
    r"the shape in current model is torch\.Size\((.*?)\)"
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter's folder says of itself.

    Attributes:
        folder: Where it is.
        kind: PEFT's name, e.g. "LORA".
        task: PEFT's task type, e.g. "SEQ_CLS"; "" where it has none.
        class_name: The transformers class it was trained on, where it has no task type.
        tensors: Name in the file to shape.
    """

    folder: Path
    kind: str
    task: str = ""
    class_name: str = ""
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def replaced(self) -> dict[str, tuple[int, ...]]:
        """The model's tensors that the adapter holds whole, such as a new head's, by name."""
        return {
            name.removeprefix(PREFIX): shape
            for name, shape in self.tensors.items()
            if ".lora_" not in name
        }

    def labels(self) -> int:
        """How many labels the adapter's own head gives; 0 where it has no head."""
        heads = [
            shape[0]
            for name, shape in self.replaced().items()
            if len(shape) == 2 and set(name.split(".")) & {"classifier", "score", "out_proj"}
        ]
        # A head of several layers gives its labels in the last; they are the fewest.
        return min(heads, default=0)


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter's configuration and the names of its tensors.

    Raises:
        SourceError: If the folder holds no adapter, one of a kind that cannot be merged, or
            one without safetensors weights.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SourceError(
            f"no such adapter folder: {folder}",
            hint="Name a folder that PEFT's save_pretrained wrote.",
        )
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise SourceError(
            f"{folder} is not an adapter folder: it has no {CONFIG_FILE}",
            hint="Name the folder that PEFT's save_pretrained wrote.",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, task = str(config["peft_type"]), config.get("task_type") or ""
        class_name = (config.get("auto_mapping") or {}).get("base_model_class") or ""
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise SourceError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    if kind not in MERGED_KINDS:
        raise SourceError(
            f"the adapter {folder} is of kind {kind}, expected {' or '.join(MERGED_KINDS)}",
            hint="Merge it into the checkpoint with PEFT first, if its kind can be merged.",
        )
    return Adapter(folder, kind, str(task), str(class_name), _tensors_of(folder))


def merge_adapter(module: torch.nn.Module, adapter: Adapter) -> torch.nn.Module:
    """Add an adapter's weights to those of ``module``, in place, and return the module.

    Raises:
        BackendError: If PEFT is not installed.
        SourceError: If the adapter was made for another model.
    """
    peft = need("peft")
    folder = str(adapter.folder)
    try:
        config = peft.PeftConfig.from_pretrained(folder)
        config.inference_mode = True
        adapted = peft.get_peft_model(module, config)
        loaded = adapted.load_adapter(folder, "default", torch_device="cpu")
        problems = [f"{_own(name)}: not in the adapter" for name in loaded.missing_keys]
        problems += [f"{_own(name)}: not in the model" for name in loaded.unexpected_keys]
        if not problems:
            merged: torch.nn.Module = adapted.merge_and_unload(safe_merge=True)
            return merged
    # PEFT, torch and safetensors raise many kinds for an adapter that does not fit.
    except Exception as error:
        problems = [
            f"{_own(name)}: [{found}] in the adapter, [{expected}] expected"
            for name, found, expected in _mismatches(str(error))
        ] or [" ".join(str(error).split()) or type(error).__name__]
        raise _unfit(adapter, module, problems) from error
    raise _unfit(adapter, module, problems)


def _unfit(adapter: Adapter, module: Any, problems: Iterable[str]) -> SourceError:
    return SourceError(
        listing(f"the adapter {adapter.folder} does not fit {type(module).__name__}:", problems),
        hint="Name the model the adapter was trained on, with the same head (--task).",
    )


def _mismatches(text: str) -> list[tuple[str, str, str]]:
    return [
        (name, found.strip("[]"), expected.strip("[]"))
        for name, found, expected in MISMATCH.findall(text)
    ]


def _own(name: str) -> str:
    """A tensor's name without what PEFT put around it."""
    return name.removeprefix(PREFIX).replace(".default", "")


def _tensors_of(folder: Path) -> dict[str, tuple[int, ...]]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        raise SourceError(
            f"{folder} has no {WEIGHTS_FILE}"
            + (
                f", only {', '.join(pickles)}: a pickle runs code when it is read"
                if pickles
                else ""
            ),
            hint="Save the adapter again with save_pretrained (safetensors is its default).",
        )
    safetensors = need("safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise SourceError(
            f"{path} is damaged: {error}", hint="Copy or download the file again."
        ) from error
