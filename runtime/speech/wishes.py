"""What is asked of a model that writes down what is said."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tfx.errors import FeedError
from tfx.processing import Dictation

from .dictation import Task
from .fallback import Fallback


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How sounds are to be written down.

    Attributes:
        language: Code of what is spoken; None to have it found out, from the first window.
        task: One of ``Task``.
        timestamps: Whether transcripts have their parts in time.
        max_new_tokens: Most tokens of a window; None for all there is room for.
        fallback: What is done about a text that went wrong; None for nothing.
    """

    language: str | None = None
    task: str = Task.TRANSCRIBE
    timestamps: bool = False
    max_new_tokens: int | None = None
    fallback: Fallback | None = None

    def given(self) -> list[str]:
        """Names of what is asked for."""
        return [one.name for one in fields(self) if getattr(self, one.name) != one.default]

    def check(self, said: Dictation) -> None:
        """Say what a model cannot do of what is asked.

        Args:
            said: How the model writes.

        Raises:
            FeedError: If the language or the task is none of the model's, it knows no times, or
                there is to be no token.
        """
        if self.task not in [*Task]:
            raise FeedError(f"task is {self.task!r}, expected one of {', '.join(Task)}")
        if self.task not in said.tasks and (said.tasks or self.task != Task.TRANSCRIBE):
            raise FeedError(
                f"task is {self.task!r}, and the model does only {Task.TRANSCRIBE}",
                hint="Leave the task out.",
            )
        if self.language is not None and self.language not in said.languages:
            known = ", ".join(sorted(said.languages))
            raise FeedError(
                f"language is {self.language!r}, the model knows {known or 'one language alone'}",
                hint="Give the code of one of them." if known else "Leave the language out.",
            )
        if self.timestamps and said.no_times < 0:
            raise FeedError(
                "timestamps are asked of a model that knows no times",
                hint="Leave the timestamps out, or take a Whisper that has them.",
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise FeedError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more")


# What is asked for where nobody says anything.
NO_WISHES = Wishes()
