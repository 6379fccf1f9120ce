"""Lesion geometry in words, tables and its section of the report."""

from collections.abc import Mapping, Sequence

from busray.evidence.lesions import DICE, LESION_FOUND, TALLER
from busray.records import CLASS_ALL, Figure
from busray.report import html
from busray.report.metrics import METRICS, NONE, p_text
from busray.report.tables import Table, first, grid, select
from busray.vision.lesion_shape import MEASURES, TRUE

P_VALUE = "_p_value"

TITLE = "Lesion geometry"


def geometry_sentences(figures: Sequence[Figure], reason: str | None) -> list[str]:
    """Dice of the segmenter, and arms whose lesions differ from real ones; or why none is known."""
    if reason:
        return [f"Lesion geometry is not measured: {reason}."]
    dice = first(figures, metric=DICE, class_name=CLASS_ALL)
    if dice is None or dice.interval is None:
        return []
    sentences = [
        "Lesion geometry is measured on pseudo-masks. On real test images with lesions these reach "
        f"a mean Dice of {METRICS[DICE].text(dice)}."
    ]
    measures = {f"lesion_{measure}{P_VALUE}": measure for measure in MEASURES}
    if tested := select(figures, metric=tuple(measures), reference="test", floor=False):
        different = []
        for f in tested:
            # Bonferroni: with a level of 5 % over all comparisons, each has its share of it
            if f.value <= 0.05 / len(tested):
                different.append(f"{f.arm} {f.class_name} {measures[f.metric]}")
        sentences.append(
            "Lesions that differ from real ones (permutation tests, 5 % over all "
            f"{len(tested)} comparisons, Bonferroni): {', '.join(different) or 'none'}."
        )
    return sentences


def geometry_rows(figures: Sequence[Figure]) -> Table:
    """A row for each class and arm; real images by true masks, by pseudo-masks, and the floor's."""
    geometry = [f for f in figures if f.metric.startswith("lesion_") and f.metric != DICE]
    geometry.sort(key=lambda f: f.class_name)
    by_row = grid(geometry, lambda f: (f.class_name, f.arm, f.extractor), lambda f: f.metric)
    shapes = ("lesion_area", "lesion_aspect", TALLER, "lesion_ellipticity")
    rows = []
    for (name, arm, extractor), by_metric in by_row.items():
        # two counts: shares are of images, and shapes only of the images with a lesion
        images, lesions = by_metric[LESION_FOUND], by_metric.get("lesion_area")
        row = [name, arm, "true" if extractor == TRUE else "pseudo", str(images.n)]
        row += [METRICS[LESION_FOUND].text(images), str(lesions.n) if lesions else NONE]
        row += [METRICS[metric].text(by_metric.get(metric)) for metric in shapes]
        rows.append(row + [_distance(by_metric, measure) for measure in MEASURES])
    columns = ["class", "arm", "masks", "images", METRICS[LESION_FOUND].title, "lesions"]
    for metric in (*shapes, *(f"lesion_{measure}_distance" for measure in MEASURES)):
        columns.append(METRICS[metric].title)
    return Table(columns, rows)


def _distance(by_metric: Mapping[str, Figure], measure: str) -> str:
    """`distance (p)`; NONE where the class has too few lesions."""
    name = f"lesion_{measure}_distance"
    distance, p_value = by_metric.get(name), by_metric.get(f"lesion_{measure}{P_VALUE}")
    if distance is None or p_value is None:
        return NONE
    return f"{METRICS[name].number(distance.value)} ({p_text(p_value.value)})"


def geometry_section(figures: Sequence[Figure], reason: str | None, picture: bytes | None) -> html.Section:
    """The report's part. reason: why there are no figures. picture: PNG of outlined lesions."""
    table_of_lesions = geometry_rows(figures)
    if not table_of_lesions.rows:
        return html.Section(TITLE, html.paragraph(f"Not measured: {reason}.") if reason else html.NOTHING)
    dice, reached = select(figures, metric=DICE), []
    for f in dice:
        reached.append(f"{f.class_name} {METRICS[DICE].text(f)}, n = {f.n_reference}")
    # The segmenter's own error comes first: a reader must not take pseudo-masks for lesions.
    reference = next(f.reference for f in figures if f.metric == LESION_FOUND)
    explanation = (
        "Synthetic images have no masks. A small segmenter trained on "
        f"{dice[0].n if dice else 'the'} real training images gives them pseudo-masks. Its mean "
        f"Dice on real test images with lesions: {'; '.join(reached)}. It errs on real images too. "
        "So compare an arm with the real images by pseudo-masks, and these with the real images by "
        "true masks. Taller than wide is a sign of malignancy; an ellipse has an ellipticity of 1. "
        f"Distance: Wasserstein-1 to lesions of real {reference} images, in the measure's unit, "
        "with as many images in every arm as in the floor (other real images). p: the probability "
        "of a distance this large if the lesions were like the real ones. Square brackets: 95 % "
        "intervals."
    )
    shown = html.NOTHING
    if picture:
        caption = (
            "The first images of each class, not a selection, with the outline of the pseudo-mask; "
            "no outline where no lesion is found."
        )
        outlines = html.image(picture, "images with the outlines of pseudo-masks")
        shown = html.figure(outlines, caption)
    inside = html.paragraph(explanation) + html.table(*table_of_lesions) + shown
    return html.Section(TITLE, inside)
