"""Burned-in text and calipers: what a scanner draws over the tissue, found by its shape.

Drawn strokes are thin, of one brightness and sharp on both sides; tissue is rarely all three.
Calipers are crosses, `+` or `x`; text is a line of two or more strokes of similar height. Not
found: a single letter, strokes that fade into bright tissue, dotted lines without a cross, body
marks. The maker's mark in the top strip does not count as text: most images of BUSI show some of
it. benchmarks/annotations.md has the measured recall and precision.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

KINDS = ("calipers", "text")
# Height in pixels, within a factor of 1.5, at which the sizes below hold; larger images are
# reduced
HEIGHT = 320
REACH = 4  # least length in pixels of a caliper's arms
NEAR = 5  # crosses with centres at most this many pixels apart are one caliper
DIM = 110  # least grey level (of 255) of a caliper's arms: some are translucent
EVEN = 60  # largest difference in grey level between the arms of one caliper
# Directions (y, x) of the arms of `+` and `x`
UPRIGHT, DIAGONAL = ((0, 1), (1, 0)), ((1, 1), (1, -1))
# Grey levels by which the arms of a `+` are brighter than the pixels beside them
UPRIGHT_CONTRAST = 45
# The same for `x`. Two are required: a single one is often a crossing of fibres.
DIAGONAL_CONTRAST = 80
BRIGHT = 150  # least grey level of a letter's strokes
SHARP = 60  # grey levels by which strokes are brighter than the tissue around them
STROKE = 5  # side in pixels of the square that no stroke fills
LETTER = (7, 24)  # height of a letter, in pixels
TOP = 0.06  # share of the height at the top where the maker's mark lies


@dataclass(frozen=True)
class Annotations:
    """How much was found in an image."""

    crosses: int  # caliper crosses
    letters: int  # letters in lines of two or more

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of KINDS that the image is flagged for."""
        return (("calipers",) if self.crosses else ()) + (("text",) if self.letters else ())


def find_annotations(grey: np.ndarray) -> Annotations:
    """Search an image uint8 [h, w] as it is in its file; framing would blur the strokes."""
    grey = reduced(grey)
    upright = caliper_crosses(grey, UPRIGHT, UPRIGHT_CONTRAST)
    letters = list(chain.from_iterable(text_lines(grey, upright)))
    diagonal = 0
    for y, x in caliper_crosses(grey, DIAGONAL, DIAGONAL_CONTRAST):
        diagonal += not any(glyph.holds(y, x) for glyph in letters)  # a letter's strokes cross
    return Annotations(len(upright) + (diagonal if diagonal > 1 else 0), len(letters))


def reduced(grey: np.ndarray) -> np.ndarray:
    """The image averaged over squares of whole pixels, its height as near to HEIGHT as it gets."""
    n = max(1, round(grey.shape[0] / HEIGHT))
    h, w = grey.shape[0] // n * n, grey.shape[1] // n * n
    if n == 1 or w == 0:
        return grey
    return grey[:h, :w].reshape(h // n, n, w // n, n).mean((1, 3)).round().astype(np.uint8)


# ---- calipers ----

Axes = tuple[tuple[int, int], tuple[int, int]]


def caliper_crosses(grey: np.ndarray, axes: Axes, contrast: int) -> list[tuple[int, int]]:
    """Centres (y, x) of crosses of four even, sharp arms along two axes."""
    centres: list[tuple[int, int]] = []
    for ys, xs in components(_centres(grey, axes, contrast)):
        y, x = round(ys.mean()), round(xs.mean())
        if all(max(abs(y - b), abs(x - a)) > NEAR for b, a in centres):
            centres.append((y, x))
    return centres


def _centres(grey: np.ndarray, axes: Axes, contrast: int) -> np.ndarray:
    """bool [h, w]: where four arms meet, each brighter than its sides for most of its length."""
    h, w = grey.shape
    beside = 4  # more than the pixels from a stroke to its sides
    padded = np.pad(grey, REACH + beside, mode="edge").astype(np.int16)
    rows, columns = h + 2 * REACH, w + 2 * REACH

    def at(y: int, x: int) -> np.ndarray:
        """The grey levels beside those of the image and of a margin of REACH."""
        return padded[beside + y : beside + y + rows, beside + x : beside + x + columns]

    centres, levels = np.ones((h, w), bool), []
    for (dy, dx), (ny, nx) in (axes, axes[::-1]):
        # A stroke is 1 or 2 pixels wide: an arm's level is the brighter of two neighbours.
        level = np.maximum(at(0, 0), at(ny, nx))
        sides = np.maximum(at(-2 * ny, -2 * nx), at(3 * ny, 3 * nx))
        bright, sharp = level >= DIM, level - sides >= contrast
        for steps in (range(2, REACH + 1), range(-REACH, -1)):
            parts = [np.s_[REACH + k * dy : REACH + k * dy + h, REACH + k * dx : REACH + k * dx + w] for k in steps]
            near, middle, far = (sharp[part] for part in parts)
            centres &= (near & middle) | (far & (near | middle))  # two of three
            for part in parts:
                centres &= bright[part]
            levels.append([level[part] for part in parts])
    # Few pixels are left, and only the levels of their arms are compared.
    ys, xs = np.divmod(np.flatnonzero(centres), w)
    dimmest = [np.minimum.reduce([level[ys, xs] for level in arm]) for arm in levels]
    uneven = np.maximum.reduce(dimmest) - np.minimum.reduce(dimmest) > EVEN
    centres[ys[uneven], xs[uneven]] = False
    return centres


# ---- text ----


@dataclass(frozen=True)
class Glyph:
    """The bounding box of one connected stroke, ends included."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top + 1

    def holds(self, y: int, x: int) -> bool:
        return self.top <= y <= self.bottom and self.left <= x <= self.right


def text_lines(grey: np.ndarray, crosses: Sequence[tuple[int, int]] = ()) -> list[list[Glyph]]:
    """Lines of two or more letters of similar height, near each other. Calipers are no letters."""
    lines: list[list[Glyph]] = []
    for glyph in sorted(letter_boxes(grey), key=lambda glyph: glyph.left):
        if any(glyph.holds(y, x) for y, x in crosses):
            continue
        for line in lines:
            if _follows(glyph, line[-1]):
                line.append(glyph)
                break
        else:
            lines.append([glyph])
    return [line for line in lines if len(line) > 1]


def _follows(glyph: Glyph, last: Glyph) -> bool:
    level = abs(glyph.bottom - last.bottom) <= 2 and abs(glyph.height - last.height) <= 3
    return level and 0 < glyph.left - last.right <= 2 * last.height


def letter_boxes(grey: np.ndarray) -> list[Glyph]:
    """Boxes of bright strokes as high as a letter, below the top strip."""
    # Top-hat: grey minus its opening by a square is what is bright and narrower than STROKE.
    top_hat = grey.astype(np.int16) - _extreme(_extreme(grey, np.minimum), np.maximum)
    ys, xs, starts = _labelled((grey >= BRIGHT) & (top_hat >= SHARP))
    if not len(ys):
        return []
    top, bottom = np.minimum.reduceat(ys, starts), np.maximum.reduceat(ys, starts)
    left, right = np.minimum.reduceat(xs, starts), np.maximum.reduceat(xs, starts)
    height = bottom - top + 1
    letters = (height >= LETTER[0]) & (height <= LETTER[1]) & (right - left + 1 <= 1.5 * height)
    letters &= top >= TOP * grey.shape[0]
    return [Glyph(*box) for box in np.stack([top, left, bottom, right], axis=1)[letters].tolist()]


def _extreme(grey: np.ndarray, of: np.ufunc) -> np.ndarray:
    """The minimum (np.minimum) or maximum of the square of side STROKE around each pixel."""
    h, w = grey.shape
    padded = np.pad(grey, STROKE // 2, mode="edge")
    rows = of.reduce([padded[i : i + h] for i in range(STROKE)])
    return of.reduce([rows[:, i : i + w] for i in range(STROKE)])


def components(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, columns) of each 8-connected component of bool [h, w], by their first pixels."""
    ys, xs, starts = _labelled(mask)
    for start, end in pairwise([*starts.tolist(), len(ys)]):
        yield ys[start:end], xs[start:end]


def _labelled(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, columns) of the pixels of bool [h, w], component after component; where each starts.

    Components are 8-connected and ordered by their first pixels.
    """
    ys, xs = np.divmod(np.flatnonzero(mask), mask.shape[1])
    # Numbers of pixels in rows that are one wider, so that no row's end touches the next one.
    place = ys * (mask.shape[1] + 1) + xs
    i, j = [], []
    # Four of the eight neighbours: the pixel itself is one of the others'.
    for step in (1, mask.shape[1], mask.shape[1] + 1, mask.shape[1] + 2):
        neighbour = np.searchsorted(place, place + step)
        neighbour[neighbour == len(place)] = 0
        touching = np.flatnonzero(place[neighbour] == place + step)
        i.append(touching)
        j.append(neighbour[touching])
    i, j = np.concatenate(i), np.concatenate(j)
    # Neighbours take the smaller of their labels until none changes. SciPy is not a dependency.
    label = np.arange(len(ys))
    while (label[i] != label[j]).any():
        least = np.minimum(label[i], label[j])
        np.minimum.at(label, label[i], least)
        np.minimum.at(label, label[j], least)
        while (label[label] != label).any():
            label = label[label]  # jump to the label's own label: long components converge fast
    order = np.argsort(label, kind="stable")
    return ys[order], xs[order], np.flatnonzero(np.diff(label[order], prepend=-1))
