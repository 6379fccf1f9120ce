"""Lesion geometry in words, tables and its section of the report."""

from collections.abc import Mapping, Sequence

from busray.evidence.lesions import DICE, LESION_FOUND, TALLER
from busray.records import CLASS_ALL, Figure
from busray.report.html import figure, image, paragraph, section, table
from busray.report.metrics import METRICS, NONE, p_text
from busray.report.tables import Table
from busray.vision.lesion_shape import MEASURES, TRUE

P_VALUE = "_p_value"


def geometry_sentences(figures: Sequence[Figure], reason: str | None) -> list[str]:
    """Dice of the segmenter, and arms whose lesions differ from real ones; or why none is known."""
    if reason:
        return [f"Lesion geometry is not measured: {reason}."]
    dice = next((f for f in figures if (f.metric, f.class_name) == (DICE, CLASS_ALL)), None)
    if dice is None or dice.interval is None:
        return []
    sentences = [
        "Lesion geometry is measured on pseudo-masks. On real test images with lesions these reach a mean Dice of "
        f"{METRICS[DICE].text(dice)}."
    ]
    tested = [f for f in figures if _is_lesion_test(f)]
    if tested:
        # Bonferroni: with a level of 5 % over all comparisons, each has its share of it
        different = [f for f in tested if f.value <= 0.05 / len(tested)]
        named = ", ".join(f"{f.arm} {f.class_name} {_measure(f)}" for f in different)
        sentences.append(
            f"Lesions that differ from real ones (permutation tests, 5 % over all {len(tested)} comparisons, "
            f"Bonferroni): {named or 'none'}."
        )
    return sentences


def _is_lesion_test(f: Figure) -> bool:
    """Whether it is a p-value of an arm's lesions against those of the test images."""
    named = f.metric.startswith("lesion_") and f.metric.endswith(P_VALUE)
    return named and f.reference == "test" and not f.floor


def _measure(test: Figure) -> str:
    return test.metric.removeprefix("lesion_").removesuffix(P_VALUE)


def geometry_rows(figures: Sequence[Figure]) -> Table:
    """A row for each class and arm; real images by true masks, by pseudo-masks, and the floor's."""
    rows_by_key: dict[tuple[str, str, str], dict[str, Figure]] = {}
    for f in sorted(figures, key=lambda f: f.class_name):
        if f.metric.startswith("lesion_") and f.metric != DICE:
            rows_by_key.setdefault((f.class_name, f.arm, f.extractor), {})[f.metric] = f
    shares = ("lesion_area", "lesion_aspect", TALLER, "lesion_ellipticity")
    rows = []
    for (name, arm, extractor), by_metric in rows_by_key.items():
        images, lesions = by_metric[LESION_FOUND], by_metric.get("lesion_area")
        row = [name, arm, "true" if extractor == TRUE else "pseudo", str(images.n), METRICS[LESION_FOUND].text(images)]
        row.append(str(lesions.n) if lesions else NONE)
        row += [METRICS[metric].text(by_metric.get(metric)) for metric in shares]
        rows.append(row + [_distance(by_metric, measure) for measure in MEASURES])
    columns = ["class", "arm", "masks", "images", METRICS[LESION_FOUND].title, "lesions"]
    columns += [METRICS[metric].title for metric in shares]
    return Table(columns + [METRICS[f"lesion_{measure}_distance"].title for measure in MEASURES], rows)


def _distance(by_metric: Mapping[str, Figure], measure: str) -> str:
    """`distance (p)`; NONE where the class has too few lesions."""
    name = f"lesion_{measure}_distance"
    distance, p_value = by_metric.get(name), by_metric.get(f"lesion_{measure}{P_VALUE}")
    if distance is None or p_value is None:
        return NONE
    return f"{METRICS[name].number(distance.value)} ({p_text(p_value.value)})"


def geometry_section(figures: Sequence[Figure], reason: str | None, picture: bytes | None) -> str:
    """The report's part. reason: why there are no figures. picture: PNG of outlined lesions."""
    table_of_lesions = geometry_rows(figures)
    if not table_of_lesions.rows:
        return section("Lesion geometry", paragraph(f"Not measured: {reason}.") if reason else "")
    dice = [f for f in figures if f.metric == DICE]
    reached = "; ".join(f"{f.class_name} {METRICS[DICE].text(f)}, n = {f.n_reference}" for f in dice)
    reference = next(f.reference for f in figures if f.metric == LESION_FOUND)
    explanation = (
        "Synthetic images have no masks. A small segmenter trained on "
        f"{dice[0].n if dice else 'the'} real training images gives them pseudo-masks. Its mean Dice on real test "
        f"images with lesions: {reached}. It errs on real images too. So compare an arm with the real images by "
        "pseudo-masks, and these with the real images by true masks. Taller than wide is a sign of malignancy; an "
        f"ellipse has an ellipticity of 1. Distance: Wasserstein-1 to lesions of real {reference} images, in the "
        "measure's unit, with as many images in every arm as in the floor (other real images). p: the probability of "
        "a distance this large if the lesions were like the real ones. Square brackets: 95 % intervals."
    )
    shown = ""
    if picture:
        caption = (
            "The first images of each class, not a selection, with the outline of the pseudo-mask; no outline where no "
            "lesion is found."
        )
        shown = figure(image(picture, "images with the outlines of pseudo-masks"), caption)
    return section("Lesion geometry", paragraph(explanation) + table(*table_of_lesions) + shown)
