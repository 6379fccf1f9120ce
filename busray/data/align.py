"""Whether two images show one scan at another scale or in another crop: search coarsely, align, compare fine detail.

Detail is an image less its blur, over its local spread, so that neither brightness nor one caliper decides. Each image
has a few templates (squares of its coarse detail) and many windows (squares at every place, of some sizes). Where a
template of one image correlates best with a window of the other is a guess at scale and shift; all guesses are one
matrix product. The best of each image are refined, and a pair's figure is the correlation of its fine detail where both
images show something. Ratios of scale from 0.6 to 1.67 are searched, and crops down to 0.72 of a side are found
wherever they lie; turned and stretched copies are not, and a mirrored one is found where the caller mirrors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

SIDE = 128
"""Short side of the images that are aligned, in pixels: what they keep is fine detail."""
LONGEST = 4
"""Longest side over short side; a longer image is squeezed, so that its cost stays bounded."""
COARSE = 64
"""Short side at which scale and shift are searched, in pixels."""
WINDOW = 12
"""Side of templates and windows, in pixels of their own; windows are one such pixel apart."""
BROAD, FINE = (6, 10), (3, 6)
"""Blurs that make detail, in pixels: what is taken off, and what spread is taken over. Broad detail bears the search's
half pixel of WINDOW, fine detail tells scans apart."""
TEMPLATES = 7
TEMPLATE = 0.6
"""Templates of an image, and the side of one in its short sides."""
SIZES = (0.5, 0.6, 0.71, 0.84, 1.0)
"""Sides of windows, in short sides of their image; taken both ways round, ratios of scale from 0.6 to 1.67."""
PARTNERS = 4
"""Others that each image is aligned with at most: aligning costs n, and only the matrix product n squared."""
CANDIDATE = 0.6
"""Correlation of template and window from which a pair is aligned; of different scans a twentieth reaches it."""
COARSE_MATCH = 0.35
"""Correlation of aligned coarse detail from which fine detail is compared."""
COARSE_SCALES = 1 + 0.06 * np.arange(-1, 2)
FINE_SCALES = 1 + 0.0075 * np.arange(-4, 5)
"""Relative scales that refine a guess, first between two SIZES, then between two of the former."""
OVERLAP = 0.3
"""Share of the smaller image that both must show."""

SquareBox = tuple[float, float, float]
"""Side, top and left of a square, in short sides of its image."""
Place = tuple[float, float, float]
"""(scale, dy, dx): pixel (y, x) of an image is pixel (scale y + dy, scale x + dx) of the other."""


@dataclass(frozen=True, eq=False)
class Scan:
    """An image that is aligned; its detail, which every pair that it is in needs, is made once."""

    pixels: np.ndarray
    """uint8 [h, w], the short side SIDE and the long side at most LONGEST times that."""

    @cached_property
    def coarse(self) -> np.ndarray:
        """float32: fine detail at COARSE."""
        return _detail(self.pixels, COARSE, FINE)

    @cached_property
    def broad(self) -> np.ndarray:
        """float32: broad detail at COARSE."""
        return _detail(self.pixels, COARSE, BROAD)


@dataclass(frozen=True)
class Match:
    """How two images match once aligned."""

    score: float
    """Correlation of fine detail over what both show, times the root of overlap: chance reaches more on less. 0 where
    nothing aligned."""
    scale: float
    """Pixels of the other for one of the image, both at SIDE."""
    overlap: float
    """Share of the smaller image that both show."""


NO_MATCH = Match(0.0, 1.0, 0.0)


def shrink(pixels: np.ndarray) -> Scan:
    """uint8 [h, w] of any size."""
    height, width = pixels.shape
    longest = SIDE * LONGEST
    ratio = SIDE / min(height, width)
    size = min(round(width * ratio), longest), min(round(height * ratio), longest)
    return Scan(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)))


def aligned_pairs(images: Sequence[Scan], others: Sequence[Scan] | None = None) -> list[tuple[int, int, Match]]:
    """(i, j, match) of the likeliest pairs of scans: of images with others, or i < j of one list."""
    there = _search(images, images if others is None else others)
    back = there if others is None else _search(others or [], images)
    score = np.maximum(there.score, back.score.T)
    if others is None:
        np.fill_diagonal(score, -1)
    likely = _likely(score) | {(i, j) for j, i in _likely(score.T)}
    pairs = []
    for i, j in sorted((i, j) for i, j in likely if others is not None or i < j):
        image, other = images[i], (images if others is None else others)[j]
        if there.score[i, j] >= back.score[j, i]:
            pairs.append((i, j, align(image, other, *there.guess(i, j))))
        else:
            match = align(other, image, *back.guess(j, i))
            pairs.append((i, j, Match(match.score, 1 / match.scale, match.overlap)))
    return pairs


def align(image: Scan, other: Scan, template: SquareBox, window: SquareBox) -> Match:
    """Refine the guess that a square of image is one of other."""
    match, place = align_coarsely(image, other, template, window)
    return NO_MATCH if match.score < COARSE_MATCH else align_finely(image, other, place)


def align_coarsely(image: Scan, other: Scan, template: SquareBox, window: SquareBox) -> tuple[Match, Place]:
    """The guess refined by coarse detail, for align_finely; cheap, and its score tells likely pairs from others."""
    scale = window[0] / template[0]
    guess = (scale, (window[1] - scale * template[1]) * COARSE, (window[2] - scale * template[2]) * COARSE)
    return _refine(image.coarse, other.coarse, guess, COARSE_SCALES, reach=6)


def align_finely(image: Scan, other: Scan, place: Place) -> Match:
    scale, dy, dx = place
    guess = (scale, dy * SIDE / COARSE, dx * SIDE / COARSE)
    image_detail, other_detail = (_detail(scan.pixels, SIDE, FINE) for scan in (image, other))
    return _refine(image_detail, other_detail, guess, FINE_SCALES, reach=5)[0]


# ---- the coarse search ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """The best template of each image in the windows of each other one."""

    score: np.ndarray
    """float32 [n, m]."""
    template: np.ndarray
    window: np.ndarray
    template_boxes: list[list[SquareBox]]
    window_boxes: list[list[SquareBox]]

    def guess(self, i: int, j: int) -> tuple[SquareBox, SquareBox]:
        return self.template_boxes[i][self.template[i, j]], self.window_boxes[j][self.window[i, j]]


def _search(images: Sequence[Scan], others: Sequence[Scan]) -> _Found:
    made = [templates(image) for image in images]
    every = np.concatenate([vectors for vectors, _ in made]) if made else np.zeros((0, WINDOW**2), np.float32)
    n = len(images)
    score = np.zeros((n, len(others)), np.float32)
    template, window = np.zeros(score.shape, np.uint8), np.zeros(score.shape, np.uint16)
    window_boxes = []
    for j, other in enumerate(others):
        vectors, boxes = windows(other)
        window_boxes.append(boxes)
        correlation = every @ vectors.T
        at = correlation.argmax(1)
        best = np.take_along_axis(correlation, at[:, None], 1).reshape(n, TEMPLATES)
        template[:, j] = best.argmax(1)
        score[:, j] = best.max(1)
        window[:, j] = at.reshape(n, TEMPLATES)[np.arange(n), template[:, j]]
    return _Found(score, template, window, [boxes for _, boxes in made], window_boxes)


def _likely(score: np.ndarray) -> set[tuple[int, int]]:
    """Of each row its PARTNERS best columns, from CANDIDATE on."""
    best = np.argsort(-score, axis=1, kind="stable")[:, :PARTNERS]
    return {(i, int(j)) for i, row in enumerate(best) for j in row if score[i, j] >= CANDIDATE}


def templates(image: Scan) -> tuple[np.ndarray, list[SquareBox]]:
    """Squares at the top, the middle and the bottom: float32 [TEMPLATES, WINDOW ** 2] of unit length, and where."""
    small = _resized(image.broad, WINDOW / TEMPLATE)
    down, right = small.shape[0] - WINDOW, small.shape[1] - WINDOW
    places = [(y, x) for y in (0, down) for x in (0, right // 2, right)] + [(down // 2, right // 2)]
    return _unit(np.stack([small[y : y + WINDOW, x : x + WINDOW] for y, x in places])), [
        (TEMPLATE, y * TEMPLATE / WINDOW, x * TEMPLATE / WINDOW) for y, x in places
    ]


def windows(image: Scan) -> tuple[np.ndarray, list[SquareBox]]:
    """The squares of an image at all places and SIZES: float32 [w, WINDOW ** 2] of unit length, and where each is."""
    vectors, boxes = [], []
    for size in SIZES:
        small = _resized(image.broad, WINDOW / size)
        every = np.lib.stride_tricks.sliding_window_view(small, (WINDOW, WINDOW))
        vectors.append(_unit(every.reshape(-1, WINDOW, WINDOW)))
        boxes += [(size, y * size / WINDOW, x * size / WINDOW) for y, x in np.ndindex(every.shape[:2])]
    return np.concatenate(vectors), boxes


def square(image: Scan, box: SquareBox) -> np.ndarray:
    """Any square of an image as a template: float32 [WINDOW ** 2] of unit length."""
    detail = image.broad
    side, top, left = (part * min(detail.shape) for part in box)
    # The sides of detail are rounded, so a square at the edge may lie a fraction of a pixel beyond.
    top, left = (min(at, whole - side) for at, whole in zip((top, left), detail.shape, strict=True))
    cut = Image.fromarray(detail).resize((WINDOW, WINDOW), Image.Resampling.BOX, (left, top, left + side, top + side))
    return _unit(np.asarray(cut)[None])[0]


def _unit(squares: np.ndarray) -> np.ndarray:
    vectors = squares.reshape(len(squares), -1)
    vectors = vectors - vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-3)


# ---- detail and its alignment --------------------------------------------------------------------


def _detail(image: np.ndarray, side: int, blurs: tuple[int, int]) -> np.ndarray:
    """float32: the image at a short side, less its blur, over its local spread; empty areas are about 0."""
    pixels = _resized(image.astype(np.float32), side)
    detail = pixels - _blurred(pixels, blurs[0])
    return detail / (np.sqrt(_blurred(detail * detail, blurs[1])) + 3)


def _resized(image: np.ndarray, side: float) -> np.ndarray:
    """float32 [h, w] to a short side, in pixels."""
    ratio = side / min(image.shape)
    if ratio == 1:
        return image
    size = tuple(max(round(n * ratio), round(side)) for n in image.shape[::-1])
    resampling = Image.Resampling.BOX if ratio < 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize(size, resampling))


def _blurred(image: np.ndarray, sigma: int) -> np.ndarray:
    """Two box blurs, of a Gaussian's variance; edges are repeated."""
    width = 2 * round(sigma * 6**0.5 / 2) + 1
    for axis in (0, 0, 1, 1):
        around = np.arange(-(width // 2) - 1, image.shape[axis] + width // 2)
        sums = np.cumsum(image.take(around, axis, mode="clip"), axis, dtype=np.float64)
        upper, lower = (sums[cut] if axis == 0 else sums[:, cut] for cut in (slice(width, None), slice(-width)))
        image = ((upper - lower) / width).astype(np.float32)
    return image


def _refine(image: np.ndarray, other: np.ndarray, guess: Place, scales: np.ndarray, reach: int) -> tuple[Match, Place]:
    """The best match of two details about a guess, and where.

    scales are relative to the guess, about a fixed middle; each is tried at the best of all shifts up to reach pixels.
    """
    size = [-(-(n + reach) // 16) * 16 for n in image.shape]  # mostly small factors, for the FFT
    spectrum = np.fft.rfft2(image, size)
    shifts = np.arange(-reach, reach + 1)
    best = NO_MATCH, guess
    for scale in guess[0] * scales:
        dy, dx = (at + (guess[0] - scale) * side / 2 for at, side in zip(guess[1:], image.shape, strict=True))
        product = spectrum * np.conj(np.fft.rfft2(_warped(other, image.shape, (scale, dy, dx)), size))
        near = np.fft.irfft2(product, size)[np.ix_(shifts, shifts)]
        down, right = np.unravel_index(near.argmax(), near.shape)
        place = (float(scale), float(dy - scale * shifts[down]), float(dx - scale * shifts[right]))
        match = _compare(image, other, place)
        if match.score > best[0].score:
            best = match, place
    return best


def _compare(image: np.ndarray, other: np.ndarray, place: Place) -> Match:
    both = _warped(np.ones_like(other), image.shape, place) > 0.99
    overlap = both.sum() / min(image.size, other.size / place[0] ** 2)
    if overlap < OVERLAP:
        return NO_MATCH
    a, b = image[both], _warped(other, image.shape, place)[both]
    a, b = a - a.mean(), b - b.mean()
    overlap = min(float(overlap), 1.0)
    return Match(float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-6)) * overlap**0.5, place[0], overlap)


def _warped(other: np.ndarray, shape: tuple[int, ...], place: Place) -> np.ndarray:
    """other as seen in a frame of shape; 0 where it shows nothing."""
    scale, dy, dx = place
    height, width = shape
    half = (scale - 1) / 2  # Pillow's coordinates are of pixels' corners
    matrix = (scale, 0, dx + half, 0, scale, dy + half)
    return np.asarray(
        Image.fromarray(other).transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    )
