"""Images and masks of a data set, framed; what an image's files do not say is not made up."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busray.data.check import CheckReport
from busray.data.framing import frame_mask
from busray.data.read import scan
from busray.records import ContentBox, SourceImage
from tests.support.planted import CLASSES, image_folder


@pytest.fixture
def images(tmp_path: Path, rng: np.random.Generator) -> dict[str, SourceImage]:
    """Images 40 wide and 20 high: with two masks, an empty one, none, one of another size, one
    that is no picture."""
    (tmp_path / "benign").mkdir()

    def save(name: str, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(tmp_path / "benign" / f"{name}.png")

    for name in ("two", "empty", "none", "wrong", "torn"):
        save(name, rng.integers(0, 256, (20, 40), dtype=np.uint8))
    left, right = np.zeros((2, 20, 40), np.uint8)
    left[5:10, 4:12], right[12:16, 24:36] = 255, 255
    save("two_mask", left)
    save("two_mask_1", right)
    save("empty_mask", np.zeros((20, 40), np.uint8))
    save("wrong_mask", np.full((10, 40), 255, np.uint8))
    (tmp_path / "benign" / "torn_mask.png").write_bytes(b"no picture")
    return {Path(image.file).stem: image for image in scan(tmp_path, ["benign"]).images}


@pytest.mark.parametrize("framing", ["letterbox", "stretch", "centre"])
def test_several_masks_are_one_and_framed_as_the_image(
    images: dict[str, SourceImage], tmp_path: Path, framing: str
) -> None:
    masks = image_folder(tmp_path, 32, framing).masks([images["two"]])
    both = np.zeros((20, 40), bool)
    both[5:10, 4:12] = both[12:16, 24:36] = True
    assert masks.known.all() and masks.lesions.dtype == bool
    assert (masks.lesions[0] == frame_mask(both, 32, framing)).all() and masks.lesions.any()


def test_an_empty_mask_says_that_there_is_no_lesion_and_no_or_an_unusable_one_says_nothing(
    images: dict[str, SourceImage], tmp_path: Path
) -> None:
    masks = image_folder(tmp_path, 32).masks(list(images.values()))
    assert dict(zip(images, masks.known.tolist(), strict=True)) == {
        "two": True,
        "empty": True,
        "none": False,
        "wrong": False,
        "torn": False,
    }
    assert [name for name, mask in zip(images, masks.lesions, strict=True) if mask.any()] == ["two"]


def test_no_images_have_no_masks(tmp_path: Path) -> None:
    masks = image_folder(tmp_path, 32).masks([])
    assert (masks.lesions.shape, masks.lesions.dtype, masks.known.shape) == ((0, 32, 32), bool, (0,))


def test_images_are_loaded_framed_and_in_order(planted: Path, report: CheckReport) -> None:
    loaded = image_folder(planted).load(report.images)
    n = len(report.images)
    assert loaded.pixels.shape == (n, 64, 64) and loaded.pixels.dtype == np.uint8
    i = next(i for i, image in enumerate(report.images) if image.file == "malignant/wide.png")
    assert not loaded.pixels[i, :16].any() and not loaded.pixels[i, 48:].any()
    assert loaded.pixels[i, 16:48].any()
    assert loaded.boxes[i] == ContentBox(0, 16, 64, 32)
    assert [CLASSES[label] for label in loaded.labels] == [image.class_name for image in report.images]
    assert loaded.units[i] == "malignant/wide.png" and len(set(loaded.units)) == len(loaded) == n


def test_no_images_load_as_arrays_of_none(tmp_path: Path) -> None:
    nothing = image_folder(tmp_path).load([])
    assert (nothing.pixels.shape, nothing.boxes, len(nothing.labels), len(nothing.units)) == ((0, 64, 64), (), 0, 0)
