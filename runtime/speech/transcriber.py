"""What is said in a sound, written down window by window with Whisper's encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tfx.processing import AudioPreparation, Dictation

from ..audio import log_mel, windowed
from ..generation.sampling import cooled, draw, log_probabilities
from .dictation import Piece, allowed, beginning, pieces, spoken_language
from .transcript import Segment, Transcript
from .wishes import NO_WISHES, Wishes


class Scribe(Protocol):
    """An encoder and a decoder with its cache, for several windows at a time.

    Attributes:
        positions: Most tokens of a text, those it begins with included.
        rows: Most windows at a time.
    """

    positions: int
    rows: int

    def hear(self, features: np.ndarray) -> None:
        """Take windows to be written down, ``float32[windows, mel bins, frames]``."""
        ...

    def start(self, ids: np.ndarray, windows: Sequence[int]) -> np.ndarray:
        """Logits of what follows these tokens, ``float32[rows, vocabulary]``.

        Args:
            ids: ``int64[rows, tokens]``.
            windows: Which one of those heard each row is of.
        """
        ...

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Logits of what follows when these came next, ``int64[rows]``; as of ``start``."""
        ...


@dataclass(slots=True)
class _Listening:
    """A sound, and how far it is written down.

    Attributes:
        features: Of all of it, ``float32[mel bins, frames]``.
        times: Whether what is written of it has times.
        language: Its code; None until it is found out.
        place: The first frame that is not done.
        found: What is written.
    """

    features: np.ndarray
    times: bool
    language: str | None
    place: int = 0
    found: list[Piece] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Frames that are not done."""
        return int(self.features.shape[1]) - self.place


@dataclass(slots=True)
class _Draft:
    """A text as it is written: its tokens, the end among them, and how likely they were.

    Attributes:
        tokens: Without the end.
        log_probability: Sum over all, the end included.
        count: How many those are.
        over: Whether it has ended.
    """

    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    count: int = 0
    over: bool = False


class Transcriber:
    """Writes down what is said, as transformers' ``WhisperForConditionalGeneration`` does."""

    def __init__(
        self,
        scribe: Scribe,
        hearing: AudioPreparation,
        writing: Dictation,
        spell: Callable[[Sequence[int]], str],
    ) -> None:
        """Put the parts together.

        Args:
            scribe: What runs.
            hearing: How sound becomes features.
            writing: How text is written.
            spell: The text of tokens, special ones left out.
        """
        self._scribe, self._hearing, self._writing = scribe, hearing, writing
        self._spell = spell

    def transcribe(
        self,
        sounds: Sequence[np.ndarray],
        wishes: Wishes = NO_WISHES,
        on_progress: Callable[[float], None] = lambda seconds: None,
    ) -> list[Transcript]:
        """Write down what is said; see ``Session.transcribe``.

        Args:
            sounds: ``float32[samples]`` each, at the rate of the model.
            wishes: How.
            on_progress: Told how many more seconds are done.

        Raises:
            FeedError: If the model does not do what is asked.
        """
        wishes.check(self._writing)
        heard = self.listen([self._features(sound) for sound in sounds], wishes, on_progress)
        return [self._transcript(*one, timestamps=wishes.timestamps) for one in heard]

    def _transcript(self, spoken: str, found: Sequence[Piece], *, timestamps: bool) -> Transcript:
        text = self._words(token for piece in found for token in piece.tokens)
        if not timestamps:
            return Transcript(text, spoken)
        segments = (
            Segment(round(one.start_s, 3), round(one.end_s, 3), self._words(one.tokens))
            for one in found
        )
        return Transcript(text, spoken, tuple(segments))

    def _features(self, sound: np.ndarray) -> np.ndarray:
        """Of all of a long sound; of a short one those of a window filled up with silence."""
        if len(sound) <= self._hearing.seconds * self._hearing.rate:
            sound = windowed(sound, self._hearing)
        return log_mel(sound, self._hearing)

    def listen(
        self,
        features: Sequence[np.ndarray],
        wishes: Wishes = NO_WISHES,
        on_progress: Callable[[float], None] = lambda seconds: None,
    ) -> list[tuple[str, list[Piece]]]:
        """The language of each sound, and what is written of each of its windows after another.

        A window begins where the last time of the one before was. A sound of several windows needs
        times for that, whether they are asked for or not; a model without them hears windows that
        do not overlap. Windows of different sounds are written together.

        Args:
            features: Of all of each sound, ``float32[mel bins, frames]``.
            wishes: As ``transcribe`` takes them.
            on_progress: As ``transcribe`` takes it.
        """
        said = self._writing
        sounds = [
            _Listening(
                one,
                said.no_times >= 0 and (wishes.timestamps or one.shape[1] > said.window),
                wishes.language,
            )
            for one in features
        ]
        while going := [sound for sound in sounds if sound.left > 0]:
            # Texts that begin with the same number of tokens.
            batch = [sound for sound in going if sound.times == going[0].times][: self._scribe.rows]
            windows = [_window(sound.features, sound.place, said.window) for sound in batch]
            self._scribe.hear(np.concatenate(windows))
            self._find_languages(batch)
            for sound, written in zip(batch, self._write(batch, wishes), strict=True):
                frames = min(sound.left, said.window)
                parts, done = pieces(said, written, sound.place, frames)
                # Times that were not asked for may not go on.
                done = done or frames
                sound.found += parts
                on_progress(min(done, sound.left) * said.step_s / said.stride)
                sound.place += done
        return [(sound.language or "", sound.found) for sound in sounds]

    def _find_languages(self, batch: Sequence[_Listening]) -> None:
        """Set the language of those whose first window is heard, where it is not known."""
        known = self._writing.languages
        new = [row for row, sound in enumerate(batch) if sound.language is None]
        if new and len(known) < 2:
            for row in new:
                batch[row].language = next(iter(known), "")
        elif new:
            start = np.full((len(new), 1), self._writing.start, np.int64)
            for row, logits in zip(new, self._scribe.start(start, new), strict=True):
                batch[row].language = spoken_language(self._writing, logits)

    def _write(self, batch: Sequence[_Listening], wishes: Wishes) -> list[list[int]]:
        """The tokens of each window, tried again while they are taken for wrong."""
        said, times, fallback = self._writing, batch[0].times, wishes.fallback
        prompts = np.array(
            [beginning(said, one.language or "", wishes.task, times=times) for one in batch],
            np.int64,
        )
        room = self._scribe.positions - prompts.shape[1]
        most = room if wishes.max_new_tokens is None else min(wishes.max_new_tokens, room)
        seed = fallback.seed if fallback else 0
        rngs = [np.random.default_rng((seed, sound.place)) for sound in batch]
        found: list[list[int]] = [[] for _ in batch]
        rows = list(range(len(batch)))
        for temperature in fallback.temperatures if fallback else (0.0,):
            drafts, vocabulary = self._attempt(prompts, rows, times, most, temperature, rngs)
            again = []
            for row, draft in zip(rows, drafts, strict=True):
                found[row] = draft.tokens
                ended = [said.end] * (draft.count - len(draft.tokens))
                mean = draft.log_probability / max(draft.count, 1)
                if fallback and fallback.refuses([*draft.tokens, *ended], vocabulary, mean):
                    again.append(row)
            rows = again
            if not rows:
                break
        return found

    def _attempt(
        self,
        prompts: np.ndarray,
        rows: Sequence[int],
        times: bool,
        most: int,
        temperature: float,
        rngs: Sequence[np.random.Generator],
    ) -> tuple[list[_Draft], int]:
        """Texts of some windows until each ends or has no more room, and the vocabulary's size."""
        said = self._writing
        drafts = [_Draft() for _ in rows]
        logits = self._scribe.start(prompts[list(rows)], rows)
        while True:
            tokens = np.full(len(rows), said.end, np.int64)
            for place, draft in enumerate(drafts):
                if draft.over:
                    continue
                kept = allowed(said, logits[place], draft.tokens, times=times)
                if temperature:
                    token = int(draw(cooled(kept[None], temperature), [rngs[rows[place]]])[0])
                else:
                    token = int(kept.argmax())
                draft.log_probability += float(log_probabilities(kept)[token])
                draft.count += 1
                if token != said.end:
                    draft.tokens.append(token)
                draft.over = token == said.end or len(draft.tokens) >= most
                tokens[place] = token
            if all(draft.over for draft in drafts):
                return drafts, logits.shape[1]
            logits = self._scribe.step(tokens)

    def _words(self, tokens: Iterable[int]) -> str:
        end = self._writing.end
        return self._spell([token for token in tokens if token < end]).strip()


def _window(features: np.ndarray, place: int, length: int) -> np.ndarray:
    part = features[None, :, place : place + length]
    missing = length - part.shape[2]
    return np.ascontiguousarray(np.pad(part, ((0, 0), (0, 0), (0, missing))))
