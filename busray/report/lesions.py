"""Lesion geometry in words, tables and its section of the report."""

import base64
from collections.abc import Sequence
from html import escape as _e

from busray.evidence.lesions import DICE, FOUND, TALLER
from busray.records import CLASS_ALL, Figure
from busray.report.html import table
from busray.report.tables import NONE, Json
from busray.vision.lesion_shape import MEASURES, TRUE


def geometry_sentences(figures: Sequence[Figure], reason: str | None) -> list[str]:
    """The segmenter's Dice, and which arms' lesions differ from real test ones in size or shape beyond chance; or why
    there are no figures."""
    if reason:
        return [f"Lesion geometry is not measured: {reason}."]
    trust = next((f for f in figures if (f.metric, f.class_name) == (DICE, CLASS_ALL)), None)
    if trust is None or trust.interval is None:
        return []
    low, high = trust.interval
    said = [
        f"Lesion geometry is by pseudo-masks; on real test images with lesions they reach a mean Dice of "
        f"{trust.value:.2f} [{low:.2f}, {high:.2f}]."
    ]
    ends = "_p_value"
    tested = [f for f in figures if f.metric.startswith("lesion_") and f.metric.endswith(ends)]
    tested = [f for f in tested if f.reference == "test"]
    apart = [f for f in tested if f.value <= 0.05 / len(tested)]
    if tested:
        named = ", ".join(
            f"{f.arm} {f.class_name} {f.metric.removeprefix('lesion_').removesuffix(ends)}" for f in apart
        )
        said.append(
            f"Lesions that differ from real ones beyond chance (permutations, 5 % over all {len(tested)} comparisons, "
            f"Bonferroni): {named or 'none'}."
        )
    return said


def geometry_rows(figures: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): a row for each class and arm; real images by true masks, by pseudo-masks, those of the floor."""
    mine = [f for f in figures if f["metric"].startswith("lesion_") and f["metric"] != DICE]
    found = {(f["class"], f["arm"], f["extractor"], f["metric"].removesuffix("_floor")): f for f in mine}
    columns = ["class", "arm", "masks", "images", "with lesion", "lesions", "area (% of content)", "height / width"]
    columns += ["taller than wide", "ellipticity", *(f"distance of {measure} (p)" for measure in MEASURES)]
    rows = []
    for name, arm, extractor in dict.fromkeys(key[:3] for key in sorted(found, key=lambda key: key[0])):

        def at(metric: str, key: tuple[str, str, str] = (name, arm, extractor)) -> Json | None:
            return found.get((*key, metric))

        there, area = at(FOUND), at("lesion_area")
        assert there is not None
        cells = [str(there["n"]), _cell(there, 100, 0), str(area["n"]) if area else NONE, _cell(area, 100, 1)]
        cells += [_cell(at("lesion_aspect"), 1, 2), _cell(at(TALLER), 100, 0), _cell(at("lesion_ellipticity"), 1, 2)]
        for measure, factor, decimals in (("area", 100, 1), ("aspect", 1, 2), ("ellipticity", 1, 3)):
            far, chance = at(f"lesion_{measure}_distance"), at(f"lesion_{measure}_p_value")
            told = f"{factor * far['value']:.{decimals}f} ({_chance(chance['value'])})" if far and chance else NONE
            cells.append(told)
        rows.append([name, arm, "true" if extractor == TRUE else "pseudo", *cells])
    return columns, rows


def _chance(p_value: float) -> str:
    """Three decimals; never 0, which no permutation test finds."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "<0.001"


def _cell(figure: Json | None, factor: float, decimals: int) -> str:
    if figure is None:
        return NONE
    low, high = (f"{bound * factor:z.{decimals}f}" for bound in figure["interval"])
    return f"{figure['value'] * factor:z.{decimals}f} [{low}, {high}]"


def geometry_section(figures: Sequence[Json], reason: str | None, picture: bytes | None) -> str:
    """The report's part; reason: why there are no figures, where there are none; picture: PNG of images outlined."""
    columns, rows = geometry_rows(figures)
    if not rows:
        return f"<section><h2>Lesion geometry</h2><p>Not measured: {_e(reason)}.</p></section>" if reason else ""
    trust = [f for f in figures if f["metric"] == DICE]
    told = "; ".join(f"{f['class']} {_cell(f, 1, 2)}, n = {f['n_reference']}" for f in trust)
    about = next(f for f in figures if f["metric"] == FOUND)
    shown = ""
    if picture:
        source = base64.b64encode(picture).decode()
        shown = (
            f'<figure><img style="max-width:100%" alt="images with the outlines of pseudo-masks" '
            f'src="data:image/png;base64,{source}"><figcaption>The first images of each class, not a selection, with '
            "the outline of the pseudo-mask; none where no lesion is found.</figcaption></figure>"
        )
    return (
        "<section><h2>Lesion geometry</h2><p>Drawn images have no masks, so a small segmenter trained on "
        f"{trust[0]['n'] if trust else 'the'} real training images gives them pseudo-masks. Its mean Dice on real test "
        f"images with lesions: {_e(told)}. It errs on real images too, so read an arm next to the real images by "
        "pseudo-masks, and these next to those by true masks. Taller than wide is a sign of malignancy; ellipticity is "
        f"1 for an ellipse. Distance: Wasserstein-1 to the lesions of the real {_e(about['reference'])} images, in the "
        "measure&#x27;s unit, of as many images in every arm as in the floor, which is other real images; p: the "
        "probability that chance alone sets all lesions so far apart. Square brackets: 95 % intervals.</p>"
        f"{table(columns, rows)}{shown}</section>"
    )
