"""The part of an HTML report that says where the time goes: a bar a row, and its operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ..measuring.report import Row
from ..measuring.spent import KINDS, REST, Share, kind_of
from .figures import significant

# Operators of a row that are named; the others are one line.
NAMED_OPS = 8
# A narrower part of a bar has no room for its share in figures.
LEAST_LABELLED = 0.09


def time_section(shape: str, rows: Sequence[Row], numbers: Mapping[str, int]) -> str:
    """What the time of each row goes to; "" if none was profiled.

    Args:
        shape: Title of the table they are in.
        rows: Those that were measured, fastest first.
        numbers: What rows are called by in plots.
    """
    known = [row for row in rows if row.spent is not None and row.spent.ops]
    if not known:
        return ""
    kinds = [
        kind
        for kind in (*KINDS, REST)
        if any(one.name == kind for row in known for one in row.spent.kinds)  # type: ignore[union-attr]
    ]
    lines = "".join(_bar(row, numbers[row.name]) for row in known)
    legend = "".join(
        f'<li><span class="swatch k{_number(kind)}"></span> {escape(kind)}</li>' for kind in kinds
    )
    return (
        f"<h3>Where the time goes, {escape(shape)}</h3><figure>"
        f'<div class="strips">{lines}</div><ul class="legend">{legend}</ul>'
        "<figcaption>Shares of the time that each engine's own profiler counts, in runs of their "
        "own after the timing. What an engine fuses is one operator; one that takes attention "
        "apart has it among matrix products. ms are of one run, with its counters on.</figcaption>"
        "</figure>"
        f"{''.join(_details(row, numbers[row.name]) for row in known)}"
    )


def _bar(row: Row, number: int) -> str:
    assert row.spent is not None
    parts, said = [], []
    for one in row.spent.kinds:
        text = f"{one.name} {one.share:.0%}, {significant(one.ms)} ms"
        said.append(text)
        label = f"{one.share:.0%}" if one.share >= LEAST_LABELLED else ""
        parts.append(
            f'<span class="k{_number(one.name)}" style="flex:{one.share:.4f} 0 0" '
            f'title="{escape(text)}">{label}</span>'
        )
    counted = significant(sum(one.ms for one in row.spent.ops))
    return (
        f'<div class="who">{number} {escape(row.name)}</div>'
        f'<div class="share" role="img" aria-label="{escape(f"{row.name}: " + "; ".join(said))}">'
        f'{"".join(parts)}</div><div class="value">{counted} ms</div>'
    )


def _details(row: Row, number: int) -> str:
    assert row.spent is not None
    shown = list(row.spent.ops[:NAMED_OPS])
    if rest := row.spent.ops[NAMED_OPS:]:
        shown.append(
            Share(
                f"{len(rest)} others",
                sum(one.ms for one in rest),
                sum(one.share for one in rest),
                sum(one.nodes for one in rest),
            )
        )
    body = "".join(
        f'<tr><th scope="row">{escape(one.name)}</th>'
        f'<td class="word">{escape(kind_of(one.name)) if one in row.spent.ops else ""}</td>'
        f"<td>{significant(one.ms)}</td><td>{one.share:.1%}</td><td>{one.nodes}</td></tr>"
        for one in shown
    )
    return (
        f"<details><summary>Operators of {number} {escape(row.name)}</summary>"
        '<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">operator</th>'
        '<th scope="col" class="word">kind</th><th scope="col">ms</th><th scope="col">share</th>'
        f'<th scope="col">nodes</th></tr></thead><tbody>{body}</tbody></table></div></details>'
    )


def _number(kind: str) -> int:
    return (*KINDS, REST).index(kind)
