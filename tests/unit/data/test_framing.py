"""Framing: decided by an image's size alone, because a frame that follows the lesion would leak
the class."""

import inspect

import numpy as np
import pytest

from busray.data.framing import FRAMINGS, content_box, cut_share, frame, frame_mask
from busray.records import ContentBox

SIZES = [(128, 128), (500, 400), (400, 500), (1000, 31), (7, 900), (1, 1), (129, 127)]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("width, height", SIZES)
def test_the_content_box_lies_in_the_square(width: int, height: int, framing: str) -> None:
    box = content_box(width, height, 128, framing)
    assert box.left >= 0 and box.top >= 0 and box.width >= 1 and box.height >= 1
    assert box.left + box.width <= 128 and box.top + box.height <= 128
    assert box.width == 128 or box.height == 128


def test_letterbox_boxes_are_golden() -> None:
    """Shards record them and seeds choose among them: another rounding would be another corpus."""
    assert content_box(500, 400, 128, "letterbox") == ContentBox(0, 13, 128, 102)
    assert content_box(400, 500, 128, "letterbox") == ContentBox(13, 0, 102, 128)
    assert content_box(562, 471, 512, "letterbox") == ContentBox(0, 41, 512, 429)
    assert content_box(300, 300, 128, "letterbox") == ContentBox(0, 0, 128, 128)


@pytest.mark.parametrize("width, height", SIZES)
def test_letterbox_keeps_the_aspect_ratio_to_half_a_pixel_and_centres(width: int, height: int) -> None:
    box = content_box(width, height, 128, "letterbox")
    scale = 128 / max(width, height)
    assert abs(box.width - width * scale) <= 0.5 or box.width == 1
    assert abs(box.height - height * scale) <= 0.5 or box.height == 1
    assert abs((128 - box.width) - 2 * box.left) <= 1
    assert abs((128 - box.height) - 2 * box.top) <= 1


@pytest.mark.parametrize("framing", ["centre", "stretch"])
def test_the_other_framings_fill_the_square(framing: str) -> None:
    assert content_box(500, 400, 128, framing) == ContentBox(0, 0, 128, 128)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_the_frame_depends_on_the_size_alone(framing: str, rng: np.random.Generator) -> None:
    """Where a pixel lands is the same for every image of a size, whatever it shows; no mask or
    class goes in."""
    assert list(inspect.signature(content_box).parameters) == ["width", "height", "size", "framing"]
    assert list(inspect.signature(frame).parameters) == ["image", "size", "framing"]
    one, two = (rng.integers(0, 120, (60, 90)).astype(np.uint8) for _ in range(2))
    total = frame((one + two).astype(np.uint8), 32, framing).astype(int)
    assert np.abs(total - frame(one, 32, framing).astype(int) - frame(two, 32, framing)).max() <= 6  # linear: no look


@pytest.mark.parametrize("width, height", [(90, 60), (60, 90), (64, 64)])
def test_letterbox_pads_with_black_outside_the_content_box(width: int, height: int) -> None:
    framed = frame(np.full((height, width), 200, np.uint8), 64, "letterbox")
    box = content_box(width, height, 64, "letterbox")
    inside = np.zeros((64, 64), bool)
    inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
    assert framed.shape == (64, 64) and framed.dtype == np.uint8
    assert (framed[inside] == 200).all()
    assert (framed[~inside] == 0).all()


def test_an_image_can_be_unframed_by_its_content_box(phantom_image: np.ndarray) -> None:
    """What a letterbox holds is the image itself: cut out and scaled back it differs by
    resampling only."""
    from PIL import Image

    h, w = phantom_image.shape
    framed = frame(phantom_image, 256, "letterbox")
    box = content_box(w, h, 256, "letterbox")
    content = framed[box.top : box.top + box.height, box.left : box.left + box.width]
    back = np.asarray(Image.fromarray(content).resize((w, h), Image.Resampling.BOX)).astype(float)
    assert np.corrcoef(back.ravel(), phantom_image.ravel())[0, 1] > 0.98
    shifted = np.roll(back, 4, axis=1)
    assert np.corrcoef(shifted.ravel(), phantom_image.ravel())[0, 1] < 0.9  # so the first figure means something


@pytest.fixture
def phantom_image() -> np.ndarray:
    from busray.data.phantom import PROBES, phantom

    return phantom(3, "benign", PROBES["demo"], (150, 190)).image


def test_an_image_of_the_squares_size_is_left_as_it_is(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    for framing in FRAMINGS:
        assert np.array_equal(frame(image, 64, framing), image)


def test_centre_takes_the_middle_square() -> None:
    image = np.zeros((40, 100), np.uint8)
    image[:, 30:70] = 255
    assert (frame(image, 40, "centre") == 255).all()
    assert (frame(image.T, 40, "centre") == 255).all()


def test_stretch_keeps_every_part_of_the_image() -> None:
    image = np.zeros((40, 100), np.uint8)
    image[:, :50] = 255
    framed = frame(image, 64, "stretch")
    assert (framed[:, :28] == 255).all() and (framed[:, 36:] == 0).all()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_mask_is_framed_as_its_image(framing: str) -> None:
    mask = np.zeros((60, 90), bool)
    mask[20:40, 30:60] = True
    framed = frame_mask(mask, 64, framing)
    image = frame(mask.astype(np.uint8) * 255, 64, framing) > 127
    assert framed.dtype == bool
    assert (framed != image).sum() <= 0.1 * image.sum()  # nearest against Lanczos: the rim only
    assert (framed & image).any()


def test_what_a_centre_square_cuts_off_a_lesion_is_measured() -> None:
    mask = np.zeros((40, 100), bool)
    mask[10:20, 20:40] = True  # half of it left of the middle square, which starts at 30
    assert cut_share(mask, "centre") == pytest.approx(0.5)
    assert cut_share(mask, "letterbox") == cut_share(mask, "stretch") == 0
    assert cut_share(np.zeros((40, 100), bool), "centre") == 0
