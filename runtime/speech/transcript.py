"""What is said in a sound: its text, and which part of it when."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of what is said.

    Attributes:
        start_s: When it begins.
        end_s: When it ends.
        text: What is said.
    """

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in a sound.

    Attributes:
        text: All of it.
        language: Its code, such as "en", where the model tells languages apart; else "".
        segments: Its parts in time, where they were asked for.
    """

    text: str
    language: str = ""
    segments: tuple[Segment, ...] = ()
