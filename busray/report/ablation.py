"""An ablation in words, tables, curves and its page.

Pure: figures and records in, text out. Copying and class drift are judged here by the nearest
training image in feature space only; the copy audit compares the images themselves.
"""

from collections.abc import Mapping, Sequence

from busray.evidence.nearness import DISTANCE, RECONSTRUCTION, SAME_CLASS, VAE
from busray.records import CLASS_ALL, INCEPTION, REAL, Figure
from busray.report.html import Point, Series, columns, curve_plot, figure, heading, image, paragraph, section, table
from busray.report.metrics import METRICS, NONE
from busray.report.page import report_html
from busray.report.tables import Json, Table, figures_of

Curves = Mapping[str, Mapping[str, Sequence[tuple[float, str]]]]
"""sweep -> arm -> (setting's value, name of the arm with it)"""

COLOUR_NAMES = ("blue", "brown")
"""Of the page's colours c1, c2."""

NEARNESS_HEADINGS = ["nearest training image, median [95 % interval]", "nearest of its class [95 % interval]"]


def ablation_sentences(arms: Sequence[Figure], sweep: Sequence[Figure], full: str, sweep_reference: str) -> list[str]:
    """What the order of the arms does not say.

    FID from base to `full` against test images, FID of the autoencoder alone, and the best setting
    of the sweeps.
    """
    sentences = [_from_base(*pair) + "." for pair in _steps(arms, full) if pair[1].reference == "test"]
    overall = [f for f in arms if f.metric == "fid" and f.class_name == CLASS_ALL]
    floor = next((f for f in overall if f.floor), None)
    for f in overall:
        if f.protocol == RECONSTRUCTION:
            # the reference's own images, decoded (VAE), are compared with themselves: no floor is
            other = f"; real images without it {floor.value:.1f}" if floor and f.arm != VAE else ""
            sentences.append(f"The autoencoder alone, {f.arm}: FID {f.value:.1f} (n {f.n} against {_real(f)}){other}.")
    return sentences + _best_of_sweep(sweep, sweep_reference)


def _best_of_sweep(sweep: Sequence[Figure], reference: str) -> list[str]:
    """The setting with the lowest KID, and how near its images are to training images."""
    tried = {f.arm: f for f in sweep if (f.metric, f.class_name) == ("kid", CLASS_ALL) and not f.floor}
    if not tried:
        return []
    distance = {f.arm: f for f in sweep if (f.metric, f.class_name, f.extractor) == (DISTANCE, CLASS_ALL, INCEPTION)}
    best = min(tried.values(), key=lambda f: f.value)
    near, near_real = (METRICS[DISTANCE].number(distance[arm].value) for arm in (best.arm, f"{REAL} {reference}"))
    return [
        f"Of the {len(tried)} settings of the sweeps, {best.arm} has the lowest KID x 1000 against {reference} images, "
        f"{METRICS['kid'].number(best.value)}. Its images are {near} (median) from the nearest training image, real "
        f"{reference} images {near_real}."
    ]


def ablation_notes(arms: Sequence[Figure], full: str) -> list[str]:
    """FID from base to `full` where it is no verdict: in the mixture, or without test images."""
    notes = []
    for before, after in _steps(arms, full):
        if after.protocol == "paper-mixture":
            notes.append(f"{_from_base(before, after)}. No verdict: the same real images are on both sides.")
        elif after.reference != "test":
            notes.append(f"{_from_base(before, after)}. No verdict: it needs test images as the reference.")
    return notes


def _steps(arms: Sequence[Figure], full: str) -> list[tuple[Figure, Figure]]:
    """(FID of base, FID of `full`) overall by each protocol that has both, the mixture last."""
    pairs = []
    for protocol in ("synthetic-only", "paper-mixture"):
        fid = {f.arm: f for f in arms if (f.metric, f.class_name, f.protocol) == ("fid", CLASS_ALL, protocol)}
        if "base" in fid and full in fid:
            pairs.append((fid["base"], fid[full]))
    return pairs


def _from_base(before: Figure, after: Figure) -> str:
    change = 100 * (after.value / before.value - 1)
    return (
        f"FID from base to {after.arm}, {after.protocol}, against {_real(after)} (n {after.n}): {before.value:.1f} to "
        f"{after.value:.1f}, {change:+.0f} %"
    )


def _real(f: Figure) -> str:
    """How many real images a figure is against, and which."""
    return f"{f.n_reference} {'real' if f.reference == 'all' else f.reference} images"


def compared(figures: Sequence[Figure], ablation: Json) -> list[Figure]:
    """The figures of the arms' tables: without those of sweeps."""
    sweep_only = set(ablation["sweep_only"])
    of_sweeps = {ablation["sweep_reference"]} - {ablation["reference"]}
    return [f for f in figures if f.reference not in of_sweeps and not {f.arm, f.against} & sweep_only]


def sweep_rows(figures: Sequence[Figure], curves: Curves, reference: str) -> Table:
    """A row for each point of each sweep, overall figures against the reference; last the floor."""
    overall = _overall(figures, reference)
    rows = []
    for setting, arms in curves.items():
        for points in arms.values():
            for value, arm in points:
                numbers = [METRICS["fid"].number(overall["fid", arm].value), METRICS["kid"].text(overall["kid", arm])]
                numbers += _nearness_cells(overall, arm)
                rows.append([setting, f"{value:g}", arm, str(overall["kid", arm].n), *numbers])
    fid, kid = overall["fid", REAL], overall["kid", REAL]
    floor = [
        METRICS["fid"].number(fid.value),
        METRICS["kid"].text(kid),
        *_nearness_cells(overall, f"{REAL} {reference}"),
    ]
    rows.append([NONE, NONE, REAL, str(kid.n), *floor])
    return Table(["sweep", "value", "arm", "n", "FID", METRICS["kid"].heading, *NEARNESS_HEADINGS], rows)


def nearness_rows(figures: Sequence[Figure], arms: Sequence[str], held_out: str) -> Table:
    """Overall DISTANCE and SAME_CLASS of the arms, and of the held-out real images."""
    overall = _overall(figures, "train")
    rows = [[arm, *_nearness_cells(overall, arm)] for arm in (*arms, f"{REAL} {held_out}")]
    return Table(["arm", *NEARNESS_HEADINGS], rows)


def _nearness_cells(overall: Mapping[tuple[str, str], Figure], arm: str) -> list[str]:
    return [METRICS[metric].text(overall[metric, arm]) for metric in (DISTANCE, SAME_CLASS)]


def configuration_rows(configurations: Sequence[Json]) -> Table:
    heads = list(dict.fromkeys(key for configuration in configurations for key in configuration))
    return Table(heads, [[_plain(configuration.get(key)) for key in heads] for configuration in configurations])


def _plain(value: object) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _overall(figures: Sequence[Figure], reference: str) -> dict[tuple[str, str], Figure]:
    """(metric, arm) -> Inception's figure of all classes; nearness is always against `train`."""
    overall = {}
    for f in figures:
        wanted = "train" if f.metric in (DISTANCE, SAME_CLASS) else reference
        of_all = f.class_name == CLASS_ALL and f.extractor == INCEPTION and f.reference == wanted
        if of_all and f.protocol != "paper-mixture" and f.against is None:
            overall[f.metric, f.arm] = f
    return overall


def ablation_html(report: Json, sheets: Mapping[str, bytes]) -> str:
    """The page: arms as in a run's report, sweeps, every configuration. sheets: title -> PNG."""
    ablation, figures = report["ablation"], figures_of(report)
    arms = compared(figures, ablation)
    sections = [
        _notes(ablation),
        _sheets(sheets),
        _nearness(arms, ablation),
        _sweeps(figures, ablation),
        _configurations(ablation),
    ]
    return report_html(report, arms, {}, sections)


def _notes(ablation: Json) -> str:
    """Below the figures, whose tables they are about."""
    notes = "".join(paragraph(note, "soft") for note in ablation["notes"])
    return f"<section><h3>Notes on the tables</h3>{notes}</section>" if notes else ""


def _sheets(sheets: Mapping[str, bytes]) -> str:
    if not sheets:
        return ""
    note = "The first images of each class, not a selection. All images of a column share seed, noise and prompt."
    shown = "".join(figure(image(png, title), "", title) for title, png in sheets.items())
    return section("Arms side by side", paragraph(note, "soft") + shown)


NEARNESS = (
    "The distance in feature space to the nearest training image, and whether that image is of the requested class. "
    "Images much nearer to training images than held-out real ones are a hint of copying. If the nearest training "
    "image is of the right class less often than for real images, this is a hint of class drift. Neither is a test of "
    "a single image."
)


def _nearness(figures: Sequence[Figure], ablation: Json) -> str:
    rows = table(*nearness_rows(figures, ablation["arms"], ablation["held_out"]))
    return section("Copying and class drift", paragraph(NEARNESS, "soft") + rows)


def _sweeps(figures: Sequence[Figure], ablation: Json) -> str:
    reference, curves = ablation["sweep_reference"], ablation["curves"]
    overall = _overall(figures, reference)
    floor_arms = {"kid": REAL, DISTANCE: f"{REAL} {reference}", SAME_CLASS: f"{REAL} {reference}"}
    plots = ""
    for setting, arms in curves.items():
        shown = ""
        for metric, floor_arm in floor_arms.items():
            shown += _curves(setting, metric, arms, overall, overall[metric, floor_arm])
        plots += heading(setting) + columns(shown)
    note = (
        f"Sweeps of {ablation['full']}, one setting at a time, against the {reference} images. Settings are chosen "
        f"here, so that the {ablation['reference']} images are used only once. Strength 0 is the image before "
        "refinement. Bars: 95 % intervals. Dashed: real images."
    )
    rows = table(*sweep_rows(figures, curves, reference))
    return section("Sweeps", paragraph(note, "soft") + plots + rows)


def _curves(
    setting: str,
    name: str,
    arms: Mapping[str, Sequence[tuple[float, str]]],
    overall: Mapping[tuple[str, str], Figure],
    floor: Figure,
) -> str:
    """A line an arm over the values of a sweep."""
    metric, series = METRICS[name], []
    for colour, (arm, values) in enumerate(arms.items(), 1):
        points = [Point(value, *metric.scaled(overall[name, arm_there])) for value, arm_there in values]
        series.append(Series(arm, points, f"c{colour}"))
    at = sorted({point.x for curve in series for point in curve.points})
    dashed = (metric.floor, metric.scaled(floor)[0])
    drawing = curve_plot(series, setting, f"{metric.title} over {setting}", metric.title, at, dashed)
    return figure(drawing, "; ".join(f"{colour}: {arm}" for colour, arm in zip(COLOUR_NAMES, arms)))


def _configurations(ablation: Json) -> str:
    note = "Every configuration tried under this output. All share data, seeds, training steps and images per class."
    rows = table(*configuration_rows(ablation["configurations"]))
    return section("Every configuration tried", paragraph(note, "soft") + rows)
