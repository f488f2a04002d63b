"""Numbers as a reader sees them, and tables of figures that are fields of what is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

# Head of a column, name of the field, and its format.
Figure = tuple[str, str, str]


def figure_table(title: str, columns: Sequence[Figure]) -> Table:
    """A table without rows: names, then figures."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False, title=title, title_justify="left")
    table.add_column("")
    for head, _, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def figures_of(row: object, columns: Sequence[Figure]) -> Iterator[str]:
    """The figures of a row as they are shown; "-" for one that is None."""
    for _, name, form in columns:
        value = getattr(row, name)
        yield "-" if value is None else format(value, form)


def ms_text(value: float | None) -> str:
    """Milliseconds in three digits that count; "-" for None."""
    return "-" if value is None else significant(value)


def significant(value: float) -> str:
    """Three digits that count, and never an exponent."""
    if value <= 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def ratio_text(value: float) -> str:
    """A ratio in hundredths; from ten on in three digits that count."""
    return f"{value:.2f}" if value < 10 else significant(value)


def share_text(value: float | None) -> str:
    """A share in percent; "-" for None."""
    return "-" if value is None else f"{100 * value:.0f} %"


def span_text(low: float | None, high: float | None, form: str) -> str:
    """An interval, as "0.97..1.07"; "-" where there is none."""
    return "-" if low is None or high is None else f"{low:{form}}..{high:{form}}"
