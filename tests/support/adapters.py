"""Tiny PEFT adapters with weights that show in the outputs."""

from pathlib import Path

import peft
import torch
import transformers

from tfx.chatter import quiet


def write_adapter(folder: Path, base: Path, cls, config, *, seed: int = 0, **changes) -> Path:
    """Save an adapter of a checkpoint, its weights random.

    Args:
        folder: Folder to make.
        base: The checkpoint's folder.
        cls: The transformers class it is loaded with.
        config: A ``LoraConfig`` or ``AdaLoraConfig``.
        seed: Of the weights.
        changes: Replace values of the checkpoint's configuration, e.g. ``num_labels``.
    """
    torch.manual_seed(seed)
    with quiet(), torch.no_grad():
        adapted = peft.get_peft_model(cls.from_pretrained(base, **changes), config)
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:  # B starts as zeros: nothing to see
                weight.normal_(std=0.3)
        adapted.save_pretrained(folder)
    return folder


def lora(
    folder: Path, base: Path, cls=transformers.BertModel, *, labels: int = 2, **options
) -> Path:
    """A LoRA of rank 4 on queries and values; ``options`` are those of ``LoraConfig``."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]} | options
    return write_adapter(folder, base, cls, peft.LoraConfig(**options), num_labels=labels)


def adalora(folder: Path, base: Path, cls=transformers.BertModel) -> Path:
    """An AdaLoRA on queries and values."""
    config = peft.AdaLoraConfig(init_r=4, target_modules=["query", "value"], total_step=10)
    return write_adapter(folder, base, cls, config)
