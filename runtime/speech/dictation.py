"""Whisper's way to write: what a text begins with, which token may come next, and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tfx.processing import Dictation

from ..generation.sampling import log_probabilities


class Task(StrEnum):
    """What is written of a sound."""

    TRANSCRIBE = "transcribe"  # what is said, in its language
    TRANSLATE = "translate"  # the same in English


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what was written of one window.

    Attributes:
        start_s: When it begins in the sound.
        end_s: When it ends.
        tokens: What was written, times included.
    """

    start_s: float
    end_s: float
    tokens: tuple[int, ...]


def beginning(said: Dictation, language: str, task: str, *, times: bool) -> tuple[int, ...]:
    """The tokens a text begins with, which the model is given.

    Args:
        said: The model.
        language: A code it knows; "" where it tells none apart.
        task: One of ``Task``.
        times: Whether its parts are to have times.
    """
    found = [said.start]
    if language:
        found.append(said.languages[language])
    if said.tasks:
        found.append(said.tasks[task])
    if not times and said.no_times >= 0:
        found.append(said.no_times)
    return tuple(found)


def spoken_language(said: Dictation, logits: np.ndarray) -> str:
    """The likeliest language, from the logits after ``start``; "" where there are none.

    Args:
        said: The model.
        logits: ``float32[vocabulary]``.
    """
    return max(said.languages, key=lambda code: logits[said.languages[code]], default="")


def allowed(
    said: Dictation, logits: np.ndarray, written: Sequence[int], *, times: bool
) -> np.ndarray:
    """Logits with minus infinity for what must not come next.

    With times: they come in pairs except before the end, never go back, and the first token is
    one; and where all times together are likelier than any other token, one of them comes next
    (Radford et al. 2022, section 2.3; openai/whisper's decoding.py).

    Args:
        said: The model.
        logits: ``float32[vocabulary]``.
        written: The tokens so far, without those it began with.
        times: Whether its parts have times.
    """
    logits = logits.copy()
    if not written:
        logits[list(said.suppressed_first)] = -np.inf
    logits[list(said.suppressed)] = -np.inf
    if not times:
        return logits
    zero = said.no_times + 1
    logits[said.no_times] = -np.inf
    if not written:
        logits[:zero] = -np.inf
        if said.latest_first >= 0:
            logits[zero + said.latest_first + 1 :] = -np.inf
    else:
        seen = [token for token in written if token >= zero]
        ends = written[-1] >= zero
        second = len(written) < 2 or written[-2] >= zero  # of a pair of times
        if ends and second:
            logits[zero:] = -np.inf
        elif ends:
            logits[: said.end] = -np.inf
        if seen:
            # The end of a part may be where the next one begins; a part takes time.
            least = seen[-1] if ends and not second else seen[-1] + 1
            logits[zero:least] = -np.inf
    chances = log_probabilities(logits)
    if np.logaddexp.reduce(chances[zero:]) > chances[:zero].max():
        logits[:zero] = -np.inf
    return logits


def pieces(
    said: Dictation, written: Sequence[int], begin: int, frames: int
) -> tuple[list[Piece], int]:
    """The parts of what was written of a window, and how many of its frames are done.

    Two times in a row end one part and begin another. What follows the last of them is heard
    again with what comes after the window, unless the text ends with one time alone: then nothing
    more is said in it.

    Args:
        said: The model.
        written: The tokens, without those it began with and without the end.
        begin: First frame of the window in the sound.
        frames: How many of its frames are of the sound.
    """
    zero = said.no_times + 1 if said.no_times >= 0 else None
    is_time = [zero is not None and token >= zero for token in written]
    offset_s = begin * said.step_s / said.stride

    def at(token: int) -> float:
        return offset_s + (token - (zero or 0)) * said.step_s

    cuts = [i + 1 for i in range(len(written) - 1) if is_time[i] and is_time[i + 1]]
    if not cuts:
        times = [token for token, one in zip(written, is_time, strict=True) if one]
        last = frames // said.stride
        if times and times[-1] != zero:
            last = times[-1] - (zero or 0)
        end_s = offset_s + last * said.step_s
        return [Piece(offset_s, end_s, tuple(written))], frames
    alone = is_time[-2:] == [False, True]
    # Without a time alone at the end, the one that would begin another part stays with the last.
    ends = [*cuts, len(written)] if alone else [*cuts[:-1], cuts[-1] + 1]
    found = []
    for first, last in zip([0, *cuts], ends, strict=False):
        part = tuple(written[first:last])
        ending = part[-1] if alone or last != ends[-1] else part[-2]
        found.append(Piece(at(part[0]), at(ending), part))
    if alone:
        return found, frames
    return found, (written[cuts[-1] - 1] - (zero or 0)) * said.stride
