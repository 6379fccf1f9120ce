"""Burned-in text and calipers: what a scanner draws over the tissue, found by its shape.

Drawn strokes are thin, of one brightness and sharp on both sides; tissue is rarely all three.
Calipers are crosses, `+` or `x`; text is a line of two or more strokes of similar height. Not
found: a single letter, strokes that fade into bright tissue, dotted lines without a cross, body
marks. The maker's mark in the top strip does not count as text: most images of BUSI show some of
it. benchmarks/annotations.md has the measured recall and precision.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

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
    pad = REACH + 4
    padded = np.pad(grey, pad, mode="edge").astype(np.int16)

    def at(y: int, x: int) -> np.ndarray:
        return padded[pad + y : pad + y + h, pad + x : pad + x + w]

    meets, dimmest = np.ones((h, w), bool), []
    for (dy, dx), (ny, nx) in (axes, axes[::-1]):
        for steps in (range(2, REACH + 1), range(-REACH, -1)):
            arm, sharp = [], []
            for step in steps:
                y, x = step * dy, step * dx
                # A stroke is 1 or 2 pixels wide: an arm's level is the brighter of two neighbours.
                level = np.maximum(at(y, x), at(y + ny, x + nx))
                sides = np.maximum(at(y - 2 * ny, x - 2 * nx), at(y + 3 * ny, x + 3 * nx))
                arm.append(level)
                sharp.append(level - sides >= contrast)
            meets &= np.sum(sharp, axis=0, dtype=np.int8) > len(steps) / 2
            dimmest.append(np.minimum.reduce(arm))
    darkest, lightest = np.minimum.reduce(dimmest), np.maximum.reduce(dimmest)
    return meets & (darkest >= DIM) & (lightest - darkest <= EVEN)


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
    boxes = []
    for ys, xs in components((grey >= BRIGHT) & (top_hat >= SHARP)):
        glyph = Glyph(int(ys.min()), int(xs.min()), int(ys.max()), int(xs.max()))
        narrow = glyph.right - glyph.left + 1 <= 1.5 * glyph.height
        if narrow and LETTER[0] <= glyph.height <= LETTER[1] and glyph.top >= TOP * grey.shape[0]:
            boxes.append(glyph)
    return boxes


def _extreme(grey: np.ndarray, of: np.ufunc) -> np.ndarray:
    """The minimum (np.minimum) or maximum of the square of side STROKE around each pixel."""
    h, w = grey.shape
    padded = np.pad(grey, STROKE // 2, mode="edge")
    rows = of.reduce([padded[i : i + h] for i in range(STROKE)])
    return of.reduce([rows[:, i : i + w] for i in range(STROKE)])


def components(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, columns) of each 8-connected component of bool [h, w], by their first pixels."""
    ys, xs = np.nonzero(mask)
    number = np.full((mask.shape[0] + 2, mask.shape[1] + 2), -1)
    number[ys + 1, xs + 1] = np.arange(len(ys))
    # Four of the eight neighbours: the pixel itself is one of the others'.
    steps = ((0, 1), (1, -1), (1, 0), (1, 1))
    ahead = np.concatenate([number[ys + 1 + dy, xs + 1 + dx] for dy, dx in steps])
    i, j = np.tile(np.arange(len(ys)), 4)[ahead >= 0], ahead[ahead >= 0]
    # Neighbours take the smaller of their labels until none changes. SciPy is not a dependency.
    label = np.arange(len(ys))
    while (label[i] != label[j]).any():
        least = np.minimum(label[i], label[j])
        np.minimum.at(label, label[i], least)
        np.minimum.at(label, label[j], least)
        while (label[label] != label).any():
            label = label[label]  # jump to the label's own label: long components converge fast
    order = np.argsort(label, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(label[order])) + 1) if len(order) else ():
        yield ys[members], xs[members]
