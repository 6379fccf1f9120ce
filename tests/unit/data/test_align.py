"""Scans are found again at another scale and in another crop, and different scans are not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busray.data.align import LONGEST, SIDE, aligned_pairs, shrink
from busray.data.duplicates import ALIGNED
from busray.data.phantom import CLASSES, PROBES, phantom
from busray.data.pixels import read_grey

N = 12


@pytest.fixture(scope="module")
def scans() -> list[np.ndarray]:
    """Different phantoms, larger than the SIDE at which they are compared."""
    return [phantom(50 + i, CLASSES[i % 3], PROBES["general"], (200, 240)).image for i in range(N)]


def cut(image: np.ndarray, share: float, down: float, right: float) -> np.ndarray:
    """A part of an image as a scan of its own: share of its sides, at a place from 0 to 1,
    brighter and compressed."""
    height, width = image.shape
    top, left = down * (1 - share) * height, right * (1 - share) * width
    box = (left, top, left + share * width, top + share * height)
    return np.asarray(Image.fromarray(image).resize((150, 125), Image.Resampling.BICUBIC, box=box).point(_brighter))


def _brighter(value: float) -> float:
    return min(255, 0.8 * value + 20)


def score(pairs: list, i: int, j: int) -> float:
    return max((match.score for a, b, match in pairs if (a, b) == (i, j)), default=0.0)


def test_different_phantoms_do_not_match(scans: list[np.ndarray]) -> None:
    assert all(match.score < ALIGNED for _, _, match in aligned_pairs([shrink(scan) for scan in scans]))


@pytest.mark.parametrize("share", [0.72, 0.8, 0.93, 1.0])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.3, 0.8), (1.0, 0.5)])
def test_a_crop_is_found_with_its_scale(scans: list[np.ndarray], share: float, place: tuple[float, float]) -> None:
    smalls = [shrink(scan) for scan in scans] + [shrink(cut(scans[4], share, *place))]
    found = [(i, j, match) for i, j, match in aligned_pairs(smalls) if match.score >= ALIGNED]
    assert [(i, j) for i, j, _ in found] == [(4, N)]
    assert found[0][2].scale == pytest.approx(1 / share, rel=0.02)
    assert found[0][2].overlap > 0.95


def test_two_crops_that_overlap_are_found(scans: list[np.ndarray]) -> None:
    crops = [cut(scans[4], 0.8, 0.0, 0.0), cut(scans[4], 0.75, 0.6, 0.7)]
    ((_, _, match),) = aligned_pairs([shrink(crop) for crop in crops])
    assert match.score >= ALIGNED
    assert 0.4 < match.overlap < 0.8


def test_between_two_lists_only_pairs_across_are_compared(scans: list[np.ndarray]) -> None:
    ours = [shrink(scan) for scan in scans[:5]]
    theirs = [shrink(scans[7]), shrink(cut(scans[2], 0.8, 0.5, 0.5)), shrink(scans[7])]
    found = [(i, j) for i, j, match in aligned_pairs(ours, theirs) if match.score >= ALIGNED]
    assert found == [(2, 1)]
    back = [(i, j) for i, j, match in aligned_pairs(theirs, ours) if match.score >= ALIGNED]
    assert back == [(1, 2)]
    assert aligned_pairs([], theirs) == aligned_pairs(ours, []) == aligned_pairs([]) == []


def test_a_mirrored_copy_is_found_where_the_caller_mirrors(scans: list[np.ndarray]) -> None:
    ours, mirrored = shrink(scans[3]), shrink(scans[3][:, ::-1])
    assert score(aligned_pairs([ours], [mirrored]), 0, 0) < ALIGNED
    assert score(aligned_pairs([ours], [shrink(mirrored.pixels[:, ::-1])]), 0, 0) > 0.9


def test_empty_and_very_long_images_are_borne() -> None:
    black, white = np.zeros((300, 40), np.uint8), np.full((7, 9), 255, np.uint8)
    long = np.random.default_rng(0).integers(0, 255, (3, 60000), np.uint8)
    assert shrink(long).pixels.shape == (SIDE, LONGEST * SIDE)
    pairs = aligned_pairs([shrink(black), shrink(black), shrink(white), shrink(long)])
    assert all(match.score < ALIGNED for _, _, match in pairs)


# ---- the real images ----

ANOTHER_CROP = [
    ("benign/benign (253).png", "benign/benign (213).png"),
    ("malignant/malignant (129).png", "malignant/malignant (128).png"),
    ("malignant/malignant (80).png", "malignant/malignant (81).png"),
]


@pytest.mark.parametrize("pair", ANOTHER_CROP)
def test_busis_copies_at_another_scale_match(busi: Path, pair: tuple[str, str]) -> None:
    ((_, _, match),) = aligned_pairs([shrink(read_grey(busi / file)) for file in pair])
    assert match.score > 2 * ALIGNED
