"""The report's part on distances to real images: tables, plots, and what each is computed from."""

from collections.abc import Sequence
from itertools import starmap

from markupsafe import Markup

from busray.evidence.distances import WHOLE_CORPUS
from busray.records import CLASS_ALL, Figure
from busray.report import html, plots, tables
from busray.report.metrics import DISTANCES, METRICS, OTHER_REAL, SPREAD
from busray.report.tables import distinct, first, select

MIXTURE_NOTE = (
    "paper-mixture: real images against the same real images with the synthetic ones added, so "
    "these distances are smaller by construction."
)

WHOLE_CORPUS_NOTE = (
    "whole-corpus: all images that are given out, however many. FID falls as n grows, so compare "
    "these with no row of another n. There is no interval, since no images were chosen. Over all "
    "classes each class has its share of the corpus, not of the reference."
)

NEIGHBOURHOODS = (
    "Precision: the share of synthetic images that lie among real ones (within a real image's "
    "fifth neighbour). Recall and coverage: the share of real images that synthetic ones lie "
    "near. Density: as precision, but outliers weigh less; equal distributions have a density of "
    "1. Images, protocol and reference are those of the distances. The arm real shows what other "
    "real images reach."
)

# Each says which way is better and what not to compare, because a reader of one table has seldom
# read the others.
INTRODUCTIONS = {
    "inception": (
        "Distances to real images",
        "Lower is closer. FID is biased upwards at small n: two sets of real images reach the "
        "floor, not 0. So read FID next to the floor, and compare arms at equal n only. The "
        "spread of FID is over disjoint parts of the synthetic images, with the same real images. "
        "KID has no such bias. AUC: how well a classifier separates images from real ones, on "
        "images it was not trained on; 0.5 is guessing. In figures of all classes, each class has "
        "its share of the reference's images.",
    ),
    "texture": (
        "Distances in ultrasound texture",
        "Distances between 59 features of the image's content (grey values, co-occurrence, size "
        "of speckle, speckle SNR, spectrum), in units of their spread among the real training "
        "images. Smaller is closer; read FD-texture next to its floor. These are not FID and KID; "
        "do not compare them with these. AUC: of a classifier on these features.",
    ),
    "dinov2": (
        "Distances in DINOv2's features",
        "Smaller is closer; read FD-dinov2 next to its floor. These are not FID and KID; do not "
        "compare them with these.",
    ),
}
"""family of an extractor -> heading and explanation of its figures"""


def distance_sections(figures: Sequence[Figure]) -> list[html.Section]:
    """A section for each extractor, so that no table mixes extractors."""
    return list(starmap(_extractor_section, tables.by_extractor(figures).items()))


def _extractor_section(extractor: str, figures: Sequence[Figure]) -> html.Section:
    figures, clean = tables.without_clean(figures)
    family = extractor.partition("-")[0]
    title, introduction = INTRODUCTIONS.get(family, INTRODUCTIONS["inception"])
    drawings = html.NOTHING.join(_distance_plot(figures, metric) for metric in DISTANCES)
    inside = html.paragraph(introduction) + _legend(figures) + html.columns(drawings) + _statements(figures)
    inside += html.table(*tables.metrics_rows(figures))
    inside += html.folded("Each class", html.table(*tables.class_rows(figures)))
    if select(figures, protocol="paper-mixture"):
        inside += html.paragraph(MIXTURE_NOTE, "soft")
    if select(figures, protocol=WHOLE_CORPUS):
        inside += html.paragraph(WHOLE_CORPUS_NOTE, "soft")
    if pairs := html.table(*tables.difference_rows(figures)):
        inside += html.heading("Pairs of arms") + pairs
    if clean:
        inside += html.heading("Without burned-in annotations")
        inside += html.table(*tables.metrics_rows(clean)) + _statements(clean)
    if near := html.table(*tables.neighbour_rows(figures)):
        inside += html.heading("Neighbourhoods") + html.paragraph(NEIGHBOURHOODS) + near
    return html.Section(title, inside)


def _statements(figures: Sequence[Figure]) -> Markup:
    """A paragraph for each protocol, and for metrics with the same n and reference."""
    measured = select(figures, metric=DISTANCES)
    names: dict[str, list[str]] = {}
    for protocol, metric in dict.fromkeys((f.protocol, f.metric) for f in measured):
        alike = select(measured, protocol=protocol, metric=metric)
        names.setdefault(_statement(alike), []).append(METRICS[metric].name)
    # Metrics with the same statement share one sentence: most of them count the same images.
    notes = [f"{' and '.join(metrics)} {about}." for about, metrics in names.items()]
    return html.NOTHING.join(html.paragraph(note, "soft") for note in notes)


def _statement(figures: Sequence[Figure]) -> str:
    """What must stand next to figures of one protocol: extractor, protocol, n, reference, framing.

    n and reference overall and of a class.
    """
    overall = select(figures, class_name=CLASS_ALL)
    single = [f for f in figures if f.class_name != CLASS_ALL]
    counts = [_against(overall)] if overall else []
    if single:
        counts.append(f"each class {_against(single)}")
    f = figures[0]
    return f"({f.extractor}), {f.protocol}, {'; '.join(counts)}, {f.frame}, {f.size} px"


def _against(figures: Sequence[Figure]) -> str:
    n, n_reference = _span(distinct(figures, "n")), _span(distinct(figures, "n_reference"))
    references = ("real" if name == "all" else name for name in distinct(figures, "reference"))
    return f"n = {n} against {n_reference} {' or '.join(dict.fromkeys(references))} images"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _plotted(figures: Sequence[Figure]) -> list[Figure]:
    """Only one protocol: a plot has one axis, and protocols must not be compared."""
    return select(figures, metric=DISTANCES, protocol="synthetic-only")


def _legend(figures: Sequence[Figure]) -> Markup:
    """The colours of the arms and the lines, for all plots of an extractor."""
    shown = _plotted(figures)
    entries = [(f"c{i % 4}", arm) for i, arm in enumerate(distinct(shown, "arm"))]
    with_bars = [f.metric for f in shown if f.interval]
    if any(METRICS[name].brackets == SPREAD for name in with_bars):
        spread = [METRICS[name].name for name in dict.fromkeys(with_bars) if METRICS[name].brackets == SPREAD]
        entries.append(("bar", f"95 % interval; of {' and '.join(spread)} the spread over disjoint parts"))
    elif with_bars:
        entries.append(("bar", "95 % interval"))
    if shown and select(figures, metric=DISTANCES, floor=True):
        entries.append(("floor", f"the floor: {OTHER_REAL}"))
    return html.legend(entries)


def _distance_plot(figures: Sequence[Figure], name: str) -> Markup:
    """A group per class, a dot per arm; whiskers are intervals, the dashed line is the floor."""
    metric = METRICS[name]
    shown = select(_plotted(figures), metric=name)
    if not shown:
        return html.NOTHING
    floors = select(figures, metric=name, floor=True)
    arms, groups = distinct(_plotted(figures), "arm"), []
    for class_name in tables.classes_of(shown):
        rows = []
        for f in select(shown, class_name=class_name):
            # an arm has the same colour in every class; the page has four
            colour = f"c{arms.index(f.arm) % 4}"
            rows.append(plots.Row(f.arm, *metric.scaled(f), metric.number(f.value), colour))
        floor = first(floors, class_name=class_name)
        dashed = (metric.scaled(floor)[0], metric.number(floor.value)) if floor else None
        title = "all classes" if class_name == CLASS_ALL else class_name
        groups.append(plots.RowGroup(title, rows, dashed))
    axis = f"{metric.title} (no unit; {metric.better} is closer)"
    drawing = plots.row_plot(groups, axis, f"{metric.name} of each arm and class")
    return html.figure(drawing, "", metric.title)
