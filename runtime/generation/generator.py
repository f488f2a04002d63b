"""Text that goes on: prompts in, tokens chosen one by one, texts out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import FeedError, listing
from tfx.processing import Generation
from tfx.signature import Signature

from ..backend import Executable
from .beams import Weighing, search
from .continuations import Continuation, Prompt, Prompts, Writer
from .decoder import Decoder, is_generator, longest, most_rows
from .sampling import cooled, draw, keep_top_k, keep_top_p, penalize_repetition, without

OPTIONS_HINT = "Leave an option out for its default."

# Options that count, and those that measure.
WHOLE = ("max_new_tokens", "min_new_tokens", "top_k", "seed", "num_beams")
REAL = ("temperature", "top_p", "repetition_penalty")

# Prompts of one run.
BATCH_ROWS = 8


class Finish(StrEnum):
    """Why a text is over."""

    END = "end"  # the model gave an end token
    STOP = "stop"  # what the caller stops at
    LENGTH = "length"  # as many tokens as were asked for


@dataclass(frozen=True, slots=True)
class Options:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Most tokens of each text.
        min_new_tokens: Fewest; before, no end token is chosen.
        temperature: 0 takes the likeliest token; else logits are divided by it and drawn from.
        top_p: Draw from the likeliest tokens that make up this share.
        top_k: Draw from so many of the likeliest; 0 for all.
        repetition_penalty: Above 1 makes tokens less likely that were there before.
        stop: Texts, or token ids, before which a text is over.
        seed: Of what is drawn.
        num_beams: Texts followed at once to find the likeliest; 1 for none but one.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str | int, ...] = field(default=())
    seed: int = 0
    num_beams: int = 1

    def __post_init__(self) -> None:
        problems = self._not_numbers()
        if problems:
            raise FeedError(listing("text cannot go on like this:", problems), hint=OPTIONS_HINT)
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more")
        if not 0 <= self.min_new_tokens <= max(self.max_new_tokens, 1):
            problems.append(
                f"min_new_tokens is {self.min_new_tokens}, expected 0 to max_new_tokens, "
                f"{self.max_new_tokens}"
            )
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature is {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}, expected above 0 and at most 1")
        if self.top_k < 0:
            problems.append(f"top_k is {self.top_k}, expected 0 or more")
        if not 0 < self.repetition_penalty < float("inf"):
            problems.append(f"repetition_penalty is {self.repetition_penalty}, expected above 0")
        if self.seed < 0:
            problems.append(f"seed is {self.seed}, expected 0 or more")
        if self.num_beams < 1:
            problems.append(f"num_beams is {self.num_beams}, expected 1 or more")
        if self.num_beams > 1 and self.temperature:
            problems.append("temperature is for drawing, and beams do not draw")
        if not self.temperature and (self.top_p < 1 or self.top_k):
            problems.append("top_p and top_k are for drawing, which needs a temperature above 0")
        if problems:
            raise FeedError(listing("text cannot go on like this:", problems), hint=OPTIONS_HINT)

    def _not_numbers(self) -> list[str]:
        whole, real = (int, np.integer), (int, float, np.number)
        found = []
        for name, kinds in [(one, whole) for one in WHOLE] + [(one, real) for one in REAL]:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds):
                what = "a whole number" if kinds is whole else "a number"
                found.append(f"{name} is {value!r}, expected {what}")
        return found


def options_from(named: Mapping[str, Any]) -> Options:
    """Options by name; ``stop`` may be a single one, or any sequence.

    Raises:
        FeedError: If there is no such option, or its value cannot be.
    """
    known = {one.name for one in dataclasses.fields(Options)}
    if unknown := sorted(named.keys() - known):
        raise FeedError(
            f"no option called {', '.join(unknown)}",
            hint=f"Use some of: {', '.join(sorted(known))}.",
        )
    given = dict(named)
    stop = given.get("stop", ())
    single = isinstance(stop, str) or not isinstance(stop, Iterable)
    given["stop"] = (stop,) if single else tuple(stop)
    return Options(**given)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a stream.

    Attributes:
        row: Index of its prompt.
        id: Its number.
        text: What it adds to the text; "" where it takes more tokens to make a character, or
            where a stop text may have begun.
        finish: Why the text is over with it, or None.
    """

    row: int
    id: int
    text: str
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """A text that is over.

    Attributes:
        text: What was added to the prompt, without what it stopped at; "" without a tokenizer.
        ids: Its tokens, an end token included.
        finish: Why it is over.
    """

    text: str
    ids: tuple[int, ...]
    finish: Finish


class TextGenerator:
    """Generates with a bundle whose graph has a cache. Thread-safe: each call has its own cache."""

    def __init__(self, bundle: Bundle, executable: Executable) -> None:
        """Prepare for a bundle.

        Raises:
            FeedError: If its graph has no cache.
        """
        self._signature = bundle.manifest.signature
        if not self._fits(self._signature):
            raise FeedError(
                f"{bundle.name} has no cache to generate with",
                hint="Export a causal language model again, without --no-cache.",
            )
        self._executable = executable
        self._said = bundle.manifest.processing.generation or Generation()
        self._writer = Writer(bundle)

    def _fits(self, signature: Signature) -> bool:
        return is_generator(signature)

    def generate(self, prompts: Any, options: Options) -> Any:
        """Write on until each text is over; see ``Session.generate``."""
        read = self._read(prompts, options)
        found = [one for batch in self._batches(read.prompts, options) for one in batch]
        return found[0] if read.single else found

    def generate_each(self, prompts: Any, options: Options) -> Iterator[Generated]:
        """The same, some texts at a time; see ``Session.generate_each``."""
        batches = self._batches(self._read(prompts, options).prompts, options)
        return itertools.chain.from_iterable(batches)

    def _batches(self, prompts: Sequence[Prompt], options: Options) -> Iterator[list[Generated]]:
        """Texts of prompts that are run together; what cannot be is said before any is."""
        stops = self._writer.stops(options.stop)
        if options.num_beams > most_rows(self._signature):
            raise FeedError(
                f"num_beams is {options.num_beams}, the model takes batches of "
                f"{most_rows(self._signature)}",
                hint="Ask for fewer beams, or export it with a larger --max-batch.",
            )
        rows = max(1, min(BATCH_ROWS, most_rows(self._signature)) // options.num_beams)
        return (
            self._generated(prompts[first : first + rows], options, stops, first)
            for first in range(0, len(prompts), rows)
        )

    def _generated(
        self, batch: Sequence[Prompt], options: Options, stops: Any, first: int
    ) -> list[Generated]:
        if options.num_beams > 1:
            return self._searched(batch, options, stops)
        ids: list[list[int]] = [[] for _ in batch]
        texts = [""] * len(batch)
        finish: dict[int, Finish] = {}
        for token in self._tokens(batch, options, stops, first):
            ids[token.row].append(token.id)
            texts[token.row] += token.text
            if token.finish is not None:
                finish[token.row] = token.finish
        return [Generated(texts[row], tuple(ids[row]), finish[row]) for row in range(len(batch))]

    def stream(self, prompts: Any, options: Options) -> Iterator[Token]:
        """Yield tokens as they are chosen; see ``Session.stream``."""
        if options.num_beams > 1:
            raise FeedError(
                "a stream cannot follow beams: which is best shows at the end",
                hint="Use generate.",
            )
        read = self._read(prompts, options)
        if len(read.prompts) > most_rows(self._signature):
            raise FeedError(
                f"got {len(read.prompts)} prompts, the model takes "
                f"{most_rows(self._signature)} at once",
                hint="Use generate, which takes any number.",
            )
        return self._tokens(read.prompts, options, self._writer.stops(options.stop), 0)

    def _read(self, prompts: Any, options: Options) -> Prompts:
        return self._writer.read(prompts, options.max_new_tokens, longest(self._signature))

    def _tokens(
        self, prompts: Sequence[Prompt], options: Options, stops: Any, first: int
    ) -> Iterator[Token]:
        decoder, logits, prompts = self._begun(prompts, options)
        rngs = [np.random.default_rng((options.seed, first + row)) for row in range(len(prompts))]
        written = [self._writer.begin(prompt, stops) for prompt in prompts]
        live = np.arange(len(prompts))  # the prompt of each row of the batch
        count = 0
        while True:
            seen = [written[row].seen for row in live]
            if count < options.min_new_tokens:
                logits = without(logits, self._said.end_ids)
            count += 1
            logits = self._allowed(logits, seen, options)
            chosen = _choose(logits, seen, options, [rngs[row] for row in live])
            kept = []
            for place, row in enumerate(live.tolist()):
                text = written[row]
                if text.over:
                    continue
                token = int(chosen[place])
                added, finish = self._written(text, token, options)
                yield Token(row, token, added, finish)
                if finish is None:
                    kept.append(place)
            if not kept:
                return
            # Rows that are over run on beside the others until half of them are.
            if len(kept) * 2 <= len(live):
                places = np.array(kept)
                decoder.take(places)
                live, chosen = live[places], chosen[places]
            logits = decoder.step(chosen)

    def _begun(
        self, prompts: Sequence[Prompt], options: Options
    ) -> tuple[Decoder, np.ndarray, Sequence[Prompt]]:
        """What has read prompts, logits of what follows them, and what a text begins after."""
        decoder = Decoder(self._executable, self._signature)
        return decoder, self._started(decoder, prompts, options), prompts

    def _allowed(
        self, logits: np.ndarray, seen: Sequence[Sequence[int]], options: Options
    ) -> np.ndarray:
        """Logits without the tokens that the model itself rules out."""
        return logits

    def _weighing(self, options: Options) -> Weighing:
        return Weighing()

    def _started(self, decoder: Decoder, prompts: Sequence[Prompt], options: Options) -> np.ndarray:
        width = max(len(prompt.ids) for prompt in prompts)
        ids = np.full((len(prompts), width), self._writer.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.ids) :] = prompt.ids
            mask[row, width - len(prompt.ids) :] = 1
        room = min(width + options.max_new_tokens, longest(self._signature))
        return decoder.start(ids, mask, room)

    def _written(
        self, text: Continuation, token: int, options: Options
    ) -> tuple[str, Finish | None]:
        """What a token adds to a text, and why the text is over with it."""
        if token in self._said.end_ids:
            return text.close(token), Finish.END
        added, stopped = text.add(token)
        if stopped:
            return added, Finish.STOP
        if text.count == options.max_new_tokens:
            return added + text.flush(), Finish.LENGTH
        return added, None

    def _searched(self, prompts: Sequence[Prompt], options: Options, stops: Any) -> list[Generated]:
        decoder, logits, prompts = self._begun(prompts, options)
        found = search(
            decoder,
            logits,
            [list(prompt.ids) for prompt in prompts],
            beams=options.num_beams,
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            end_ids=self._said.end_ids,
            penalty=options.repetition_penalty,
            stops=(
                (lambda index, ids: self._writer.is_stopped(prompts[index], ids, stops))
                if options.stop
                else None
            ),
            weighing=self._weighing(options),
        )
        results = []
        for prompt, ids in zip(prompts, found, strict=True):
            text, written, finish = self._writer.begin(prompt, stops), "", Finish.LENGTH
            for count, token in enumerate(ids, 1):
                added, why = self._written(text, token, options)
                written += added
                if why is not None:
                    finish, ids = why, ids[:count]
                    break
            results.append(Generated(written, tuple(ids), finish))
        return results


def _choose(
    logits: np.ndarray,
    seen: Sequence[Sequence[int]],
    options: Options,
    rngs: Sequence[np.random.Generator],
) -> np.ndarray:
    logits = penalize_repetition(logits, seen, options.repetition_penalty)
    if not options.temperature:
        best: np.ndarray = logits.argmax(axis=1)
        return best
    logits = cooled(logits, options.temperature)
    return draw(keep_top_p(keep_top_k(logits, options.top_k), options.top_p), rngs)
