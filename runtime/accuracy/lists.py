"""Tables and JSONL files whose columns say what they list: sounds, or texts to translate."""

from __future__ import annotations

from pathlib import Path

from .samples import Dataset
from .sound_lists import is_sound_list, read_sound_list
from .translation_lists import is_translation_list, read_translation_list


def read_list(path: Path) -> Dataset | None:
    """What a file lists; None for one that is no such list.

    Raises:
        DataError: If it cannot be read, or is damaged.
    """
    for belongs, read in (
        (is_sound_list, read_sound_list),
        (is_translation_list, read_translation_list),
    ):
        if belongs(path):
            return read(path)
    return None
