"""The report's part on distances to real images: tables, plots and what they say of themselves."""

from collections.abc import Callable
from html import escape as _e

from busray.records import CLASS_ALL
from busray.report.html import folded as _folded
from busray.report.html import scale as _scale
from busray.report.html import svg as _svg
from busray.report.html import table as _table
from busray.report.html import text as _text
from busray.report.html import ticks as _ticks
from busray.report.tables import (
    FRECHET,
    METRICS,
    Json,
    by_extractor,
    called,
    class_rows,
    classes_of,
    difference_rows,
    metrics_rows,
    neighbour_rows,
    printed,
    statement,
    without_clean,
)

MAIN_PROTOCOL = "synthetic-only"


MIXTURE_NOTE = (
    "paper-mixture: drawn and real images together against those same real images, so smaller by construction."
)


NEIGHBOURHOODS = (
    "<p>Precision: the share of drawn images that lie among real ones (within a real image&#x27;s fifth neighbour). "
    "Recall and coverage: the share of real images that drawn ones lie near. Density: as precision, counted so that "
    "outliers weigh less; 1 is what equal distributions have. Images, protocol and reference as for the distances; the "
    "arm real is what other real images reach.</p>"
)


INTRODUCTIONS = {
    "inception": (
        "Distances to real images",
        "Smaller is closer. FID is biased upwards at small n: real images against other real images come out at the "
        "floor, not at 0. So read it next to the floor, and compare arms at equal n only; its spread is over disjoint "
        "parts of the drawn images, the real images as they are. KID has no such bias. AUC: how well a classifier "
        "tells images it has not seen from real ones; 0.5 is guessing. All classes together are in the shares that "
        "they have among the reference&#x27;s images.",
    ),
    "texture": (
        "Distances in ultrasound texture",
        "Between 59 features of the image&#x27;s content (grey values, co-occurrence, size of speckle, speckle SNR, "
        "spectrum), in units of their spread among the real training images. Smaller is closer; read FD-texture next "
        "to its floor. These are not FID and KID and are not to be compared with them. AUC: of a classifier on them.",
    ),
    "dinov2": (
        "Distances in DINOv2&#x27;s features",
        "Smaller is closer; read FD-dinov2 next to its floor. These are not FID and KID and are not to be compared "
        "with them.",
    ),
}
"""family of an extractor -> heading and explanation of its figures"""


def figures_section(figures: list[Json]) -> str:
    return "".join(_extractor_section(extractor, of_it) for extractor, of_it in by_extractor(figures).items())


def _extractor_section(extractor: str, figures: list[Json]) -> str:
    figures, clean = without_clean(figures)
    plots = "".join(_distance_plot(figures, metric) for metric in METRICS)
    notes = _statements(figures) + [MIXTURE_NOTE] * any(f["protocol"] == "paper-mixture" for f in figures)
    pairs, near = _table(*difference_rows(figures)), _table(*neighbour_rows(figures))
    classes = _folded("Each class", _table(*class_rows(figures)))
    heading, words = INTRODUCTIONS.get(extractor.partition("-")[0], INTRODUCTIONS["inception"])
    return (
        f"<section><h2>{heading}</h2><p>{words}</p>"
        f'<div class="columns">{plots}</div>{_table(*metrics_rows(figures))}{classes}'
        + "".join(f'<p class="soft">{_e(note)}</p>' for note in notes)
        + (f"<h3>Pairs of arms</h3>{pairs}" if pairs else "")
        + _clean_subset(clean)
        + (f"<h3>Neighbourhoods</h3>{NEIGHBOURHOODS}{near}</section>" if near else "</section>")
    )


def _clean_subset(figures: list[Json]) -> str:
    """The same figures without real images that text or calipers were found in."""
    if not figures:
        return ""
    notes = "".join(f'<p class="soft">{_e(note)}</p>' for note in _statements(figures))
    return f"<h3>Without burned-in annotations</h3>{_table(*metrics_rows(figures))}{notes}"


def _statements(figures: list[Json]) -> list[str]:
    """One a protocol; metrics with the same n and reference share theirs."""
    metrics: dict[str, list[str]] = {}
    for protocol, metric in dict.fromkeys((f["protocol"], f["metric"]) for f in figures):
        name = metric.removesuffix("_floor")
        if name in METRICS:
            same = [f for f in figures if (f["protocol"], f["metric"]) == (protocol, metric)]
            metrics.setdefault(statement(same), []).append(called(name))
    return [f"{' and '.join(names)} {text}." for text, names in metrics.items()]


def _distance_plot(figures: list[Json], metric: str) -> str:
    """A dot for each arm in a group for each class; whiskers are intervals, the dashed line is the class's floor."""
    shown = [f for f in figures if f["metric"] == metric and f["protocol"] == MAIN_PROTOCOL]
    floors = {f["class"]: f for f in figures if f["metric"] == f"{metric}_floor"}
    if not shown:
        return ""
    name, (label, factor, _) = called(metric), METRICS[metric]
    values = [v for f in shown for v in (f["value"], *(f["interval"] or ()))] + [f["value"] for f in floors.values()]
    low, high = min(0.0, *values), max(values)
    arms = list(dict.fromkeys(f["arm"] for f in shown))
    left, right = 12.0 + 6.6 * max(len(arm) for arm in arms), 325.0
    at = _scale(low, high, left, right)
    marks, y = "", 0.0
    for class_name in classes_of(shown):
        group = [f for f in shown if f["class"] == class_name]
        title = "all classes" if class_name == CLASS_ALL else class_name
        marks += _text(0, y + 15, title if len(title) <= 40 else title[:39] + "…", "head")
        if floor := floors.get(class_name):
            x, end = at(floor["value"]), y + 22 + 20 * len(group)
            marks += _text(400, y + 15, f"floor {printed(metric, floor['value'])}", "soft", "end")
            marks += f'<path class="floor" d="M{x:.1f} {y + 22:.1f}V{end:.1f}"/>'
        for i, f in enumerate(group):
            marks += _dot(f, y + 32 + 20 * i, at, arms.index(f["arm"]) % 4)
        y += 34 + 20 * len(group)
    grid = ""
    for tick in _ticks(low * factor, high * factor):
        x = at(tick / factor)
        grid += f'<path class="rule" d="M{x:.1f} 20V{y - 8:.1f}"/>{_text(x, y + 8, f"{tick:g}", "soft", "middle")}'
    axis = _text((left + right) / 2, y + 27, f"{label} (no unit; smaller is closer)", "soft", "middle")
    bars = "spread over disjoint parts of the drawn images" if metric in FRECHET else "95 % intervals"
    legend = f"{name} {statement(shown)}. " + (f"Bars: {bars}. " if any(f["interval"] for f in shown) else "")
    if floors:
        legend += f"Dashed: the floor, {name} {statement(list(floors.values()))}."
    svg = _svg(400, y + 34, f"{name} of each arm and class", grid + marks + axis)
    return f"<figure><h3>{label}</h3>{svg}<figcaption>{_e(legend)}</figcaption></figure>"


def _dot(figure: Json, y: float, at: Callable[[float], float], colour: int) -> str:
    bar = ""
    if figure["interval"]:
        low, high = map(at, figure["interval"])
        bar = f'<path stroke="currentColor" stroke-width="1.5" d="M{low:.1f} {y:.1f}H{high:.1f}"/>'
    x, number = at(figure["value"]), printed(figure["metric"], figure["value"])
    dot = f'<g class="c{colour}">{bar}<circle fill="currentColor" cx="{x:.1f}" cy="{y:.1f}" r="4"/></g>'
    return _text(0, y + 4, figure["arm"]) + dot + _text(400, y + 4, number, anchor="end")
