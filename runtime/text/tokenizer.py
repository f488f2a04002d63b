"""Texts to token ids and padded feeds, with the tokenizer that the bundle carries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import BundleError, FeedError, listing
from tfx.signature import Dim, Signature

from ..generation.kv_cache import text_signature

# One text, or two that the model reads together.
Text = str | tuple[str, str]

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PAIR_HINT = "Give each text as a string, or as a pair of strings."
QUESTION_HINT = "Give each as a pair: a question, and the context that holds its answer."
ARRAYS_INSTEAD = "Give arrays by name, to a command in an npz file; see the names with: tfx inspect"

# Tokens that two windows of a long text share, as in the scripts of transformers; half of a window
# where that is less.
WINDOW_OVERLAP = 128

LONG_HINT = "Shorten it, or use long='truncate'."


class LongTexts(StrEnum):
    """What is done with texts longer than the model takes."""

    TRUNCATE = "truncate"
    WINDOWS = "windows"


def checked_long(long: object) -> LongTexts:
    """What a caller says of long texts.

    Raises:
        FeedError: If it is none of ``LongTexts``.
    """
    if isinstance(long, str) and long in [*LongTexts]:
        return LongTexts(long)
    raise FeedError(f"long is {long!r}, expected one of {', '.join(LongTexts)}")


class TextError(FeedError):
    """Texts that cannot become tokens.

    Attributes:
        problems: Index of a text to what is wrong with it.
    """

    def __init__(self, problems: Mapping[int, str], *, hint: str = "") -> None:
        lines = (f"texts[{index}]: {problem}" for index, problem in problems.items())
        super().__init__(listing("texts cannot be read:", lines), hint=hint)
        self.problems = dict(problems)

    def shifted(self, places: int) -> TextError:
        """The same of texts that are so many places further on."""
        moved = {index + places: problem for index, problem in self.problems.items()}
        return TextError(moved, hint=self.hint)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a token is in its text.

    Attributes:
        position: Of the token among the tokens of the input.
        part: 0, or 1 for the second text of a pair.
        start: First character.
        end: One past the last character.
    """

    position: int
    part: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as tokens.

    Attributes:
        ids: ``int64[tokens]``, special tokens included.
        types: ``int64[tokens]``: 1 for the second text of a pair, where the model tells them apart.
        truncated: Whether tokens were cut off.
        spans: Of every token that is not special; empty unless asked for.
        skipped: Of a window of a long text, the tokens of the text that are in earlier ones only.
    """

    ids: np.ndarray
    types: np.ndarray
    truncated: bool
    spans: tuple[Span, ...] = ()
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Texts padded to one length, ready to run.

    Attributes:
        feed: The signature's inputs, ``[batch, sequence]``.
        mask: Which tokens are not padding; ``bool[batch, sequence]``.
        rows: Texts in it; a batch smaller than the model takes is filled with copies.
    """

    feed: dict[str, np.ndarray]
    mask: np.ndarray
    rows: int


class Tokenizer:
    """The tokenizer of one bundle; thread-safe, as nothing changes after ``__init__``.

    Attributes:
        max_tokens: Tokens kept of a text, special tokens included.
        max_rows: Largest batch the model takes; None for no limit.
        has_mask: Whether the model can be told which tokens are padding.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        spans: bool = False,
        windows: bool = False,
        questions: bool = False,
    ) -> None:
        """Load the tokenizer of ``bundle``.

        Args:
            bundle: Its manifest says how texts are cut and padded.
            spans: Also find where each token is in its text; slower.
            windows: Let ``pieces`` read a text that is too long in windows that overlap, instead
                of cutting it; of a pair the second text.
            questions: Let it take only pairs whose second text has tokens; needs ``spans``.

        Raises:
            FeedError: If the bundle takes no text.
            BundleError: If its tokenizer is damaged.
        """
        # A graph with a cache reads whole texts too.
        signature = text_signature(bundle.manifest.signature)
        settings = bundle.manifest.processing.tokenization
        if settings is None:
            raise FeedError(
                f"{bundle.name} has no tokenizer: it takes arrays, not text",
                hint=ARRAYS_INSTEAD,
            )
        specs = {spec.name: spec for spec in signature.inputs}
        if others := sorted(specs.keys() - set(TOKEN_INPUTS)):
            raise FeedError(
                f"{bundle.name} needs {', '.join(others)} as well, which text does not give",
                hint=ARRAYS_INSTEAD,
            )
        if "input_ids" not in specs or len(specs["input_ids"].shape) != 2:
            raise FeedError(
                f"{bundle.name} has no input_ids of two axes: it takes arrays, not text",
                hint=ARRAYS_INSTEAD,
            )
        self._dtypes = {name: spec.dtype.numpy for name, spec in specs.items()}
        self._settings = settings
        rows, tokens = specs["input_ids"].shape
        self._min_rows, self.max_rows = _limits(signature, rows)
        self._min_tokens, longest = _limits(signature, tokens)
        self.max_tokens = min(settings.max_length, longest or settings.max_length)
        self.has_mask = "attention_mask" in specs
        self._spans = spans
        self._windows = windows
        self._questions = questions
        self._tokenizer = _load(bundle, settings.file, None if windows else self.max_tokens)

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """Turn texts into tokens; those too long are cut.

        Args:
            texts: Strings, or pairs of strings as tuple or list. An empty string is fine if
                the tokenizer adds special tokens.

        Raises:
            TextError: If any is neither, is not Unicode, or has no tokens; names each.
        """
        return self._read(texts, self.max_tokens)

    def whole(self, texts: Sequence[Text]) -> list[Encoded]:
        """Turn texts into all of their tokens, more than the model takes too; needs ``windows``.

        Raises:
            TextError: As ``encode``.
        """
        return self._read(texts, None)

    def _read(self, texts: Sequence[Text], limit: int | None) -> list[Encoded]:
        problems = {i: p for i, text in enumerate(texts) if (p := text_problem(text))}
        if problems:
            raise TextError(problems, hint=PAIR_HINT)
        # The fast variant does not look for offsets.
        run = self._tokenizer.encode_batch if self._spans else self._tokenizer.encode_batch_fast
        encoded = [self._encoded(encoding) for encoding in run(list(texts))]
        for index, one in enumerate(encoded):
            if not len(one.ids):
                problems[index] = "has no tokens"
            elif limit and len(one.ids) > limit:  # the library keeps special tokens whatever
                problems[index] = (
                    f"has {len(one.ids)} special tokens alone, the model takes {limit}"
                )
        if problems:
            raise TextError(problems)
        return encoded

    def pieces(self, texts: Sequence[Text]) -> list[list[Encoded]]:
        """Turn each text into what the model reads of it at a time: one piece, or its windows.

        Raises:
            TextError: As ``encode``; with windows also if a text is no pair, its first part
                leaves no room for the second, or its second has no tokens.
        """
        if not self._windows:
            return [[one] for one in self.encode(texts)]
        find = _question_problem if self._questions else text_problem
        hint = QUESTION_HINT if self._questions else PAIR_HINT
        problems = {i: p for i, text in enumerate(texts) if (p := find(text))}
        if problems:
            raise TextError(problems, hint=hint)
        found: list[list[Encoded]] = []
        run = self._tokenizer.encode_batch if self._spans else self._tokenizer.encode_batch_fast
        for index, encoding in enumerate(run(list(texts))):
            whole = self._encoded(encoding)
            last_part = 0 if isinstance(texts[index], str) else 1
            begin, end = _places(encoding, last_part)
            outside = len(whole.ids) - (end - begin)
            if not len(whole.ids):
                problems[index], hint = "has no tokens", ""
            elif self._questions and begin == end:
                problems[index] = "has a context without tokens"
            elif len(whole.ids) > self.max_tokens and outside >= self.max_tokens:
                said, hint = self._no_room(whole, outside)
                problems[index] = f"{said}: the model takes {self.max_tokens}"
            elif len(whole.ids) <= self.max_tokens:
                found.append([whole])
            else:
                room = self.max_tokens - outside
                found.append(list(_windows(whole, begin, end, room, even=not self._questions)))
        if problems:
            raise TextError(problems, hint=hint)
        return found

    def batch(self, encoded: Sequence[Encoded]) -> TokenBatch:
        """Pad texts to the length of the longest, with only the inputs the model has.

        Raises:
            FeedError: If there would be padding and the model has no ``attention_mask``.
        """
        rows = max(len(encoded), self._min_rows)
        width = max(self._min_tokens, *(len(one.ids) for one in encoded))
        ids = np.full((rows, width), self._settings.pad_id, self._dtypes["input_ids"])
        types = np.zeros((rows, width), np.int64)
        mask = np.zeros((rows, width), np.bool_)
        for row in range(rows):
            one = encoded[min(row, len(encoded) - 1)]
            size = len(one.ids)
            part = slice(width - size, width) if self._pads_left else slice(size)
            ids[row, part], types[row, part], mask[row, part] = one.ids, one.types, True
        if not self.has_mask and not mask.all():
            raise FeedError(
                f"a text has {min(len(one.ids) for one in encoded)} tokens, the model takes "
                f"{width} and has no attention_mask to hide padding",
                hint="Use texts of equal length, or pass arrays.",
            )
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        feed = {
            name: arrays[name].astype(dtype, copy=False) for name, dtype in self._dtypes.items()
        }
        return TokenBatch(feed, mask, len(encoded))

    def _no_room(self, whole: Encoded, outside: int) -> tuple[str, str]:
        """What is wrong with a text whose windows would hold none of it, and a hint."""
        if self._questions:
            first = sum(span.part == 0 for span in whole.spans)
            return f"has a question of {first} tokens, which leaves no room for its context", (
                QUESTION_HINT
            )
        return f"has {outside} tokens that every window must hold", LONG_HINT

    @property
    def _pads_left(self) -> bool:
        return self._settings.pad_side == "left"

    def _encoded(self, encoding: Any) -> Encoded:
        spans: Iterable[Span] = ()
        if self._spans:
            spans = (
                Span(position, part, *offsets)
                for position, (part, offsets, special) in enumerate(
                    zip(
                        encoding.sequence_ids,
                        encoding.offsets,
                        encoding.special_tokens_mask,
                        strict=True,
                    )
                )
                if part is not None and not special
            )
        return Encoded(
            np.array(self._settings.of_model(encoding.ids), np.int64),
            np.array(encoding.type_ids, np.int64),
            bool(encoding.overflowing),
            tuple(spans),
        )


def text_problem(text: object) -> str:
    """Why ``text`` is neither a string nor a pair of strings, or ""."""
    if isinstance(text, str):
        parts: Sequence[object] = (text,)
    elif isinstance(text, tuple | list):
        if len(text) != 2:
            return f"got {len(text)} parts, expected a string or a pair of strings"
        parts = text
    else:
        return f"got {type(text).__name__}, expected a string or a pair of strings"
    for part in parts:
        if not isinstance(part, str):
            return f"got a pair with a {type(part).__name__}, expected a pair of strings"
        try:
            part.encode()
        except UnicodeEncodeError as error:
            return f"is not Unicode: half of a surrogate pair at character {error.start}"
    return ""


def _question_problem(text: object) -> str:
    problem = text_problem(text)
    if not problem and isinstance(text, str):
        return "got a string, expected a pair: a question and its context"
    return problem


def _places(encoding: Any, part: int) -> tuple[int, int]:
    """First place of a text's own tokens in its encoding, and one past the last."""
    places = [
        place
        for place, (owner, special) in enumerate(
            zip(encoding.sequence_ids, encoding.special_tokens_mask, strict=True)
        )
        if owner == part and not special
    ]
    return (places[0], places[-1] + 1) if places else (0, 0)


def _windows(whole: Encoded, begin: int, end: int, room: int, *, even: bool) -> Iterator[Encoded]:
    """A text with ``room`` of the tokens ``begin:end`` at a time; the others in every window.

    Args:
        whole: All of it.
        begin: Its first token that is in one window, or two, only.
        end: One past the last of them.
        room: How many of them a window takes.
        even: Let the last window begin earlier and be full: where all windows count the same.
    """
    step = room - min(WINDOW_OVERLAP, room // 2)
    for first in range(begin, end, step):
        last = min(first + room, end)
        if even:
            first = last - room
        kept = [*range(begin), *range(first, last), *range(end, len(whole.ids))]
        places = {old: new for new, old in enumerate(kept)}
        spans = (
            replace(span, position=places[span.position])
            for span in whole.spans
            if span.position in places
        )
        yield Encoded(whole.ids[kept], whole.types[kept], False, tuple(spans), first - begin)
        if last == end:
            return


def _load(bundle: Bundle, file: str, max_tokens: int | None) -> Any:
    import tokenizers  # 20 ms; not needed for arrays

    path = bundle.path / file
    try:
        loaded = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise BundleError(f"{path} is damaged: {error}", hint="Make the bundle again.") from error
    # The file may bring settings of its own; the manifest's are the ones that hold.
    loaded.no_padding()
    if max_tokens is None:
        loaded.no_truncation()
    else:
        loaded.enable_truncation(max_tokens)
    return loaded


def _limits(signature: Signature, axis: Dim) -> tuple[int, int | None]:
    if isinstance(axis, int):
        return axis, axis
    sizes = signature.ranges.get(axis)
    return (sizes.min, sizes.max) if sizes else (1, None)
