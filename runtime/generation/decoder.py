"""A graph with a cache, step by step: tokens in, the last token's logits out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tfx.errors import BackendError
from tfx.signature import BATCH, Feed, Signature

from ..backend import Executable
from .kv_cache import (
    CAPACITY,
    KEPT,
    KEPT_TOKENS,
    MASK,
    POSITION,
    cache_specs,
    empty_cache,
    is_cross,
    present_of,
)

# Places a cache has beyond the tokens in it when it begins or grows: the more of these, of which
# a long one has a share. Attention reads them in every step, and a growth copies the whole.
SPARE_PLACES = 64
SPARE_SHARE = 1 / 8


class Stepping(Protocol):
    """Runs a graph on the cache of one batch, which it keeps.

    Attributes:
        copied: How often the whole cache was copied, to grow or to keep some of its rows.
    """

    copied: int

    def begin(self, batch: int, capacity: int) -> None:
        """Start with an empty cache of so many places."""
        ...

    def grow(self, capacity: int) -> None:
        """Make room for more places; those that are taken keep what they hold."""
        ...

    def take(self, rows: np.ndarray) -> None:
        """Go on with these rows, in this order; one may be there several times."""
        ...

    def run(self, feed: Feed) -> np.ndarray:
        """Logits ``[batch, 1, vocabulary]``; the cache has the tokens of ``feed`` afterwards."""
        ...


class Decoder:
    """The tokens of one batch so far, and what runs the graph on them. For one thread.

    Attributes:
        length: Places of the cache that are taken.
        stepping: Has the cache.
    """

    def __init__(self, executable: Executable, signature: Signature) -> None:
        in_place = getattr(executable, "in_place", None)
        self.stepping: Stepping = (
            in_place(signature) if in_place is not None else Returned(executable, signature)
        )
        self._mask = np.zeros((0, 0), np.int64)
        self._room = 0
        self.length = 0

    @property
    def copied(self) -> int:
        """How often the whole cache was copied, to grow or to keep some of its rows."""
        return self.stepping.copied

    def start(self, ids: np.ndarray, mask: np.ndarray, room: int) -> np.ndarray:
        """Read prompts into an empty cache.

        Args:
            ids: ``int64[batch, sequence]``, padded on the left: steps go on behind the last place,
                and a sliding window, as in transformers, counts the places between.
            mask: 1 for tokens, 0 for padding; like ``ids``.
            room: Most places the cache will need.

        Returns:
            Logits of what follows each prompt, ``[batch, vocabulary]``.
        """
        batch, sequence = ids.shape
        capacity = _roomy(sequence, room)
        self._room, self.length = room, 0
        self.stepping.begin(batch, capacity)
        # What follows is a token of each row; until it is written, its place is in the future.
        self._mask = np.ones((batch, capacity), np.int64)
        self._mask[:, :sequence] = mask
        return self._run(ids)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token of each row.

        Args:
            tokens: ``int64[batch]``.

        Returns:
            Logits of what follows, ``[batch, vocabulary]``.
        """
        batch, before = self._mask.shape
        if self.length == before:
            capacity = _roomy(self.length, self._room)
            self.stepping.grow(capacity)
            mask = np.ones((batch, capacity), np.int64)
            mask[:, :before] = self._mask
            self._mask = mask
        return self._run(tokens[:, None])

    def take(self, rows: np.ndarray) -> None:
        """Go on with these rows, in this order; one may be there several times."""
        self._mask = self._mask[rows]
        self.stepping.take(rows)

    def _run(self, ids: np.ndarray) -> np.ndarray:
        end = self.length + ids.shape[1]
        feed = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            MASK: self._mask,
            POSITION: np.arange(self.length, end, dtype=np.int64),
            KEPT_TOKENS: np.array([ids.shape[1] - 1], np.int64),
        }
        logits = self.stepping.run(feed)
        self.length = end
        # On ONNX Runtime the next step writes its logits to the same memory.
        found: np.ndarray = logits[:, -1].copy()
        return found


def _roomy(length: int, room: int) -> int:
    """Places of a cache that holds so many tokens, and never more than ``room``."""
    return min(room, length + max(SPARE_PLACES, int(length * SPARE_SHARE)))


class _Arrays:
    """A cache in arrays of NumPy.

    Attributes:
        copied: How often the whole cache was copied.
    """

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._cache: dict[str, np.ndarray] = {}
        self.copied = 0

    def begin(self, batch: int, capacity: int) -> None:
        self._cache = empty_cache(self._signature, batch, capacity)

    def grow(self, capacity: int) -> None:
        for name, array in self._cache.items():
            batch, heads, places, size = array.shape
            larger = np.zeros((batch, heads, capacity, size), array.dtype)
            larger[:, :, :places] = array
            self._cache[name] = larger
        self.copied += 1

    def take(self, rows: np.ndarray) -> None:
        for name, array in self._cache.items():
            self._cache[name] = array[rows]
        self.copied += 1


class Returned(_Arrays):
    """Any backend: the cache goes in and comes back as other arrays."""

    def __init__(self, executable: Executable, signature: Signature) -> None:
        """Prepare for a graph with a cache."""
        super().__init__(signature)
        self._executable = executable

    def run(self, feed: Feed) -> np.ndarray:
        """Logits; the arrays that come back are the cache of the next run."""
        outputs = self._executable.run({**feed, **self._cache})
        for name in self._cache:
            self._cache[name] = outputs[present_of(name)]
        return outputs["logits"]


class OnnxInPlace(_Arrays):
    """ONNX Runtime on a CPU: past and present are the same memory, and nothing is copied."""

    def __init__(self, session: Any, signature: Signature) -> None:
        """Bind to an ``InferenceSession`` of a graph with a cache."""
        super().__init__(signature)
        self._session = session
        self._binding: Any = None
        self._logits = np.zeros(0, np.float32)

    def begin(self, batch: int, capacity: int) -> None:
        """Start with an empty cache of so many places."""
        self._binding = None
        super().begin(batch, capacity)

    def grow(self, capacity: int) -> None:
        """Make room for more places, an array at a time: the binding lets go of the old ones."""
        self._binding = None
        super().grow(capacity)

    def take(self, rows: np.ndarray) -> None:
        """Go on with these rows, in this order; one may be there several times."""
        self._binding = None
        super().take(rows)

    def run(self, feed: Feed) -> np.ndarray:
        """Logits; the new tokens are written into the arrays of the cache.

        Raises:
            BackendError: If ONNX Runtime fails.
        """
        binding = self._binding = self._binding or self._bound()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # its pybind exceptions share no public base
            raise BackendError(f"onnxruntime failed: {error}") from error
        return self._logits

    def _bound(self) -> Any:
        """A binding of arrays of ours, whose memory it shares: the cache's, and one for logits.

        To ask a binding for what it gave takes 0.1 ms a step: it wraps each present again.
        """
        import onnxruntime

        binding = self._session.io_binding()
        batch = len(next(iter(self._cache.values())))
        (logits,) = (spec for spec in self._signature.outputs if KEPT in spec.shape)
        vocabulary = logits.shape[-1]
        assert isinstance(vocabulary, int)
        self._logits = np.zeros((batch, 1, vocabulary), logits.dtype.numpy)
        value_of = onnxruntime.OrtValue.ortvalue_from_numpy
        binding.bind_ortvalue_output(logits.name, value_of(self._logits))
        for name, array in self._cache.items():
            value = value_of(array)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(present_of(name), value)
        return binding


def longest(signature: Signature) -> int:
    """Most tokens a cache may hold."""
    return signature.ranges[CAPACITY].max


def most_rows(signature: Signature) -> int:
    """Largest batch of a signature with a cache."""
    sizes = signature.ranges.get(BATCH)
    return sizes.max if sizes else 1


def is_generator(signature: Signature) -> bool:
    """Whether a graph writes text by itself: it has a cache, and no encoder beside it."""
    return bool(cache_specs(signature)) and not any(map(is_cross, signature.inputs))
