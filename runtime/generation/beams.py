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
) -> list[list[int]]:
    """Find the likeliest text for each prompt, by mean log probability of its tokens.

    Transformers' ``generate`` with ``num_beams``, ``length_penalty=1`` and
    ``early_stopping=False``: a search is over when the best beam is no better than the worst of
    ``beams`` texts that have ended.

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

    Returns:
        Tokens of the best text of each prompt, its end token included.
    """
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
        places: list[int] = []
        for index, one in enumerate(searches):
            first = index * beams
            some = scores[first : first + beams]
            stop = None if stops is None else functools.partial(stops, index)
            taken = _advance(one, some, count, count == max_new_tokens, end_ids, stop)
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
    is_last: bool,
    end_ids: Collection[int],
    stop: Callable[[Sequence[int]], bool] | None,
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
        [is_last or text[-1] in end_ids or (stop is not None and stop(text)) for text in texts]
    )
    if not one.is_over:
        # Only those among the first count: others would not have been followed either.
        one.ended += [
            (float(total[best[place]]) / count, texts[place])
            for place in np.flatnonzero(ends[:beams])
        ]
        one.ended.sort(key=lambda found: -found[0])
        del one.ended[beams:]
    wanted = total[best] + np.where(ends, UNWANTED, 0.0)
    chosen = np.argsort(-wanted, kind="stable")[:beams]
    one.scores = wanted[chosen]
    one.beams = [texts[place] for place in chosen]
    if len(one.ended) == beams and one.scores[0] / count <= one.ended[-1][0]:
        one.is_over = True
    return [int(origin[place]) for place in chosen]
