"""What is said in a sound, written down window by window with Whisper's encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from tfx.errors import FeedError
from tfx.processing import AudioPreparation, Dictation

from ..audio import log_mel, windowed
from .dictation import Piece, allowed, beginning, check_wishes, pieces, spoken_language
from .transcript import Segment, Transcript


class Scribe(Protocol):
    """An encoder and a decoder with its cache, for one sound at a time.

    Attributes:
        positions: Most tokens of a text, those it begins with included.
    """

    positions: int

    def hear(self, features: np.ndarray) -> None:
        """Take a window to be written down, ``float32[1, mel bins, frames]``."""
        ...

    def start(self, ids: Sequence[int]) -> np.ndarray:
        """Logits of what follows these tokens, ``float32[vocabulary]``."""
        ...

    def step(self, token: int) -> np.ndarray:
        """Logits of what follows when this token came next, ``float32[vocabulary]``."""
        ...


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
        sound: np.ndarray,
        *,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        max_new_tokens: int | None = None,
        on_progress: Callable[[float], None] = lambda seconds: None,
    ) -> Transcript:
        """Write down what is said; see ``Session.transcribe``.

        Args:
            sound: ``float32[samples]`` at the rate of the model.
            language: Its code; None to have it found out from the first window.
            task: "transcribe", or "translate" into English.
            timestamps: Whether the transcript has its parts in time.
            max_new_tokens: Most tokens of a window; None for all there is room for.
            on_progress: Told how many more seconds are done.

        Raises:
            FeedError: If the model does not do what is asked.
        """
        check_wishes(self._writing, language, task)
        if timestamps and self._writing.no_times < 0:
            raise FeedError("timestamps are asked of a model that knows no times")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise FeedError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
        spoken, found = self.listen(
            self._features(sound), language, task, timestamps, max_new_tokens, on_progress
        )
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
        features: np.ndarray,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        max_new_tokens: int | None = None,
        on_progress: Callable[[float], None] = lambda seconds: None,
    ) -> tuple[str, list[Piece]]:
        """The language, and what is written of each window after another.

        A window begins where the last time of the one before was. A sound of several windows needs
        times for that, whether they are asked for or not; a model without them hears windows that
        do not overlap.

        Args:
            features: Of all of the sound, ``float32[mel bins, frames]``.
            language: As ``transcribe`` takes it.
            task: As ``transcribe`` takes it.
            timestamps: As ``transcribe`` takes it.
            max_new_tokens: As ``transcribe`` takes it.
            on_progress: As ``transcribe`` takes it.
        """
        said, total = self._writing, features.shape[1]
        times = said.no_times >= 0 and (timestamps or total > said.window)
        found: list[Piece] = []
        place = 0
        prompt: tuple[int, ...] = ()
        while place < total:
            frames = min(total - place, said.window)
            self._scribe.hear(_window(features, place, said.window))
            if not prompt:
                if language is None:
                    language = self._language()
                prompt = beginning(said, language, task, times=times)
            written = self._write(prompt, times, max_new_tokens)
            parts, done = pieces(said, written, place, frames)
            found += parts
            place += done
            on_progress(min(done, total - place + done) * said.step_s / said.stride)
        return language or "", found

    def _language(self) -> str:
        if len(self._writing.languages) < 2:
            return next(iter(self._writing.languages), "")
        return spoken_language(self._writing, self._scribe.start([self._writing.start]))

    def _write(self, prompt: tuple[int, ...], times: bool, most: int | None) -> list[int]:
        """The likeliest token each time, until the end or until there is no more room."""
        room = self._scribe.positions - len(prompt)
        most = room if most is None else min(most, room)
        written: list[int] = []
        logits = self._scribe.start(prompt)
        while True:
            token = int(allowed(self._writing, logits, written, times=times).argmax())
            if token == self._writing.end:
                return written
            written.append(token)
            if len(written) >= most:
                return written
            logits = self._scribe.step(token)

    def _words(self, tokens: Iterable[int]) -> str:
        end = self._writing.end
        return self._spell([token for token in tokens if token < end]).strip()


def _window(features: np.ndarray, place: int, length: int) -> np.ndarray:
    part = features[None, :, place : place + length]
    missing = length - part.shape[2]
    return np.ascontiguousarray(np.pad(part, ((0, 0), (0, 0), (0, missing))))
