"""Figures as tables: for the terminal, for Markdown, for the page. Records in, cells out."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from busray.records import CLASS_ALL, CLEAN_TEST, TOLD_APART

Json = dict[str, Any]


METRICS = {
    "fid": ("FID", 1.0, 1),
    "kid": ("KID x 1000", 1000.0, 2),
    "fd-texture": ("FD-texture", 1.0, 2),
    "kd-texture": ("KD-texture", 1.0, 2),
    "fd-dinov2": ("FD-dinov2", 1.0, 1),
    "kd-dinov2": ("KD-dinov2", 1.0, 3),
    TOLD_APART: ("AUC", 1.0, 3),
}
"""metric -> (its column, factor and decimals to print it with); `<metric>_floor` is the same between real images."""


KERNEL = ("kid", "kd-texture", "kd-dinov2")
"""The kernel distances, of which pairs of arms have a difference."""


FRECHET = ("fid", "fd-texture", "fd-dinov2")
"""The distances whose interval is a spread over disjoint parts of the drawn images, the reference as it is."""


NEIGHBOURHOOD = ("precision", "recall", "density", "coverage")


NONE = "–"
"""A cell for which there is no figure."""


NUMBER = re.compile(r"[-+\[]*\d|–$|$")
"""How the cells of a column of numbers begin."""


def by_extractor(figures: list[Json]) -> dict[str, list[Json]]:
    """extractor -> its figures, of those that have distances: what each table below is of, so that none mixes them."""
    measured = dict.fromkeys(f["extractor"] for f in figures if f["metric"] in METRICS)
    return {extractor: [f for f in figures if f["extractor"] == extractor] for extractor in measured}


def without_clean(figures: list[Json]) -> tuple[list[Json], list[Json]]:
    """(the figures, those of them on the clean subset of the test images), for tables of their own."""
    return (
        [f for f in figures if f["reference"] != CLEAN_TEST],
        [f for f in figures if f["reference"] == CLEAN_TEST],
    )


def called(metric: str) -> str:
    """A distance's name without the factor it is printed with: FID, KID, FD-texture."""
    return METRICS[metric][0].removesuffix(" x 1000")


def headed(metric: str) -> str:
    """A metric's column, and what stands in its brackets."""
    return f"{METRICS[metric][0]} [{'spread' if metric in FRECHET else '95 % interval'}]"


def metrics_rows(figures: list[Json]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): figures of all classes together, a row for each arm and protocol; the floor is the arm `real`.

    Rows of a protocol stand together, since figures of different protocols must not be compared.
    """
    overall = [f for f in figures if f["class"] == CLASS_ALL]
    protocols = list(dict.fromkeys(f["protocol"] for f in overall))
    return _wide(sorted(overall, key=lambda f: protocols.index(f["protocol"])), ("arm", "protocol"))


def class_rows(figures: list[Json]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): the same of each class by itself, a row for each class and arm, and of the paper's mixture."""
    classes = classes_of(figures)
    single = sorted((f for f in figures if f["class"] != CLASS_ALL), key=lambda f: classes.index(f["class"]))
    mixed = {"paper-mixture": " (paper-mixture)"}
    return _wide([{**f, "arm": f["arm"] + mixed.get(f["protocol"], "")} for f in single], ("class", "arm"))


def _wide(figures: list[Json], by: tuple[str, str]) -> tuple[list[str], list[list[str]]]:
    """A row for each pair of values of the fields `by`, with n and each metric; in the order of the figures."""
    mine = [f for f in figures if f["metric"].removesuffix("_floor") in METRICS]
    found = {(f[by[0]], f[by[1]], f["metric"].removesuffix("_floor")): f for f in mine}
    shown = [metric for metric in METRICS if any(key[2] == metric for key in found)]
    rows = []
    for pair in dict.fromkeys(key[:2] for key in found):
        cells = [found.get((*pair, metric)) for metric in shown]
        rows.append([*pair, next(str(f["n"]) for f in cells if f), *(_cell(f) for f in cells)])
    return [*by, "n", *map(headed, shown)], rows


def narrow_rows(figures: list[Json], metric: str) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of one metric, such as `fid` or `kid`: for terminals, where metrics_rows is too wide."""
    mine = [f for f in figures if f["metric"].removesuffix("_floor") == metric]
    found = {(f["arm"], f["protocol"], f["class"]): f for f in mine}
    classes = classes_of(mine)
    rows = []
    for arm, protocol in dict.fromkeys(key[:2] for key in found):
        cells = [found.get((arm, protocol, c)) for c in classes]
        note = "" if protocol == "synthetic-only" else f" ({protocol})"
        n = next((str(f["n"]) for f in cells if f), NONE)
        rows.append([arm + note, n, *(_cell(f, f["class"] == CLASS_ALL) if f else NONE for f in cells)])
    return ["arm", "n", *classes], rows


def _cell(figure: Json | None, with_interval: bool = True) -> str:
    if figure is None:
        return NONE
    metric = figure["metric"].removesuffix("_floor")
    interval = f" {_interval(metric, figure['interval'])}" if with_interval and figure["interval"] else ""
    return printed(metric, figure["value"]) + interval


def printed(metric: str, value: float) -> str:
    _, factor, decimals = METRICS[metric]
    return f"{value * factor:z.{decimals}f}"


def _interval(metric: str, ends: Sequence[float]) -> str:
    return f"[{printed(metric, ends[0])}, {printed(metric, ends[1])}]"


def neighbour_rows(figures: list[Json]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): precision, recall, density and coverage, a row for each class and arm."""
    found = {(f["class"], f["arm"], f["metric"].removesuffix("_floor")): f["value"] for f in figures}
    mine = [f for f in figures if f["metric"].removesuffix("_floor") in NEIGHBOURHOOD]
    rows = []
    for name in classes_of(mine):
        for arm in dict.fromkeys(f["arm"] for f in mine if f["class"] == name):
            rows.append([name, arm, *(f"{found[name, arm, metric]:.2f}" for metric in NEIGHBOURHOOD)])
    return ["class", "arm", *NEIGHBOURHOOD], rows


def difference_rows(figures: list[Json]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): KID differences of pairs of arms (of another extractor, its kernel distance's); below 0 the
    first arm is closer to the real images."""
    mine = [f for f in figures if f["metric"].removesuffix("_difference") in KERNEL and f["metric"] not in KERNEL]
    metric = mine[0]["metric"].removesuffix("_difference") if mine else "kid"
    name, factor, _ = METRICS[metric]
    columns = ["arms", "class", f"{called(metric)} difference{name.removeprefix(called(metric))}"]
    rows = []
    for f in mine:
        interval, excludes = NONE, NONE
        if f["interval"]:
            low, high = f["interval"]
            interval, excludes = _interval(metric, (low, high)), "no" if low <= 0 <= high else "yes"
        value = f"{f['value'] * factor:+z.{METRICS[metric][2]}f}"
        rows.append([f["arm"], f["class"], value, interval, excludes])
    return [*columns, "95 % interval", "excludes 0"], rows


def figures_csv(figures: list[Json]) -> str:
    """A row a figure, with the fields that it has in report.json; the interval in two columns, empty where none is."""
    rows = []
    for figure in figures:
        row: Json = {}
        for key, value in figure.items():
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
    rule = ["---:" if i in numeric(rows) else "---" for i in range(len(columns))]
    lines = [[_md(cell) for cell in columns], rule, *([_md(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def numeric(rows: Sequence[Sequence[str]]) -> set[int]:
    """The columns that hold numbers only."""
    return {i for i in range(len(rows[0]) if rows else 0) if all(NUMBER.match(row[i]) for row in rows)}


def _md(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split())


def classes_of(figures: Iterable[Json]) -> list[str]:
    """In the order of the figures, `all` first."""
    return sorted(dict.fromkeys(f["class"] for f in figures), key=lambda name: name != CLASS_ALL)


def statement(figures: list[Json]) -> str:
    """What must stand next to figures of one protocol: extractor, protocol, n, reference, overall and a class, framing.

    Reports from before framing was recorded do not say it."""
    scopes = (
        ("", [f for f in figures if f["class"] == CLASS_ALL]),
        ("each class ", [f for f in figures if f["class"] != CLASS_ALL]),
    )
    counts = "; ".join(scope + _against(found) for scope, found in scopes if found)
    framed = f", {figures[0]['frame']}, {figures[0]['size']} px" if "frame" in figures[0] else ""
    return f"({figures[0]['extractor']}), {figures[0]['protocol']}, {counts}{framed}"


def _against(figures: list[Json]) -> str:
    n, reference = _span(f["n"] for f in figures), _span(f["n_reference"] for f in figures)
    kinds = " or ".join(dict.fromkeys("real" if f["reference"] == "all" else f["reference"] for f in figures))
    return f"n = {n} against {reference} {kinds} images"


def _span(values: Iterable[int]) -> str:
    low, *_, high = sorted(values) * 2
    return f"{low}" if low == high else f"{low} to {high}"
