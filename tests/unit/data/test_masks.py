"""Masks are found by name and by content, and where it is not clear, the message asks."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busray.config import Dataset
from busray.config_file import dataset_settings
from busray.data.read import scan
from busray.records import UserError
from tests.unit.data.test_folder import mask, picture, settings, use_of


@pytest.mark.parametrize(
    "name",
    [
        "a_mask", "a_mask_1", "a_tumor", "a_GT", "a_gt", "a-mask", "a mask", "a.mask", "mask_a", "a_Mask", "a_MASK2",
        "a_seg", "a_label", "a_segmentation", "a_ground_truth", "a_mask (1)", "A_mask", "seg-a",
    ],
)  # fmt: skip
def test_masks_are_known_by_the_names_that_people_give(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "benign" / "a.png")
    mask(tmp_path / "benign" / f"{name}.png")
    (image,) = scan(tmp_path, ["benign"]).images
    assert (image.file, image.masks) == ("benign/a.png", (f"benign/{name}.png",))


def test_a_mask_is_known_by_its_levels_its_size_and_its_images_name(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "a.jpg")
    mask(tmp_path / "benign" / "a.png")
    (image,) = scan(tmp_path, ["benign"]).images
    assert (image.file, image.masks) == ("benign/a.jpg", ("benign/a.png",))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_file_with_two_levels_and_no_telling_name_is_asked_about(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / "benign" / "a.png")
    mask(tmp_path / "benign" / f"a_other1{suffix}")
    with pytest.raises(UserError) as caught:
        scan(tmp_path, ["benign"])
    assert f"benign/a_other1{suffix}" in str(caught.value) and "beside benign/a.png" in str(caught.value)
    assert "masks:  --dataset.masks='[\"*_other1\"]'" in str(caught.value)
    (image,) = scan(tmp_path, ["benign"], settings=settings(masks=["*_other1"])).images
    assert image.masks == (f"benign/a_other1{suffix}",)
    assert len(scan(tmp_path, ["benign"], settings=settings(masks=[])).images) == 2


@pytest.mark.parametrize("name", ["a_lesion.png", "masks/a.png"])
def test_a_picture_that_is_named_like_a_mask_is_asked_about(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "benign" / "a.png")
    picture(tmp_path / "benign" / name, 1)
    with pytest.raises(UserError, match="are they masks or images"):
        scan(tmp_path, ["benign"])


def test_images_that_only_end_in_such_a_word_stay_images(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "benign" / f"{i}_lesion.png", i)
    assert len(scan(tmp_path, ["benign"]).images) == 3


def test_a_mask_without_its_image_is_left_out_with_that_reason(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "a.png")
    mask(tmp_path / "benign" / "b_tumor.png")
    found = scan(tmp_path, ["benign"])
    assert found.stray_masks == ("benign/b_tumor.png",)
    assert use_of(found) == {"benign/a.png": "image", "benign/b_tumor.png": "left out"}


def test_names_alone_decide_where_they_are_given(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "a.png")
    mask(tmp_path / "benign" / "a_mask.png")
    mask(tmp_path / "benign" / "truth" / "a.png")
    found = scan(tmp_path, ["benign"], settings=settings(masks=["truth/"]))
    assert [image.masks for image in found.images] == [("benign/truth/a.png",), ()]


@pytest.mark.parametrize("pattern", ["mask", "*", "**", "a/b/", "masks/*", "", "/", "*_\u202emask"])
def test_a_pattern_that_says_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="one `\\*` for the image's name"):
        Dataset(masks=(pattern,))


def test_a_label_map_of_few_levels_in_a_folder_of_labels_is_a_mask(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "a.png")
    (tmp_path / "benign" / "labels").mkdir()
    values = np.zeros((36, 44), np.uint8)
    values[5:9], values[9:12] = 1, 2
    Image.fromarray(values).save(tmp_path / "benign" / "labels" / "a.png")
    (image,) = scan(tmp_path, ["benign"]).images
    assert image.masks == ("benign/labels/a.png",)


def advised(folder: Path, which: str) -> Dataset:
    """The settings that the question of a folder advises; which: `masks` or `images`."""
    with pytest.raises(UserError, match="are they masks or images") as caught:
        scan(folder, ["benign"])
    line = next(line for line in str(caught.value).splitlines() if f"if they are {which}:" in line)
    return dataset_settings(shlex.split(line.partition(":")[2]))


def test_the_advised_list_names_all_masks_of_the_folder(tmp_path: Path) -> None:
    for i in range(5):
        picture(tmp_path / "benign" / f"case{i}.png", i)
    for name in ("case0_mask", "case1_lbl", "lbl_case2", "case3m", "hidden/case4"):
        mask(tmp_path / "benign" / f"{name}.png")
    found = scan(tmp_path, ["benign"], settings=advised(tmp_path, "masks"))
    assert [len(image.masks) for image in found.images] == [1] * 5
    found = scan(tmp_path, ["benign"], settings=advised(tmp_path, "images"))
    assert len(found.images) == 9 and found.images[0].masks == ("benign/case0_mask.png",)


def test_numbered_masks_are_named_by_their_word(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "benign" / f"a{i}.png", i)
        mask(tmp_path / "benign" / f"a{i}_part{i}.png")
    assert advised(tmp_path, "masks").masks == ("*_part",)


def test_a_name_that_only_begins_with_the_same_letters_is_no_masks_name(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "b.png")
    mask(tmp_path / "benign" / "bilevel.png")
    with pytest.raises(UserError) as caught:
        scan(tmp_path, ["benign"])
    assert 'ilevel"' not in str(caught.value) and "rename it to IMAGE_mask" in str(caught.value)


def test_images_with_two_levels_that_no_list_names_are_said(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "a.png")
    mask(tmp_path / "benign" / "a_mask.png")
    (said,) = scan(tmp_path, ["benign"], settings=settings(masks=["*_other"])).account.remarks()
    assert said.startswith("1 images have two grey levels only") and "benign/a_mask.png" in said
