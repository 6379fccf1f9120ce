"""Class consistency and the class gate in words, tables and their section of the report."""

from collections.abc import Sequence

from markupsafe import Markup

from busray.evidence.classes import AFTER_GATE, CONSISTENCY, EXCESS, FIRST_DRAW, JUDGE, SEEN_AS
from busray.evidence.nearness import DISTANCE
from busray.evidence.stats.intervals import Estimate
from busray.evidence.stats.samples import FEWEST_UNITS
from busray.records import CLASS_ALL, REAL, Figure, Interval
from busray.report import html, plots
from busray.report.metrics import METRICS, NONE, excludes_zero
from busray.report.tables import Json, Table, distinct, first, select, worst_class

TITLE = "Class consistency"

CELL_HEIGHT = 40
"""Of a confusion matrix."""


def consistency_sentences(figures: Sequence[Figure]) -> list[str]:
    """Agreement of each arm's first draws, the judge's accuracy, and where diversity was lost."""
    first_draws = select(figures, protocol=FIRST_DRAW)
    agreement = select(first_draws, metric=CONSISTENCY, class_name=CLASS_ALL)
    judge = first(figures, metric=JUDGE, class_name=CLASS_ALL)
    if judge is None or not agreement:
        return []
    each = []
    for f in agreement:
        worst = worst_class(first_draws, CONSISTENCY, f.arm)
        of_class = f" (worst class {worst.class_name} {METRICS[CONSISTENCY].text(worst)})" if worst else ""
        each.append(f"{f.arm} {METRICS[CONSISTENCY].text(f)}{of_class}")
    named = ", ".join(each)
    sentences = [
        f"Class consistency of first draws: {named}. The judge, {judge.extractor}, is right on "
        f"{METRICS[JUDGE].text(judge)} of real test images (mean over classes)."
    ]
    above = []
    for f in select(first_draws, metric=EXCESS):
        if f.value > 0:
            note = "" if excludes_zero(f) else " (the interval contains 0)"
            above.append(f"{f.arm} {f.class_name} {METRICS[EXCESS].number(f.value, '+')}{note}")
    if above:
        listed = ", ".join(above)
        sentences.append(f"More agreement than on real images, a sign of lost diversity: {listed}.")
    return sentences


def consistency_rows(figures: Sequence[Figure]) -> Table:
    """Agreement of each arm and class, the judge on real images, and whether diversity was lost."""
    judge = {f.class_name: f for f in select(figures, metric=JUDGE)}
    excess = {_key(f): f for f in select(figures, metric=EXCESS)}
    rows = []
    for f in select(figures, metric=CONSISTENCY):
        above = excess[_key(f)]
        row = [*_key(f), str(f.n), METRICS[CONSISTENCY].text(f)]
        row += [METRICS[JUDGE].text(judge[f.class_name]), METRICS[EXCESS].text(above, "+")]
        rows.append([*row, _lost(above)])
    heads = ["arm", "protocol", "class", "n", METRICS[CONSISTENCY].heading]
    heads += [METRICS[JUDGE].title, METRICS[EXCESS].title, "lost diversity"]
    return Table(heads, rows)


def _key(f: Figure) -> tuple[str, str, str]:
    return f.arm, f.protocol, f.class_name


def _lost(excess: Figure) -> str:
    # images after a gate are selected to agree: more agreement does not describe the model
    if excess.protocol == AFTER_GATE:
        return NONE
    if excess.value <= 0:
        return "no"
    return "yes" if excludes_zero(excess) else "perhaps"


def confusions(figures: Sequence[Figure]) -> Markup:
    """Matrices of the class that the judge sees: real test images, and each arm's first draws."""
    seen, drawings = [f for f in figures if f.metric.startswith(SEEN_AS)], html.NOTHING
    for arm in distinct(seen, "arm"):
        drawings += _confusion(arm, select(seen, arm=arm))
    note = (
        "Rows: the true class of real images, or the requested class of synthetic ones. Columns: "
        "the class that the judge sees. In a cell: the number of images and their share of the row."
    )
    return html.paragraph(note) + html.columns(drawings)


def _confusion(arm: str, figures: Sequence[Figure]) -> Markup:
    """A cell has its count and its share of the row, also as shade; outlines mark agreement."""
    rows = distinct(figures, "class_name")
    seen = [metric.removeprefix(SEEN_AS) for metric in distinct(figures, "metric")]
    # the names of the rows need room at the left; longer ones are shortened
    left = 24 + plots.LETTER * min(max(map(len, rows)), 16)
    width = (plots.WIDTH - left) / len(seen)
    # only of real images is the class known to be true
    marks = plots.text(0, 12, "true class" if arm == REAL else "requested", "soft")
    marks += plots.text(plots.WIDTH, 12, "seen as", "soft", "end")
    for j, name in enumerate(seen):
        short = plots.clipped(name, int(width / 7))
        marks += plots.text(left + (j + 0.5) * width, 30, short, "head", "middle")
    for i, name in enumerate(rows):
        marks += plots.text(left - 8, 60 + i * CELL_HEIGHT, plots.clipped(name, 16), "head", "end")
    for f in figures:
        j = seen.index(f.metric.removeprefix(SEEN_AS))
        y = 36 + rows.index(f.class_name) * CELL_HEIGHT
        marks += _matrix_cell(f, left + j * width, y, width)
    title = "Real test images" if arm == REAL else f"First draws of {arm}"
    counts = {f.class_name: f.n for f in figures}
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    caption = f"n = {sum(counts.values()):,} ({parts}), seen by {figures[0].extractor}."
    label = f"Classes that the judge sees: {title}"
    drawing = plots.svg(40 + CELL_HEIGHT * len(rows), label, marks)
    return html.figure(drawing, caption, title)


def _matrix_cell(f: Figure, x: float, y: float, width: float) -> Markup:
    agrees = f.metric == SEEN_AS + f.class_name
    place = [f"{side:.1f}" for side in (x + 1, y + 1, width - 2, CELL_HEIGHT - 2)]
    # 0.06: an empty cell is still seen; 0.5: the count can be read on the darkest one
    shade, outline = f"{0.06 + 0.44 * f.value:.2f}", "currentColor" if agrees else "none"
    cell = Markup(
        '<rect class="c1" x="{}" y="{}" width="{}" height="{}" fill="currentColor" fill-opacity="{}" stroke="{}"/>'
    ).format(*place, shade, outline)
    count = plots.text(x + width / 2, y + 18, f"{round(f.value * f.n):,}", "head", "middle")
    share = plots.text(x + width / 2, y + 33, f"{f.value:.2f}", anchor="middle")
    return cell + count + share


def consistency_section(figures: Sequence[Figure], gate: Json | None) -> html.Section:
    """The report's part: class consistency, and the class gate where there is one."""
    judge, inside = first(figures, metric=JUDGE, class_name=CLASS_ALL), html.NOTHING
    if judge:
        inside = html.paragraph(
            f"The judge is a classifier ({judge.extractor}). It was trained on {judge.n} real "
            "training images, calibrated on validation images and tested on "
            f"{judge.n_reference} real test images. Agreement is the share of first draws, before "
            "any rejection, in which the judge sees the requested class. The judge errs on real "
            "images too. Where it errs less on synthetic images, these are easier than real ones: "
            "a sign of lost diversity (perhaps: the interval contains 0; –: after a gate, which "
            "selects images that agree). In figures of all classes, each class has the same weight."
        )
        inside += confusions(figures) + html.table(*consistency_rows(figures))
    return html.Section(TITLE, inside + (_gate(gate, figures) if gate else html.NOTHING))


def _gate(gate: Json, figures: Sequence[Figure]) -> Markup:
    images, shares = gate["images"], []
    for name, tested in gate["test"].items():
        share = Estimate(tested["value"], Interval(*tested["interval"]))
        shares.append(f"{name} {METRICS['gate_accuracy'].text(share)}")
    what = (
        f"A classifier ({gate['architecture']}) trained on {images['train']} real training images "
        f"and calibrated on {images['val']} validation images. Its accuracy on {images['test']} "
        f"real test images: {', '.join(shares)}. An image passes if the gate gives its class a "
        f"probability of {gate['threshold']:g} or more. Otherwise it is generated again, with at "
        f"most {gate['attempts']} draws in all."
    )
    note = (
        "Distances and coverage after the gate are in the tables above, as the arm +gate, if "
        f"{FEWEST_UNITS} images or more of every class passed. Where all draws of an image were "
        "rejected, that arm has fewer images; FID depends on n, KID does not. Copying: the "
        "distance to the nearest real training image."
    )
    counts, copying = html.table(*gate_rows(gate)), html.table(*copying_rows(figures))
    return html.heading("Class gate") + html.paragraph(what) + counts + html.paragraph(note) + copying


def gate_rows(gate: Json) -> Table:
    """What the class gate did with each class."""
    names = {
        "planned": "planned",
        "first": "first draw passed",
        "redrawn": "later draw passed",
        "spent": "all draws rejected",
        "undrawn": "not generated",
        "draws": "draws",
    }
    rows = []
    for name, counts in gate["classes"].items():
        rows.append([name, *(str(counts[key]) for key in names)])
    return Table(["class", *names.values()], rows)


def copying_rows(figures: Sequence[Figure]) -> Table:
    """Nearness to training images: before and after the gate, and of held-out real images."""
    metric, rows = METRICS[DISTANCE], []
    for f in select(figures, metric=DISTANCE, class_name=CLASS_ALL):
        numbers = [metric.number(f.value), metric.interval(f.interval)]
        rows.append([f.extractor, f.arm, str(f.n), *numbers])
    heads = ["extractor", "arm", "n", "nearest training image, median", metric.brackets]
    return Table(heads, rows)
