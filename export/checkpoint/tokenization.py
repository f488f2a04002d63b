"""A checkpoint's tokenizer: loaded by transformers, written for the library ``tokenizers``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.errors import SourceError
from tfx.extras import install_hint, need
from tfx.processing import Tokenization
from tfx.signature import SEQUENCE, Signature

from .pieces import Converted, convert, is_convertible
from .settings import read_json

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint has a file of a tokenizer."""
    return any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint, by transformers.

    Raises:
        SourceError: If it is damaged, or needs a library that is not installed.
    """
    try:
        return need("transformers").AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # What a damaged file raises depends on which of a tokenizer's many files it is.
    except Exception as error:
        # transformers says it in many ways, some of which are no ImportError.
        lacking = "sentencepiece" in str(error).lower() and not _has_sentencepiece()
        again = "Copy or download the tokenizer's files again."
        raise SourceError(
            f"cannot load the tokenizer of {folder}: {error}",
            hint=install_hint("sentencepiece") if lacking else again,
        ) from error


def write_tokenizer(
    folder: Path, signature: Signature, target: Path, notes: list[str]
) -> Tokenization | None:
    """Write a checkpoint's tokenizer as the library ``tokenizers`` reads it.

    Args:
        folder: The checkpoint.
        signature: Of the graph; bounds the length of a text.
        target: Folder that the tokenizer's JSON is written to.
        notes: Gets a sentence where there is none.

    Raises:
        SourceError: If it is damaged, or needs a library that is not installed.
    """
    if not has_tokenizer(folder):
        notes.append("the checkpoint has no tokenizer: predict takes arrays, not text")
        return None
    loaded = load_tokenizer(folder)
    converted = _converted(loaded)
    if isinstance(converted, str):
        notes.append(
            f"{type(loaded).__name__} has no `tokenizers` form{converted}: "
            "predict takes arrays, not text"
        )
        return None
    backend: tokenizers.Tokenizer = converted.tokenizer
    limits = [loaded.model_max_length]
    if SEQUENCE in signature.ranges:
        limits.append(signature.ranges[SEQUENCE].max)
    sentence = read_json(folder / "sentence_bert_config.json")
    if sentence.get("max_seq_length"):
        limits.append(sentence["max_seq_length"])
    if sentence.get("do_lower_case"):
        backend.normalizer = _lower_cased(backend.normalizer)
    # Lengths and padding are the runtime's to choose, feed by feed.
    backend.no_truncation()
    backend.no_padding()
    (target / TOKENIZER_FILE).write_text(backend.to_str(pretty=False), encoding="utf-8")
    pad_id = loaded.pad_token_id
    if pad_id is None:
        # Hidden by the mask: any token will do.
        pad_id = loaded.eos_token_id or 0
    return Tokenization(
        TOKENIZER_FILE,
        int(min(limits)),
        int(pad_id),
        loaded.padding_side,
        converted.known,
        converted.unknown,
    )


def _converted(loaded: Any) -> Converted | str:
    """A tokenizer of transformers for the library ``tokenizers``, or why there is none."""
    if loaded.is_fast:
        return Converted(loaded.backend_tokenizer)
    if not is_convertible(loaded):
        return ""
    found = convert(loaded)
    return f" ({found})" if isinstance(found, str) else found


def _lower_cased(normalizer: Any) -> Any:
    from tokenizers import normalizers

    steps = [normalizers.Lowercase()] + ([normalizer] if normalizer is not None else [])
    return normalizers.Sequence(steps)


def _has_sentencepiece() -> bool:
    return importlib.util.find_spec("sentencepiece") is not None
