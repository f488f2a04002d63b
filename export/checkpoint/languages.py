"""The languages that a checkpoint's tokenizer has tokens for, and where they are put."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .tokenization import load_tokenizer

# How mBART and NLLB write the token of a language: "en_XX", "eng_Latn".
CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")

# How Marian writes the one to translate into, before the text: ">>fra<<".
MARIAN_CODE = re.compile(r">>(.+)<<")


@dataclass(frozen=True, slots=True)
class Languages:
    """Tokens of languages by their codes; fields as those of ``tfx.processing.Target``.

    Attributes:
        targets: Of those to write in.
        sources: Of those to read.
        source_place: 0, or -1 for the end of an input.
        leads_input: Whether the token of a target is put before the input.
    """

    targets: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    source_place: int = 0
    leads_input: bool = False


def read_languages(folder: Path) -> Languages:
    """Read the languages of M2M, mBART, NLLB, and of a Marian of several.

    Args:
        folder: The checkpoint.

    Raises:
        SourceError: If its tokenizer is damaged.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return Languages()
    tokenizer = load_tokenizer(folder)
    if codes := getattr(tokenizer, "supported_language_codes", None):
        ids = tokenizer.convert_tokens_to_ids(codes)
        found = zip(codes, ids, strict=True)
        named = {match[1]: int(one) for code, one in found if (match := MARIAN_CODE.match(code))}
        return Languages(named, leads_input=True)
    targets = _targets(tokenizer)
    place = _source_place(tokenizer, targets)
    return Languages(targets, {} if place is None else targets, place or 0)


def _targets(tokenizer: Any) -> dict[str, int]:
    known = getattr(tokenizer, "lang_code_to_id", None)
    if not known and hasattr(tokenizer, "src_lang"):
        known = {
            token: tokenizer.convert_tokens_to_ids(token)
            for token in tokenizer.all_special_tokens
            if CODE.fullmatch(token)
        }
    unknown = getattr(tokenizer, "unk_token_id", None)
    # A list of codes may be longer than the vocabulary.
    return {str(code): int(one) for code, one in (known or {}).items() if one != unknown}


def _source_place(tokenizer: Any, targets: Mapping[str, int]) -> int | None:
    """Where the language of an input is among its tokens; None if it is not there."""
    if not targets or not hasattr(tokenizer, "src_lang"):
        return None
    code = next(iter(targets))
    tokenizer.src_lang = code
    ids = tokenizer("").input_ids
    if len(ids) > 1 and targets[code] in (ids[0], ids[-1]):
        return 0 if ids[0] == targets[code] else -1
    return None
