"""What a checkpoint says about text that goes on: where it ends, and the form of a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfx.errors import SourceError
from tfx.extras import need
from tfx.processing import Generation

from .tokenization import load_tokenizer

TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "generation_config.json"


def read_generation(config: Any, folder: Path | None, target: Path) -> Generation:
    """Read end tokens and chat template; write the template.

    Args:
        config: The model's configuration.
        folder: The checkpoint; None where there is none.
        target: Folder that the template is written to.

    Raises:
        SourceError: If a file of the checkpoint is damaged.
    """
    ends = getattr(config, "eos_token_id", None)
    if folder is None:
        return Generation(token_ids(ends))
    settings = folder / SETTINGS_FILE
    if settings.is_file():
        try:
            # Chat models end at more tokens than their configuration says.
            ends = json.loads(settings.read_text(encoding="utf-8")).get("eos_token_id", ends)
        except (OSError, ValueError, AttributeError) as error:
            raise SourceError(
                f"{settings} is damaged: {error}", hint="Copy or download the file again."
            ) from error
    template, special = _template(folder)
    if template:
        (target / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    return Generation(token_ids(ends), TEMPLATE_FILE if template else "", special)


def read_settings(config: Any, folder: Path | None) -> Any:
    """The checkpoint's ``GenerationConfig``, from its file or, without one, its configuration.

    Args:
        config: The model's configuration.
        folder: The checkpoint; None where there is none.

    Raises:
        SourceError: If the file is damaged.
    """
    settings = need("transformers").GenerationConfig
    try:
        if folder is not None and (folder / SETTINGS_FILE).is_file():
            return settings.from_pretrained(folder)
        return settings.from_model_config(config)
    # OSError, ValueError, TypeError, and the validation errors of its class.
    except Exception as error:
        raise SourceError(
            f"cannot read the {SETTINGS_FILE} of {folder}: {error}",
            hint="Copy or download the file again.",
        ) from error


def token_ids(ends: Any) -> tuple[int, ...]:
    """Ids of a setting that holds none, one or several."""
    if ends is None:
        return ()
    return (ends,) if isinstance(ends, int) else tuple(int(end) for end in ends)


def _template(folder: Path) -> tuple[str, dict[str, str]]:
    if not (folder / "tokenizer_config.json").is_file():
        return "", {}
    tokenizer = load_tokenizer(folder)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # one for chats and others for tools
        template = template.get("default", "")
    if not template:
        return "", {}
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    return template, {name: text for name in names if (text := getattr(tokenizer, name, None))}
