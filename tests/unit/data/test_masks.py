"""Masks are found by name and by content, and where it is not clear, the message asks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busray.config import Dataset
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
    assert "--dataset.masks='[\"*_other1\"]'" in str(caught.value)
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
