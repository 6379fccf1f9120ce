"""The report's part on distances to real images: tables, plots, and what each is computed from."""

from collections.abc import Sequence

from busray.records import CLASS_ALL, Figure
from busray.report.html import Row, RowGroup, columns, figure, folded, heading, paragraph, row_plot, section, table
from busray.report.metrics import DISTANCES, METRICS, SPREAD
from busray.report.tables import (
    by_extractor,
    class_rows,
    classes_of,
    difference_rows,
    metrics_rows,
    neighbour_rows,
    statement,
    without_clean,
)

MAIN_PROTOCOL = "synthetic-only"

MIXTURE_NOTE = (
    "paper-mixture: real images against the same real images with the synthetic ones added, so these distances are "
    "smaller by construction."
)

NEIGHBOURHOODS = (
    "Precision: the share of synthetic images that lie among real ones (within a real image's fifth neighbour). Recall "
    "and coverage: the share of real images that synthetic ones lie near. Density: as precision, but outliers weigh "
    "less; equal distributions have a density of 1. Images, protocol and reference are those of the distances. The arm "
    "real shows what other real images reach."
)

INTRODUCTIONS = {
    "inception": (
        "Distances to real images",
        "Lower is closer. FID is biased upwards at small n: two sets of real images reach the floor, not 0. So read "
        "FID next to the floor, and compare arms at equal n only. The spread of FID is over disjoint parts of the "
        "synthetic images, with the same real images. KID has no such bias. AUC: how well a classifier separates "
        "images from real ones, on images it was not trained on; 0.5 is guessing. In figures of all classes, "
        "each class has its share of the reference's images.",
    ),
    "texture": (
        "Distances in ultrasound texture",
        "Distances between 59 features of the image's content (grey values, co-occurrence, size of speckle, speckle "
        "SNR, spectrum), in units of their spread among the real training images. Smaller is closer; read FD-texture "
        "next to its floor. These are not FID and KID; do not compare them with these. AUC: of a classifier on these "
        "features.",
    ),
    "dinov2": (
        "Distances in DINOv2's features",
        "Smaller is closer; read FD-dinov2 next to its floor. These are not FID and KID; do not compare them with "
        "these.",
    ),
}
"""family of an extractor -> heading and explanation of its figures"""


def figures_section(figures: Sequence[Figure]) -> str:
    """A section for each extractor, so that no table mixes extractors."""
    return "".join(_extractor_section(*measured) for measured in by_extractor(figures).items())


def _extractor_section(extractor: str, figures: Sequence[Figure]) -> str:
    figures, clean = without_clean(figures)
    title, introduction = INTRODUCTIONS.get(extractor.partition("-")[0], INTRODUCTIONS["inception"])
    parts = [
        paragraph(introduction),
        columns("".join(_distance_plot(figures, metric) for metric in DISTANCES)),
        table(*metrics_rows(figures)),
        folded("Each class", table(*class_rows(figures))),
        *(paragraph(note, "soft") for note in _statements(figures)),
    ]
    if any(f.protocol == "paper-mixture" for f in figures):
        parts.append(paragraph(MIXTURE_NOTE, "soft"))
    if pairs := table(*difference_rows(figures)):
        parts.append(heading("Pairs of arms") + pairs)
    if clean:
        notes = "".join(paragraph(note, "soft") for note in _statements(clean))
        parts.append(heading("Without burned-in annotations") + table(*metrics_rows(clean)) + notes)
    if near := table(*neighbour_rows(figures)):
        parts.append(heading("Neighbourhoods") + paragraph(NEIGHBOURHOODS) + near)
    return section(title, "".join(parts))


def _statements(figures: Sequence[Figure]) -> list[str]:
    """A sentence for each protocol, and for metrics with the same n and reference."""
    measured = [f for f in figures if f.metric in DISTANCES]
    names: dict[str, list[str]] = {}
    for protocol, metric in dict.fromkeys((f.protocol, f.metric) for f in measured):
        alike = [f for f in measured if (f.protocol, f.metric) == (protocol, metric)]
        names.setdefault(statement(alike), []).append(METRICS[metric].name)
    return [f"{' and '.join(metrics)} {about}." for about, metrics in names.items()]


def _distance_plot(figures: Sequence[Figure], name: str) -> str:
    """A dot an arm in a group a class; whiskers are intervals, the dashed line is the floor."""
    metric = METRICS[name]
    shown = [f for f in figures if f.metric == name and f.protocol == MAIN_PROTOCOL]
    floors = {f.class_name: f for f in figures if f.metric == name and f.floor}
    if not shown:
        return ""
    arms = list(dict.fromkeys(f.arm for f in shown))
    groups = []
    for class_name in classes_of(shown):
        rows = []
        for f in shown:
            if f.class_name == class_name:
                rows.append(Row(f.arm, *metric.scaled(f), metric.number(f.value), f"c{arms.index(f.arm) % 4}"))
        floor = floors.get(class_name)
        title = "all classes" if class_name == CLASS_ALL else class_name
        dashed = (metric.scaled(floor)[0], metric.number(floor.value)) if floor else None
        groups.append(RowGroup(title, rows, dashed))
    drawing = row_plot(
        groups, f"{metric.title} (no unit; {metric.better} is closer)", f"{metric.name} of each arm and class"
    )
    bars = "spread over disjoint parts of the synthetic images" if metric.brackets == SPREAD else "95 % intervals"
    caption = f"{metric.name} {statement(shown)}. " + (f"Bars: {bars}. " if any(f.interval for f in shown) else "")
    if floors:
        caption += f"Dashed: the floor ({metric.floor}), {metric.name} {statement(list(floors.values()))}."
    return figure(drawing, caption, metric.title)
