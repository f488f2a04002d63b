"""What an export changes in a model: read from the command line, and said in the manifest."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from typing import Any

from tfx.errors import ExportError, RecipeError
from tfx.recipe import Changes, spans
from tfx.runtime.pytorch.adapters import Adapter

NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")

# PEFT's task types -> optimum's tasks.
TASKS_OF_ADAPTERS = {
    "CAUSAL_LM": "text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
    "QUESTION_ANS": "question-answering",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
}


def layers_from_text(text: str) -> tuple[int, ...]:
    """``"0-3,6"`` as numbers: 0, 1, 2, 3, 6.

    Raises:
        RecipeError: If it is not a list of numbers and spans.
    """
    return tuple(_numbers(text, "layers", "0-5 or 0,2,4"))


def heads_from_text(text: str) -> tuple[tuple[int, int], ...]:
    """``"0:1,3;2:0"`` as (layer, head): (0, 1), (0, 3), (2, 0).

    Raises:
        RecipeError: If it is not a list of layers, each with its heads.
    """
    pairs = []
    for part in text.split(";"):
        layer, colon, heads = part.strip().partition(":")
        if not colon or not layer.isdecimal():
            raise RecipeError(f"heads are {text!r}, expected LAYER:HEADS like 0:1,3;2:0-2")
        pairs += [(int(layer), head) for head in _numbers(heads, "heads", "0:1,3;2:0-2", text)]
    return tuple(pairs)


def describe_changes(changes: Changes, config: Any) -> tuple[str, ...]:
    """What was done to a model, one sentence each, for the manifest's notes.

    Args:
        changes: Made to it.
        config: The model's configuration before them.
    """
    notes = []
    if changes.adapter:
        notes.append(f"the adapter {changes.adapter} is merged into the weights")
    heads = collections.defaultdict(list)
    for layer, head in changes.drop_heads:
        heads[layer].append(head)
    for layer, dropped in sorted(heads.items()):
        notes.append(
            f"attention {_counted('head', sorted(dropped))} of "
            f"{config.num_attention_heads} in layer {layer} removed"
        )
    if changes.layers:
        removed = sorted(set(range(config.num_hidden_layers)) - set(changes.layers))
        notes.append(
            f"{_counted('layer', removed)} of {config.num_hidden_layers} removed"
            if removed
            else f"all {config.num_hidden_layers} layers are kept"
        )
    if changes.attentions:
        notes.append(
            "attention maps are outputs: attention that gives one stays MatMul and Softmax"
        )
    return tuple(notes)


def task_of_adapter(adapter: Adapter) -> str:
    """The task an adapter was trained for, as optimum spells it; "" where it does not say."""
    return TASKS_OF_ADAPTERS.get(adapter.task, "")


def require_attentions(names: list[str], model: str) -> None:
    """Check that a model that was asked for its attention maps returned some.

    Raises:
        ExportError: If none of its outputs is one.
    """
    if not any("attentions" in name.split(".") for name in names):
        raise ExportError(
            f"{model} returns no attention maps, only {', '.join(names)}",
            hint="Leave --attentions out.",
        )


def _counted(noun: str, numbers: list[int]) -> str:
    return f"{noun}{'s' if len(numbers) > 1 else ''} {spans(numbers)}"


def _numbers(text: str, what: str, example: str, whole: str = "") -> Iterator[int]:
    text = text.replace(" ", "")
    if not NUMBERS.fullmatch(text):
        raise RecipeError(f"{what} are {(whole or text)!r}, expected numbers like {example}")
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise RecipeError(
                f"{what} are {(whole or text)!r}: {part} counts downwards",
                hint="Write a range upwards, like 0-5.",
            )
        yield from range(int(first), int(last or first) + 1)
