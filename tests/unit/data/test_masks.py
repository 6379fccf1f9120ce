"""Masks of a data set, framed as their images are; what an image's files do not say is not made up."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busray.data.frame import frame_mask
from busray.data.images import load_masks
from busray.data.read import scan
from busray.records import SourceImage


@pytest.fixture
def images(tmp_path: Path, rng: np.random.Generator) -> dict[str, SourceImage]:
    """Images 40 wide and 20 high: with two masks, an empty one, none, one of another size, one that is no picture."""
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


@pytest.mark.parametrize("policy", ["letterbox", "stretch", "centre"])
def test_several_masks_are_one_and_framed_as_the_image(
    images: dict[str, SourceImage], tmp_path: Path, policy: str
) -> None:
    masks, known = load_masks(tmp_path, [images["two"]], 32, policy)
    both = np.zeros((20, 40), bool)
    both[5:10, 4:12] = both[12:16, 24:36] = True
    assert known.all() and masks.dtype == bool
    assert (masks[0] == frame_mask(both, 32, policy)).all() and masks.any()


def test_an_empty_mask_says_that_there_is_no_lesion_and_no_or_an_unusable_one_says_nothing(
    images: dict[str, SourceImage], tmp_path: Path
) -> None:
    masks, known = load_masks(tmp_path, list(images.values()), 32, "letterbox")
    assert dict(zip(images, known.tolist(), strict=True)) == {
        "two": True,
        "empty": True,
        "none": False,
        "wrong": False,
        "torn": False,
    }
    assert [name for name, mask in zip(images, masks, strict=True) if mask.any()] == ["two"]


def test_no_images_have_no_masks(tmp_path: Path) -> None:
    masks, known = load_masks(tmp_path, [], 32, "letterbox")
    assert (masks.shape, masks.dtype, known.shape) == ((0, 32, 32), bool, (0,))
