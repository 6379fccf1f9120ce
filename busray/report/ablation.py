"""An ablation in words, tables, curves and its page.

Pure: figures and records in, text out. Copying and class drift are judged here by the nearest
training image in feature space only; the copy audit compares the images themselves.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

from markupsafe import Markup

from busray.evidence.nearness import DISTANCE, RECONSTRUCTION, SAME_CLASS, VAE
from busray.records import CLASS_ALL, INCEPTION, REAL, Figure
from busray.report import html, plots
from busray.report.metrics import METRICS, NONE
from busray.report.page import report_html
from busray.report.tables import Json, Table, figures_of, first, select

Curves = Mapping[str, Mapping[str, Sequence[tuple[float, str]]]]
"""sweep -> arm -> (setting's value, name of the arm with it)"""

Overall = Mapping[tuple[str, str], Figure]
"""(metric, arm) -> Inception's figure of all classes"""

COLOUR_NAMES = ("blue", "brown")
"""Of the page's colours c1, c2."""

NEARNESS_HEADINGS = [
    "nearest training image, median [95 % interval]",
    "nearest of its class [95 % interval]",
]


def ablation_sentences(arms: Sequence[Figure], sweep: Sequence[Figure], full: str, sweep_reference: str) -> list[str]:
    """What the order of the arms does not say.

    FID from base to `full` against test images, FID of the autoencoder alone, and the best setting
    of the sweeps.
    """
    sentences = []
    for before, after in _steps(arms, full):
        if after.reference == "test":
            sentences.append(_from_base(before, after) + ".")
    overall = select(arms, metric="fid", class_name=CLASS_ALL)
    floor = first(overall, floor=True)
    for f in select(overall, protocol=RECONSTRUCTION):
        # the reference's own images, decoded (VAE), are compared with themselves: no floor is
        other = f"; real images without it {floor.value:.1f}" if floor and f.arm != VAE else ""
        fid = f"FID {f.value:.1f} (n {f.n} against {_real(f)})"
        sentences.append(f"The autoencoder alone, {f.arm}: {fid}{other}.")
    return sentences + _best_of_sweep(sweep, sweep_reference)


def _best_of_sweep(sweep: Sequence[Figure], reference: str) -> list[str]:
    """The setting with the lowest KID, and how near its images are to training images."""
    overall = select(sweep, class_name=CLASS_ALL)
    kid = {f.arm: f for f in select(overall, metric="kid", floor=False)}
    if not kid:
        return []
    best = min(kid.values(), key=lambda f: f.value)
    # A setting may win by copying training images: the distance to these stands beside it.
    distance = {f.arm: f.value for f in select(overall, metric=DISTANCE, extractor=INCEPTION)}
    near = METRICS[DISTANCE].number(distance[best.arm])
    near_real = METRICS[DISTANCE].number(distance[f"{REAL} {reference}"])
    return [
        f"Of the {len(kid)} settings of the sweeps, {best.arm} has the lowest KID x 1000 against "
        f"{reference} images, {METRICS['kid'].number(best.value)}. Its images are {near} (median) "
        f"from the nearest training image, real {reference} images {near_real}."
    ]


def ablation_notes(arms: Sequence[Figure], full: str) -> list[str]:
    """FID from base to `full` where it is no verdict: in the mixture, or without test images."""
    notes = []
    for before, after in _steps(arms, full):
        if after.protocol == "paper-mixture":
            reason = "the same real images are on both sides"
        elif after.reference != "test":
            reason = "it needs test images as the reference"
        else:
            continue  # ablation_sentences has it
        notes.append(f"{_from_base(before, after)}. No verdict: {reason}.")
    return notes


def _steps(arms: Sequence[Figure], full: str) -> list[tuple[Figure, Figure]]:
    """(FID of base, FID of `full`) overall by each protocol that has both, the mixture last."""
    pairs = []
    for protocol in ("synthetic-only", "paper-mixture"):
        fid = select(arms, metric="fid", class_name=CLASS_ALL, protocol=protocol)
        before, after = first(fid, arm="base"), first(fid, arm=full)
        if before and after:
            pairs.append((before, after))
    return pairs


def _from_base(before: Figure, after: Figure) -> str:
    change = 100 * (after.value / before.value - 1)
    return (
        f"FID from base to {after.arm}, {after.protocol}, against {_real(after)} (n {after.n}): "
        f"{before.value:.1f} to {after.value:.1f}, {change:+.0f} %"
    )


def _real(f: Figure) -> str:
    """How many real images a figure is against, and which."""
    return f"{f.n_reference} {'real' if f.reference == 'all' else f.reference} images"


def compared(figures: Sequence[Figure], ablation: Json) -> list[Figure]:
    """The figures of the arms' tables: without those of sweeps."""
    sweep_only = set(ablation["sweep_only"])
    # arms without refinement are points of a sweep too, and have figures against its reference
    of_sweeps = {ablation["sweep_reference"]} - {ablation["reference"]}
    arms = [f for f in figures if not {f.arm, f.against} & sweep_only]
    return [f for f in arms if f.reference not in of_sweeps]


def sweep_rows(figures: Sequence[Figure], curves: Curves, reference: str) -> Table:
    """A row for each point of each sweep, overall figures against the reference; last the floor."""
    overall = _overall(figures, reference)
    rows = []
    for setting, arms in curves.items():
        for value, arm in chain.from_iterable(arms.values()):
            rows.append([setting, f"{value:g}", *_sweep_cells(overall, arm, arm)])
    rows.append([NONE, NONE, *_sweep_cells(overall, REAL, f"{REAL} {reference}")])
    heads = ["sweep", "value", "arm", "n", "FID", METRICS["kid"].heading, *NEARNESS_HEADINGS]
    return Table(heads, rows)


def _sweep_cells(overall: Overall, arm: str, near_arm: str) -> list[str]:
    """near_arm: the arm's name in figures of nearness; of real images these name the split."""
    fid, kid = overall["fid", arm], overall["kid", arm]
    numbers = [METRICS["fid"].number(fid.value), METRICS["kid"].text(kid)]
    return [arm, str(kid.n), *numbers, *_nearness_cells(overall, near_arm)]


def nearness_rows(figures: Sequence[Figure], arms: Sequence[str], held_out: str) -> Table:
    """Overall DISTANCE and SAME_CLASS of the arms, and of the held-out real images."""
    overall = _overall(figures, "train")
    shown = [*arms, f"{REAL} {held_out}"]
    rows = [[arm, *_nearness_cells(overall, arm)] for arm in shown]
    return Table(["arm", *NEARNESS_HEADINGS], rows)


def _nearness_cells(overall: Overall, arm: str) -> list[str]:
    return [METRICS[metric].text(overall[metric, arm]) for metric in (DISTANCE, SAME_CLASS)]


def configuration_rows(configurations: Sequence[Json]) -> Table:
    # configurations of other methods have other settings: a column for each that any has
    heads = list(dict.fromkeys(chain.from_iterable(configurations)))
    rows = []
    for configuration in configurations:
        rows.append([_plain(configuration.get(key)) for key in heads])
    return Table(heads, rows)


def _plain(value: object) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _overall(figures: Sequence[Figure], reference: str) -> Overall:
    overall = {}
    for f in select(figures, class_name=CLASS_ALL, extractor=INCEPTION, against=None):
        # copying is of training images, whatever the reference is
        wanted = "train" if f.metric in (DISTANCE, SAME_CLASS) else reference
        if f.reference == wanted and f.protocol != "paper-mixture":
            overall[f.metric, f.arm] = f
    return overall


def ablation_html(report: Json, sheets: Mapping[str, bytes]) -> str:
    """The page as HTML: arms as in a run's report, sweeps, every configuration.

    sheets: title -> PNG.
    """
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


def _notes(ablation: Json) -> html.Section:
    """Below the figures, whose tables they are about."""
    notes = html.NOTHING.join(html.paragraph(note, "soft") for note in ablation["notes"])
    return html.Section("Notes on the tables", notes)


def _sheets(sheets: Mapping[str, bytes]) -> html.Section:
    title = "Arms side by side"
    if not sheets:
        return html.Section(title, html.NOTHING)
    inside = html.paragraph(
        "The first images of each class, not a selection. All images of a column share seed, noise and prompt.",
        "soft",
    )
    for name, png in sheets.items():
        inside += html.figure(html.image(png, name), "", name)
    return html.Section(title, inside)


NEARNESS = (
    "The distance in feature space to the nearest training image, and whether that image is of "
    "the requested class. Images much nearer to training images than held-out real ones are a hint "
    "of copying. If the nearest training image is of the right class less often than for real "
    "images, this is a hint of class drift. Neither is a test of a single image."
)


def _nearness(figures: Sequence[Figure], ablation: Json) -> html.Section:
    rows = html.table(*nearness_rows(figures, ablation["arms"], ablation["held_out"]))
    return html.Section("Copying and class drift", html.paragraph(NEARNESS, "soft") + rows)


def _sweeps(figures: Sequence[Figure], ablation: Json) -> html.Section:
    reference, curves = ablation["sweep_reference"], ablation["curves"]
    overall = _overall(figures, reference)
    floor_arms = {"kid": REAL, DISTANCE: f"{REAL} {reference}", SAME_CLASS: f"{REAL} {reference}"}
    drawings = html.NOTHING
    for setting, arms in curves.items():
        shown = html.NOTHING
        for metric, floor_arm in floor_arms.items():
            shown += _curves(setting, metric, arms, overall, overall[metric, floor_arm])
        drawings += html.heading(setting) + html.columns(shown)
    note = (
        f"Sweeps of {ablation['full']}, one setting at a time, against the {reference} images. "
        f"Settings are chosen here, so that the {ablation['reference']} images are used only once. "
        "Strength 0 is the image before refinement. Bars: 95 % intervals. Dashed: real images."
    )
    rows = html.table(*sweep_rows(figures, curves, reference))
    return html.Section("Sweeps", html.paragraph(note, "soft") + drawings + rows)


def _curves(
    setting: str,
    name: str,
    arms: Mapping[str, Sequence[tuple[float, str]]],
    overall: Overall,
    floor: Figure,
) -> Markup:
    """One line per arm over the values of a sweep."""
    metric, series, at, names = METRICS[name], [], set(), []
    for i, (arm, values) in enumerate(arms.items()):
        points = []
        for value, arm_there in values:
            points.append(plots.Point(value, *metric.scaled(overall[name, arm_there])))
            at.add(value)
        series.append(plots.Series(arm, points, f"c{i + 1}"))
        names.append(f"{COLOUR_NAMES[i]}: {arm}")
    label, dashed = f"{metric.title} over {setting}", (metric.floor, metric.scaled(floor)[0])
    # ticks at the values that were tried, and at no other
    drawing = plots.curve_plot(series, setting, label, metric.title, sorted(at), dashed)
    return html.figure(drawing, "; ".join(names))


def _configurations(ablation: Json) -> html.Section:
    note = "Every configuration tried under this output. All share data, seeds, training steps and images per class."
    rows = html.table(*configuration_rows(ablation["configurations"]))
    return html.Section("Every configuration tried", html.paragraph(note, "soft") + rows)
