"""Plots as inline SVG that keep their text size at every width.

Positions along both axes are percentages of the drawing, so a plot fills a phone and a wide screen
alike, and its text is never scaled. Colours come from the page's style sheet (``style.py``), by
class, so that one drawing serves light and dark; each series has a shape of its own beside its
colour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

# Room around the drawing area, in percent: left for the y axis' numbers, the others for markers.
LEFT, RIGHT, TOP, BOTTOM = 13.0, 4.0, 9.0, 15.0

# Around the origin, about 11 pixels across; series of more than these share shapes, not colours.
SHAPES = (
    "M5.5 0A5.5 5.5 0 1 1-5.5 0 5.5 5.5 0 1 1 5.5 0Z",  # circle
    "M-5-5H5V5H-5Z",  # square
    "M0-6.5L6 5H-6Z",  # triangle
    "M0-7L7 0 0 7-7 0Z",  # diamond
    "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",  # cross
)


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to 0..1.

    Attributes:
        low: Value at 0.
        high: Value at 1.
        log: Whether equal ratios are equally far apart.
    """

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value is; beyond the ends, at the nearer one."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Three to eight round values within the scale."""
        return _log_ticks(self.low, self.high) if self.log else _even_ticks(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Point:
    """A marker of a plot.

    Attributes:
        x: Value along the first axis.
        y: Value along the second.
        label: Short text beside it; "" for none.
        text: What it says when pointed at.
        series: Number of its colour and shape.
        low: Lower end of the interval of ``y``; equal to ``high`` for none.
        high: Upper end.
    """

    x: float
    y: float
    label: str
    text: str
    series: int
    low: float = 0.0
    high: float = 0.0


def log_scale(values: Iterable[float]) -> Scale:
    """A logarithmic scale with some room at both ends; values above 0."""
    known = list(values)
    low, high = min(known), max(known)
    room = max((high / low) ** 0.06, 1.1)
    return Scale(low / room, high * room, log=True)


def even_scale(values: Iterable[float]) -> Scale:
    """A linear scale with some room at both ends."""
    known = list(values)
    low, high = min(known), max(known)
    room = (high - low) * 0.06 or abs(high) * 0.01 or 1.0
    return Scale(low - room, high + room)


def number_text(value: float) -> str:
    """A number of a plot, in as few characters as it needs."""
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:.0f}"


def scatter(
    points: Sequence[Point], *, x_name: str, y_name: str, title: str, text: str, front: bool
) -> str:
    """Markers at two values each, the first on a logarithmic axis.

    Args:
        points: At least one.
        x_name: What the first axis shows, with its unit.
        y_name: What the second shows.
        title: Of the drawing, for those who do not see it.
        text: What can be seen in it, in sentences.
        front: Whether to join those that no other beats in both: smaller x and larger y.
    """
    x_scale = log_scale(point.x for point in points)
    y_scale = even_scale(value for p in points for value in (p.y, p.low or p.y, p.high or p.y))
    parts = _axes(x_scale, y_scale, x_name, y_name)
    if front:
        best = pareto(points)
        parts += [
            _line(x_scale, y_scale, (one.x, one.y), (other.x, other.y), "front")
            for one, other in itertools.pairwise(best)
        ]
    for point in points:
        if point.high > point.low:
            ends = (point.x, point.low), (point.x, point.high)
            parts.append(_line(x_scale, y_scale, *ends, f"interval s{point.series}"))
    placed: list[tuple[float, float]] = []
    for point in points:
        x, y = _x(x_scale.at(point.x)), _y(y_scale.at(point.y))
        # Labels of markers that lie close together go to different sides.
        label = ""
        if point.label:
            near = sum(abs(x - left) < 5 and abs(y - top) < 6 for left, top in placed)
            placed.append((x, y))
            side = (9, -7), (9, 15), (-9, -7), (-9, 15)
            across, down = side[near % 4]
            anchor = "start" if across > 0 else "end"
            place = f'x="{across}" y="{down}" text-anchor="{anchor}"'
            label = f"<text {place}>{escape(point.label)}</text>"
        parts.append(
            f'<svg x="{x:.2f}%" y="{y:.2f}%" overflow="visible" class="point s{point.series}">'
            f"<title>{escape(point.text)}</title>{marker(point.series)}{label}</svg>"
        )
    return _drawing(parts, title, text, 340)


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot.

    Attributes:
        xs: Values along the first axis, rising.
        ys: One for each.
        label: Short text at its end.
        text: What it says when pointed at.
        series: Number of its colour and shape.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    label: str
    text: str
    series: int


def curves(lines: Sequence[Curve], *, x_name: str, y_name: str, title: str, text: str) -> str:
    """Lines over two logarithmic axes, with a tick at each value of the first.

    Args:
        lines: At least one, of at least two values.
        x_name: What the first axis shows.
        y_name: What the second shows, with its unit.
        title: Of the drawing, for those who do not see it.
        text: What can be seen in it, in sentences.
    """
    xs = sorted({x for line in lines for x in line.xs})
    x_scale, y_scale = log_scale(xs), log_scale(y for line in lines for y in line.ys)
    parts = _axes(x_scale, y_scale, x_name, y_name, xs)
    ends: list[float] = []
    for line in lines:
        values = list(zip(line.xs, line.ys, strict=True))
        parts.append(f'<g class="curve s{line.series}"><title>{escape(line.text)}</title>')
        parts += [
            _line(x_scale, y_scale, one, other, "") for one, other in itertools.pairwise(values)
        ]
        for x, y in values:
            parts.append(
                f'<svg x="{_x(x_scale.at(x)):.2f}%" y="{_y(y_scale.at(y)):.2f}%" '
                f'overflow="visible">{marker(line.series)}</svg>'
            )
        x, y = values[-1]
        top = _y(y_scale.at(y))
        # Labels of lines that end close together stand side by side.
        across = 9 + 14 * sum(abs(top - end) < 4 for end in ends)
        ends.append(top)
        parts.append(
            f'<text x="{_x(x_scale.at(x)):.2f}%" y="{top:.2f}%" dx="{across}" dy="4">'
            f"{escape(line.label)}</text></g>"
        )
    return _drawing(parts, title, text, 320)


def strip(percentiles: Sequence[float], scale: Scale, series: int, text: str) -> str:
    """A distribution on one line: all, the middle 90 %, the middle 50 % and the median.

    Args:
        percentiles: 101 of them, 0 to 100.
        scale: Shared with the strips above and below.
        series: Number of its colour.
        text: What it says to those who do not see it.
    """
    at = [100 * scale.at(max(value, scale.low)) for value in percentiles]
    bars = (
        ("all", at[0], at[100], 11, 2),
        ("most", at[5], at[95], 8, 8),
        ("half", at[25], at[75], 4, 16),
    )
    parts = [
        f'<rect class="{name}" x="{left:.2f}%" width="{max(right - left, 0.2):.2f}%" y="{top}" '
        f'height="{height}"/>'
        for name, left, right, top, height in bars
    ]
    middle = f'<line class="median" x1="{at[50]:.2f}%" x2="{at[50]:.2f}%" y1="2" y2="22"/>'
    return (
        f'<svg class="strip s{series}" width="100%" height="24" role="img" '
        f'aria-label="{escape(text)}">{"".join(parts)}{middle}</svg>'
    )


def ruler(scale: Scale, unit: str) -> str:
    """The axis under strips."""
    parts = [
        f'<line class="tick" x1="{100 * scale.at(tick):.2f}%" x2="{100 * scale.at(tick):.2f}%" '
        f'y1="0" y2="5"/><text x="{100 * scale.at(tick):.2f}%" y="18" text-anchor="middle">'
        f"{number_text(tick)}</text>"
        for tick in scale.ticks()
    ]
    return (
        f'<svg class="ruler" width="100%" height="22" aria-hidden="true">{"".join(parts)}</svg>'
        f'<span class="unit" aria-hidden="true">{escape(unit)}</span>'
    )


def marker(series: int) -> str:
    """The shape of a series, around the origin."""
    return f'<path class="mark" d="{SHAPES[series % len(SHAPES)]}"/>'


def legend_mark(series: int) -> str:
    """A marker to stand in text."""
    return (
        f'<svg class="key s{series}" width="16" height="16" viewBox="-8 -8 16 16" '
        f'aria-hidden="true">{marker(series)}</svg>'
    )


def pareto(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats: as x grows, each is higher than all before."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -one.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def _drawing(parts: Sequence[str], title: str, text: str, height: int) -> str:
    return (
        f'<svg class="plot" width="100%" height="{height}" role="img" '
        f'aria-label="{escape(f"{title}. {text}")}">{"".join(parts)}</svg>'
    )


def _axes(
    x_scale: Scale, y_scale: Scale, x_name: str, y_name: str, x_ticks: Sequence[float] = ()
) -> list[str]:
    bottom, left = 100 - BOTTOM, LEFT
    parts = []
    for tick in y_scale.ticks():
        y = _y(y_scale.at(tick))
        parts.append(
            f'<line class="grid" x1="{left}%" x2="{100 - RIGHT}%" y1="{y:.2f}%" y2="{y:.2f}%"/>'
            f'<text x="{left - 1}%" y="{y:.2f}%" dy="4" text-anchor="end">{number_text(tick)}'
            "</text>"
        )
    for tick in x_ticks or x_scale.ticks():
        x = _x(x_scale.at(tick))
        parts.append(
            f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="{TOP}%" y2="{bottom}%"/>'
            f'<text x="{x:.2f}%" y="{bottom}%" dy="16" text-anchor="middle">{number_text(tick)}'
            "</text>"
        )
    parts.append(
        f'<text class="name" x="{(100 - RIGHT + left) / 2}%" y="100%" dy="-6" '
        f'text-anchor="middle">{escape(x_name)}</text>'
        f'<text class="name" x="0" y="12">{escape(y_name)}</text>'
    )
    return parts


def _line(
    x_scale: Scale, y_scale: Scale, one: tuple[float, float], other: tuple[float, float], name: str
) -> str:
    (x1, y1), (x2, y2) = ((_x(x_scale.at(x)), _y(y_scale.at(y))) for x, y in (one, other))
    return f'<line class="{name}" x1="{x1:.2f}%" y1="{y1:.2f}%" x2="{x2:.2f}%" y2="{y2:.2f}%"/>'


def _x(share: float) -> float:
    return LEFT + share * (100 - LEFT - RIGHT)


def _y(share: float) -> float:
    return 100 - BOTTOM - share * (100 - TOP - BOTTOM)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), range(10, 100)):
        scale = 10 if isinstance(steps, range) else 1
        ticks = [step / scale * 10.0**decade for decade in decades for step in steps]
        found = [tick for tick in ticks if low <= tick <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 8)]
    return found


def _even_ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    for factor in (5, 2, 1):
        count = math.floor(high / (step * factor)) - math.ceil(low / (step * factor)) + 1
        if count >= 3:
            first = math.ceil(low / (step * factor))
            return [round((first + index) * step * factor, 10) for index in range(count)]
    return [low, high]
