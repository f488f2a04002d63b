"""The generation scenario: how fast a bundle with a cache writes, and whether it writes the same.

A text is a prompt of real words and as many new tokens as the plan says: the likeliest each time,
and no end before. A row writes it as ``Session.stream`` does, its tokenizer included; PyTorch as
transformers' ``generate`` does, on the bundle's source. What checks them is a text that is given
to the end: its last tokens are read one by one through the cache, and their logits compared with
those of PyTorch, which reads it whole and keeps no cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import BackendError, FeedError, listing
from tfx.processing import Generation
from tfx.runtime.backend import Executable, RunOptions, get_backend
from tfx.runtime.backends.torch_eager import TorchExecutable
from tfx.runtime.cpus import usable_cpus
from tfx.runtime.generation.decoder import Decoder, is_generator
from tfx.runtime.generation.kv_cache import cache_specs, text_signature
from tfx.runtime.generation.sample_texts import sample_ids
from tfx.runtime.pytorch.generators import reader_of
from tfx.runtime.pytorch.modules import Call, run_module, run_settings
from tfx.runtime.session import Session
from tfx.runtime.stats import latency_of
from tfx.signature import Feed, Signature

from .workload import NEW, PROMPT, Shape

# Tokens of the checked text that are read one by one, the last of it.
CHECKED = 16
# A short text: enough to read a prompt, and to step.
SHORT = 3

# It compiles one pass of a graph, and transformers' generate makes its own.
COMPILED = "torch-compiled"

# What a row's outputs hold: logits of the checked text, and the tokens it chose itself.
LOGITS, TOKENS = "logits", "tokens"


@dataclass(frozen=True, slots=True)
class Written:
    """One text of each row of a batch.

    Attributes:
        times_ns: From the start to each token of all rows.
        ids: The tokens, ``int64[batch, new]``.
    """

    times_ns: tuple[int, ...]
    ids: np.ndarray

    @property
    def first_ns(self) -> int:
        """From the prompt to the first token."""
        return self.times_ns[0]

    @property
    def steps_ns(self) -> list[int]:
        """From each token to the next."""
        return [after - before for before, after in zip(self.times_ns, self.times_ns[1:])]  # noqa: B905


@dataclass(frozen=True, slots=True)
class Writing:
    """What a row of the generation scenario adds to its times between tokens.

    Attributes:
        texts: Written, one a round.
        first_ms: From the prompt to the first token; median.
        first_p95_ms: 95 % took less; None with fewer than 200 texts.
        total_ms: Of a whole text; median.
        tokens_per_s: New tokens of all rows of the batch together, prompts read included.
        row_tokens_per_s: New tokens of each row.
        same_tokens: Share of the new tokens before the first that is not PyTorch's; None without
            a reference.
        cache_bytes_per_token: What the cache takes for one token of one row.
    """

    texts: int
    first_ms: float
    first_p95_ms: float | None
    total_ms: float
    tokens_per_s: float
    row_tokens_per_s: float
    same_tokens: float | None
    cache_bytes_per_token: int


class Writer(Protocol):
    """Writes texts in one way."""

    def write(self, count: int) -> Written:
        """Write ``count`` tokens after the prompts."""
        ...

    def logits(self) -> np.ndarray:
        """What follows each of the last tokens of the checked text: ``[batch, n, vocabulary]``."""
        ...


class SessionWriter:
    """A bundle, as ``Session.stream`` runs it."""

    def __init__(self, session: Session, executable: Executable, shape: Shape, seed: int) -> None:
        self._session = session
        self._executable = executable
        self._signature = session.signature
        self._text = text_of(session.bundle, shape, seed)
        self._prompts = self._text[:, : shape.sizes[PROMPT]].tolist()
        self._checked = checked(shape)

    def write(self, count: int) -> Written:
        """Write as a user's stream does."""
        last = len(self._prompts) - 1
        ids: list[list[int]] = [[] for _ in self._prompts]
        times: list[int] = []
        started = time.perf_counter_ns()
        for token in self._session.stream(
            self._prompts, max_new_tokens=count, min_new_tokens=count
        ):
            ids[token.row].append(token.id)
            if token.row == last:
                times.append(time.perf_counter_ns() - started)
        return Written(tuple(times), np.array(ids, np.int64))

    def logits(self) -> np.ndarray:
        """Read the checked text, its last tokens one by one through the cache."""
        decoder = Decoder(self._executable, self._signature)
        width = self._text.shape[1]
        start = width - self._checked
        begun = self._text[:, :start]
        # Copies: an engine may write the next logits to the same memory.
        found = [decoder.start(begun, np.ones_like(begun), width).copy()]
        found += [decoder.step(self._text[:, at]).copy() for at in range(start, width - 1)]
        return np.stack(found, axis=1)


class SourceWriter:
    """The model that a bundle was made from, as transformers' ``generate`` runs it."""

    def __init__(
        self, executable: TorchExecutable, bundle: Bundle, shape: Shape, seed: int
    ) -> None:
        """Take the model out of the loaded source.

        Raises:
            BackendError: If it is not a model of transformers.
        """
        generator: Any = executable.module
        self._model: Any = getattr(generator, "model", None)
        if not hasattr(self._model, "generate"):
            raise BackendError(
                f"the source of {bundle.name} cannot generate text by itself",
                hint="Leave the torch backend out.",
            )
        read = reader_of(generator)
        self._read: Call = lambda **feed: {LOGITS: read(**feed)[LOGITS].float()}
        self._threads = executable.facts.threads
        self._end_ids = list((bundle.manifest.processing.generation or Generation()).end_ids)
        self._text = text_of(bundle, shape, seed)
        self._prompts = self._text[:, : shape.sizes[PROMPT]]
        self._checked = checked(shape)

    def write(self, count: int) -> Written:
        """Write greedily, with none of the checkpoint's own settings of generation."""
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        times: list[int] = []

        def watch(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            times.append(time.perf_counter_ns() - started)
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        settings = GenerationConfig(
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            use_cache=True,
            eos_token_id=self._end_ids or None,
            pad_token_id=0,
        )
        # It fills what a configuration leaves open from the model's own.
        self._model.generation_config = settings
        with run_settings(self._threads), torch.inference_mode():
            given = torch.from_numpy(self._prompts).to(self._model.device)
            started = time.perf_counter_ns()
            found = self._model.generate(
                given,
                attention_mask=torch.ones_like(given),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        return Written(tuple(times), found[:, self._prompts.shape[1] :].cpu().numpy())

    def logits(self) -> np.ndarray:
        """Read the checked text whole, without a cache."""
        feed = {"input_ids": self._text, "attention_mask": np.ones_like(self._text)}
        found = run_module(self._read, feed, threads=self._threads)[LOGITS]
        kept: np.ndarray = found[:, -self._checked - 1 : -1]
        return kept


def open_writer(
    bundle: Bundle,
    *,
    backend: str,
    precision: str,
    threads: int | None,
    trust: bool,
    device: str,
    shape: Shape,
    seed: int,
) -> tuple[Session, Writer, float]:
    """Load a row.

    Returns:
        Its session, what writes with it, and the seconds that loading took.

    Raises:
        BackendError: If the backend cannot run the bundle, or cannot generate with it.
    """
    if backend == COMPILED:
        raise BackendError(
            f"backend {backend!r} is not measured generating: transformers runs the model as it is",
            hint="Use --backend torch.",
        )
    started = time.perf_counter()
    options = RunOptions(device or "cpu", threads or usable_cpus(), trust, precision)
    executable = get_backend(backend).load(bundle, options)
    load_s = time.perf_counter() - started
    session = Session(bundle, executable, load_s)
    if isinstance(executable, TorchExecutable):
        return session, SourceWriter(executable, bundle, shape, seed), load_s
    return session, SessionWriter(session, executable, shape, seed), load_s


def text_of(bundle: Bundle, shape: Shape, seed: int) -> np.ndarray:
    """Tokens of the prompts and the checked rest, ``int64[batch, prompt + new]``."""
    return sample_ids(bundle, shape.batch, shape.sizes[PROMPT] + shape.sizes[NEW], seed)


def checked(shape: Shape) -> int:
    """How many tokens of the checked text have their logits compared."""
    return min(CHECKED, shape.sizes[NEW])


def checked_feed(signature: Signature, shape: Shape) -> tuple[Signature, Feed]:
    """What the compared logits are outputs of, for ``agreement_of``: tokens, none of padding."""
    text = np.zeros((shape.batch, checked(shape)), np.int64)
    return text_signature(signature), {"input_ids": text, "attention_mask": np.ones_like(text)}


def writing_of(
    texts: Sequence[Written], batch: int, same: float | None, signature: Signature
) -> Writing:
    """Sum up the texts of all rounds.

    Args:
        texts: At least one.
        batch: Rows of each.
        same: As ``Writing.same_tokens``.
        signature: Of the bundle.
    """
    first = latency_of([[one.first_ns] for one in texts])
    total = latency_of([[one.times_ns[-1]] for one in texts])
    per_row = len(texts[0].times_ns) * 1000 / total.median_ms
    return Writing(
        texts=len(texts),
        first_ms=first.median_ms,
        first_p95_ms=first.p95_ms,
        total_ms=total.median_ms,
        tokens_per_s=batch * per_row,
        row_tokens_per_s=per_row,
        same_tokens=same,
        cache_bytes_per_token=cache_bytes(signature),
    )


def same_share(ids: np.ndarray, expected: np.ndarray) -> float:
    """Share of the tokens of each row before the first that differs."""
    same = np.logical_and.accumulate(ids == expected, axis=1)
    return float(same.mean())


def cache_bytes(signature: Signature) -> int:
    """What the cache takes for one token of one row."""
    return sum(
        spec.dtype.itemsize * int(np.prod([size for size in spec.shape if isinstance(size, int)]))
        for spec in cache_specs(signature)
    )


def require_cache(bundles: Sequence[Bundle]) -> None:
    """See that all bundles can be measured by what they write.

    Raises:
        FeedError: If one has no cache; names each.
    """
    without = [bundle.name for bundle in bundles if not is_generator(bundle.manifest.signature)]
    if without:
        raise FeedError(
            listing("no cache to generate with:", without),
            hint="Export a causal language model without --no-cache, or take another --scenario.",
        )
