"""The report on lesion geometry: Dice first, what differs from real lesions, tables and page."""

from dataclasses import replace

import numpy as np
import pytest

from busray.evidence.lesions import TALLER, DiceScores, dice_figures, geometry_figures
from busray.evidence.real import RealFeatures
from busray.records import Figure
from busray.report.lesions import geometry_rows, geometry_section, geometry_sentences
from busray.vision.lesion_shape import NAME, TRUE
from tests.support.lesions import lesion_figures, lesion_rows


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return lesion_figures()


def test_the_sentences_give_the_dice_and_name_what_differs_beyond_chance(figures: list[Figure]) -> None:
    dice, differs = geometry_sentences(figures, None)
    assert "mean Dice of 0.6" in dice
    assert differs.endswith("base benign area.")
    assert geometry_sentences([], "0 train images have a mask") == [
        "Lesion geometry is not measured: 0 train images have a mask."
    ]
    assert geometry_sentences([], None) == []


def test_a_planted_difference_is_found_among_more_than_fifty_comparisons() -> None:
    """4 arms x 5 classes x 3 measures; the lesions of one class of one arm are too large.

    1000 permutations cannot give a p-value below 0.05 / 60.
    """
    rng, classes = np.random.default_rng(4), "abcde"

    def real(extractor: str) -> RealFeatures:
        features = {split: {c: lesion_rows(rng, 14, 0.1) for c in classes} for split in ("train", "val", "test")}
        units = {s: {c: np.array([f"{s} {c} {i}" for i in range(14)]) for c in classes} for s in features}
        return RealFeatures(features, units, extractor, "letterbox", 128)

    arms = {
        f"arm {i}": {c: lesion_rows(rng, 14, 0.2 if (i, c) == (2, "d") else 0.1) for c in classes} for i in range(4)
    }
    scored = DiceScores(rng.uniform(0.4, 0.9, 30), np.array(["a"] * 30), np.arange(30).astype(str), trained_on=80)
    made = [*dice_figures(scored, "letterbox", 128), *geometry_figures(arms, real(NAME), real(TRUE), "test")]
    said = geometry_sentences(made, None)[-1]
    assert "5 % over all 60 comparisons" in said and said.endswith(": arm 2 d area.")
    _, found = geometry_rows(made)
    (row,) = [row for row in found if row[:2] == ["d", "arm 2"]]
    assert any(cell.endswith("(<0.001)") for cell in row)


def test_the_table_has_real_images_by_both_masks_the_floor_and_every_arm(figures: list[Figure]) -> None:
    columns, found = geometry_rows(figures)
    assert [row[:3] for row in found] == [
        [name, arm, masks]
        for name in ("benign", "normal")
        for arm, masks in (
            ("real", "true"),
            ("real", "pseudo"),
            ("real val", "pseudo"),
            ("base", "pseudo"),
            ("lora+ti", "pseudo"),
        )
    ]
    base = dict(zip(columns, found[3], strict=True))
    assert base["distance of area (p)"].endswith("(0.001)") and base["lesions"] == "25"
    assert dict(zip(columns, found[8], strict=True))["height / width"] == "–"
    assert TALLER in {f.metric for f in figures}


def test_the_page_shows_dice_and_picture_or_the_reason_and_escapes_what_comes_from_data(figures: list[Figure]) -> None:
    page = geometry_section(figures, None, b"png").inside
    assert "80 real training images" in page and "data:image/png;base64,cG5n" in page
    assert "<script>" not in geometry_section([replace(f, arm="<script>") for f in figures], None, None).inside
    assert "no masks &lt;b&gt;" in geometry_section([], "no masks <b>", None).inside
    assert geometry_section([], None, None).inside == ""
