"""Start and end logits to an answer: the best run of tokens of a context, over its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .tokenizer import Encoded

START, END = "start_logits", "end_logits"

# Longest answer, as in the scripts of transformers.
MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """What a model finds in a context as the answer to a question.

    Attributes:
        text: The answer, characters of the context.
        score: Its share of the probability of every answer of up to ``MAX_ANSWER_TOKENS``.
        start: First character of it in the context.
        end: One past its last character.
    """

    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """The best answer that one window of a context holds.

    Attributes:
        logit: Sum of the logits of its first and last token.
        total: Logarithm of the sum of ``exp(logit)`` over all answers in the window.
        start: First character of it in the context.
        end: One past its last character.
    """

    logit: float
    total: float
    start: int
    end: int


def best_span(starts: np.ndarray, ends: np.ndarray, encoded: Encoded) -> Candidate:
    """The run of context tokens with the highest sum of start and end logit.

    All runs of up to ``MAX_ANSWER_TOKENS`` are compared, not only the best few starts and ends.

    Args:
        starts: ``[tokens]``, beginning with the window's first token, any float dtype.
        ends: The same.
        encoded: The window; its second text is the context and has at least one token.
    """
    spans = [span for span in encoded.spans if span.part == 1]
    places = [span.position for span in spans]
    # [context, length]: of the run that begins here and has one token more than its column.
    last = np.arange(len(places))[:, None] + np.arange(MAX_ANSWER_TOKENS)
    begun = starts[places].astype(np.float64)[:, None]
    ended = ends[places].astype(np.float64)[np.minimum(last, len(places) - 1)]
    sums = np.where(last < len(places), begun + ended, -np.inf)
    first, length = np.unravel_index(sums.argmax(), sums.shape)
    largest = sums[first, length]
    return Candidate(
        logit=float(largest),
        total=float(largest + np.log(np.exp(sums - largest).sum())),
        start=spans[first].start,
        end=spans[first + length].end,
    )


def answer_from(candidates: Sequence[Candidate], context: str) -> TextAnswer:
    """The best answer of all windows of a context; the first of equals.

    A run that two windows share counts twice in what its score is a share of.
    """
    best = max(candidates, key=lambda one: one.logit)
    total = np.logaddexp.reduce([one.total for one in candidates])
    score = float(np.exp(best.logit - total))
    return TextAnswer(context[best.start : best.end], score, best.start, best.end)
