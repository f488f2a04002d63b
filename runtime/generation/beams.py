"""Beam search, as transformers has it: the likeliest of several texts followed at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from .decoder import Decoder
from .sampling import log_probabilities, penalize_repetition, without

# Added to the score of what must not be taken while anything else is there.
UNWANTED = -1e9

# Whether the text of a prompt, by its number, is over with these tokens.
Stops = Callable[[int, Sequence[int]], bool]


def _unchanged(scores: np.ndarray, texts: Sequence[Sequence[int]]) -> np.ndarray:
    return scores


@dataclass(frozen=True, slots=True)
class Weighing:
    """How texts of a search are weighed.

    Attributes:
        length_penalty: Power of a text's length that its score is divided by; above 0 prefers
            long ones.
        early_stopping: "no" ends a search when the best beam as it is is no better than the worst
            of the texts that have ended, "never" when it could not become so with any length,
            "yes" when there are as many of them as beams.
        rules: Scores ``[rows, vocabulary]`` and the tokens of each row so far to scores, where
            some tokens are impossible.
    """

    length_penalty: float = 1.0
    early_stopping: str = "no"
    rules: Callable[[np.ndarray, Sequence[Sequence[int]]], np.ndarray] = _unchanged

    def score(self, total: float, count: int) -> float:
        """Of a text of ``count`` tokens, from its sum of log probabilities."""
        return float(total / count**self.length_penalty)

    def ends(self, best: float, worst: float, count: int, most: int) -> bool:
        """Whether a search is over, with as many texts ended as beams.

        Args:
            best: Sum of the best beam's log probabilities.
            worst: Score of the worst of the texts that have ended.
            count: Tokens of the beam.
            most: Tokens it may get.
        """
        if self.early_stopping == "yes":
            return True
        reached = most if self.early_stopping == "never" and self.length_penalty > 0 else count
        return self.score(best, reached) <= worst


@dataclass(slots=True)
class _Search:
    """The beams of one prompt.

    Attributes:
        prompt: Its tokens.
        scores: Sum of log probabilities of each beam, best first.
        beams: Tokens of each.
        ended: Score by token and tokens of the best that are over.
        is_over: Whether none of the beams can become better than those.
    """

    prompt: list[int]
    scores: np.ndarray
    beams: list[list[int]]
    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    is_over: bool = False


def search(
    decoder: Decoder,
    logits: np.ndarray,
    prompts: Sequence[list[int]],
    *,
    beams: int,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    end_ids: Collection[int],
    penalty: float = 1.0,
    stops: Stops | None = None,
    weighing: Weighing | None = None,
) -> list[list[int]]:
    """Find the likeliest text for each prompt, by mean log probability of its tokens.

    Transformers' ``generate`` with ``num_beams``.

    Args:
        decoder: Has read the prompts.
        logits: Of what follows each, ``[prompts, vocabulary]``.
        prompts: Their tokens.
        beams: Texts followed for each prompt.
        max_new_tokens: Most tokens of a text.
        min_new_tokens: Fewest.
        end_ids: Tokens that end one.
        penalty: Of tokens that were there before.
        stops: Says which texts are over as if by an end token; None for none.
        weighing: None for ``length_penalty=1`` and ``early_stopping=False``, without rules.

    Returns:
        Tokens of the best text of each prompt, its end token included.
    """
    weighing = weighing or Weighing()
    start = np.full(beams, UNWANTED)
    start[0] = 0
    searches = [_Search(prompt, start, [[]] * beams) for prompt in prompts]
    rows = np.repeat(np.arange(len(prompts)), beams)
    decoder.take(rows)
    logits = logits[rows]
    for count in range(1, max_new_tokens + 1):
        seen = [[*one.prompt, *beam] for one in searches for beam in one.beams]
        scores = penalize_repetition(log_probabilities(logits), seen, penalty)
        if count <= min_new_tokens:
            scores = without(scores, end_ids)
        scores = weighing.rules(scores, seen)
        places: list[int] = []
        for index, one in enumerate(searches):
            first = index * beams
            some = scores[first : first + beams]
            stop = None if stops is None else functools.partial(stops, index)
            taken = _advance(one, some, count, max_new_tokens, end_ids, stop, weighing)
            places += [first + beam for beam in taken]
        if count == max_new_tokens or all(one.is_over for one in searches):
            break
        if places != list(range(len(places))):
            decoder.take(np.array(places))
        logits = decoder.step(
            np.array([beam[-1] for one in searches for beam in one.beams], np.int64)
        )
    return [max(one.ended, key=lambda found: found[0])[1] for one in searches]


def _advance(
    one: _Search,
    scores: np.ndarray,
    count: int,
    most: int,
    end_ids: Collection[int],
    stop: Callable[[Sequence[int]], bool] | None,
    weighing: Weighing,
) -> list[int]:
    """Take the best continuations; of which beam each is."""
    beams, vocabulary = scores.shape
    total = (one.scores[:, None] + scores).reshape(-1)
    kept = min(max(2, 1 + len(end_ids)) * beams, len(total))
    best = np.argpartition(-total, kept - 1)[:kept]
    best = best[np.argsort(-total[best], kind="stable")]
    origin, token = best // vocabulary, best % vocabulary
    texts = [[*one.beams[beam], int(new)] for beam, new in zip(origin, token, strict=True)]
    ends = np.array(
        [
            count == most or text[-1] in end_ids or (stop is not None and stop(text))
            for text in texts
        ]
    )
    if not one.is_over:
        # Only those among the first count: others would not have been followed either.
        one.ended += [
            (weighing.score(total[best[place]], count), texts[place])
            for place in np.flatnonzero(ends[:beams])
        ]
        one.ended.sort(key=lambda found: -found[0])
        del one.ended[beams:]
    wanted = total[best] + np.where(ends, UNWANTED, 0.0)
    chosen = np.argsort(-wanted, kind="stable")[:beams]
    one.scores = wanted[chosen]
    one.beams = [texts[place] for place in chosen]
    if len(one.ended) == beams and weighing.ends(one.scores[0], one.ended[-1][0], count, most):
        one.is_over = True
    return [int(origin[place]) for place in chosen]
