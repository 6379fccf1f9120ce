"""Scans are found again turned, mirrored, inverted and strongly cropped, and different ones are
not."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from busray.data.align import align_turned, shrink
from busray.data.duplicates import TURNED, TurnedPair, signature, turned_scans
from busray.data.keypoints import candidates, find_points
from busray.data.phantom import CLASSES, PROBES, phantom

N = 8


@pytest.fixture(scope="module")
def scans() -> list[np.ndarray]:
    return [phantom(70 + i, CLASSES[i % 3], PROBES["general"], (200, 240)).image for i in range(N)]


def crop(image: np.ndarray, share: float, down: float, right: float) -> np.ndarray:
    """share of the sides, at a place from 0 to 1, at another size."""
    height, width = image.shape
    top, left = down * (1 - share) * height, right * (1 - share) * width
    box = (left, top, left + share * width, top + share * height)
    return np.asarray(Image.fromarray(image).resize((170, 140), Image.Resampling.BICUBIC, box=box))


def squeezed(image: np.ndarray) -> np.ndarray:
    """To a square, as images are before they are published."""
    return np.asarray(Image.fromarray(image).resize((140, 140), Image.Resampling.BICUBIC))


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """Clockwise, within its own frame; the corners are black."""
    return np.asarray(Image.fromarray(image).rotate(-degrees, Image.Resampling.BICUBIC))


def found(images: list[np.ndarray], others: list[np.ndarray] | None = None) -> list[TurnedPair]:
    theirs = None if others is None else [signature(np.ascontiguousarray(image)) for image in others]
    ours = [signature(np.ascontiguousarray(image)) for image in images]
    return turned_scans(ours, theirs, lambda i, j: True)


COPIES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], bool, float, bool]] = {
    "mirrored": (lambda image: image[:, ::-1], True, 0, False),
    "upside down": (lambda image: image[::-1], True, 180, False),
    "a quarter": (lambda image: np.rot90(image, -1), False, 90, False),
    "half": (lambda image: image[::-1, ::-1], False, 180, False),
    "three quarters": (lambda image: np.rot90(image), False, -90, False),
    "slightly": (lambda image: turned(image, 10), False, 10, False),
    "slightly back": (lambda image: turned(image, -4), False, -4, False),
    "half way": (lambda image: turned(image, 45), False, 45, False),
    "inverted": (lambda image: 255 - image, False, 0, True),
    "half of the area": (lambda image: crop(image, 0.71, 0.2, 0.6), False, 0, False),
    "half of the area at a corner": (lambda image: crop(image, 0.71, 1, 0), False, 0, False),
    "half of the area, stretched": (lambda image: squeezed(crop(image, 0.75, 0.1, 0.9)), False, 0, False),
    "together": (lambda image: 255 - turned(crop(image, 0.8, 0.5, 0.5)[:, ::-1], 7), True, 7, True),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found_and_how_it_was_made(scans: list[np.ndarray], copy: str) -> None:
    make, mirrored, degrees, inverted = COPIES[copy]
    (pair,) = found([*scans, make(scans[3])])
    assert (pair.i, pair.j) == (3, N)
    assert pair.score > TURNED + 0.2
    assert (pair.mirrored, pair.inverted) == (mirrored, inverted)
    off = (pair.degrees - degrees + 180) % 360 - 180
    assert abs(off) < 1


def test_different_scans_do_not_match(scans: list[np.ndarray]) -> None:
    assert found(scans) == []


def test_between_two_lists_only_pairs_across_are_compared(scans: list[np.ndarray]) -> None:
    ours, theirs = scans[:4], [scans[6], scans[2][:, ::-1], scans[6][::-1]]
    assert [(pair.i, pair.j) for pair in found(ours, theirs)] == [(2, 1)]
    assert [(pair.i, pair.j) for pair in found(theirs, ours)] == [(1, 2)]
    assert found([], theirs) == found(ours, []) == []


def test_the_pose_says_where_a_point_of_the_scan_lies(scans: list[np.ndarray]) -> None:
    image, other = shrink(scans[1]), shrink(np.ascontiguousarray(scans[1][:, ::-1]))
    (candidate,) = candidates([find_points(image)], [find_points(other)])
    _, pose = align_turned(image, other, candidate.pose)
    width = image.pixels.shape[1]
    for x, y in ((0, 0), (30, 80), (width, 128)):
        assert pose.of(complex(x, y)) == pytest.approx(complex(width - x, y), abs=1)


@pytest.mark.parametrize("size", [(300, 40), (7, 9), (3, 60000), (1, 1)])
def test_images_without_a_point_are_borne(size: tuple[int, int]) -> None:
    flat = np.full(size, 200, np.uint8)
    assert len(find_points(shrink(flat)).sigma) == 0
    assert found([flat, flat]) == []


def test_words_say_how_a_copy_was_made() -> None:
    assert TurnedPair(0, 1, 1, True, 0.2, False).how == "mirrored"
    assert TurnedPair(0, 1, 1, True, -90, True).how == "mirrored, turned by -90 degrees, inverted"
    assert TurnedPair(0, 1, 1, False, 0.4, False).how == "another crop"
