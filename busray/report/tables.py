"""Figures as tables: for the terminal, for Markdown, for the page. Records in, cells out."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from busray.evidence.distances import WHOLE_CORPUS
from busray.records import CLASS_ALL, CLEAN_TEST, Figure
from busray.report.metrics import (
    DISTANCES,
    KERNEL,
    METRICS,
    NEIGHBOURHOOD,
    NONE,
    arms_text,
    excludes_zero,
)

Json = dict[str, Any]

NUMBER = re.compile(r"[-+<\[]*\d|–$|$")
"""How the cells of a column of numbers begin."""


class Table(NamedTuple):
    """A table for people; every row has a cell a column."""

    columns: list[str]
    rows: list[list[str]]


# ---- choosing figures


def figures_of(part: Mapping[str, Any]) -> list[Figure]:
    """The figures of report.json, or of its part `audit` or `study`; none where it has none."""
    return [Figure.from_dict(figure) for figure in part.get("figures") or []]


def select(figures: Iterable[Figure], **wanted: object) -> list[Figure]:
    """The figures whose fields have these values, such as metric="fid", floor=False.

    A tuple stands for any of its values.
    """
    chosen = list(figures)
    for name, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        chosen = [figure for figure in chosen if getattr(figure, name) in allowed]
    return chosen


def first(figures: Iterable[Figure], **wanted: object) -> Figure | None:
    """The first that `select` gives."""
    return next(iter(select(figures, **wanted)), None)


def distinct(figures: Iterable[Figure], name: str) -> list[Any]:
    """The values of a field, each once, in the order of the figures."""
    return list(dict.fromkeys(getattr(figure, name) for figure in figures))


def worst_class(figures: Sequence[Figure], metric: str, arm: str) -> Figure | None:
    """An arm's figure of the class with the worst value; None for a single class.

    figures: of one reference and protocol.
    """
    by_class = [f for f in select(figures, metric=metric, arm=arm, floor=False) if f.class_name != CLASS_ALL]
    if len(distinct(by_class, "class_name")) < 2:
        return None
    lower_is_better = METRICS[metric].better == "lower"
    return sorted(by_class, key=lambda f: f.value)[-1 if lower_is_better else 0]


def classes_of(figures: Iterable[Figure]) -> list[str]:
    """In the order of the figures, `all` first."""
    return sorted(distinct(figures, "class_name"), key=lambda name: name != CLASS_ALL)


def by_extractor(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """extractor -> its figures, of those with distances: no table below mixes extractors."""
    measured = distinct(select(figures, metric=DISTANCES, floor=False), "extractor")
    return {extractor: select(figures, extractor=extractor) for extractor in measured}


def without_clean(figures: Sequence[Figure]) -> tuple[list[Figure], list[Figure]]:
    """(the figures, those on the clean subset of the test images), for tables of their own."""
    return [f for f in figures if f.reference != CLEAN_TEST], select(figures, reference=CLEAN_TEST)


def grid(
    figures: Iterable[Figure], row: Callable[[Figure], Any], column: Callable[[Figure], Any]
) -> dict[Any, dict[Any, Figure]]:
    """row -> column -> figure, in the order of the figures; cells may be missing."""
    rows: dict[Any, dict[Any, Figure]] = {}
    for figure in figures:
        rows.setdefault(row(figure), {})[column(figure)] = figure
    return rows


def first_n(cells: Mapping[Any, Figure], columns: Iterable[Any]) -> str:
    """n of a row: that of its first figure in the order of the columns."""
    return str(next(cells[column].n for column in columns if column in cells))


# ---- tables of distances


def metrics_rows(figures: Sequence[Figure]) -> Table:
    """Figures over all classes, a row for each arm and protocol; the floor is the arm `real`."""
    overall = select(figures, class_name=CLASS_ALL)
    # Figures of different protocols must not be compared, so rows of one protocol stand together.
    protocols = distinct(overall, "protocol")
    overall.sort(key=lambda f: protocols.index(f.protocol))
    return _wide(overall, ("arm", "protocol"), lambda f: (f.arm, f.protocol))


def class_rows(figures: Sequence[Figure]) -> Table:
    """The same of each class, a row for each class and arm; the paper's mixture is marked."""
    classes = classes_of(figures)
    single = [f for f in figures if f.class_name != CLASS_ALL]
    single.sort(key=lambda f: classes.index(f.class_name))
    notes = {name: f" ({name})" for name in ("paper-mixture", WHOLE_CORPUS)}
    heads = ("class", "arm")
    return _wide(single, heads, lambda f: (f.class_name, f.arm + notes.get(f.protocol, "")))


def _wide(figures: Sequence[Figure], heads: tuple[str, str], row: Callable[[Figure], Any]) -> Table:
    """Columns: heads, n, and every distance that a figure has."""
    measured = select(figures, metric=DISTANCES)
    # in the order of DISTANCES and not of the figures, so that all tables look alike
    shown = sorted(distinct(measured, "metric"), key=DISTANCES.index)
    rows = []
    for names, cells in grid(measured, row, lambda f: f.metric).items():
        texts = [METRICS[metric].text(cells.get(metric)) for metric in shown]
        rows.append([*names, first_n(cells, shown), *texts])
    return Table([*heads, "n", *(METRICS[metric].heading for metric in shown)], rows)


def narrow_rows(figures: Sequence[Figure], metric: str) -> Table:
    """One metric, such as `fid` or `kid`: for terminals, where metrics_rows is too wide."""
    chosen = select(figures, metric=metric)
    classes = classes_of(chosen)
    rows = []
    by_arm = grid(chosen, lambda f: (f.arm, f.protocol), lambda f: f.class_name)
    for (arm, protocol), cells in by_arm.items():
        note = "" if protocol == "synthetic-only" else f" ({protocol})"
        row = [arm + note, first_n(cells, classes)]
        for name in classes:
            cell = cells.get(name)
            if cell and name != CLASS_ALL:
                # a terminal has no room for the intervals of the classes
                cell = replace(cell, interval=None)
            row.append(METRICS[metric].text(cell))
        rows.append(row)
    return Table(["arm", "n", *classes], rows)


def neighbour_rows(figures: Sequence[Figure]) -> Table:
    """Precision, recall, density and coverage, a row for each class and arm."""
    chosen = select(figures, metric=NEIGHBOURHOOD)
    rows = []
    for name in classes_of(chosen):
        cells = grid(select(chosen, class_name=name), lambda f: f.arm, lambda f: f.metric)
        for arm, by_metric in cells.items():
            numbers = [METRICS[metric].number(by_metric[metric].value) for metric in NEIGHBOURHOOD]
            rows.append([name, arm, *numbers])
    return Table(["class", "arm", *NEIGHBOURHOOD], rows)


def difference_rows(figures: Sequence[Figure]) -> Table:
    """Differences of pairs of arms in KID, or in another extractor's kernel distance.

    Below 0 the first arm is closer to the real images.
    """
    names = {f"{metric}_difference": METRICS[metric] for metric in KERNEL}
    chosen = select(figures, metric=tuple(names))
    metric = names[chosen[0].metric] if chosen else METRICS["kid"]
    factor = metric.title.removeprefix(metric.name)
    rows = []
    for f in chosen:
        excludes = ("yes" if excludes_zero(f) else "no") if f.interval else NONE
        value, interval = metric.number(f.value, "+"), metric.interval(f.interval)
        rows.append([arms_text(f), f.class_name, value, interval, excludes])
    value = f"{metric.name} difference{factor}"
    return Table(["arms", "class", value, "95 % interval", "excludes 0"], rows)


# ---- tables as text


def figures_csv(figures: Sequence[Figure]) -> str:
    """A row a figure, fields as in report.json; the interval in two columns, empty without one."""
    rows = []
    for figure in figures:
        row: Json = {}
        for key, value in figure.to_dict().items():
            if key == "interval":
                row["interval_low"], row["interval_high"] = value or ("", "")
            else:
                row[key] = value
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as GitHub renders it, numbers to the right."""
    right = numeric(rows)
    rule = ["---:" if i in right else "---" for i in range(len(columns))]
    lines = [_markdown_line(columns), " | ".join(rule), *map(_markdown_line, rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _markdown_line(cells: Sequence[str]) -> str:
    # A `|` would begin a cell, and a line break would end the table. Cells may come from a user.
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return " | ".join(" ".join(cell.split()) for cell in escaped)


def numeric(rows: Sequence[Sequence[str]]) -> set[int]:
    """The columns that hold numbers only."""
    columns = set(range(len(rows[0]))) if rows else set()
    for row in rows:
        columns = {i for i in columns if NUMBER.match(row[i])}
    return columns
