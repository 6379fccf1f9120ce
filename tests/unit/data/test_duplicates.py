"""Near-duplicates: copies are found in any format, scale and crop; different scans are not
joined."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from busray.data.check import ALIGNED_THRESHOLDS, CheckReport, GroupSizes, check
from busray.data.duplicates import ALIGNED, connected, duplicate_pairs, shared_images, signature
from busray.data.pixels import read_grey
from busray.data.prepare import make_dataset
from busray.data.read import scan
from tests.support.planted import CHAIN, CLASSES, scan_pixels, settings


def test_the_same_pixels_in_another_file_format_are_exact_duplicates(report: CheckReport) -> None:
    assert report.exact == (("benign/benign (1).png", "benign/same pixels.bmp"),)


def test_a_rescaled_brightened_and_compressed_copy_is_a_near_duplicate(report: CheckReport) -> None:
    assert ("benign/near (1).png", "benign/near (2).jpg") in report.duplicates


def test_exact_duplicates_are_among_the_near_duplicates_and_nothing_unplanted_is(report: CheckReport) -> None:
    assert report.duplicates == (
        ("benign/benign (1).png", "benign/same pixels.bmp"),
        ("benign/in both.png", "malignant/in both.jpg"),
        ("benign/near (1).png", "benign/near (2).jpg"),
    )


def test_images_that_only_look_alike_are_joined_by_thumbnails_and_not_once_confirmed(planted: Path) -> None:
    """It is the comparison of fine detail that keeps them apart."""
    pairs = duplicate_pairs(CHAIN, [signature(read_grey(planted / file)) for file in CHAIN], 0.9)
    assert pairs.groups(detail=-1) == [CHAIN]
    assert pairs.groups() == []


def test_a_crop_at_another_scale_is_a_near_duplicate_and_stays_on_one_side(
    phantom_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_folder, tmp_path / "data")
    whole = Image.fromarray(scan_pixels(109, (200, 240)))
    whole.save(tmp_path / "data" / "benign" / "whole.png")
    crop = whole.resize((150, 125), Image.Resampling.BICUBIC, box=(40, 20, 228, 177))
    crop.save(tmp_path / "data" / "benign" / "crop.jpg", quality=85)
    pair = ("benign/crop.jpg", "benign/whole.png")
    found = check(tmp_path / "data")
    assert found.duplicates == (pair,)
    assert found.aligned_sizes == tuple(GroupSizes(t, 1, 2, 2) for t in ALIGNED_THRESHOLDS)
    assert found.to_dict()["aligned_chains"][0] == {"threshold": 0.5, "clusters": 1, "images": 2, "largest": 2}
    for seed in range(3):
        dataset = make_dataset(settings(seed=seed), CLASSES, 64, tmp_path / "data", found)
        sides = [{image.file for image in dataset.split(name)} & set(pair) for name in ("train", "val", "test")]
        assert set(pair) in sides
    ours, theirs = scan(phantom_folder, CLASSES).images, scan(tmp_path / "data", ("benign",)).images
    whole_only = tuple(image for image in theirs if image.file == pair[1])
    crop_only = tuple(image for image in theirs if image.file == pair[0])
    assert shared_images(phantom_folder, ours, tmp_path / "data", crop_only) == []
    assert shared_images(tmp_path / "data", whole_only, tmp_path / "data", crop_only) == [pair[::-1]]


CHANGES = {
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    "mirrored, turned by 180 degrees": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned by 90 degrees": Image.Transpose.ROTATE_270,  # counted the other way round
    "turned by -90 degrees": Image.Transpose.ROTATE_90,
}


def test_turned_mirrored_inverted_and_cropped_copies_stay_on_one_side(phantom_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantom_folder, data)
    expected = []
    for i, (how, change) in enumerate(CHANGES.items()):
        image = Image.open(data / "benign" / f"benign ({i + 1}).png").convert("L")
        # Stretched: no shift and scale lays it on the image.
        image.transpose(change).resize((150, 150)).save(data / "benign" / f"copy ({i + 1}).jpg", quality=85)
        expected.append((f"benign/benign ({i + 1}).png", f"benign/copy ({i + 1}).jpg", how))
    image = Image.open(data / "malignant" / "malignant (1).png").convert("L")
    crop = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(-8, Image.Resampling.BICUBIC)
    crop = crop.crop((20, 20, 108, 108)).point(lambda value: 255 - value)
    crop.save(data / "malignant" / "other.png")
    how = "mirrored, turned by 8 degrees, inverted"
    expected.append(("malignant/malignant (1).png", "malignant/other.png", how))
    found = check(data)
    assert found.turned == tuple(expected)
    assert found.duplicates == tuple(pair[:2] for pair in expected)
    for seed in range(3):
        dataset = make_dataset(settings(seed=seed), CLASSES, 64, data, found)
        for file, copy, _ in expected:
            sides = [{image.file for image in dataset.split(name)} & {file, copy} for name in ("train", "val", "test")]
            assert {file, copy} in sides
    assert found.to_dict()["turned_duplicates"][0] == {"files": list(expected[0][:2]), "how": "mirrored"}
    titles = [table.title for table in found.tables()]
    assert "Near-duplicates that are turned, mirrored, inverted or cropped (5)" in titles
    copies = tuple(image for image in scan(data, ("benign",)).images if "copy" in image.file)
    pairs = shared_images(phantom_folder, scan(phantom_folder, CLASSES).images, data, copies)
    assert pairs == [pair[:2] for pair in expected[:4]]


def test_the_check_says_which_copies_are_looked_for_and_which_are_not(report: CheckReport) -> None:
    (table,) = [table for table in report.tables() if table.title == "Which copies are looked for"]
    answers = dict(table.rows)
    assert answers["mirrored, upside down, turned by any angle, inverted"] == "yes"
    assert answers["cropped to less than a quarter of the area"] == "no"
    stored = report.to_dict()["copies_looked_for"]
    assert [(entry["copy"], entry["looked_for"]) for entry in stored] == list(table.rows)


def test_black_images_are_no_near_duplicates_of_other_sizes(tmp_path: Path) -> None:
    (tmp_path / "benign").mkdir()
    for i in (1, 2):
        Image.new("L", (64, 60 + i)).save(tmp_path / "benign" / f"{i}.png")
    assert check(tmp_path).duplicates == ()


def test_connected_components_are_transitive_and_sorted() -> None:
    assert connected([("d", "c"), ("b", "a"), ("c", "e"), ("x", "x")]) == [("a", "b"), ("c", "d", "e")]


@pytest.mark.slow
def test_busi_has_a_benign_image_that_is_also_a_malignant_one(real_report: CheckReport) -> None:
    pair = {"benign/benign (433).png", "malignant/malignant (145).png"}
    assert any(pair <= set(group) for group in real_report.conflicts)


@pytest.mark.slow
def test_busis_duplicates_do_not_chain_once_confirmed(real_report: CheckReport) -> None:
    sizes = {at.threshold: at for at in real_report.frame_sizes}
    assert sizes[0.90].largest == sizes[0.80].largest == 7
    assert (sizes[0.85].largest_unconfirmed or 0) > 100
    aligned = {at.threshold: at.largest for at in real_report.aligned_sizes}
    assert aligned[0.5] == aligned[ALIGNED] == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [
        {"benign/benign (253).png", "benign/benign (213).png"},
        {"malignant/malignant (129).png", "malignant/malignant (128).png"},
        {"malignant/malignant (80).png", "malignant/malignant (81).png"},
    ],
)
def test_busis_copies_at_another_scale_are_in_one_group(real_report: CheckReport, pair: set[str]) -> None:
    assert any(pair <= set(group) for group in real_report.duplicates)
