"""Pieces of a page as text: drawings and tables. Whatever comes from data is escaped on its way in."""

import math
from collections.abc import Callable, Sequence
from html import escape as _e
from typing import Any

from busray.report.tables import numeric


def ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers within low .. high (one, where they are the same)."""
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = max(power * m for m in (1, 2, 2.5, 5) if power * m <= span / 4)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """value -> position: low at start, high at end."""
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


def svg(width: float, height: float, label: str, inside: str) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{_e(label)}">{inside}</svg>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{_e(words)}</text>'


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> str:
    """Columns of numbers to the right, of words to the left; nothing where there are no rows."""
    if not rows:
        return ""
    printed = [[str(cell) for cell in row] for row in rows]
    right = numeric(printed)

    def line(cells: Sequence[str], tag: str) -> str:
        marks = ("" if i in right else ' class="left"' for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{m}>{_e(cell)}</{tag}>" for m, cell in zip(marks, cells)) + "</tr>"

    head = f"<thead>{line(columns, 'th')}</thead>" if columns else ""
    body = "".join(line(row, "td") for row in printed)
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def folded(title: str, inside: str) -> str:
    return f"<details><summary>{_e(title)}</summary>{inside}</details>" if inside else ""
