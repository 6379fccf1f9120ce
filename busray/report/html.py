"""Parts of a page as text: sections, tables, plots. Whatever comes from data is escaped on its way in."""

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from busray.records import Interval
from busray.report.tables import numeric


def section(title: str, inside: str) -> str:
    """A part of the page; nothing where there is nothing inside."""
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def heading(words: str) -> str:
    """Inside a section."""
    return f"<h3>{escape(words)}</h3>"


def paragraph(words: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{escape(words)}</p>"


def sentence_list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="sentences">{items}</ul>' if items else ""


def folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>" if inside else ""


def image(png: bytes, alt: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(alt)}">'


def figure(inside: str, caption: str, title: str = "") -> str:
    above = heading(title) if title else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{above}{inside}{below}</figure>"


def columns(inside: str) -> str:
    """Figures side by side where the window is wide."""
    return f'<div class="columns">{inside}</div>' if inside else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> str:
    """Columns of numbers to the right, of words to the left; nothing where there are no rows."""
    if not rows:
        return ""
    printed = [[str(cell) for cell in row] for row in rows]
    right = numeric(printed)

    def line(cells: Sequence[str], tag: str) -> str:
        marks = ("" if i in right else ' class="left"' for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{m}>{escape(cell)}</{tag}>" for m, cell in zip(marks, cells)) + "</tr>"

    head = f"<thead>{line(columns, 'th')}</thead>" if columns else ""
    body = "".join(line(row, "td") for row in printed)
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


# ---- drawings: 400 units wide, colours c0 .. c3 of the page's style


WIDTH = 400


LETTER = 6.6
"""Width of a letter, about."""


def svg(height: float, label: str, inside: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{inside}</svg>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def shortened(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: max(most - 1, 1)]}…"


def ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers within low .. high (one, where they are the same)."""
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = max(power * m for m in (1, 2, 2.5, 5) if power * m <= span / 4)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """value -> position: low at start, high at end."""
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


class Plot:
    """A drawing with axes. Marks are placed by the values of the data; without `up`, y is a position."""

    def __init__(
        self,
        across: tuple[float, float],
        up: tuple[float, float] | None = None,
        left: float = 52,
        right: float = 386,
        top: float = 32,
        bottom: float = 184,
    ) -> None:
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self.x = scale(*across, left, right)
        self.y = scale(*up, bottom, top) if up else lambda position: position
        self._marks: list[str] = []

    def x_axis(self, values: Iterable[float], title: str, rules: bool = False) -> None:
        for value in values:
            if rules:
                self._path(f"M{self.x(value):.1f} {self.top:.1f}V{self.bottom:.1f}", "rule")
            self.text(self.x(value), self.bottom + 18, f"{value:g}", "soft", "middle")
        if title:
            self.text((self.left + self.right) / 2, self.bottom + 36, title, "soft", "middle")

    def y_axis(self, values: Iterable[float], label: Callable[[float], str] = "{:g}".format) -> None:
        for value in values:
            y = self.y(value)
            self._path(f"M{self.left:g} {y:.1f}H{self.right:g}", "rule")
            self.text(self.left - 6, y + 4, label(value), "soft", "end")

    def floor_across(self, value: float) -> None:
        """Dashed, over the whole width."""
        self._path(f"M{self.left:g} {self.y(value):.1f}H{self.right:g}", "floor")

    def floor_up(self, value: float, top: float, bottom: float) -> None:
        """Dashed, from one position to another."""
        self._path(f"M{self.x(value):.1f} {top:.1f}V{bottom:.1f}", "floor")

    def line(self, points: Sequence[tuple[float, float]], colour: int) -> None:
        path = "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        self.stroke(path, colour)

    def stroke(self, path: str, colour: int | None, opacity: float | None = None) -> None:
        """An SVG path as a line, filled where an opacity is given; without a colour in the page's ink."""
        kind = "" if colour is None else f"c{colour}"
        fill = "none" if opacity is None else f'currentColor" fill-opacity="{opacity}'
        self._marks.append(f'<path class="{kind}" fill="{fill}" stroke="currentColor" stroke-width="1.5" d="{path}"/>')

    def whisker_up(self, x: float, ends: Interval, colour: int) -> None:
        self.stroke(f"M{self.x(x):.1f} {self.y(ends[0]):.1f}V{self.y(ends[1]):.1f}", colour)

    def whisker_across(self, y: float, ends: Interval, colour: int | None) -> None:
        self.stroke(f"M{self.x(ends[0]):.1f} {self.y(y):.1f}H{self.x(ends[1]):.1f}", colour)

    def dot(self, x: float, y: float, colour: int) -> None:
        place = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}"'
        self._marks.append(f'<circle class="c{colour}" fill="currentColor" {place} r="4"/>')

    def bar(self, value: float, y: float, colour: int) -> None:
        """From 0 to the value, at height y."""
        path = f"M{self.x(0):.1f} {y - 7:.1f}H{self.x(value):.1f}V{y + 7:.1f}H{self.x(0):.1f}Z"
        self._marks.append(f'<path class="c{colour}" fill="currentColor" d="{path}"/>')

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """At a position of the drawing."""
        self._marks.append(text(x, y, words, kind, anchor))

    def _path(self, path: str, kind: str) -> None:
        self._marks.append(f'<path class="{kind}" d="{path}"/>')

    def drawing(self, label: str) -> str:
        return svg(self.bottom + 42, label, "".join(self._marks))


class Row(NamedTuple):
    """A value among others: its name at the left, its number at the right, its mark between."""

    name: str
    value: float
    interval: Interval | None
    number: str
    colour: int


class RowGroup(NamedTuple):
    title: str
    rows: Sequence[Row]
    floor: tuple[float, str] | None = None
    """Value and number of the group's dashed line."""


def row_plot(groups: Sequence[RowGroup], axis: str, label: str, bars: bool = False, reach: float = 0.0) -> str:
    """Groups of rows over one axis from 0, or below, to `reach` or the largest value: dots or bars, with intervals."""
    rows = [row for group in groups for row in group.rows]
    values = [0.0, reach]
    for row in rows:
        values += [row.value, *(row.interval or ())]
    values += [group.floor[0] for group in groups if group.floor]
    headed = any(group.title for group in groups)
    head, gap = (22 if headed else 0), 12
    height = sum(head + 20 * len(group.rows) + gap for group in groups)
    left = 12 + LETTER * max(len(row.name) for row in rows)
    across = (min(values), max(values))
    plot = Plot(across, left=left, right=335, top=20 if headed else 2, bottom=height - gap + 4)
    plot.x_axis(ticks(*across), axis, rules=True)
    y = 0
    for group in groups:
        plot.text(0, y + 15, shortened(group.title, 40), "head")
        y += head
        if group.floor:
            value, number = group.floor
            plot.text(WIDTH, y - 7, f"floor {number}", "soft", "end")
            plot.floor_up(value, y, y + 20 * len(group.rows))
        for row in group.rows:
            _draw_row(plot, row, y + 10, bars)
            y += 20
        y += gap
    return plot.drawing(label)


def _draw_row(plot: Plot, row: Row, y: float, bars: bool) -> None:
    plot.text(0, y + 4, row.name)
    if bars:
        plot.bar(row.value, y, row.colour)
    if row.interval:
        plot.whisker_across(y, row.interval, None if bars else row.colour)
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
    colour: int
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
) -> str:
    """Lines and dots with intervals over one axis. at: its ticks, by default round numbers from 0.

    floor: name and value of a dashed line. named: names stand at the right end of the lines.
    """
    points = [point for one in series for point in one.points]
    heights = [floor[1]] if floor else []
    for point in points:
        heights += [point.y, *(point.interval or ())]
    last = max(point.x for point in points)
    places = ticks(0, last) if at is None else at
    across = (0.0 if at is None else min(at), last if at is None else max(at))
    up = (min(heights), max(heights))
    plot = Plot(across, up, right=320 if named else 386, top=32 if title else 24)
    if title:
        plot.text(0, 12, title, "head")
    plot.y_axis(ticks(*up))
    plot.x_axis(places, axis)
    if floor:
        plot.floor_across(floor[1])
    for one in series:
        _draw_series(plot, one)
    if named:
        names = {one.name: plot.y(one.points[-1].y) for one in series}
        names |= {floor[0]: plot.y(floor[1])} if floor else {}
        for name, height in _spread_out(names).items():
            plot.text(plot.right + 6, height + 4, name)
    return plot.drawing(label)


def _draw_series(plot: Plot, series: Series) -> None:
    if series.line:
        plot.line([(point.x, point.y) for point in series.points], series.colour)
    for point in series.points:
        if point.interval:
            plot.whisker_up(point.x, point.interval, series.colour)
        if series.dots:
            plot.dot(point.x, point.y, series.colour)


def _spread_out(heights: dict[str, float]) -> dict[str, float]:
    """Heights at which names can be read: a name that would cover the one above it moves down."""
    placed, above = {}, float("-inf")
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[name] = above = max(height, above + 12)
    return placed
