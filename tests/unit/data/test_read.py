"""Reading a folder: which files are images, and which masks are theirs."""

from pathlib import Path

import pytest
from PIL import Image

from busray.data.read import class_names, scan
from busray.identity import sha256_file
from busray.records import UserError


def save(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (10 + i, 8)).save(folder / name)


def test_masks_go_with_their_image(tmp_path: Path) -> None:
    save(tmp_path, "benign/b (1).png", "benign/b (1)_mask.png", "benign/b (1)_mask_1.png", "benign/b (2).png")
    one, two = scan(tmp_path, ["benign"]).images
    assert one.file == "benign/b (1).png"
    assert one.masks == ("benign/b (1)_mask.png", "benign/b (1)_mask_1.png")
    assert two.masks == ()


def test_a_mask_without_an_image_is_told(tmp_path: Path) -> None:
    save(tmp_path, "benign/a.png", "benign/a_mask.png", "benign/b_mask.png")
    assert scan(tmp_path, ["benign"]).stray_masks == ("benign/b_mask.png",)


def test_a_record_holds_size_class_and_digest(tmp_path: Path) -> None:
    save(tmp_path, "benign/a.png")
    (image,) = scan(tmp_path, ["benign"]).images
    assert (image.width, image.height, image.class_name, image.mode) == (10, 8, "benign", "L")
    assert image.sha256 == sha256_file(tmp_path / "benign" / "a.png")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path, "benign/a.png")
    (tmp_path / "benign" / "notes.txt").write_text("no image")
    (tmp_path / "benign" / "folder.png").mkdir()
    assert [image.file for image in scan(tmp_path, ["benign"]).images] == ["benign/a.png"]


def test_images_of_all_classes_come_sorted_by_file(tmp_path: Path) -> None:
    save(tmp_path, "malignant/a.png", "benign/b.png", "benign/a.png")
    files = [image.file for image in scan(tmp_path, ["malignant", "benign"]).images]
    assert files == ["benign/a.png", "benign/b.png", "malignant/a.png"]


def test_class_folders_are_found_and_hidden_ones_are_not(tmp_path: Path) -> None:
    save(tmp_path, "b/a.png", "a/a.png", ".cache/a.png")
    assert class_names(tmp_path) == ["a", "b"]


def test_folders_that_hold_nothing_to_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data folder: no folder .*nowhere"):
        class_names(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is empty"):
        class_names(tmp_path)
    (tmp_path / "benign").mkdir()
    with pytest.raises(UserError, match="class benign: no images in"):
        scan(tmp_path, ["benign"])
    with pytest.raises(UserError, match=r"class malignant: no folder .*; folders there: benign"):
        scan(tmp_path, ["malignant"])


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "data/benign/a.png", "secret/b.png")
    (tmp_path / "data" / "benign" / "b.png").symlink_to(tmp_path / "secret" / "b.png")
    with pytest.raises(UserError, match=r"b\.png: each leads out of the data folder"):
        scan(tmp_path / "data", ["benign"])
