"""The JSON files in a checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfx.errors import SourceError


def read_json(path: Path, expected: type = dict) -> Any:
    """The JSON of a file of the checkpoint; empty where the file is not there.

    Raises:
        SourceError: If it is not JSON, or something else than ``expected``.
    """
    if not path.is_file():
        return expected()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} is damaged: {error}", hint="Copy or download the file again."
        ) from error
    if not isinstance(document, expected):
        raise SourceError(
            f"{path} is damaged: got {type(document).__name__}, expected {expected.__name__}"
        )
    return document
