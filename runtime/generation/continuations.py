"""Prompts as tokens, and tokens as text that grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import BundleError, FeedError, listing
from tfx.extras import need
from tfx.processing import Generation

PROMPT_HINT = "Give a text, token ids, or a chat; or a list of those."


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to go on: token ids, at least one."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that fit the model, and whether there was one and no list."""

    prompts: tuple[Prompt, ...]
    single: bool


@dataclass(frozen=True, slots=True)
class Stops:
    """What a text stops at: texts, and token ids."""

    texts: tuple[str, ...] = ()
    ids: frozenset[int] = frozenset()


class Writer:
    """Reads prompts and writes texts with a bundle's tokenizer; without one, token ids only."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._settings = bundle.manifest.processing.tokenization
        self._said = bundle.manifest.processing.generation or Generation()
        (logits,) = (spec for spec in bundle.manifest.signature.outputs if spec.name == "logits")
        self._vocabulary = int(logits.shape[-1])
        self.pad_id = self._settings.pad_id if self._settings else 0

    @cached_property
    def tokenizer(self) -> Any:
        """The ``tokenizers.Tokenizer`` of the bundle.

        Raises:
            FeedError: If it has none.
            BundleError: If it is damaged.
        """
        if self._settings is None:
            raise FeedError(
                f"{self._bundle.name} has no tokenizer: it takes token ids, not text",
                hint="Give each prompt as a list of token ids, in Python; a command takes none.",
            )
        import tokenizers

        path = self._bundle.path / self._settings.file
        try:
            loaded = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise BundleError(
                f"{path} is damaged: {error}", hint="Make the bundle again."
            ) from error
        loaded.no_padding()
        loaded.no_truncation()
        return loaded

    def read(self, prompts: Any, new_tokens: int, longest: int) -> Prompts:
        """Turn what a caller gave into tokens.

        Args:
            prompts: A text, token ids, or a chat (a list of mappings with "role" and "content");
                or a list of those.
            new_tokens: How many there must be room for after each.
            longest: Most tokens of prompt and text together.

        Raises:
            FeedError: If a prompt is none of these, is empty, has unknown tokens or is too
                long; names each.
        """
        single = _is_single(prompts)
        given = [prompts] if single else prompts
        if not isinstance(given, list | tuple) or not given:
            kind = "an empty list" if isinstance(given, list | tuple) else type(given).__name__
            raise FeedError(f"got {kind}, expected at least one prompt", hint=PROMPT_HINT)
        found, problems, room = [], [], longest
        for index, one in enumerate(given):
            ids, problem = self._ids(one)
            if not problem and len(ids) + new_tokens > longest:
                room = min(room, longest - len(ids))
                problem = (
                    f"has {len(ids)} tokens and is to get {new_tokens} more, "
                    f"the model takes {longest}"
                )
            if problem:
                problems.append(f"prompts[{index}]: {problem}")
            found.append(Prompt(tuple(ids)))
        if problems:
            hint = PROMPT_HINT
            if room < longest:
                hint = (
                    f"Ask for {room} new tokens or fewer."
                    if room > 0
                    else "Shorten the prompts, or leave out their oldest part."
                )
            raise FeedError(listing("prompts cannot be read:", problems), hint=hint)
        return Prompts(tuple(found), single)

    def stops(self, stop: Sequence[str | int]) -> Stops:
        """Sort what a text stops at.

        Raises:
            FeedError: If a token id is not in the vocabulary, or a text is empty.
        """
        problems, texts, ids = [], [], []
        for one in stop:
            if isinstance(one, str) and one:
                texts.append(one)
            elif isinstance(one, bool) or not isinstance(one, int | np.integer):
                problems.append(f"{one!r}, expected a text or a token id")
            elif 0 <= one < self._vocabulary:
                ids.append(int(one))
            else:
                problems.append(f"token {one}, the vocabulary is 0..{self._vocabulary - 1}")
        if problems:
            raise FeedError(
                listing("text cannot stop at:", problems),
                hint="Give texts, or token ids of the vocabulary.",
            )
        if texts:
            _ = self.tokenizer  # says it where there is none
        return Stops(tuple(texts), frozenset(ids))

    def begin(self, prompt: Prompt, stops: Stops) -> Continuation:
        """A text that has not begun."""
        return Continuation(None if self._settings is None else self.tokenizer, prompt, stops)

    def is_stopped(self, prompt: Prompt, ids: Sequence[int], stops: Stops) -> bool:
        """Whether a text of these tokens is over with the last of them."""
        text = self.begin(prompt, stops)
        return text.extend(ids)

    def _ids(self, prompt: Any) -> tuple[list[int], str]:
        """Token ids of a prompt, and what is wrong with it."""
        if _is_chat(prompt):
            encoding = self.tokenizer.encode(self.chat(prompt), add_special_tokens=False)
            return list(encoding.ids), "" if encoding.ids else "has no tokens"
        if isinstance(prompt, str):
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                where = error.start
                return [], f"is not Unicode: half of a surrogate pair at character {where}"
            tokenizer = self.tokenizer  # says it where there is none
            assert self._settings is not None
            ids = list(self._settings.of_model(tokenizer.encode(prompt).ids))
            return ids, "" if ids else "has no tokens"
        array = np.asarray(prompt) if isinstance(prompt, list | tuple | np.ndarray) else None
        if array is None or array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            return [], f"got {type(prompt).__name__}, expected a text or token ids"
        if not array.size:
            return [], "has no tokens"
        if array.min() < 0 or array.max() >= self._vocabulary:
            bad = array[(array < 0) | (array >= self._vocabulary)][0]
            return [], f"has token {bad}, the vocabulary is 0..{self._vocabulary - 1}"
        return [int(one) for one in array], ""

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a chat, up to where the assistant's answer begins.

        Raises:
            FeedError: If the bundle has no template, or the template refuses the messages.
        """
        if not self._said.chat_template:
            raise FeedError(
                f"{self._bundle.name} has no chat template: it takes texts, not messages",
                hint="Write the prompt as one text.",
            )
        if bad := [one for one in messages if not isinstance(one.get("role"), str)]:
            fields = ", ".join(map(repr, bad[0])) or "nothing"
            raise FeedError(
                f"a message of the chat has no role: got {fields}",
                hint='Write each message as {"role": "user", "content": ...}.',
            )
        jinja2 = need("jinja2")
        sandbox = need("jinja2.sandbox")
        path = self._bundle.path / self._said.chat_template

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        # A template comes with a checkpoint: it may read what it is given and nothing else.
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse
        try:
            template = environment.from_string(path.read_text(encoding="utf-8"))
            text: str = template.render(
                messages=list(messages), add_generation_prompt=True, **self._said.special
            )
        except jinja2.TemplateError as error:
            raise FeedError(f"the chat template refuses the messages: {error}") from error
        return text


class Continuation:
    """One text as it grows.

    Attributes:
        seen: Tokens of prompt and text.
        count: Tokens of the text.
        over: Whether it has ended.
    """

    def __init__(self, tokenizer: Any, prompt: Prompt, stops: Stops) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []
        self._given = 0  # characters handed out
        self._prompt_ids = list(prompt.ids)
        # Some decoders leave out the space before the first token of what they are given.
        self._before = self._decoded([])
        self.seen = [*prompt.ids]
        self.count = 0
        self.over = False

    def add(self, token: int) -> tuple[str, bool]:
        """Add a token; what text there is more now, and whether it stops here."""
        self._count(token)
        if token in self._stops.ids:
            self._ids.pop()
            return self._close(self._text()), True
        text = self._text()
        places = [place for stop in self._stops.texts if (place := text.find(stop)) >= 0]
        if places:
            return self._close(text[: min(places)]), True
        # A character of several tokens is not there yet; neither may a stop text be.
        whole = len(text.rstrip("\ufffd"))
        return self._handed(text[: whole - _begun(text[:whole], self._stops.texts)]), False

    def extend(self, ids: Sequence[int]) -> bool:
        """Add tokens at once; whether the text stops with them."""
        for token in ids:
            self._count(token)
        if not ids or ids[-1] in self._stops.ids:
            return bool(ids)
        text = self._text()
        return any(stop in text for stop in self._stops.texts)

    def close(self, token: int) -> str:
        """Add the token that ends it; the text that was held back."""
        self._count(token)
        self._ids.pop()  # an end token has no text, or none that is wanted
        return self._close(self._text())

    def flush(self) -> str:
        """End it here; the text that was held back."""
        return self._close(self._text())

    def _count(self, token: int) -> None:
        self._ids.append(token)
        self.seen.append(token)
        self.count += 1

    def _close(self, text: str) -> str:
        self.over = True
        return self._handed(text)

    def _handed(self, text: str) -> str:
        more = text[self._given :]
        self._given += len(more)
        return more

    def _text(self) -> str:
        return self._decoded(self._ids)[len(self._before) :]

    def _decoded(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            return ""
        # With the end of the prompt before it, for the decoder to see what it follows.
        text: str = self._tokenizer.decode([*self._prompt_ids[-8:], *ids])
        return text


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop text."""
    return max(
        (
            size
            for stop in stops
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ),
        default=0,
    )


def _is_single(prompts: Any) -> bool:
    if isinstance(prompts, str) or _is_chat(prompts):
        return True
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1
    return (
        isinstance(prompts, list | tuple)
        and bool(prompts)
        and all(isinstance(one, int | np.integer) for one in prompts)
    )


def _is_chat(prompt: Any) -> bool:
    return (
        isinstance(prompt, list | tuple)
        and bool(prompt)
        and all(isinstance(one, Mapping) for one in prompt)
    )
