"""Figures as tables: for the terminal, for Markdown, for the page. Records in, cells out."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from busray.records import CLASS_ALL, CLEAN_TEST, Figure
from busray.report.metrics import DISTANCES, KERNEL, METRICS, NEIGHBOURHOOD, NONE, arms_text, excludes_zero

Json = dict[str, Any]

NUMBER = re.compile(r"[-+<\[]*\d|–$|$")
"""How the cells of a column of numbers begin."""


class Table(NamedTuple):
    """A table for people; every row has a cell a column."""

    columns: list[str]
    rows: list[list[str]]


def figures_of(part: Mapping[str, Any]) -> list[Figure]:
    """The figures of report.json, or of its part `audit` or `study`; none where it has none."""
    return [Figure.from_dict(figure) for figure in part.get("figures") or []]


def by_extractor(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """extractor -> its figures, of those with distances: no table below mixes extractors."""
    measured = dict.fromkeys(f.extractor for f in figures if f.metric in DISTANCES and not f.floor)
    return {extractor: [f for f in figures if f.extractor == extractor] for extractor in measured}


def without_clean(figures: Sequence[Figure]) -> tuple[list[Figure], list[Figure]]:
    """(the figures, those on the clean subset of the test images), for tables of their own."""
    whole = [f for f in figures if f.reference != CLEAN_TEST]
    return whole, [f for f in figures if f.reference == CLEAN_TEST]


def metrics_rows(figures: Sequence[Figure]) -> Table:
    """Figures over all classes, a row for each arm and protocol; the floor is the arm `real`.

    Rows of a protocol stand together: figures of different protocols must not be compared.
    """
    overall = [f for f in figures if f.class_name == CLASS_ALL]
    protocols = list(dict.fromkeys(f.protocol for f in overall))
    overall.sort(key=lambda f: protocols.index(f.protocol))
    return _wide(overall, ("arm", "protocol"), lambda f: (f.arm, f.protocol))


def class_rows(figures: Sequence[Figure]) -> Table:
    """The same of each class, a row for each class and arm; the paper's mixture is marked."""
    classes = classes_of(figures)
    single = [f for f in figures if f.class_name != CLASS_ALL]
    single.sort(key=lambda f: classes.index(f.class_name))
    mixture = {"paper-mixture": " (paper-mixture)"}
    return _wide(single, ("class", "arm"), lambda f: (f.class_name, f.arm + mixture.get(f.protocol, "")))


def _wide(figures: Sequence[Figure], heads: tuple[str, str], key: Callable[[Figure], tuple[str, str]]) -> Table:
    """A row for each key with n and every distance that is there; in the order of the figures."""
    cells: dict[tuple[str, str], dict[str, Figure]] = {}
    for figure in figures:
        if figure.metric in DISTANCES:
            cells.setdefault(key(figure), {})[figure.metric] = figure
    shown = [metric for metric in DISTANCES if any(metric in row for row in cells.values())]
    rows = []
    for names, row in cells.items():
        n = next(row[metric].n for metric in shown if metric in row)
        rows.append([*names, str(n), *(METRICS[metric].text(row.get(metric)) for metric in shown)])
    return Table([*heads, "n", *(METRICS[metric].heading for metric in shown)], rows)


def narrow_rows(figures: Sequence[Figure], metric: str) -> Table:
    """One metric, such as `fid` or `kid`: for terminals, where metrics_rows is too wide."""
    chosen = [f for f in figures if f.metric == metric]
    classes = classes_of(chosen)
    arms: dict[tuple[str, str], dict[str, Figure]] = {}
    for figure in chosen:
        arms.setdefault((figure.arm, figure.protocol), {})[figure.class_name] = figure
    rows = []
    for (arm, protocol), by_class in arms.items():
        note = "" if protocol == "synthetic-only" else f" ({protocol})"
        n = next(by_class[name].n for name in classes if name in by_class)
        # a terminal has no room for the intervals of the classes
        short = {name: f if name == CLASS_ALL else replace(f, interval=None) for name, f in by_class.items()}
        rows.append([arm + note, str(n), *(METRICS[metric].text(short.get(name)) for name in classes)])
    return Table(["arm", "n", *classes], rows)


def neighbour_rows(figures: Sequence[Figure]) -> Table:
    """Precision, recall, density and coverage, a row for each class and arm."""
    chosen = [f for f in figures if f.metric in NEIGHBOURHOOD]
    values = {(f.class_name, f.arm, f.metric): f.value for f in chosen}
    rows = []
    for name in classes_of(chosen):
        for arm in dict.fromkeys(f.arm for f in chosen if f.class_name == name):
            cells = [METRICS[metric].number(values[name, arm, metric]) for metric in NEIGHBOURHOOD]
            rows.append([name, arm, *cells])
    return Table(["class", "arm", *NEIGHBOURHOOD], rows)


def difference_rows(figures: Sequence[Figure]) -> Table:
    """Differences of pairs of arms in KID, or in another extractor's kernel distance.

    Below 0 the first arm is closer to the real images.
    """
    names = {f"{metric}_difference": METRICS[metric] for metric in KERNEL}
    chosen = [f for f in figures if f.metric in names]
    metric = names[chosen[0].metric] if chosen else METRICS["kid"]
    factor = metric.title.removeprefix(metric.name)
    rows = []
    for f in chosen:
        excludes = ("yes" if excludes_zero(f) else "no") if f.interval else NONE
        rows.append([arms_text(f), f.class_name, metric.number(f.value, "+"), metric.interval(f.interval), excludes])
    return Table(["arms", "class", f"{metric.name} difference{factor}", "95 % interval", "excludes 0"], rows)


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
    lines = [_markdown_line(columns), " | ".join(rule), *(_markdown_line(row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _markdown_line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return " | ".join(" ".join(cell.split()) for cell in escaped)


def numeric(rows: Sequence[Sequence[str]]) -> set[int]:
    """The columns that hold numbers only."""
    return {i for i in range(len(rows[0]) if rows else 0) if all(NUMBER.match(row[i]) for row in rows)}


def classes_of(figures: Iterable[Figure]) -> list[str]:
    """In the order of the figures, `all` first."""
    return sorted(dict.fromkeys(f.class_name for f in figures), key=lambda name: name != CLASS_ALL)


def statement(figures: Sequence[Figure]) -> str:
    """What must stand next to figures of one protocol: extractor, protocol, n, reference, framing.

    n and reference overall and of a class. Old reports have no framing, and it is left out.
    """
    overall = [f for f in figures if f.class_name == CLASS_ALL]
    single = [f for f in figures if f.class_name != CLASS_ALL]
    counts = [_against(overall)] if overall else []
    counts += [f"each class {_against(single)}"] if single else []
    first = figures[0]
    framing = f", {first.frame}, {first.size} px" if first.frame else ""
    return f"({first.extractor}), {first.protocol}, {'; '.join(counts)}{framing}"


def _against(figures: Sequence[Figure]) -> str:
    n, reference = _span(f.n for f in figures), _span(f.n_reference for f in figures)
    kinds = " or ".join(dict.fromkeys("real" if f.reference == "all" else f.reference for f in figures))
    return f"n = {n} against {reference} {kinds} images"


def _span(values: Iterable[int]) -> str:
    low, *_, high = sorted(values) * 2
    return f"{low}" if low == high else f"{low} to {high}"
