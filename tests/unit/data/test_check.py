"""The check: planted findings are found, kept apart, and shown to people and programs alike."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busray.data.check import CheckReport, GroupSizes, check
from busray.data.read import scan
from busray.records import to_json
from tests.support.planted import CHAIN, image_folder, scan_pixels


def test_clean_images_give_no_finding(phantom_report: CheckReport) -> None:
    clean = phantom_report
    assert len(clean.images) == 36
    assert clean.exact == clean.duplicates == clean.conflicts == clean.coloured == clean.unreadable == clean.dark == ()
    assert clean.mask_problems == (("normal/", "all 12 masks are empty: a class without lesions"),)


def test_every_readable_image_is_counted_by_class_size_and_mode(report: CheckReport) -> None:
    found = report.to_dict()
    assert found["counts"] == {"benign": 16, "malignant": 19, "normal": 20}
    assert found["modes"] == {"L": 51, "RGB": 2, "I;16": 1, "DICOM": 1}
    assert found["sizes"]["malignant"]["width"][2] == 200
    assert found["sizes"]["malignant"]["height"][0] == 100


def test_images_that_only_look_alike_chain_by_thumbnails_and_are_not_confirmed(report: CheckReport) -> None:
    sizes = {at.threshold: at for at in report.frame_sizes}
    assert sizes[0.90] == GroupSizes(0.90, groups=3, images=6, largest=2, largest_unconfirmed=len(CHAIN))
    assert sizes[0.98].largest_unconfirmed == 2
    assert not any(file in CHAIN for group in report.duplicates for file in group)
    assert list(sizes) == [0.98, 0.95, 0.90, 0.85, 0.80]


def test_a_duplicate_across_classes_is_a_label_conflict(report: CheckReport) -> None:
    assert report.conflicts == (("benign/in both.png", "malignant/in both.jpg"),)


def test_unreadable_files_are_listed_with_a_reason_and_are_no_images(report: CheckReport) -> None:
    reasons = dict(report.unreadable)
    assert set(reasons) == {"normal/torn.png", "normal/no image.png"}
    assert "truncated" in reasons["normal/torn.png"]
    assert "no image that busray reads" in reasons["normal/no image.png"]
    assert not {image.file for image in report.images} & set(reasons)


def test_colour_overlays_are_found_with_their_share_and_grey_in_a_colour_file_is_none(report: CheckReport) -> None:
    ((file, share),) = report.coloured
    assert file == "malignant/coloured.png"
    assert share == pytest.approx(32 * 16 / 128**2)


def test_mask_problems_name_the_mask_and_what_is_wrong_with_it(report: CheckReport) -> None:
    problems = dict(report.mask_problems)
    assert problems.pop("malignant/masked_mask.png") == "empty"
    assert problems.pop("malignant/masked_mask_1.png") == "64 x 128, its image 128 x 128"
    assert problems.pop("malignant/masked_mask_2.png").startswith("unreadable")
    assert problems.pop("malignant/nobody_mask.png") == "a mask without its image"
    assert problems == {"normal/": "all 12 masks are empty: a class without lesions"}


def test_masks_in_another_range_are_read_or_reported_and_never_called_empty(
    phantom_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_folder / "benign", tmp_path / "benign")
    for i in range(1, 13):
        path = tmp_path / "benign" / f"benign ({i})_mask.png"
        lesion = np.array(Image.open(path).convert("L")) > 127
        depth, values = (np.uint16, 255) if i % 2 else (np.uint8, 1)
        Image.fromarray((lesion * values).astype(depth)).save(path)
    several = np.array(Image.open(path))
    several[0, 0] = 3
    Image.fromarray(several).save(path)
    found = check(tmp_path)
    assert found.mask_problems == (("benign/benign (12)_mask.png", "values up to 3, not 0 and 255"),)
    assert found.cuts["letterbox"] == {"benign": (0, 11)}
    before = image_folder(phantom_folder).masks(scan(phantom_folder, ["benign"]).images)
    after = image_folder(tmp_path).masks(found.images)
    known = after.known
    assert [i.file for i, ok in zip(found.images, known, strict=True) if not ok] == ["benign/benign (12).png"]
    assert np.array_equal(after.lesions[known], before.lesions[known]) and after.lesions[known].any((1, 2)).all()


def test_lesions_that_a_framing_cuts_are_counted_by_framing_and_class(report: CheckReport) -> None:
    assert set(report.cuts) == {"letterbox", "centre", "stretch"}
    assert report.cuts["letterbox"] == {"benign": (0, 12), "malignant": (0, 13)}
    assert report.cuts["stretch"] == report.cuts["letterbox"]
    assert report.cuts["centre"]["malignant"][0] >= 1
    assert "normal" not in report.cuts["centre"]


def test_a_dicoms_identifiers_are_nowhere_in_the_report(report: CheckReport, planted: Path) -> None:
    assert "malignant/clinic.dcm" in [image.file for image in report.images]
    assert b"Roentgen" in (planted / "malignant" / "clinic.dcm").read_bytes()
    everything = repr(report) + to_json(report.to_dict()).decode() + repr(report.tables())
    for secret in ("Roentgen", "Bertha", "ID-4711", "18330422", "Wuerzburg", "hand with ring"):
        assert secret not in everything


def test_the_report_is_json_that_reads_back(report: CheckReport) -> None:
    found = json.loads(to_json(report.to_dict()))
    assert found["label_conflicts"] == [["benign/in both.png", "malignant/in both.jpg"]]
    assert found["near_duplicate_threshold"] == 0.9
    assert found["chains"][2]["largest_unconfirmed"] == len(CHAIN)
    assert found["lesions_cut"]["letterbox"]["benign"] == {"cut": 0, "lesions": 12}
    assert found["colour_overlays"][0]["file"] == "malignant/coloured.png"


def test_the_tables_show_every_finding_and_leave_out_empty_ones(
    report: CheckReport, phantom_report: CheckReport
) -> None:
    text = {table.title: table for table in report.tables()}
    for begins, rows in (
        ("Images per class", 3),
        ("Groups of near-duplicates", 5),
        ("The same with other crops and scales", 5),
        ("Which copies are looked for", 10),
        ("Lesions that a framing cuts", 3),
        ("Label conflicts", 1),
        ("Exact duplicates", 1),
        ("Unreadable files", 2),
        ("Mask problems", 5),
        ("Colour overlays", 1),
    ):
        (table,) = [table for title, table in text.items() if title.startswith(begins)]
        assert len(table.rows) == rows
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert len(replace(phantom_report, mask_problems=()).tables()) == 7


def test_almost_black_images_are_listed_with_what_they_may_be(phantom_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_folder / "benign", tmp_path / "benign")
    deep = scan_pixels(110).astype(np.uint16) * 16
    Image.fromarray(deep).save(tmp_path / "benign" / "12 bits.png")
    for level in (31, 32):
        Image.fromarray((scan_pixels(110 + level) // 8).clip(0, level - 1)).save(tmp_path / "benign" / f"{level}.png")
        with Image.open(tmp_path / "benign" / f"{level}.png") as image:
            image.putpixel((0, 0), level)
            image.save(tmp_path / "benign" / f"{level}.png")
    found = check(tmp_path)
    assert found.dark == (("benign/31.png", 31),)
    assert found.to_dict()["almost_black"] == [{"file": "benign/31.png", "brightest": 31}]
    (table,) = [table for table in found.tables() if table.title.startswith("Images whose grey levels are odd")]
    said = dict(table.rows)
    assert "almost black: no pixel is above grey level 31; the file has 8-bit grey" in said.pop("benign/31.png")
    assert said == {}
    assert found.to_dict()["odd_levels"][0]["file"] == "benign/31.png"
    (table,) = [table for table in found.tables() if table.title.startswith("Images whose levels are not those")]
    assert table.rows == (("12 bits in 16-bit grey", "1", "benign/12 bits.png"),)
    assert found.to_dict()["readings"] == {"benign/12 bits.png": "12 bits in 16-bit grey"}


def test_progress_counts_to_the_number_of_images(phantom_folder: Path) -> None:
    reported: list[tuple[int, int]] = []
    check(phantom_folder, ["normal"], progress=lambda done, total: reported.append((done, total)))
    assert reported == [(i + 1, 12) for i in range(12)]


def test_only_the_classes_asked_for_are_checked(planted: Path) -> None:
    assert {image.class_name for image in check(planted, ["benign"]).images} == {"benign"}


def test_a_class_with_nothing_readable_is_a_report_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "benign").mkdir()
    (tmp_path / "benign" / "a.png").write_bytes(b"x")
    found = check(tmp_path)
    assert found.images == ()
    assert len(found.unreadable) == 1
    assert found.tables()[-1].title == "Unreadable files (1)"


@pytest.mark.slow
def test_busi_has_the_counts_of_its_paper(real_report: CheckReport) -> None:
    assert real_report.to_dict()["counts"] == {"benign": 437, "malignant": 210, "normal": 133}
    assert real_report.unreadable == ()


@pytest.mark.slow
def test_a_centre_square_cuts_a_third_of_busis_malignant_lesions(real_report: CheckReport) -> None:
    share = {name: cut / lesions for name, (cut, lesions) in real_report.cuts["centre"].items()}
    assert share["malignant"] == pytest.approx(0.31, abs=0.01)
    assert share["benign"] == pytest.approx(0.22, abs=0.01)
    assert all(cut == 0 for cut, _ in real_report.cuts["letterbox"].values())


@pytest.mark.slow
def test_busis_normal_class_is_reported_to_have_no_lesions(real_report: CheckReport) -> None:
    assert ("normal/", "all 133 masks are empty: a class without lesions") in real_report.mask_problems
