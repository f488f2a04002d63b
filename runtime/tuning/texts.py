"""What ``tfx tune`` runs of a bundle with a cache: a text that is written, and one to compare."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import FeedError
from tfx.signature import BATCH, Feed, Signature

from ..backend import Executable
from ..generation.decoder import Decoder, longest, most_rows
from ..generation.kv_cache import MASK, whole_feed
from ..generation.sample_texts import sample_ids

# Sizes of a text: tokens that are read at once, and those that are written.
PROMPT, NEW = "prompt", "new"

# What is measured unless a caller says otherwise: batch and prompt; and tokens written.
DEFAULT_TEXTS = ((1, 128), (8, 128))
DEFAULT_NEW = 32

# Tokens, the last of a text, whose logits are compared: each was read alone, through the cache.
COMPARED = 16


def default_texts(signature: Signature) -> tuple[dict[str, int], ...]:
    """One text and a batch of them, as near as the signature admits."""
    new = min(DEFAULT_NEW, max(longest(signature) // 2, 1))
    found: list[dict[str, int]] = []
    for batch, prompt in DEFAULT_TEXTS:
        sizes = {
            BATCH: min(batch, most_rows(signature)),
            PROMPT: min(prompt, longest(signature) - new),
            NEW: new,
        }
        if sizes not in found:
            found.append(sizes)
    return tuple(found)


def text_sizes(text: str, signature: Signature) -> dict[str, int]:
    """Read sizes as they are typed: ``1x128`` or ``1x128+64``, batch x prompt + new tokens.

    Raises:
        FeedError: If it is neither, or more than the signature admits.
    """
    shape, plus, new = text.partition("+")
    try:
        batch, prompt = map(int, shape.split("x"))
        sizes = {BATCH: batch, PROMPT: prompt, NEW: int(new) if plus else DEFAULT_NEW}
    except ValueError as error:
        raise FeedError(
            f"shape is {text!r}, expected one like 1x128+64",
            hint="Give BATCHxPROMPT or BATCHxPROMPT+NEW, in tokens.",
        ) from error
    room, rows = longest(signature), most_rows(signature)
    if min(sizes.values()) < 1 or batch > rows or prompt + sizes[NEW] > room:
        raise FeedError(
            f"shape {text!r} is {batch} times {prompt} and {sizes[NEW]} tokens, the model takes 1 "
            f"to {rows} times 2 to {room}",
            hint="Give BATCHxPROMPT+NEW within that.",
        )
    return sizes


def text_label(sizes: Mapping[str, int]) -> str:
    """What sizes are called, e.g. ``1x128+64``."""
    return f"{sizes[BATCH]}x{sizes[PROMPT]}+{sizes[NEW]}"


def text_feed(bundle: Bundle, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Tokens ``input_ids``, ``int64[batch, prompt + new]``, and how many of them are ``prompt``."""
    length = sizes[PROMPT] + sizes[NEW]
    ids = sample_ids(bundle, sizes[BATCH], length, seed)
    return {"input_ids": ids, PROMPT: np.array(sizes[PROMPT], np.int64)}


def compared_feed(feed: Feed) -> dict[str, np.ndarray]:
    """What the compared logits are outputs of: tokens of a text, none of them padding."""
    ids = feed["input_ids"]
    ids = ids[:, -min(COMPARED, ids.shape[1] - int(feed[PROMPT])) :]
    return {"input_ids": ids, MASK: np.ones_like(ids)}


class TextRun:
    """Runs texts with a loaded bundle with a cache."""

    def __init__(self, executable: Executable, signature: Signature) -> None:
        self._executable = executable
        self._signature = signature

    def write(self, feed: Feed) -> None:
        """Read the prompts and write on, the likeliest token each time, whatever it is."""
        ids, prompt = feed["input_ids"], int(feed[PROMPT])
        decoder, logits = self._begun(ids[:, :prompt], ids.shape[1])
        for _ in range(ids.shape[1] - prompt - 1):
            logits = decoder.step(logits.argmax(axis=1))

    def outputs(self, feed: Feed) -> dict[str, np.ndarray]:
        """Logits of what follows each of the last tokens; those are read one by one."""
        ids = feed["input_ids"]
        count = compared_feed(feed)["input_ids"].shape[1]
        decoder, logits = self._begun(ids[:, :-count], ids.shape[1])
        found = [logits.copy()]
        # Copies: an engine may write the next logits to the same memory.
        found += [decoder.step(ids[:, -place]).copy() for place in range(count, 1, -1)]
        return {"logits": np.stack(found, axis=1)}

    def whole(self, feed: Feed) -> dict[str, np.ndarray]:
        """Logits of whole texts, as the stored ones of the bundle's proof are."""
        return self._executable.run(whole_feed(self._signature, feed))

    def _begun(self, prompts: np.ndarray, room: int) -> tuple[Decoder, np.ndarray]:
        decoder = Decoder(self._executable, self._signature)
        return decoder, decoder.start(np.ascontiguousarray(prompts), np.ones_like(prompts), room)
