"""Sounds to answers on one model: files read, batches run, and what the model's head says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import BundleError, FeedError
from tfx.processing import AudioFeatures
from tfx.signature import BATCH, Feed

from ..audio import audio_feed
from ..text.answers import TextLabel, scores_from, text_label
from ..text.batching import cut_batches
from .ctc import spoken
from .resampling import resampled
from .transcript import Transcript
from .wav import read_wav

# A WAV file, or samples.
Sound = str | os.PathLike[str] | np.ndarray

# What a sound gives: a label, its text, or its part of every output.
SoundAnswer = TextLabel | Transcript | dict[str, np.ndarray]

# Most sounds, and most samples with padding, in one run.
BATCH_ROWS, BATCH_SAMPLES = 8, 1_000_000

# Share of a window that the next one reads again.
OVERLAP = 1 / 6


@dataclass(frozen=True, slots=True)
class _Window:
    """A stretch of a sound that the model hears at once.

    Attributes:
        sound: Index of the sound.
        start: Where it begins, in samples.
        samples: ``float32[samples]``.
    """

    sound: int
    start: int
    samples: np.ndarray


def read_sound(sound: Sound, rate: int, given: int | None = None) -> np.ndarray:
    """Samples of a file or an array, at the rate a model hears.

    Args:
        sound: A WAV file's path, or ``float32[samples]``.
        rate: The model's.
        given: The array's rate; None for the model's. A file says its own.

    Returns:
        ``float32[samples]``.

    Raises:
        DataError: If the file cannot be read.
        FeedError: If it is neither, or not a row of numbers.
    """
    if given is not None and given < 1:
        raise FeedError(f"sampling_rate is {given}, expected 1 or more")
    if isinstance(sound, np.ndarray):
        if sound.ndim != 1 or sound.dtype.kind != "f" or not sound.size:
            raise FeedError(
                f"a sound is {sound.dtype}{list(sound.shape)}, expected float32[samples]",
                hint="Give one channel, as floats between -1 and 1.",
            )
        return resampled(sound.astype(np.float32, copy=False), given or rate, rate)
    if not isinstance(sound, str | os.PathLike):
        raise FeedError(
            f"a sound is {type(sound).__name__}, expected the path of a WAV file, or an array"
        )
    read = read_wav(Path(sound))
    return resampled(read.samples, read.rate, rate)


def answer_sounds(
    bundle: Bundle,
    run: Callable[[Feed], Mapping[str, np.ndarray]],
    inputs: Any,
    rate: int | None = None,
    max_rows: int | None = None,
) -> Any:
    """What a model says of a sound, or of each of a list; see ``Session.predict``.

    Raises:
        DataError: If a file cannot be read.
        FeedError: If there is no sound, it does not fit, or the bundle takes none.
    """
    runner = SoundRunner(bundle, run)
    if not isinstance(inputs, list):
        return runner.answer([inputs], rate=rate, max_rows=max_rows)[0]
    if not inputs:
        raise FeedError("got an empty list, expected at least one sound")
    return runner.answer(inputs, rate=rate, max_rows=max_rows)


class SoundRunner:
    """Answers sounds with a bundle that says how they become its input."""

    def __init__(self, bundle: Bundle, run: Callable[[Feed], Mapping[str, np.ndarray]]) -> None:
        """Prepare for a bundle.

        Raises:
            FeedError: If it takes no sound, or needs more than that.
        """
        processing = bundle.manifest.processing
        if processing.audio is None:
            raise FeedError(
                f"{bundle.name} does not say how sound becomes arrays",
                hint="Give arrays named as the model's inputs.",
            )
        self._said = processing.audio
        self._signature = bundle.manifest.signature
        named = {self._said.input, self._said.mask}
        others = [spec.name for spec in self._signature.inputs if spec.name not in named]
        if others:
            raise FeedError(
                f"{bundle.name} needs {', '.join(others)} beside sound",
                hint="Give it arrays instead: Session.predict.",
            )
        self._where, self._run = bundle.name, run
        self._labels, self._text = processing.classification, processing.transcription

    @property
    def rate(self) -> int:
        """Samples a second that the model hears."""
        return self._said.rate

    def answer(
        self, sounds: Sequence[Sound], *, rate: int | None = None, max_rows: int | None = None
    ) -> list[SoundAnswer]:
        """What the model says of each sound.

        One that is longer than the model takes is read in windows that overlap: its text is that
        of their frames, and its scores are their mean.

        Args:
            sounds: Paths of WAV files, or ``float32[samples]`` each.
            rate: Of arrays, samples a second; None for the model's.
            max_rows: Most sounds in one run; None for ``BATCH_ROWS``.

        Raises:
            DataError: If a file cannot be read.
            FeedError: If a sound does not fit.
            BundleError: If the outputs do not fit what the manifest says of them.
        """
        samples = [read_sound(sound, self.rate, rate) for sound in sounds]
        windows = [one for index, sound in enumerate(samples) for one in self._cut(index, sound)]
        found: list[Any] = [None] * len(windows)
        for batch in self._batches(windows, max_rows or BATCH_ROWS):
            feed = audio_feed([windows[index].samples for index in batch], self._said)
            self._signature.bind(feed)
            outputs = self._run(feed)
            for row, index in enumerate(batch):
                found[index] = {name: array[row].copy() for name, array in outputs.items()}
        answers = []
        for index in range(len(samples)):
            own = [place for place, window in enumerate(windows) if window.sound == index]
            answers.append(self._joined([windows[i] for i in own], [found[i] for i in own]))
        return answers

    def _batches(self, windows: Sequence[_Window], rows: int) -> list[list[int]]:
        sizes = self._signature.ranges.get(BATCH)
        log_mel = self._said.features is AudioFeatures.LOG_MEL
        return cut_batches(
            [1 if log_mel else len(window.samples) for window in windows],
            max_rows=min(rows, sizes.max) if sizes else 1,
            max_tokens=BATCH_SAMPLES,
            # Frames of padding would be read as speech, or as part of the outputs.
            equal=not log_mel and (self._labels is None or not self._said.mask),
        )

    def _cut(self, index: int, sound: np.ndarray) -> Iterator[_Window]:
        shortest, longest = self._bounds()
        if len(sound) < shortest:
            raise FeedError(
                f"a sound is {len(sound) / self.rate:.3f} s, "
                f"{self._where} takes {shortest / self.rate:.3f} s or more",
                hint="Give a longer sound.",
            )
        if not longest or len(sound) <= longest:
            yield _Window(index, 0, sound)
            return
        if self._labels is None and self._text is None:
            raise FeedError(
                f"a sound is {len(sound) / self.rate:.1f} s, "
                f"{self._where} takes {longest / self.rate:.1f} s",
                hint="Cut it in pieces.",
            )
        hop = self._text.hop if self._text is not None else 1
        step = max(1, int(longest * (1 - OVERLAP)) // hop) * hop
        starts = [0]
        while starts[-1] + longest < len(sound):
            # Less may be left than the model takes: then the last window begins earlier.
            following = min(starts[-1] + step, (len(sound) - shortest) // hop * hop)
            if following == starts[-1]:  # less is left than makes a frame
                break
            starts.append(following)
        for start in starts:
            yield _Window(index, start, sound[start : start + longest])

    def _bounds(self) -> tuple[int, int]:
        """Least and most samples of a sound; 0 for any number."""
        if self._said.features is AudioFeatures.LOG_MEL:
            return 1, self._said.seconds * self.rate
        (spec,) = (spec for spec in self._signature.inputs if spec.name == self._said.input)
        axis = spec.shape[1]
        if isinstance(axis, int):
            return axis, axis
        sizes = self._signature.ranges.get(axis)
        return (sizes.min, sizes.max) if sizes else (1, 0)

    def _joined(
        self, windows: Sequence[_Window], found: Sequence[dict[str, np.ndarray]]
    ) -> SoundAnswer:
        if self._text is not None:
            logits = [self._output(one, self._text.output, 2) for one in found]
            if logits[0].shape[1] != len(self._text.tokens):
                raise BundleError(
                    f"{self._where}: {self._text.output} has {logits[0].shape[1]} tokens, "
                    f"the manifest has {len(self._text.tokens)}",
                    hint="Export the model again.",
                )
            ids = [one.argmax(axis=1) for one in logits]
            starts = [window.start // self._text.hop for window in windows]
            return Transcript(spoken(joined_frames(ids, starts), self._text))
        if self._labels is not None:
            rows = [self._output(one, self._labels.output, 1) for one in found]
            if rows[0].shape[0] != len(self._labels.labels):
                raise BundleError(
                    f"{self._where}: {self._labels.output} has {rows[0].shape[0]} classes, "
                    f"the manifest has {len(self._labels.labels)} labels",
                    hint="Export the model again.",
                )
            scores = scores_from(np.stack(rows), self._labels.activation)
            return text_label(self._labels.labels, scores.mean(axis=0))
        return found[0]

    def _output(self, outputs: Mapping[str, np.ndarray], name: str, ndim: int) -> np.ndarray:
        array = outputs.get(name)
        if array is None or array.ndim != ndim:
            raise BundleError(
                f"{self._where}: the manifest names an output {name!r} of {ndim + 1} axes",
                hint="Export the model again.",
            )
        return array


def joined_frames(ids: Sequence[np.ndarray], starts: Sequence[int]) -> np.ndarray:
    """The frames of windows that overlap as those of the whole: each from the window it is amid.

    Args:
        ids: Of each window, ``int64[frames]``.
        starts: The first frame of each in the whole.
    """
    parts = []
    first = 0  # of the whole, of what is still to be taken
    for index, (start, one) in enumerate(zip(starts, ids, strict=True)):
        end = start + len(one)
        last = (starts[index + 1] + end) // 2 if index + 1 < len(ids) else end
        parts.append(one[first - start : last - start])
        first = last
    return np.concatenate(parts)
