"""The check: findings planted into a simulated folder are found, told apart, and told to people and programs alike."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.uid import ExplicitVRLittleEndian

from busray.config import Dataset
from busray.data import check as module
from busray.data.check import CheckReport, check, connected
from busray.data.images import load_images, load_masks
from busray.data.phantom import PROBES, phantom, write_dataset
from busray.data.prepare import materialise_phantoms, prepare
from busray.data.read import scan
from busray.records import DataSet, UserError, to_json

CHAIN = tuple(f"normal/chain ({i}).png" for i in range(8))


def scan_pixels(seed: int, size: tuple[int, int] = (128, 128)) -> np.ndarray:
    return phantom(seed, "benign", PROBES["general"], size).image


def drifting(position: float, rng: np.random.Generator) -> np.ndarray:
    """A bright spot at a position with speckle of its own: what looks alike in a thumbnail and is another scan."""
    y, x = np.mgrid[0:128, 0:128] / 128
    tissue = sum(np.cos(np.pi * (a * x + b * y) + a + 2 * b) for a in range(5) for b in range(5))
    spot = np.exp(-((x - position) ** 2 + (y - 0.5) ** 2) / 0.03)
    return ((60 + 8 * tissue + 110 * spot) * rng.uniform(0.6, 1.4, (128, 128))).clip(0, 255).astype(np.uint8)


def plant(folder: Path) -> None:
    """Into a folder of phantoms, whose images are otherwise all different."""
    rng = np.random.default_rng(3)
    benign, malignant, normal = folder / "benign", folder / "malignant", folder / "normal"
    Image.open(benign / "benign (1).png").save(benign / "same pixels.bmp")

    twin = Image.fromarray(scan_pixels(101, (150, 190)))
    twin.save(benign / "near (1).png")
    smaller = twin.resize((160, 126), Image.Resampling.BICUBIC).point([min(255, int(1.15 * v)) for v in range(256)])
    smaller.save(benign / "near (2).jpg", quality=80)

    conflict = Image.fromarray(scan_pixels(102))
    conflict.save(benign / "in both.png")
    conflict.save(malignant / "in both.jpg", quality=85)

    for i, file in enumerate(CHAIN):
        Image.fromarray(drifting(0.2 + 0.045 * i, rng)).save(folder / file)

    (normal / "torn.png").write_bytes((benign / "benign (1).png").read_bytes()[:2000])
    (normal / "no image.png").write_bytes(b"MZ")

    coloured = Image.fromarray(scan_pixels(103)).convert("RGB")
    ImageDraw.Draw(coloured).rectangle((10, 10, 41, 25), outline=None, fill=(255, 0, 0))
    coloured.save(malignant / "coloured.png")
    Image.fromarray(scan_pixels(104)).convert("RGB").save(malignant / "grey in colour file.png")

    Image.fromarray(scan_pixels(105).astype(np.uint16) * 257).save(malignant / "deep.png")

    Image.fromarray(scan_pixels(106)).save(malignant / "masked.png")
    Image.new("1", (128, 128)).save(malignant / "masked_mask.png")
    Image.new("1", (64, 128)).save(malignant / "masked_mask_1.png")
    (malignant / "masked_mask_2.png").write_bytes(b"MZ")
    Image.new("1", (128, 128)).save(malignant / "nobody_mask.png")

    wide = Image.fromarray(scan_pixels(107, (100, 200)))
    wide.save(malignant / "wide.png")
    lesion = Image.new("1", wide.size)
    ImageDraw.Draw(lesion).ellipse((20, 30, 80, 70), fill=1)
    lesion.save(malignant / "wide_mask.png")

    dicom = pydicom.Dataset()
    dicom.file_meta = pydicom.dataset.FileMetaDataset()
    dicom.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dicom.file_meta.MediaStorageSOPClassUID = dicom.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    dicom.file_meta.MediaStorageSOPInstanceUID = dicom.SOPInstanceUID = "1.2.3"
    dicom.PatientName, dicom.PatientID, dicom.PatientBirthDate = "Roentgen^Bertha", "ID-4711", "18330422"
    dicom.InstitutionName, dicom.ImageComments = "Wuerzburg", "hand with ring"
    dicom.Rows, dicom.Columns, dicom.SamplesPerPixel = 128, 128, 1
    dicom.PhotometricInterpretation, dicom.PixelRepresentation = "MONOCHROME2", 0
    dicom.BitsAllocated = dicom.BitsStored = 8
    dicom.HighBit = 7
    dicom.PixelData = scan_pixels(108).tobytes()
    dicom.save_as(malignant / "clinic.dcm", enforce_file_format=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "data"
    shutil.copytree(phantom_folder, folder)
    plant(folder)
    return folder


@pytest.fixture(scope="module")
def report(planted: Path) -> CheckReport:
    return check(planted)


# ---- planted findings -----------------------------------------------------------------------------------------------


def test_clean_images_give_no_finding(phantom_folder: Path) -> None:
    clean = check(phantom_folder)
    assert len(clean.images) == 36
    assert clean.exact == clean.clusters == clean.conflicts == clean.coloured == clean.unreadable == ()
    assert clean.mask_problems == (("normal/", "all 12 masks are empty: a class without lesions"),)


def test_every_readable_image_is_counted_by_class_size_and_mode(report: CheckReport) -> None:
    found = report.to_dict()
    assert found["counts"] == {"benign": 16, "malignant": 19, "normal": 20}
    assert found["modes"] == {"L": 51, "RGB": 2, "I;16": 1, "DICOM": 1}
    assert found["sizes"]["malignant"]["width"][2] == 200
    assert found["sizes"]["malignant"]["height"][0] == 100


def test_the_same_pixels_in_another_file_format_are_exact_duplicates(report: CheckReport) -> None:
    assert report.exact == (("benign/benign (1).png", "benign/same pixels.bmp"),)


def test_a_rescaled_brightened_and_compressed_copy_is_a_near_duplicate(report: CheckReport) -> None:
    assert ("benign/near (1).png", "benign/near (2).jpg") in report.clusters


def test_exact_duplicates_are_among_the_clusters_and_nothing_unplanted_is(report: CheckReport) -> None:
    assert report.clusters == (
        ("benign/benign (1).png", "benign/same pixels.bmp"),
        ("benign/in both.png", "malignant/in both.jpg"),
        ("benign/near (1).png", "benign/near (2).jpg"),
    )


def test_images_that_only_look_alike_chain_by_thumbnails_and_are_not_confirmed(report: CheckReport) -> None:
    chains = {threshold: (n, images, largest, loose) for threshold, n, images, largest, loose in report.chains}
    assert chains[0.90] == (3, 6, 2, len(CHAIN))
    assert chains[0.98][3] == 2
    assert not any(file in CHAIN for group in report.clusters for file in group)
    assert [threshold for threshold, *_ in report.chains] == [0.98, 0.95, 0.90, 0.85, 0.80]


def test_without_the_confirmation_the_chain_would_be_one_cluster(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the test above fails where the confirming comparison is taken out."""
    unconfirmed = module._clusters
    monkeypatch.setattr(module, "_clusters", lambda *a, detail=-1.0: unconfirmed(*a, detail=-1.0))
    assert CHAIN in check(planted, ["normal"]).clusters


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
    assert found.clusters == (pair,)
    assert found.aligned_chains == tuple((t, 1, 2, 2) for t in module.ALIGNED_NEIGHBOURS)
    assert found.to_dict()["aligned_chains"][0] == {"threshold": 0.5, "clusters": 1, "images": 2, "largest": 2}
    for seed in range(3):
        dataset, _ = prepare(settings(seed=seed), CLASSES, 64, tmp_path / "data")
        sides = [{image.file for image in dataset.split(name)} & set(pair) for name in ("train", "val", "test")]
        assert set(pair) in sides
    ours, theirs = scan(phantom_folder, CLASSES).images, scan(tmp_path / "data", ("benign",)).images
    whole_only = tuple(image for image in theirs if image.file == pair[1])
    crop_only = tuple(image for image in theirs if image.file == pair[0])
    assert module.shared_images(phantom_folder, ours, tmp_path / "data", crop_only) == []
    assert module.shared_images(tmp_path / "data", whole_only, tmp_path / "data", crop_only) == [pair[::-1]]


def test_a_duplicate_across_classes_is_a_label_conflict(report: CheckReport) -> None:
    assert report.conflicts == (("benign/in both.png", "malignant/in both.jpg"),)


def test_unreadable_files_are_listed_with_a_reason_and_are_no_images(report: CheckReport) -> None:
    reasons = dict(report.unreadable)
    assert set(reasons) == {"normal/torn.png", "normal/no image.png"}
    assert "truncated" in reasons["normal/torn.png"]
    assert "cannot identify" in reasons["normal/no image.png"]
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


def test_masks_in_another_range_are_read_or_told_and_never_called_empty(phantom_folder: Path, tmp_path: Path) -> None:
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
    before, _ = load_masks(phantom_folder, scan(phantom_folder, ["benign"]).images, 64, "letterbox")
    after, known = load_masks(tmp_path, found.images, 64, "letterbox")
    assert [i.file for i, ok in zip(found.images, known, strict=True) if not ok] == ["benign/benign (12).png"]
    assert np.array_equal(after[known], before[known]) and after[known].any((1, 2)).all()


def test_lesions_that_a_frame_cuts_are_counted_by_policy_and_class(report: CheckReport) -> None:
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


def test_the_tables_show_every_finding_and_leave_out_empty_ones(report: CheckReport, phantom_folder: Path) -> None:
    text = {table.title: table for table in report.tables()}
    for begins, rows in (
        ("Images a class", 3),
        ("Near-duplicate clusters", 5),
        ("The same with other crops and scales", 5),
        ("Lesions that a frame cuts", 3),
        ("Label conflicts", 1),
        ("Exact duplicates", 1),
        ("Unreadable files", 2),
        ("Mask problems", 5),
        ("Colour overlays", 1),
    ):
        (table,) = [table for title, table in text.items() if title.startswith(begins)]
        assert len(table.rows) == rows
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert len(check(phantom_folder, ["benign"]).tables()) == 4


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
    brightest = round(int(deep.max()) / 257)
    assert found.dark == (("benign/12 bits.png", brightest), ("benign/31.png", 31))
    assert found.to_dict()["almost_black"][0] == {"file": "benign/12 bits.png", "brightest": brightest}
    (table,) = [table for table in found.tables() if table.title.startswith("Almost black")]
    assert "12 bits in 16" in table.title and "(2)" in table.title
    assert table.rows[1] == ("benign/31.png", "31 of 255")
    assert check(phantom_folder, ["benign"]).dark == ()


def test_progress_counts_to_the_number_of_images(phantom_folder: Path) -> None:
    told: list[tuple[int, int]] = []
    check(phantom_folder, ["normal"], progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 12) for i in range(12)]


def test_only_the_classes_asked_for_are_looked_at(planted: Path) -> None:
    assert {image.class_name for image in check(planted, ["benign"]).images} == {"benign"}


def test_a_class_with_nothing_readable_is_a_report_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "benign").mkdir()
    (tmp_path / "benign" / "a.png").write_bytes(b"x")
    found = check(tmp_path)
    assert found.images == ()
    assert len(found.unreadable) == 1
    assert found.tables()[-1].title == "Unreadable files (1)"


def test_black_images_are_no_near_duplicates_of_other_sizes(tmp_path: Path) -> None:
    (tmp_path / "benign").mkdir()
    for i in (1, 2):
        Image.new("L", (64, 60 + i)).save(tmp_path / "benign" / f"{i}.png")
    assert check(tmp_path).clusters == ()


def test_connected_components_are_transitive_and_sorted() -> None:
    assert connected([("d", "c"), ("b", "a"), ("c", "e"), ("x", "x")]) == [("a", "b"), ("c", "d", "e")]


# ---- from the report to the prepared data set -----------------------------------------------------------------------


CLASSES = ("benign", "malignant", "normal")


def settings(**changes: object) -> Dataset:
    return Dataset.model_validate({"path": "unused", "val": 0.2, "test": 0.2, **changes})


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory, planted: Path) -> Path:
    """The planted folder without its unreadable images."""
    folder = tmp_path_factory.mktemp("mended") / "data"
    shutil.copytree(planted, folder)
    for name in ("torn.png", "no image.png"):
        (folder / "normal" / name).unlink()
    return folder


def test_unreadable_images_end_the_preparation_and_are_all_named(planted: Path) -> None:
    with pytest.raises(UserError, match="2 files cannot be read") as caught:
        prepare(settings(), CLASSES, 128, planted)
    assert "normal/torn.png" in str(caught.value)
    assert "normal/no image.png" in str(caught.value)


def test_conflicts_are_left_out_and_listed_and_duplicates_are_on_one_side(mended: Path) -> None:
    for seed in range(4):
        dataset, _ = prepare(settings(seed=seed), CLASSES, 128, mended)
        side = {image.file: name for name in ("train", "val", "test") for image in dataset.split(name)}
        assert dict(dataset.left_out) == {
            "benign/in both.png": "label conflict: also malignant/in both.jpg",
            "malignant/in both.jpg": "label conflict: also benign/in both.png",
        }
        assert not set(dict(dataset.left_out)) & set(side)
        assert len(side) == 53
        assert side["benign/near (1).png"] == side["benign/near (2).jpg"]
        assert side["benign/benign (1).png"] == side["benign/same pixels.bmp"]


def test_groups_of_the_metadata_never_cross_the_split(phantom_folder: Path, tmp_path: Path) -> None:
    files = [f"{name}/{name} ({i + 1}).png" for name in CLASSES for i in range(12)]
    with open(tmp_path / "m.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "group", "birads"))
        writer.writerows((file, f"p{i % 9}", str(i % 5)) for i, file in enumerate(files))
    dataset, _ = prepare(settings(metadata=str(tmp_path / "m.csv")), CLASSES, 128, phantom_folder)
    side = {image.group: name for name in ("train", "val", "test") for image in dataset.split(name)}
    assert len(side) == 9
    for name in ("train", "val", "test"):
        assert all(side[image.group] == name for image in dataset.split(name))
    assert {image.columns["birads"] for image in dataset.split("all")} == {"0", "1", "2", "3", "4"}


def test_the_hash_follows_content_split_and_frame(phantom_folder: Path) -> None:
    first, _ = prepare(settings(), CLASSES, 128, phantom_folder)
    again, _ = prepare(settings(), CLASSES, 128, phantom_folder)
    assert first == again
    others = [
        prepare(settings(seed=1), CLASSES, 128, phantom_folder)[0],
        prepare(settings(frame="centre"), CLASSES, 128, phantom_folder)[0],
        prepare(settings(), CLASSES, 64, phantom_folder)[0],
        prepare(settings(), CLASSES[:2], 128, phantom_folder)[0],
    ]
    assert len({dataset.hash for dataset in (first, *others)}) == 5


def test_the_hash_does_not_follow_where_the_folder_lies(phantom_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_folder, tmp_path / "elsewhere")
    here, _ = prepare(settings(), CLASSES, 128, phantom_folder)
    there, _ = prepare(settings(), CLASSES, 128, tmp_path / "elsewhere")
    assert here.hash == there.hash


def test_a_changed_image_changes_the_hash(phantom_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_folder, tmp_path / "changed")
    Image.fromarray(scan_pixels(999)).save(tmp_path / "changed" / "benign" / "benign (1).png")
    before, _ = prepare(settings(), CLASSES, 128, phantom_folder)
    after, _ = prepare(settings(), CLASSES, 128, tmp_path / "changed")
    assert before.hash != after.hash


def test_a_data_set_reads_back_as_itself(mended: Path) -> None:
    dataset, _ = prepare(settings(), CLASSES, 128, mended)
    assert DataSet.from_json(to_json(dataset)) == dataset


def test_a_data_set_from_before_clusters_still_reads_and_falls_back_to_groups(mended: Path) -> None:
    dataset, _ = prepare(settings(), CLASSES, 128, mended)
    plain = json.loads(to_json(dataset))
    for name in ("train", "val", "test"):
        for image in plain[name]:
            assert image.pop("cluster") is not None
    plain["test"][0]["group"] = "patient 7"
    old = DataSet.from_json(json.dumps(plain).encode())
    assert old.hash == dataset.hash and {image.cluster for image in old.split("all")} == {None}
    assert [image.unit for image in old.test[:2]] == ["patient 7", old.test[1].file]


def test_near_duplicates_share_their_cluster_in_the_data_set(mended: Path) -> None:
    dataset, report = prepare(settings(), CLASSES, 128, mended)
    found = {image.file: image.cluster for image in dataset.split("all")}
    kept = [group for group in report.clusters if set(group) <= set(found)]
    assert kept and all({found[file] for file in group} == {group[0]} for group in kept)
    bound = {file for group in kept for file in group}
    assert all(cluster == file for file, cluster in found.items() if file not in bound)


def test_a_class_with_too_few_images_to_split_is_named(tmp_path: Path) -> None:
    for name, n in (("benign", 10), ("malignant", 2)):
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.fromarray(scan_pixels(10 * n + i)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="class malignant: too few images for a"):
        prepare(settings(), ("benign", "malignant"), 128, tmp_path)


def test_images_are_loaded_framed_and_in_order(mended: Path) -> None:
    dataset, _ = prepare(settings(), CLASSES, 128, mended)
    images = dataset.split("all")
    loaded = load_images(mended, images, 64, "letterbox")
    assert loaded.shape == (len(images), 64, 64) and loaded.dtype == np.uint8
    i = next(i for i, image in enumerate(images) if image.file == "malignant/wide.png")
    assert not loaded[i, :16].any() and not loaded[i, 48:].any()
    assert loaded[i, 16:48].any()
    assert load_images(mended, [], 64, "letterbox").shape == (0, 64, 64)


def test_phantoms_are_written_once_and_whole_whoever_writes_them_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from busray.config import Phantoms
    from busray.data import prepare as module

    def write_twice(folder: Path, *rest: object) -> None:
        monkeypatch.setattr(module, "write_dataset", write_dataset)
        materialise_phantoms(Phantoms(images=8), tmp_path / "made")  # another driver, and it is first
        write_dataset(folder, *rest)

    monkeypatch.setattr(module, "write_dataset", write_twice)
    materialise_phantoms(Phantoms(images=8), tmp_path / "made")
    files = sorted(path.name for path in (tmp_path / "made").rglob("*.png"))
    assert len(files) == 3 * 8 * 2
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    (tmp_path / "made" / "benign" / "benign (1).png").unlink()
    materialise_phantoms(Phantoms(images=8), tmp_path / "made")
    assert len(list((tmp_path / "made").rglob("*.png"))) == 3 * 8 * 2 - 1


def test_an_unknown_probe_is_named_with_those_there_are(tmp_path: Path) -> None:
    from busray.config import Phantoms

    with pytest.raises(UserError, match=r"dataset\.phantoms\.probe: no probe 'mri'; known: .*demo"):
        materialise_phantoms(Phantoms(probe="mri"), tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


# ---- the real images ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(busi: Path) -> Iterator[CheckReport]:
    yield check(busi)


def test_busi_has_the_counts_of_its_paper(real: CheckReport) -> None:
    assert real.to_dict()["counts"] == {"benign": 437, "malignant": 210, "normal": 133}
    assert real.unreadable == ()


def test_busi_has_a_benign_image_that_is_also_a_malignant_one(real: CheckReport) -> None:
    pair = {"benign/benign (433).png", "malignant/malignant (145).png"}
    assert any(pair <= set(group) for group in real.conflicts)


def test_busis_clusters_do_not_chain_once_confirmed(real: CheckReport) -> None:
    chains = {threshold: (largest, loose) for threshold, _, _, largest, loose in real.chains}
    assert chains[0.90][0] == chains[0.80][0] == 7
    assert chains[0.85][1] > 100
    aligned = {threshold: largest for threshold, _, _, largest in real.aligned_chains}
    assert aligned[0.5] == aligned[module.ALIGNED] == 7


@pytest.mark.parametrize(
    "pair",
    [
        {"benign/benign (253).png", "benign/benign (213).png"},
        {"malignant/malignant (129).png", "malignant/malignant (128).png"},
        {"malignant/malignant (80).png", "malignant/malignant (81).png"},
    ],
)
def test_busis_copies_at_another_scale_are_in_one_cluster(real: CheckReport, pair: set[str]) -> None:
    assert any(pair <= set(group) for group in real.clusters)


def test_a_centre_square_cuts_a_third_of_busis_malignant_lesions(real: CheckReport) -> None:
    share = {name: cut / lesions for name, (cut, lesions) in real.cuts["centre"].items()}
    assert share["malignant"] == pytest.approx(0.31, abs=0.01)
    assert share["benign"] == pytest.approx(0.22, abs=0.01)
    assert all(cut == 0 for cut, _ in real.cuts["letterbox"].values())


def test_busis_normal_class_is_said_to_have_no_lesions(real: CheckReport) -> None:
    assert ("normal/", "all 133 masks are empty: a class without lesions") in real.mask_problems
