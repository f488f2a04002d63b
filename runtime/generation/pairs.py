"""Texts made from texts: an encoder reads once, its decoder writes token by token."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import FeedError
from tfx.processing import Target
from tfx.signature import SEQUENCE, UNBOUNDED, Feed, Signature

from ..backend import Executable
from .beams import Weighing
from .continuations import Prompt, Prompts, Writer
from .decoder import Decoder, longest
from .generator import Options, TextGenerator, options_from
from .kv_cache import ENCODER_MASK, MASK, cache_specs, is_cross
from .rules import finished, keep_to

# What reads the input of a batch: the encoder's session.
Encode = Callable[[Feed], Mapping[str, np.ndarray]]

# New tokens of a translation where neither caller nor model says how many.
NEW_TOKENS = 256


class CrossDecoder(Decoder):
    """A decoder whose every step also takes what the encoder gave.

    Cross keys are of a prompt: beams that go on from each other leave them as they are.
    """

    def __init__(self, executable: Executable, signature: Signature, crossed: Feed) -> None:
        self._crossed = _Crossed(executable, dict(crossed))
        super().__init__(self._crossed, signature)
        self._owners = np.arange(len(next(iter(crossed.values()))))  # the prompt of each row

    def take(self, rows: np.ndarray) -> None:
        """Go on with these rows, in this order; one may be there several times."""
        super().take(rows)
        owners = self._owners[rows]
        if not np.array_equal(owners, self._owners):
            held = self._crossed.held
            held.update({name: np.ascontiguousarray(one[rows]) for name, one in held.items()})
            self._owners = owners


class _Crossed:
    """What runs a graph, with more inputs than it is asked with and no mask of the cache.

    Stands before an executable, and before what it has to run steps in place.
    """

    def __init__(self, inner: Any, held: dict[str, np.ndarray]) -> None:
        self._inner = inner
        self.held = held

    def run(self, feed: Feed) -> Any:
        own = {name: array for name, array in feed.items() if name != MASK}
        return self._inner.run({**own, **self.held})

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "in_place":
            return lambda signature: _Crossed(found(signature), self.held)
        return found


class PairGenerator(TextGenerator):
    """Lets an encoder read prompts and its decoder write. Every call has a cache of its own."""

    def __init__(
        self, bundle: Bundle, executable: Executable, encoder: Bundle, encode: Encode
    ) -> None:
        """Load nothing: a decoder's bundle and what runs it, and an encoder's.

        Raises:
            FeedError: If the decoder does not say how its texts begin, or the two do not fit.
        """
        super().__init__(bundle, executable)
        target = self._said.target
        if target is None:
            raise FeedError(
                f"{bundle.name} does not say how its texts begin",
                hint="Export it again.",
            )
        self._target: Target = target
        self._told: tuple[tuple[int, int, bool], ...] = ()
        self._encoder = encoder.manifest.signature
        self._encode = encode
        # Texts are read and written with one tokenizer: the encoder's.
        processing = dataclasses.replace(
            bundle.manifest.processing, tokenization=encoder.manifest.processing.tokenization
        )
        manifest = dataclasses.replace(bundle.manifest, processing=processing)
        self._writer = Writer(dataclasses.replace(bundle, path=encoder.path, manifest=manifest))

    @property
    def target(self) -> Target:
        """How texts begin and go on."""
        return self._target

    @property
    def places(self) -> int:
        """Most tokens of a target, its start included."""
        return longest(self._signature)

    def led(self, target: Target) -> PairGenerator:
        """The same, for texts that begin and go on otherwise."""
        other = copy.copy(self)
        other._target = target
        return other

    def told(self, place: int, token: int, *, more: bool) -> PairGenerator:
        """The same, whose inputs have this token at a place: one more, or instead of another."""
        other = copy.copy(self)
        other._told = (*self._told, (place, token, more))
        return other

    def _fits(self, signature: Signature) -> bool:
        return bool(cache_specs(signature))

    def _read(self, prompts: Any, options: Options) -> Prompts:
        if options.max_new_tokens >= self.places:
            raise FeedError(
                f"max_new_tokens is {options.max_new_tokens}, the decoder has places for "
                f"{self.places - 1}",
                hint=f"Ask for {self.places - 1} new tokens or fewer.",
            )
        sizes = self._encoder.ranges.get(SEQUENCE)
        most = sizes.max if sizes else UNBOUNDED
        more = sum(more for *_, more in self._told)
        read = self._writer.read(prompts, 0, most - more)
        return dataclasses.replace(
            read, prompts=tuple(Prompt(self._tell(one.ids)) for one in read.prompts)
        )

    def _tell(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of an input with those of languages."""
        found = list(ids)
        for place, token, more in self._told:
            if more:
                found.insert(place, token)
            else:
                found[place] = token
        return tuple(found)

    def _begun(
        self, prompts: Sequence[Prompt], options: Options
    ) -> tuple[Decoder, np.ndarray, Sequence[Prompt]]:
        width = max(len(prompt.ids) for prompt in prompts)
        # On the right: some models count positions from the first token, padding or not.
        ids = np.full((len(prompts), width), self._writer.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = prompt.ids
            mask[row, : len(prompt.ids)] = 1
        named = {"input_ids": ids, MASK: mask}
        feed = {spec.name: named[spec.name] for spec in self._encoder.inputs}
        given = self._encode(feed)
        crossed = {spec.name: given[spec.name] for spec in self._signature.inputs if is_cross(spec)}
        if any(spec.name == ENCODER_MASK for spec in self._signature.inputs):
            crossed[ENCODER_MASK] = mask
        decoder = CrossDecoder(self._executable, self._signature, crossed)
        begun = [Prompt((self._target.start,))] * len(prompts)
        start = np.full((len(prompts), 1), self._target.start, np.int64)
        room = min(1 + options.max_new_tokens, self.places)
        return decoder, decoder.start(start, np.ones_like(start), room), begun

    def _allowed(
        self, logits: np.ndarray, seen: Sequence[Sequence[int]], options: Options
    ) -> np.ndarray:
        longest_text = 1 + options.max_new_tokens
        return keep_to(logits, seen, self._target, self._said.end_ids, longest_text)

    def _weighing(self, options: Options) -> Weighing:
        def rules(scores: np.ndarray, texts: Sequence[Sequence[int]]) -> np.ndarray:
            return finished(self._allowed(scores, texts, options), self._target)

        return Weighing(self._target.length_penalty, self._target.early_stopping, rules)


def translate(
    generator: PairGenerator,
    texts: str | Sequence[str],
    task: str,
    languages: tuple[str, str],
    options: Mapping[str, Any],
) -> Any:
    """Texts from texts, as the model asks for them; see ``Session.translate``.

    ``languages`` are those to read and to write, each "" where it is not named.
    """
    target = generator.target
    if isinstance(texts, str):
        prompts: list[str] = [texts]
    elif isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        prompts = list(texts)
    else:
        raise FeedError(f"got {type(texts).__name__}, expected a text or a list of texts")
    prefix = _prefix(target, task)
    read, written = languages
    if written and target.leads_input:
        generator = generator.told(0, _language(target.languages, written, "writes"), more=True)
    elif written:
        first = _language(target.languages, written, "writes")
        generator = generator.led(dataclasses.replace(target, first=first))
    elif target.languages and target.first < 0 and not _are_led(target, prompts):
        raise FeedError(
            "the model writes many languages, and none is named",
            hint=f"Name one of: {', '.join(sorted(target.languages))}.",
        )
    if read:
        generator = generator.told(
            target.source_place, _language(target.sources, read, "reads"), more=False
        )
    wanted = target.longest - 1 if target.longest > 1 else NEW_TOKENS
    asked = {
        "max_new_tokens": min(wanted, generator.places - 1),
        # Beams do not draw.
        "num_beams": 1 if options.get("temperature") else target.num_beams,
        "repetition_penalty": target.repetition_penalty,
    }
    found = generator.generate(
        [prefix + text for text in prompts], options_from({**asked, **options})
    )
    made = [one.text for one in found]
    return made[0] if isinstance(texts, str) else made


def _prefix(target: Target, task: str) -> str:
    if task.endswith((":", ": ")):
        return task if task.endswith(" ") else f"{task} "
    if task and task not in target.prefixes:
        raise FeedError(
            f"the model knows no task {task!r}",
            hint=f"Use one of {', '.join(sorted(target.prefixes)) or 'none'}; or give the text to "
            "put before each text, which ends in a colon.",
        )
    if task:
        return target.prefixes[task]
    if len(target.prefixes) > 1:
        raise FeedError(
            "the model has several tasks, and none is named",
            hint=f"Name one of: {', '.join(sorted(target.prefixes))}.",
        )
    return next(iter(target.prefixes.values()), "")


def _are_led(target: Target, texts: Sequence[str]) -> bool:
    """Whether each text begins with the language to write in, as Marian's may: ``>>fra<<``."""
    return target.leads_input and all(
        text.startswith(">>") and text[2:].partition("<<")[0] in target.languages for text in texts
    )


def _language(known: Mapping[str, int], language: str, does: str) -> int:
    if language not in known:
        codes = ", ".join(sorted(known))
        raise FeedError(
            f"the model {does} no language {language!r}",
            hint=f"Use one of: {codes}." if codes else f"Leave it out: the model {does} one.",
        )
    return known[language]
