"""Burned-in text and calipers: planted ones are found at several sizes, tissue is not; what
training does with them."""

import csv
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from busray.data.annotations import KINDS, Annotations, components, find_annotations, reduced
from busray.data.check import CheckReport, check
from busray.data.phantom import PROBES, phantom
from busray.data.pixels import read_grey
from busray.data.prepare import make_dataset, prepare
from busray.records import UserError
from tests.support.paths import ROOT
from tests.support.planted import CLASSES, settings

SMALL = (216, 256)
"""A size at which images are examined as they are, far cheaper to simulate than 320 x 380."""
LABELS = ROOT / "benchmarks" / "annotations-busi.csv"


@cache
def tissue(seed: int) -> np.ndarray:
    """A simulated scan without lesion, uint8 [320, 380]."""
    return phantom(seed, "normal", PROBES["general"], (320, 380)).image


def plus(pixels: np.ndarray, y: int, x: int, reach: int = 6, width: int = 2) -> None:
    pixels[y : y + width, x - reach : x + reach + width] = 235
    pixels[y - reach : y + reach + width, x : x + width] = 235


def cross(pixels: np.ndarray, y: int, x: int, reach: int = 6) -> None:
    for step in range(-reach, reach + 1):
        pixels[y + step, x + step : x + step + 2] = 240
        pixels[y + step, x - step : x - step + 2] = 240


def write(pixels: np.ndarray, text: str, at: tuple[int, int], size: int = 14) -> np.ndarray:
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).text(at, text, 240, ImageFont.load_default(size))
    return np.array(image)


@pytest.mark.parametrize("probe", sorted(PROBES))
def test_simulated_scans_have_none(probe: str) -> None:
    for seed in range(2):
        for name in CLASSES:
            assert find_annotations(phantom(seed, name, PROBES[probe], SMALL).image).kinds == ()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("draw", [plus, cross])
def test_a_pair_of_calipers_is_counted(seed: int, draw) -> None:
    pixels = tissue(seed) // 2  # a lesion is darker than what surrounds it
    draw(pixels, 100, 120)
    draw(pixels, 160, 210)
    assert find_annotations(pixels) == Annotations(2, 0)


def test_a_single_plus_is_a_caliper_and_a_single_diagonal_cross_is_not() -> None:
    one, other = tissue(0) // 2, tissue(0) // 2
    plus(one, 100, 120)
    cross(other, 100, 120)
    assert find_annotations(one).crosses == 1
    assert find_annotations(other).crosses == 0


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_larger_images_are_reduced_first(factor: int) -> None:
    pixels = tissue(1) // 2
    plus(pixels, 100, 120)
    pixels = write(pixels, "RT UOQ", (60, 250))
    found = find_annotations(np.kron(pixels, np.ones((factor, factor), np.uint8)))
    assert found == find_annotations(pixels)
    assert found.kinds == ("calipers", "text")


def test_an_image_is_averaged_over_whole_squares_to_the_nearest_height() -> None:
    assert reduced(np.zeros((479, 500), np.uint8)).shape == (479, 500)
    pixels = np.arange(641 * 3, dtype=np.uint8).reshape(641, 3)
    assert reduced(pixels).shape == (320, 1)
    assert reduced(pixels)[0, 0] == round((0 + 1 + 3 + 4) / 4)


@pytest.mark.parametrize("text", ["RT UOQ", "LT AXILLA", "lt axilla", "LT3", "RIGHT BREAST"])
def test_words_are_text(text: str) -> None:
    assert find_annotations(write(tissue(2) // 2, text, (60, 250))).kinds == ("text",)


def test_one_letter_and_the_makers_mark_at_the_top_are_no_text() -> None:
    assert find_annotations(write(tissue(3) // 2, "T", (60, 250))).letters == 0
    assert find_annotations(write(tissue(3) // 2, "LOGIQ", (0, -3))).letters == 0


def test_bright_blobs_larger_than_strokes_are_no_text() -> None:
    pixels = tissue(4) // 2
    for x in (100, 120, 140):
        pixels[200:212, x : x + 10] = 240
    assert find_annotations(pixels).letters == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (20, 20)])
def test_images_of_any_size_can_be_examined(size: tuple[int, int]) -> None:
    assert find_annotations(np.full(size, 200, np.uint8)) == Annotations(0, 0)


def test_recall_and_precision_on_labelled_scans_are_as_reported(busi: Path) -> None:
    with open(LABELS, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["sample"] == "evaluation"]
    assert len(rows) == 180
    found = {row["file"]: find_annotations(read_grey(busi / row["file"])).kinds for row in rows}
    for kind in KINDS:
        labelled = {row["file"] for row in rows if row[kind] == "1"}
        flagged = {file for file, kinds in found.items() if kind in kinds}
        assert len(labelled & flagged) >= 0.9 * len(labelled)
        assert len(labelled & flagged) >= 0.95 * len(flagged)


def test_components_are_those_of_a_flood_fill(rng: np.random.Generator) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    for density in (0.0, 0.2, 0.5, 0.8, 1.0):
        mask = rng.random((40, 55)) < density
        label, n = ndimage.label(mask, np.ones((3, 3)))
        found = [set(zip(ys.tolist(), xs.tolist(), strict=True)) for ys, xs in components(mask)]
        theirs = [set(zip(*(a.tolist() for a in np.nonzero(label == i + 1)), strict=True)) for i in range(n)]
        assert sorted(map(sorted, found)) == sorted(map(sorted, theirs))


# ---- in the check and in the prepared data set ----


@pytest.fixture(scope="module")
def drawn_on(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> Path:
    """The phantoms with something drawn on six benign and two malignant ones."""
    folder = tmp_path_factory.mktemp("annotated") / "data"
    shutil.copytree(phantom_folder, folder)
    for i, name in enumerate(["benign"] * 6 + ["malignant"] * 2):
        path = folder / name / f"{name} ({i + 1}).png"
        pixels = np.array(Image.open(path).convert("L")) // 2
        plus(pixels, 60, 40)
        if i == 0:
            pixels = write(pixels, "LT3", (60, 90))
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def drawn_on_report(drawn_on: Path) -> CheckReport:
    return check(drawn_on)


def test_the_check_lists_and_counts_them_by_class(drawn_on_report: CheckReport) -> None:
    report = drawn_on_report
    found = {entry["file"]: entry["found"] for entry in report.to_dict()["annotations"]}
    assert found["benign/benign (1).png"] == ["calipers", "text"]
    assert len(found) == 8
    table = next(table for table in report.tables() if table.title.startswith("Burned-in"))
    assert table.columns == ("class", "images", "calipers", "text", "either")
    assert [(row[0], *row[2:]) for row in table.rows] == [
        ("benign", "6", "1", "6"),
        ("malignant", "2", "0", "2"),
        ("normal", "0", "0", "0"),
    ]


def test_exclude_drops_them_from_training_alone_and_lists_them(drawn_on: Path, drawn_on_report: CheckReport) -> None:
    kept = make_dataset(settings(), CLASSES, 128, drawn_on, drawn_on_report)
    clean = make_dataset(settings(annotations="exclude"), CLASSES, 128, drawn_on, drawn_on_report)
    annotated = dict(drawn_on_report.annotated)
    assert (clean.val, clean.test) == (kept.val, kept.test)
    dropped = {image.file for image in kept.train} - {image.file for image in clean.train}
    assert dropped == {image.file for image in kept.train if image.file in annotated}
    assert dropped
    assert {file for file, reason in clean.left_out if "burned-in" in reason} == dropped
    assert kept.left_out == ()
    assert clean.hash != kept.hash


def test_the_hash_follows_the_setting_only_where_it_drops_an_image(
    phantom_folder: Path, phantom_report: CheckReport
) -> None:
    kept = make_dataset(settings(), CLASSES, 128, phantom_folder, phantom_report)
    clean = make_dataset(settings(annotations="exclude"), CLASSES, 128, phantom_folder, phantom_report)
    assert clean.hash == kept.hash


def test_a_class_whose_training_images_are_all_annotated_is_named(tmp_path: Path, phantom_folder: Path) -> None:
    shutil.copytree(phantom_folder / "benign", tmp_path / "data" / "benign")
    for path in (tmp_path / "data" / "benign").glob("*).png"):
        pixels = np.array(Image.open(path).convert("L")) // 2
        plus(pixels, 60, 40)
        Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=r"class benign: .*dataset\.annotations"):
        prepare(settings(annotations="exclude"), ["benign"], 128, tmp_path / "data")
