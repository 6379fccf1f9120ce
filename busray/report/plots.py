"""Drawings of a page as SVG: axes, dots, bars and lines over them, in the page's colours c0 .. c3.

Words that come from data are escaped.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from markupsafe import Markup

from busray.records import Interval

Pair = tuple[float, float]
Area = tuple[float, float, float, float]

WIDTH = 400
LETTER = 6.6
"""Width of a letter, about."""


def svg(height: float, label: str, inside: Markup) -> Markup:
    # the page scales a drawing to its column; the label is for screen readers
    size = f"0 0 {WIDTH} {height:g}"
    return Markup('<svg viewBox="{}" role="img" aria-label="{}">{}</svg>').format(size, label, inside)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> Markup:
    mark = Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>')
    return mark.format(f"{x:.1f}", f"{y:.1f}", kind, anchor, words)


def clipped(name: str, most: int) -> str:
    """A label of at most `most` characters: the end of a longer one is cut off."""
    return name if len(name) <= most else f"{name[: max(most - 1, 1)]}…"


def ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers within low .. high (a single one if these are equal)."""
    span = (high - low) or 1.0  # a constant has no span and gets a single tick
    power = 10 ** math.floor(math.log10(span / 4))
    step = max(power * m for m in (1, 2, 2.5, 5) if power * m <= span / 4)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """value -> position: low at start, high at end."""
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


class Plot:
    """A drawing with axes, filled mark by mark: x(value) and y(value) are positions in it.

    across, up: the values at the ends of the axes; without `up`, y takes positions.
    area: (left, right, top, bottom) between the axes.
    """

    def __init__(self, across: Pair, up: Pair | None = None, area: Area = (52, 386, 32, 184)) -> None:
        self.left, self.right, self.top, self.bottom = area
        self.x = scale(*across, self.left, self.right)
        self.y = scale(*up, self.bottom, self.top) if up else lambda position: position
        self._marks: list[Markup] = []

    def x_axis(self, values: Iterable[float], title: str, rules: bool = False) -> None:
        for value in values:
            x = self.x(value)
            if rules:
                self.rule("rule", (x, self.top), (x, self.bottom))
            self.text(x, self.bottom + 18, f"{value:g}", "soft", "middle")
        self.text((self.left + self.right) / 2, self.bottom + 36, title, "soft", "middle")

    def y_axis(self, values: Iterable[float], label: Callable[[float], str] = "{:g}".format) -> None:
        for value in values:
            y = self.y(value)
            self.rule("rule", (self.left, y), (self.right, y))
            self.text(self.left - 6, y + 4, label(value), "soft", "end")

    def rule(self, kind: str, start: Pair, end: Pair) -> None:
        """A straight line between positions: `rule` thin, `floor` dashed."""
        path = f"M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"
        self._marks.append(Markup('<path class="{}" d="{}"/>').format(kind, path))

    def line(self, points: Iterable[Pair], colour: str) -> None:
        """Through values; of two points also a whisker."""
        self.shape("M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points), colour)

    def shape(self, path: str, colour: str, opacity: float | None = None) -> None:
        """An SVG path of positions, filled if an opacity is given. colour: c0 .. c3, else ink."""
        fill = Markup('fill="none"')
        if opacity is not None:
            fill = Markup('fill="currentColor" fill-opacity="{}"').format(opacity)
        mark = Markup('<path class="{}" {} stroke="currentColor" stroke-width="1.5" d="{}"/>')
        self._marks.append(mark.format(colour, fill, path))

    def dot(self, x: float, y: float, colour: str) -> None:
        mark = Markup('<circle class="{}" fill="currentColor" cx="{}" cy="{}" r="4"/>')
        self._marks.append(mark.format(colour, f"{self.x(x):.1f}", f"{self.y(y):.1f}"))

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """At a position."""
        self._marks.append(text(x, y, words, kind, anchor))

    def drawing(self, label: str) -> Markup:
        return svg(self.bottom + 42, label, Markup("").join(self._marks))


class Row(NamedTuple):
    """A value among others: its name at the left, its number at the right, its mark between."""

    name: str
    value: float
    interval: Interval | None
    number: str
    colour: str


class RowGroup(NamedTuple):
    title: str
    rows: Sequence[Row]
    floor: tuple[float, str] | None = None
    """Value and number of a dashed line."""


def row_plot(groups: Sequence[RowGroup], axis: str, label: str, bars: bool = False, reach: float = 0.0) -> Markup:
    """Rows of dots or bars with intervals, over an axis that reaches at least from 0 to `reach`."""
    rows = list(chain.from_iterable(group.rows for group in groups))
    values = [0.0, reach, *(group.floor[0] for group in groups if group.floor)]
    for row in rows:
        values += [row.value, *(row.interval or ())]
    head = 22 if any(group.title for group in groups) else 0
    across = (min(values), max(values))
    # SVG cannot measure text: room for the names is estimated from their letters
    left = 12 + LETTER * max(len(row.name) for row in rows)
    bottom = (head + 12) * len(groups) + 20 * len(rows) - 8
    plot = Plot(across, area=(left, 335, head or 2, bottom))
    plot.x_axis(ticks(*across), axis, rules=True)
    y = 0
    for group in groups:
        plot.text(0, y + 15, clipped(group.title, 40), "head")
        y += head
        if group.floor:
            value, number = group.floor
            plot.text(WIDTH, y - 7, f"floor {number}", "soft", "end")
            plot.rule("floor", (plot.x(value), y), (plot.x(value), y + 20 * len(group.rows)))
        for row in group.rows:
            _draw_row(plot, row, y + 10, bars)
            y += 20
        y += 12
    return plot.drawing(label)


def _draw_row(plot: Plot, row: Row, y: float, bars: bool) -> None:
    plot.text(0, y + 4, row.name)
    if bars:
        zero, end = f"{plot.x(0):.1f}", f"{plot.x(row.value):.1f}"
        plot.shape(f"M{zero} {y - 7:g}H{end}v14H{zero}Z", row.colour, 1)
    if row.interval:
        # in ink over a bar: in the bar's own colour its lower half would not be seen
        plot.line([(row.interval.low, y), (row.interval.high, y)], "" if bars else row.colour)
    if not bars:
        plot.dot(row.value, y, row.colour)
    plot.text(WIDTH, y + 4, row.number, anchor="end")


class Point(NamedTuple):
    x: float
    y: float
    interval: Interval | None = None


class Series(NamedTuple):
    name: str
    points: Sequence[Point]
    colour: str
    line: bool = True
    dots: bool = True


def curve_plot(
    series: Sequence[Series],
    axis: str,
    label: str,
    title: str = "",
    at: Sequence[float] | None = None,
    floor: tuple[str, float] | None = None,
    named: bool = False,
) -> Markup:
    """Lines and dots with intervals over one axis. at: its ticks, by default round numbers from 0.

    floor: name and value of a dashed line. named: names at the right end of the lines.
    """
    points = list(chain.from_iterable(curve.points for curve in series))
    heights = [floor[1]] if floor else []
    for point in points:
        heights += [point.y, *(point.interval or ())]
    up, last = (min(heights), max(heights)), max(point.x for point in points)
    across = (min(at), max(at)) if at else (0.0, last)
    plot = Plot(across, up, (52, 320 if named else 386, 32, 184))
    plot.text(0, 12, title, "head")
    plot.y_axis(ticks(*up))
    plot.x_axis(at or ticks(0, last), axis)
    names: dict[str, float] = {}
    if floor:
        names[floor[0]] = plot.y(floor[1])
        plot.rule("floor", (plot.left, names[floor[0]]), (plot.right, names[floor[0]]))
    for curve in series:
        names[curve.name] = plot.y(curve.points[-1].y)
        _draw_series(plot, curve)
    above = float("-inf")
    for name, height in sorted(names.items(), key=lambda item: item[1]) if named else ():
        above = max(height, above + 12)  # a name that would cover the one above it moves down
        plot.text(plot.right + 6, above + 4, name)
    return plot.drawing(label)


def _draw_series(plot: Plot, series: Series) -> None:
    if series.line:
        plot.line([(point.x, point.y) for point in series.points], series.colour)
    for point in series.points:
        if ends := point.interval:
            plot.line([(point.x, ends.low), (point.x, ends.high)], series.colour)
        if series.dots:
            plot.dot(point.x, point.y, series.colour)
