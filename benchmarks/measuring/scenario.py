"""What a row is asked, and when: the scenarios and the lengths of its queries.

The scenarios are those of MLPerf's loadgen. *Single-stream* asks one query after the other and
counts the time of each. *Offline* gives all samples at once, in whatever order and batches suit,
and counts samples per second. *Server* sends queries at random moments (a Poisson process of
``qps``), whether or not the earlier ones are answered: the time of each counts from the moment it
arrives, waiting included. *Generation*, which MLPerf has not, is for bundles with a cache: prompts
of one length go on for some tokens, and the time to each token counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from tfx.errors import DataError
from tfx.feeds import random_feed
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.clock import Clock
from tfx.runtime.session import Session
from tfx.runtime.text.batching import cut_batches
from tfx.runtime.text.texts import BATCH_ROWS, BATCH_TOKENS
from tfx.runtime.text.tokenizer import Text, Tokenizer
from tfx.signature import SEQUENCE, Feed, Signature

FIXED, ZIPF = "fixed", "zipf"

# Queries that differ in length; rounds take them in turn. Of the offline scenario, all samples.
QUERIES = 64
# Calls of a block whose queries differ: as many for every row, so that all get the same ones.
MIXED_CALLS = 16
# Arrivals of a block of the server scenario: so many seconds of them, within these counts.
LEAST_ARRIVALS, MOST_ARRIVALS = 20, 1000
# With fewer there is no time between two tokens.
LEAST_NEW = 2
SERVER_S = 2.0
# A block ends after so many times the time its queries take to arrive, though some are unanswered:
# whoever is that late never catches up.
PATIENCE = 2.0


class Scenario(StrEnum):
    """When queries are sent, and what number is reported."""

    SINGLE_STREAM = "single-stream"
    OFFLINE = "offline"
    SERVER = "server"
    GENERATION = "generation"


@dataclass(frozen=True, slots=True)
class Load:
    """What a row is asked.

    Attributes:
        scenario: When.
        lengths: "fixed", "zipf", or a file of texts whose lengths are real.
        preprocessing: Whether texts are sent, and their tokenization counts; else arrays.
        qps: Queries per second of the server scenario.
        new_tokens: Tokens written after each prompt in the generation scenario; 0 in others.
    """

    scenario: str = Scenario.SINGLE_STREAM
    lengths: str = FIXED
    preprocessing: bool = False
    qps: float = 0.0
    new_tokens: int = 0

    @property
    def writes(self) -> bool:
        """Whether rows generate text."""
        return self.scenario == Scenario.GENERATION

    @property
    def mixed(self) -> bool:
        """Whether queries differ in length."""
        return self.lengths != FIXED

    @property
    def alike(self) -> bool:
        """Whether all calls do the same, so that the fastest is the one nothing disturbed."""
        if self.scenario == Scenario.OFFLINE:
            return True
        return not self.mixed and self.scenario != Scenario.SERVER

    @property
    def arrivals(self) -> int:
        """Queries of one block of the server scenario."""
        return min(max(LEAST_ARRIVALS, round(self.qps * SERVER_S)), MOST_ARRIVALS)

    @property
    def problems(self) -> list[str]:
        """What contradicts itself, one sentence each."""
        found = []
        if self.preprocessing and self.lengths in (FIXED, ZIPF):
            found.append("preprocessing needs texts: give --lengths FILE")
        if (self.scenario == Scenario.SERVER) != (self.qps > 0):
            found.append(
                f"qps is {self.qps:g} with scenario {self.scenario}: the server scenario needs one "
                "above 0, and no other takes it"
            )
        if self.writes and self.new_tokens < LEAST_NEW:
            found.append(
                f"new_tokens is {self.new_tokens}, expected {LEAST_NEW} or more: the time between "
                "two tokens counts"
            )
        if self.new_tokens and not self.writes:
            found.append(f"new_tokens are for scenario {Scenario.GENERATION}")
        if self.writes and (self.mixed or self.preprocessing):
            found.append(
                "prompts to be written on are random tokens of one length: give --prompt-tokens"
            )
        return found

    def __str__(self) -> str:
        """As titles of tables say it; "" for what is always meant."""
        parts = []
        if self.scenario == Scenario.SERVER:
            parts.append(f"server at {self.qps:g} queries per s")
        elif self.scenario == Scenario.OFFLINE:
            parts.append("offline")
        elif self.writes:
            parts.append("generation")
        if self.mixed:
            where = "Zipf" if self.lengths == ZIPF else Path(self.lengths).name
            parts.append(f"lengths of {where}")
            parts.append("tokenization " + ("included" if self.preprocessing else "not included"))
        return ", ".join(parts)


# One query: arrays, or texts whose tokenization counts.
Query = Feed | list[Text]


def queries_of(
    session: Session, load: Load, sizes: Mapping[str, int], seed: int
) -> tuple[list[Query], int]:
    """What the row is asked, made before anything is timed.

    Args:
        session: What will answer.
        load: What is asked.
        sizes: Of every dynamic axis; those of a sequence are the longest of Zipf's lengths.
        seed: Of the draws.

    Returns:
        Queries, and the samples in all of them. Offline, one call answers all.

    Raises:
        DataError: If the file has no texts.
        FeedError: If the bundle takes no text.
    """
    signature = session.signature
    rows = sizes.get("batch", 1)
    rng = np.random.default_rng(seed)
    if load.lengths == FIXED:
        feed = random_feed(signature, sizes, np.random.default_rng(seed), padding="right")
        count = max(1, QUERIES // rows) if load.scenario == Scenario.OFFLINE else 1
        return [feed] * count, count * rows
    count = QUERIES if load.scenario != Scenario.OFFLINE else max(1, QUERIES // rows)
    if load.lengths == ZIPF:
        feeds = [_zipf_feed(signature, sizes, rng) for _ in range(count)]
        return list(feeds), count * rows
    texts = read_dataset(Path(load.lengths), limit=count * rows, seed=seed).texts
    if len(texts) < rows:
        raise DataError(
            f"{load.lengths} has {len(texts)} texts, a query needs {rows}",
            hint="Give more texts, or ask for smaller batches.",
        )
    if load.scenario == Scenario.OFFLINE:
        if load.preprocessing:
            return [list(texts)], len(texts)
        return list(_sorted_batches(session, texts)), len(texts)
    groups = [list(texts[at : at + rows]) for at in range(0, len(texts) - rows + 1, rows)]
    if load.preprocessing:
        return list(groups), len(groups) * rows
    tokenizer = Tokenizer(session.bundle)
    return [tokenizer.batch(tokenizer.encode(group)).feed for group in groups], len(groups) * rows


def zipf_length(low: int, high: int, rng: np.random.Generator) -> int:
    """A length from ``low`` to ``high``, each with a chance of one over itself."""
    lengths = np.arange(low, high + 1)
    return int(rng.choice(lengths, p=(1 / lengths) / (1 / lengths).sum()))


def poisson_arrivals(count: int, qps: float, rng: np.random.Generator) -> np.ndarray:
    """Moments of ``count`` arrivals of a Poisson process, in seconds: ``float64[count]``."""
    return np.cumsum(rng.exponential(1 / qps, count))


@dataclass(frozen=True, slots=True)
class Served:
    """One block of the server scenario.

    Attributes:
        samples_ns: Of each query, from its arrival to its answer, or to the end without one.
        elapsed_ns: From the beginning to the last answer.
        answered: How many queries were.
    """

    samples_ns: list[int]
    elapsed_ns: int
    answered: int


def serve(
    calls: Sequence[Callable[[], object]],
    arrivals_s: np.ndarray,
    *,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Served:
    """Answer queries that arrive at given moments, first come first served.

    Ends at ``PATIENCE`` times the last moment at the latest, or times ``SERVER_S`` where that is
    later; after at least one answer.

    Args:
        calls: Each answers one query; taken in turn.
        arrivals_s: When each arrives, in seconds from now.
        clock: Gives nanoseconds.
        sleep: Waits, in seconds.
    """
    started = clock()
    end = started + int(max(arrivals_s[-1], SERVER_S) * PATIENCE * 1e9)
    samples: list[int] = []
    for index, moment in enumerate(arrivals_s):
        due = started + int(moment * 1e9)
        if samples and clock() > end:
            break
        while (early := due - clock()) > 0:
            sleep(early / 1e9)
        calls[index % len(calls)]()
        samples.append(clock() - due)
    now, answered = clock(), len(samples)
    # Rounds of one length each are compared; those unanswered have waited at least so long.
    samples += [now - started - int(moment * 1e9) for moment in arrivals_s[answered:]]
    return Served(samples, now - started, answered)


def _zipf_feed(
    signature: Signature, sizes: Mapping[str, int], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    drawn = dict(sizes)
    for axis, high in sizes.items():
        if SEQUENCE in axis:
            known = signature.ranges.get(axis)
            drawn[axis] = zipf_length(min(known.min, high) if known else 1, high, rng)
    return random_feed(signature, drawn, rng, padding="right")


def _sorted_batches(session: Session, texts: Sequence[Text]) -> list[dict[str, np.ndarray]]:
    """Batches as ``Session.predict`` cuts them: of similar length, the longest first."""
    tokenizer = Tokenizer(session.bundle)
    encoded = tokenizer.encode(texts)
    batches = cut_batches(
        [len(one.ids) for one in encoded],
        max_rows=min(BATCH_ROWS, tokenizer.max_rows or BATCH_ROWS),
        max_tokens=BATCH_TOKENS,
        equal=not tokenizer.has_mask,
    )
    return [tokenizer.batch([encoded[index] for index in batch]).feed for batch in batches]
