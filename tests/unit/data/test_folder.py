"""Folders as people have them: each is read, or answered with the setting that reads it."""

import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busray.cli import main
from busray.config import Dataset
from busray.config_file import validate
from busray.data.check import check
from busray.data.folder import class_names, class_root
from busray.data.prepare import prepare
from busray.data.read import FolderScan, scan
from busray.identity import sha256_file
from busray.records import UserError
from tests.support.planted import scan_pixels

CLASSES = ("benign", "malignant")


def picture(path: Path, seed: int = 0) -> Path:
    """A small picture with many levels; no two seeds are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed + 1).integers(0, 256, (9, 11), dtype=np.uint8)
    Image.fromarray(noise).resize((44, 36), Image.Resampling.BICUBIC).save(path)
    return path


def mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lesion = np.zeros((36, 44), np.uint8)
    lesion[10:20, 12:30] = 255
    Image.fromarray(lesion).save(path)
    return path


def settings(**changes: object) -> Dataset:
    return Dataset.model_validate(changes)


def use_of(found: FolderScan) -> dict[str, str]:
    return {one.file: one.use for one in found.account.files}


def files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


# ---- an archive's outer folder ----


@pytest.mark.parametrize("outer", ["Dataset_BUSI_with_GT", "archive/Dataset_BUSI_with_GT"])
def test_an_outer_folder_is_gone_through_and_said(tmp_path: Path, outer: str) -> None:
    for i, name in enumerate(CLASSES):
        picture(tmp_path / outer / name / "a.png", i)
    (tmp_path / "readme.txt").write_text("from somewhere")
    for classes in (None, CLASSES):
        found = scan(tmp_path, classes)
        assert [image.file for image in found.images] == ["benign/a.png", "malignant/a.png"]
        assert found.root == class_root(tmp_path, classes) == tmp_path / outer
        assert str(found.root) in found.account.line()
        assert len(found.account.files) == 3
        ((left, why),) = [(one.file, one.why) for one in found.account.files if one.use == "left out"]
        assert left.endswith("../readme.txt") and why == "beside the folder of the classes"
    inner = scan(tmp_path / outer, CLASSES)
    assert inner.images == found.images  # so the data set's hash is the same


def test_a_class_with_its_images_in_folders_is_no_outer_folder(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "scanner 1" / "a.png")
    picture(tmp_path / "benign" / "scanner 2" / "a.png", 1)
    found = scan(tmp_path, ["benign"])
    assert [image.file for image in found.images] == ["benign/scanner 1/a.png", "benign/scanner 2/a.png"]
    assert found.root == tmp_path


def test_a_missing_class_is_told_with_what_is_there_and_the_setting(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "Benign" / f"{i}.png", i)
    picture(tmp_path / "other" / "x" / "a.png")
    with pytest.raises(UserError) as caught:
        scan(tmp_path, CLASSES)
    said = str(caught.value)
    assert "class benign: no folder" in said and "class malignant: no folder" in said
    assert "Benign (3 .png)" in said and "other (folders x)" in said
    assert "--classes.benign.folder='Benign'" in said


def test_a_missing_data_folder_is_told_with_the_folders_beside_it(tmp_path: Path) -> None:
    (tmp_path / "busi").mkdir()
    with pytest.raises(UserError, match=r"data folder: no folder .*BUSI; folders in .*: busi"):
        scan(tmp_path / "BUSI", CLASSES)


def test_a_folder_without_class_folders_is_told_with_the_command(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError) as caught:
        check(tmp_path)
    assert "there: images (1 .png), masks (1 .png)" in str(caught.value)
    command = str(caught.value).split("benign: ")[1]
    assert os.system(command) == 0
    assert [image.masks for image in scan(tmp_path, None).images] == [("benign/masks/a.png",)]
    with pytest.raises(UserError, match=f"busray check {tmp_path}"):
        check(tmp_path / "benign" / "images")


# ---- train, val and test ----


@pytest.fixture
def given(tmp_path: Path) -> Path:
    seed = 0
    for side, n in (("train", 4), ("val", 2), ("Test", 2)):
        for name in CLASSES:
            for i in range(n):
                seed += 1
                path = picture(tmp_path / "data" / side / name / f"{side}{i}.png")
                Image.fromarray(scan_pixels(seed)).save(path)
    return tmp_path / "data"


def test_a_data_set_that_comes_split_says_which_setting_uses_the_split(given: Path) -> None:
    for classes in (None, CLASSES):
        with pytest.raises(UserError, match=r"--dataset\.split=folders"):
            scan(given, classes)


def test_the_given_split_is_used(given: Path) -> None:
    dataset, report = prepare(settings(split="folders"), CLASSES, 64, given)
    assert len(report.images) == 16 and class_names(given, settings(split="folders")) == list(CLASSES)
    for side, folder in (("train", "train"), ("val", "val"), ("test", "Test")):
        assert {image.file.split("/")[0] for image in dataset.split(side)} == {folder}
    assert dataset.left_out == ()


def test_a_split_below_the_classes_is_used_too(given: Path, tmp_path: Path) -> None:
    for side in given.iterdir():
        for folder in side.iterdir():
            shutil.copytree(folder, tmp_path / "turned" / folder.name / side.name)
    with pytest.raises(UserError, match=r"--dataset\.split=folders"):
        scan(tmp_path / "turned", CLASSES)
    dataset, _ = prepare(settings(split="folders"), CLASSES, 64, tmp_path / "turned")
    assert [len(dataset.split(side)) for side in ("train", "val", "test")] == [8, 4, 4]


def test_of_copies_across_a_given_split_the_test_image_is_kept(given: Path) -> None:
    shutil.copy(given / "Test" / "benign" / "Test0.png", given / "train" / "benign" / "copy.png")
    dataset, _ = prepare(settings(split="folders"), CLASSES, 64, given)
    ((file, why),) = dataset.left_out
    assert file == "train/benign/copy.png" and "Test/benign/Test0.png of test" in why
    assert len(dataset.test) == 4


def test_a_given_split_without_one_side_is_refused(given: Path) -> None:
    shutil.rmtree(given / "val")
    with pytest.raises(UserError, match=r"needs the folders train, val and test .*train 8, test 4"):
        scan(given, CLASSES, settings=settings(split="folders"))


# ---- images and masks side by side ----


@pytest.mark.parametrize(
    "image, its_mask",
    [
        ("benign/images/a.png", "benign/masks/a.png"),
        ("benign/a.png", "benign/GT/a.png"),
        ("benign/a.png", "masks/benign/a.png"),
        ("benign/a.png", "masks/a_mask.png"),
        ("images/benign/a.png", "Labels/benign/a.bmp"),
        ("benign/p1/images/a.png", "benign/p1/ground_truth/a.png"),
    ],
)
def test_masks_in_a_folder_of_their_own_go_with_their_image(tmp_path: Path, image: str, its_mask: str) -> None:
    picture(tmp_path / image)
    mask(tmp_path / its_mask)
    picture(tmp_path / image.replace("benign", "malignant").replace("a.png", "b.png"), 1)
    for classes in (None, CLASSES):
        found = scan(tmp_path, classes)
        assert [(one.file, one.masks) for one in found.images if one.masks] == [(image, (its_mask,))]
        assert [one.class_name for one in found.images] == list(CLASSES)


def test_masks_of_all_classes_go_to_images_in_folders_of_the_same_name(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        picture(tmp_path / "benign" / patient / "1.png", int(patient[1]))
        mask(tmp_path / "benign" / patient / "masks" / "1.png")
    found = scan(tmp_path, ["benign"])
    assert [image.masks for image in found.images] == [("benign/p1/masks/1.png",), ("benign/p2/masks/1.png",)]


def test_a_mask_of_two_images_is_asked_about(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "1.png")
    picture(tmp_path / "malignant" / "1.png", 1)
    mask(tmp_path / "masks" / "1.png")
    with pytest.raises(UserError, match=r"masks/1.png: a mask of benign/1.png or of malignant/1.png\?"):
        scan(tmp_path, CLASSES)


# ---- symbolic links ----


def test_links_into_a_cache_are_said_once_and_followed_with_one_setting(tmp_path: Path) -> None:
    for i in range(3):
        link = tmp_path / "data" / "benign" / f"{i}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(picture(tmp_path / "blobs" / f"{i:040x}.png", i))
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "benign").symlink_to(tmp_path / "data" / "benign", target_is_directory=True)
    for folder, n in (("data", 3), ("view", 1)):
        for classes in (None, ["benign"]):
            with pytest.raises(UserError, match=f"{n} symbolic links, such as benign.*--dataset.links=true"):
                scan(tmp_path / folder, classes)
        found = scan(tmp_path / folder, None, settings=settings(links=True))
        assert len(found.images) == 3
        assert "3 files are reached through symbolic links" in found.account.line()


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "a.png")
    (tmp_path / "benign" / "b.png").symlink_to(tmp_path / "gone.png")
    ((file, reason),) = scan(tmp_path, ["benign"]).unreadable
    assert file == "benign/b.png" and "not there" in reason


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "a.png")
    (tmp_path / "benign" / "again").symlink_to(tmp_path, target_is_directory=True)
    found = scan(tmp_path, ["benign"])
    assert use_of(found) == {"benign/a.png": "image", "benign/again": "left out"}


# ---- class names ----


def test_class_names_with_spaces_and_accents_get_a_safe_name_and_both_are_kept(tmp_path: Path) -> None:
    for i, folder in enumerate(("BI-RADS 4a", "fibroadénome")):
        picture(tmp_path / folder / "a.png", i)
    assert class_names(tmp_path) == ["BI-RADS-4a", "fibroadenome"]
    config = validate({"dataset": {"path": "x"}, "classes": {"BI-RADS 4a": {}, "fibroadénome": {"images": 3}}})
    assert config.folders() == {"BI-RADS-4a": "BI-RADS 4a", "fibroadenome": "fibroadénome"}
    assert validate(config.model_dump(mode="json")) == config
    for classes in (None, config.folders(), list(config.classes)):
        found = scan(tmp_path, classes)
        assert [(image.file, image.class_name) for image in found.images] == [
            ("BI-RADS 4a/a.png", "BI-RADS-4a"),
            ("fibroadénome/a.png", "fibroadenome"),
        ]


def test_a_folder_in_another_script_is_named_by_its_class(tmp_path: Path) -> None:
    picture(tmp_path / "良性" / "a.png")
    config = validate({"dataset": {"path": "x"}, "classes": {"benign": {"folder": "良性"}}})
    assert [image.class_name for image in scan(tmp_path, config.folders()).images] == ["benign"]


def test_two_classes_of_one_safe_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two classes would be named 'a-b'"):
        validate({"dataset": {"path": "x"}, "classes": {"a b": {}, "a-b": {}}})
    picture(tmp_path / "a b" / "a.png")
    picture(tmp_path / "a-b" / "a.png")
    with pytest.raises(UserError, match="'a b' and 'a-b'"):
        scan(tmp_path, None)


# ---- leftovers ----


def test_leftovers_of_operating_systems_are_counted_and_never_read(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "a.png")
    for name in (
        "benign/._a.png", "benign/.DS_Store", "benign/Thumbs.db", "desktop.ini", "__MACOSX/benign/._a.png",
        "__MACOSX/benign/b.png", "benign/.ipynb_checkpoints/a-checkpoint.png", "benign/Icon\r", ".git/HEAD",
        "benign/a.png~", "benign/@eaDir/a.png", "$RECYCLE.BIN/x.png",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    for classes in (None, ["benign"]):
        found = scan(tmp_path, classes)
        assert [image.file for image in found.images] == ["benign/a.png"] and found.unreadable == ()
        assert len(found.account.files) == files(tmp_path) == 13
        assert "12 left out" in found.account.line()


def test_the_data_set_of_a_plain_folder_is_what_it_was(tmp_path: Path) -> None:
    for i in range(12):
        for k, name in enumerate(CLASSES):
            picture(tmp_path / name / f"{i}.png", 100 * k + i)
            mask(tmp_path / name / f"{i}_mask.png")
    found = scan(tmp_path, CLASSES)
    assert [image.file for image in found.images] == sorted(f"{c}/{i}.png" for c in CLASSES for i in range(12))
    for image in found.images:
        assert image.sha256 == sha256_file(tmp_path / image.file)
        assert image.masks == (image.file.replace(".png", "_mask.png"),) and image.frame == 0


def test_advice_about_a_split_that_lacks_a_side_is_one_that_works(tmp_path: Path) -> None:
    data = tmp_path / "a b"
    for side, n in (("train", 5), ("test", 3)):
        for k, name in enumerate(CLASSES):
            for i in range(n):
                picture(data / side / name / f"{i}.png", 100 * (side == "test") + 10 * k + i)
    for given in (settings(), settings(split="folders")):
        with pytest.raises(UserError) as caught:
            scan(data, CLASSES, settings=given)
        said = str(caught.value)
        assert "train 10, test 6" in said
        assert "A folder val is missing: move some images of each class out of train into val/CLASS" in said
        assert "busray check" not in said  # it would be refused
    for name in CLASSES:
        (data / "val" / name).mkdir(parents=True)
        (data / "train" / name / "0.png").rename(data / "val" / name / "0.png")
    assert len(scan(data, CLASSES, settings=settings(split="folders")).sides) == 16
    with pytest.raises(UserError) as caught:
        scan(data, CLASSES)
    command = str(caught.value).partition("(busray ")[2].partition(")")[0]
    assert main(shlex.split(command)) == 0  # the folder's name has a space


def test_files_beside_a_given_split_are_said_with_what_to_do(tmp_path: Path) -> None:
    for k, side in enumerate(("train", "val", "test", "unlabelled")):
        picture(tmp_path / side / "benign" / "a.png", k)
    with pytest.raises(UserError) as caught:
        scan(tmp_path, None, settings=settings(split="folders"))
    assert "1 files, such as unlabelled/benign/a.png, are in none of them: move them out" in str(caught.value)


def test_classes_in_several_folders_are_told_how_to_be_put_together(tmp_path: Path) -> None:
    for k, site in enumerate(("site A", "site B")):
        for j, name in enumerate(CLASSES):
            picture(tmp_path / site / name / "a.png", 10 * k + j)
    with pytest.raises(UserError) as caught:
        scan(tmp_path, CLASSES)
    commands = [line for line in str(caught.value).splitlines() if line.startswith("mkdir ")]
    for command in commands:
        assert os.system(command) == 0
    files = [image.file for image in scan(tmp_path, CLASSES).images]
    assert files == [f"{name}/{site}/a.png" for name in CLASSES for site in ("site A", "site B")]
    assert "2 folders have the same folders" not in str(caught.value)


def test_folders_that_all_hold_the_same_folders_are_said_to_be_no_classes(tmp_path: Path) -> None:
    for k, site in enumerate(("P1", "P2")):
        for j, name in enumerate(CLASSES):
            picture(tmp_path / site / name / "a.png", 10 * k + j)
    (said,) = scan(tmp_path, None).account.remarks()
    assert said.startswith("the folders P1, P2 are taken for classes, and each holds benign, malignant")
