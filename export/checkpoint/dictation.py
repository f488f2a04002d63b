"""What a checkpoint of Whisper says about the text its decoder writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfx.processing import Dictation

from .generation import SETTINGS_FILE, read_settings

MODEL_TYPE = "whisper"

# Frames of features that become one of the encoder's states: the stride of its convolutions.
STRIDE = 2


def read_dictation(config: Any, folder: Path, notes: list[str]) -> Dictation | None:
    """Read which tokens a text begins with, which ones are times, and which are never written.

    Args:
        config: The model's configuration.
        folder: The checkpoint.
        notes: A sentence is added for what it does not say.

    Returns:
        None for a model of another kind.

    Raises:
        SourceError: If its file is damaged.
    """
    if config.model_type != MODEL_TYPE:
        return None
    said = read_settings(config, folder)
    ends = said.eos_token_id
    languages, tasks = {}, {}
    if getattr(said, "is_multilingual", True):
        named = getattr(said, "lang_to_id", None) or {}
        languages = {text.strip("<|>"): int(token) for text, token in named.items()}
        named = getattr(said, "task_to_id", None) or {}
        tasks = {str(task): int(token) for task, token in named.items()}
    no_times = getattr(said, "no_timestamps_token_id", None)
    if no_times is None:
        notes.append(f"its {SETTINGS_FILE} names no tokens for times: transcribe gives none")
    latest = getattr(said, "max_initial_timestamp_index", None)
    return Dictation(
        int(said.decoder_start_token_id),
        int(ends[0] if isinstance(ends, list) else ends),
        -1 if no_times is None else int(no_times),
        languages,
        tasks,
        tuple(said.suppress_tokens or ()),
        tuple(said.begin_suppress_tokens or ()),
        -1 if latest is None else int(latest),
        window=STRIDE * config.max_source_positions,
        stride=STRIDE,
    )
