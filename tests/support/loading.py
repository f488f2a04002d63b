"""Loading that is refused, and checkpoints to damage."""

import json
from pathlib import Path

import pytest

from tfx.errors import SourceError
from tfx.export.checkpoint.loader import load
from tfx.recipe import ExportRecipe

RECIPE = ExportRecipe()
RANDOM = ExportRecipe(random_weights=True)

# The hint where a name stands for nothing.
NAMES = (
    "Use an alias (minilm, bert-base, bert-large, distilbert, roberta-base, gpt2, vit-base), "
    "a checkpoint folder, a hub id or file.py:factory."
)


def refused(model, recipe=RECIPE, examples=None):
    with pytest.raises(SourceError) as caught:
        load(str(model) if isinstance(model, Path) else model, recipe, examples)
    return str(caught.value), caught.value.hint


def edit_config(folder, **changes):
    """Replace values of config.json; ``...`` removes one."""
    path = folder / "config.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))
