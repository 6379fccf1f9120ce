"""The measures of lesions against closed forms."""

import numpy as np
import pytest

from busray.records import ContentBox
from busray.vision.lesion_shape import COLUMNS, measures, outlined

WHOLE = ContentBox(0, 0, 256, 256)


def ellipse(width: float, height: float, turn: float = 0.0, side: int = 256) -> np.ndarray:
    """bool [side, side], half axes width and height in pixels, turned by radians."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    u, v = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    return (u / width) ** 2 + (v / height) ** 2 <= 1


def measured(mask: np.ndarray, box: ContentBox = WHOLE) -> dict[str, float]:
    return dict(zip(COLUMNS, measures(mask[None], [box])[0], strict=True))


@pytest.mark.parametrize(("width", "height"), [(60, 30), (30, 60), (40, 40), (15, 50)])
def test_an_ellipse_has_the_area_and_aspect_of_its_axes_and_is_elliptic(width: int, height: int) -> None:
    found = measured(ellipse(width, height))
    assert found["found"] == 1
    assert found["area"] == pytest.approx(np.pi * width * height / 256**2, rel=0.01)
    assert found["aspect"] == pytest.approx(height / width, rel=0.01)
    assert found["ellipticity"] == pytest.approx(1, abs=0.01)


def test_a_turned_ellipses_aspect_is_that_of_its_bounding_box() -> None:
    turn, a, b = 0.5, 70, 30
    tall, wide = np.hypot(a * np.sin(turn), b * np.cos(turn)), np.hypot(a * np.cos(turn), b * np.sin(turn))
    found = measured(ellipse(a, b, turn))
    assert found["aspect"] == pytest.approx(tall / wide, rel=0.01)
    assert found["ellipticity"] == pytest.approx(1, abs=0.01)


def test_a_rectangle_is_exact_and_its_ellipticity_is_nine_over_pi_squared() -> None:
    mask = np.zeros((256, 256), bool)
    mask[100:110, 50:80] = True
    assert measured(mask) == pytest.approx(
        {"found": 1, "area": 300 / 256**2, "aspect": 1 / 3, "ellipticity": 9 / np.pi**2}
    )


def test_a_spiky_lesion_is_less_elliptic_than_a_smooth_one() -> None:
    y, x = np.mgrid[:256, :256] - 127.5
    star = np.hypot(y, x) <= 50 * (1 + 0.5 * np.cos(7 * np.arctan2(y, x)))
    assert measured(star)["ellipticity"] < 0.85 < measured(ellipse(50, 50))["ellipticity"]


def test_area_is_a_share_of_the_content_and_not_of_the_square() -> None:
    half = ContentBox(0, 64, 256, 128)
    assert measured(ellipse(60, 30), half)["area"] == pytest.approx(2 * measured(ellipse(60, 30))["area"])


def test_the_largest_lesion_counts_and_a_speck_is_none() -> None:
    mask = ellipse(40, 20)
    beside = mask.copy()
    beside[5:15, 5:15] = True
    assert measured(beside) == measured(mask)
    speck = np.zeros((256, 256), bool)
    speck[:8, :8] = True  # 64 of 65,536 pixels
    for empty in (speck, np.zeros((256, 256), bool)):
        found = measured(empty)
        assert found["found"] == 0 and all(np.isnan(found[name]) for name in COLUMNS[1:])


def test_the_outline_is_outside_the_mask_and_one_pixel_wide() -> None:
    image, mask = np.full((9, 9), 7, np.uint8), np.zeros((9, 9), bool)
    mask[3:6, 0:4] = True
    line = outlined(image, mask) == 255
    assert line.sum() == 4 + 4 + 3 and not (line & mask).any()
    assert (outlined(image, np.zeros((9, 9), bool)) == image).all()
