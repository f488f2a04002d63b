"""Every error this package raises on purpose.

TfxError
├── RecipeError        a recipe asks for something impossible or contradictory
├── SignatureError     shapes, dtypes or ranges that cannot describe a model
├── FeedError          the caller's arrays or texts do not fit the signature
├── DataError          a file of texts or arrays cannot be read or written
├── BundleError        an artifact directory is missing, damaged or not ours
├── SourceError        a model name, path or factory that cannot be loaded
├── ExportError        a model could not be turned into a graph
├── QuantizeError      a graph's precision could not be lowered as asked
├── BackendError       a backend is unavailable or failed
├── QueueFullError     more is asked of a session at once than it lets wait
└── ParityError        two backends disagree by more than the tolerance
"""

from __future__ import annotations

from collections.abc import Iterable


class TfxError(Exception):
    """Base of all errors a caller may want to catch.

    Attributes:
        hint: What to do about it: one sentence that starts with a verb, or "".
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def with_hint(self) -> str:
        """The message, and the hint behind it, for where there is one line for both."""
        return f"{self} ({self.hint})" if self.hint else str(self)


class RecipeError(TfxError):
    """A recipe asks for something impossible or contradictory."""


class SignatureError(TfxError):
    """Shapes, dtypes or ranges that cannot describe a model."""


class FeedError(TfxError):
    """The caller's arrays or texts do not fit the signature."""


class DataError(TfxError):
    """A file of texts or arrays cannot be read or written."""


class BundleError(TfxError):
    """An artifact directory is missing, damaged or not ours."""


class SourceError(TfxError):
    """A model name, path or factory that cannot be loaded."""


class ExportError(TfxError):
    """A model could not be turned into a graph."""


class QuantizeError(TfxError):
    """A graph's precision could not be lowered as asked."""


class BackendError(TfxError):
    """A backend is unavailable or failed."""


class QueueFullError(TfxError):
    """More is asked of a session at once than it lets wait."""


class ParityError(TfxError):
    """Two backends disagree by more than the tolerance."""


def listing(head: str, problems: Iterable[str]) -> str:
    """Join a headline and every problem found under it, one indented line each.

    A single problem goes on the line of the headline.
    """
    found = list(problems)
    return f"{head} {found[0]}" if len(found) == 1 else "\n  ".join((head, *found))
