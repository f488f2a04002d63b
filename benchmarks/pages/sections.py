"""What a page of results is made of: sections, and tables of text in them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of text.

    Attributes:
        title: Above it; "" for none.
        heads: Of its columns.
        lines: A cell for each head.
    """

    title: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """What one run found.

    Attributes:
        title: What was measured.
        subject: What a newer run must have too to take its place.
        sheets: Its tables.
        notes: What they do not say, one sentence each.
    """

    title: str
    subject: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]
