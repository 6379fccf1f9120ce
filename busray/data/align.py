"""Whether two images show one scan at another scale or in another crop.

Detail is an image minus its blur, divided by its local spread, so that neither brightness nor one
caliper decides. Each image has a few templates (squares of its coarse detail) and many windows
(squares at every place, of several sizes). The window of another image that correlates best with a
template is a guess at scale and shift; one matrix product makes all guesses. The best guesses are
refined, and a pair's score is the correlation of fine detail where both images show something.

Found: ratios of scale from 0.6 to 1.67, and crops down to 0.72 of a side wherever they lie. Not
found by this search: turned, mirrored and inverted copies. keypoints.py guesses how those lie, and
align_turned refines its guesses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product, repeat

import numpy as np
from PIL import Image

# Short side in pixels of the images that are aligned; fine detail survives at this size
SIDE = 128
LONGEST = 4  # longest side over short side; a longer image is squeezed, which bounds its cost
COARSE = 64  # short side in pixels at which scale and shift are searched
# Side of templates and windows, in pixels of their own; windows are one such pixel apart
WINDOW = 12
# Sigmas in pixels that make detail: of the blur that is subtracted, and of the local spread. Broad
# detail tolerates the search's error of half a pixel; fine detail distinguishes scans.
BROAD, FINE = (6, 10), (3, 6)
TEMPLATES = 7  # of an image
TEMPLATE = 0.6  # side of a template, in short sides of its image
# Sides of windows, in short sides of their image. As either image can have the templates, they
# cover ratios of scale from 0.6 to 1.67.
SIZES = (0.5, 0.6, 0.71, 0.84, 1.0)
# Most others that an image is aligned with, so that alignments grow with n and not with n squared
PARTNERS = 4
# Least correlation of template and window of a pair that is aligned. One in 20 pairs of different
# scans reaches it.
CANDIDATE = 0.6
AXES = 48  # principal axes of templates that bound correlations before they are computed
# Least correlation of aligned coarse detail of a pair whose fine detail is compared
COARSE_MATCH = 0.35
# Relative scales that refine a guess: between two SIZES, then between two coarse scales
COARSE_SCALES = 1 + 0.06 * np.arange(-1, 2)
FINE_SCALES = 1 + 0.0075 * np.arange(-4, 5)
# Factors that refine a pose: degrees, then scales; coarse, then fine
TURNS = np.exp(1j * np.radians(1.5 * np.arange(-2, 3)))
SCALES = 1 + 0.03 * np.arange(-2, 3)
STRETCHES = (0.0, 0.5, 1.0)  # shares of a guess's stretch
FINE_TURNS = np.exp(1j * np.radians(0.4 * np.arange(-3, 4)))
FINER_SCALES = 1 + 0.0075 * np.arange(-3, 4)
OVERLAP = 0.3  # least share of the smaller image that both show

# Side, top and left of a square, in short sides of its image
SquareBox = tuple[float, float, float]
# (scale, dy, dx): pixel (y, x) of an image is pixel (scale y + dy, scale x + dx) of the other
Place = tuple[float, float, float]
# Of an affine map from an image to the other: x' = a x + b y + c, y' = d x + e y + f
Matrix = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, eq=False)
class Scan:
    """An image to align. Its coarse detail is computed once, since each of its pairs needs it."""

    # uint8 [h, w]: the short side is SIDE, the long side at most LONGEST times that
    pixels: np.ndarray

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

    # Correlation of fine detail where both show something, times the root of the overlap, as
    # chance correlations are higher on small areas. 0 where nothing aligned.
    score: float
    scale: float  # pixels of the other for one of the image, both at SIDE
    overlap: float  # share of the smaller image that both show


@dataclass(frozen=True)
class Pose:
    """How an image lies on another one: turned, mirrored, inverted, scaled, stretched, at a place.

    Places are complex numbers z = x + iy in pixels at SIDE, 0 at the image's corner. Place z of the
    image is place along * z + across * conj(z) + shift of the other, which is any affine map.
    """

    along: complex
    across: complex
    shift: complex
    inverted: bool  # bright where the other is dark

    @property
    def mirrored(self) -> bool:
        return abs(self.across) > abs(self.along)

    @property
    def degrees(self) -> float:
        """By how much the image is turned clockwise, after left and right are exchanged if it is
        mirrored: -180 to 180."""
        # conj(z) mirrors upside down, which is half a turn more.
        return float(np.degrees(np.angle(-self.across if self.mirrored else self.along)))

    def of(self, place: complex) -> complex:
        """Where a place of the image lies on the other."""
        return self.along * place + self.across * place.conjugate() + self.shift

    def nudged(self, factor: complex, fixed: complex) -> "Pose":
        """Turned and scaled by a factor more; a place of the image stays where it lies."""
        moved = replace(self, along=self.along * factor, across=self.across * factor)
        return replace(moved, shift=self.shift + self.of(fixed) - moved.of(fixed))

    def stretched(self, share: float, fixed: complex) -> "Pose":
        """With a share of its stretch; a place of the image stays where it lies."""
        if self.mirrored:
            changed = replace(self, along=self.along * share)
        else:
            changed = replace(self, across=self.across * share)
        return replace(changed, shift=self.shift + self.of(fixed) - changed.of(fixed))

    def moved(self, step: complex) -> "Pose":
        """As if the image was moved by a step, in its own pixels."""
        return replace(self, shift=self.of(step))

    def at(self, ratio: float) -> "Pose":
        """The same in pixels of another size: this many for one at SIDE."""
        return replace(self, shift=self.shift * ratio)

    def matrix(self) -> Matrix:
        both, rest = self.along + self.across, self.along - self.across
        return both.real, -rest.imag, self.shift.real, both.imag, rest.real, self.shift.imag


NO_MATCH = Match(0.0, 1.0, 0.0)


def shrink(pixels: np.ndarray) -> Scan:
    """The scan of an image uint8 [h, w] of any size."""
    ratio = SIDE / min(pixels.shape)
    height, width = (min(round(side * ratio), SIDE * LONGEST) for side in pixels.shape)
    return Scan(np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)))


def aligned_pairs(images: Sequence[Scan], others: Sequence[Scan] | None = None) -> list[tuple[int, int, Match]]:
    """(i, j, match) of the likeliest pairs: of images with others, or with i < j of one list."""
    # Templates are smaller than windows, so each image must be searched in the other.
    one_list = others is None
    others = images if others is None else others
    forward = _search(images, others)
    backward = forward if one_list else _search(others, images)
    score = np.maximum(forward.score, backward.score.T)
    if one_list:
        np.fill_diagonal(score, -1)
    likely = _likely(score) | {(i, j) for j, i in _likely(score.T)}
    pairs = []
    for i, j in sorted(likely):
        if one_list and i >= j:
            continue
        image, other = images[i], others[j]
        if forward.score[i, j] >= backward.score[j, i]:
            pairs.append((i, j, align(image, other, *forward.guess(i, j))))
        else:
            match = align(other, image, *backward.guess(j, i))
            pairs.append((i, j, Match(match.score, 1 / match.scale, match.overlap)))
    return pairs


def align(image: Scan, other: Scan, template: SquareBox, window: SquareBox) -> Match:
    """Refine the guess that the square `template` of image is the square `window` of other."""
    match, place = align_coarsely(image, other, template, window)
    return NO_MATCH if match.score < COARSE_MATCH else align_finely(image, other, place)


def align_coarsely(image: Scan, other: Scan, template: SquareBox, window: SquareBox) -> tuple[Match, Place]:
    """The guess refined by coarse detail, for align_finely. Cheap; its score filters pairs."""
    scale = window[0] / template[0]
    dy, dx = (window[1] - scale * template[1]) * COARSE, (window[2] - scale * template[2]) * COARSE
    return _refine(image.coarse, other.coarse, (scale, dy, dx), COARSE_SCALES, reach=6)


def align_finely(image: Scan, other: Scan, place: Place) -> Match:
    scale, dy, dx = place
    guess = (scale, dy * SIDE / COARSE, dx * SIDE / COARSE)
    return _refine(_fine(image), _fine(other), guess, FINE_SCALES, reach=5)[0]


def align_turned(image: Scan, other: Scan, guess: Pose) -> tuple[Match, Pose]:
    """Refine a guess at a pose by coarse detail, then by fine detail. (its match, the pose)"""
    ratio = COARSE / SIDE
    middle = complex(image.coarse.shape[1], image.coarse.shape[0]) / 2
    sign = -1 if guess.inverted else 1
    frame, picture = _Frame(image.coarse, reach=4), Image.fromarray(sign * other.coarse)
    match, pose = NO_MATCH, guess.at(ratio)
    # Few points stretch a guess by too much.
    for share in STRETCHES if guess.along and guess.across else (1.0,):
        start = guess.at(ratio).stretched(share, middle)
        tried = _refine_pose(frame, picture, start, (TURNS, SCALES))
        if tried[0].score > match.score:
            match, pose = tried
    if match.score < COARSE_MATCH:
        return NO_MATCH, guess
    frame = _Frame(_fine(image), reach=3)
    picture = Image.fromarray(sign * _fine(other))
    return _refine_pose(frame, picture, pose.at(1 / ratio), (FINE_TURNS, FINER_SCALES))


# ---- the coarse search ----


@dataclass(frozen=True)
class _Guesses:
    """The template of each of n images that correlates best with a window of each of m others."""

    score: np.ndarray  # float32 [n, m]; 0 where it is below CANDIDATE
    template: np.ndarray  # uint8 [n, m]: the template's number
    window: np.ndarray  # uint16 [n, m]: the window's number
    template_boxes: list[list[SquareBox]]
    window_boxes: list[list[SquareBox]]

    def guess(self, i: int, j: int) -> tuple[SquareBox, SquareBox]:
        return self.template_boxes[i][self.template[i, j]], self.window_boxes[j][self.window[i, j]]


def _search(images: Sequence[Scan], others: Sequence[Scan]) -> _Guesses:
    template_vectors, template_boxes = [np.zeros((0, WINDOW**2), np.float32)], []
    for image in images:
        vectors, boxes = templates(image)
        template_vectors.append(vectors)
        template_boxes.append(boxes)
    screen = _Screen(np.concatenate(template_vectors))
    score = np.zeros((len(images), len(others)), np.float32)
    template, window = np.zeros(score.shape, np.uint8), np.zeros(score.shape, np.uint16)
    window_boxes = []
    for j, other in enumerate(others):
        vectors, boxes = windows(other)
        window_boxes.append(boxes)
        rows, columns, correlation = screen.candidates(vectors)
        # The best of each image; of equal ones the first.
        order = np.lexsort((-correlation, rows // TEMPLATES))
        i, first = np.unique(rows[order] // TEMPLATES, return_index=True)
        best = order[first]
        score[i, j], template[i, j], window[i, j] = correlation[best], rows[best] % TEMPLATES, columns[best]
    return _Guesses(score, template, window, template_boxes, window_boxes)


class _Screen:
    """Finds the windows that correlate with templates by CANDIDATE or more.

    The templates' AXES principal axes, and the lengths of what lies beside these axes, give an
    upper bound of a correlation at a third of its cost. One correlation in 700 can reach CANDIDATE
    by its bound, and only those are computed.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        """vectors: templates, float32 [n, WINDOW ** 2]."""
        self.vectors = vectors
        self.axes = np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1]
        self.short = self._shortened(vectors)

    def _shortened(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, AXES + 1]: products of these are at least those of the vectors."""
        turned = vectors @ self.axes
        beside = np.linalg.norm(turned[:, AXES:], axis=1, keepdims=True)
        return np.concatenate([turned[:, :AXES], beside], axis=1)

    def candidates(self, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows of the templates, rows of the others [m, WINDOW ** 2], their correlations), sorted.

        A correlation below CANDIDATE is left out.
        """
        short = self._shortened(others).T.copy()
        hits = [np.zeros(0, int)]
        for start in range(0, len(self.short), 1024):  # in blocks that stay in the processor's cache
            bound = self.short[start : start + 1024] @ short
            # Rounding may leave a bound a little too low.
            hits.append(np.flatnonzero(bound >= CANDIDATE - 1e-3) + start * len(others))
        rows, columns = np.divmod(np.concatenate(hits), len(others))
        correlation = np.einsum("ij,ij->i", self.vectors[rows], others[columns])
        kept = correlation >= CANDIDATE
        return rows[kept], columns[kept], correlation[kept]


def _likely(score: np.ndarray) -> set[tuple[int, int]]:
    """(row, column) of the PARTNERS best columns of each row whose score is at least CANDIDATE."""
    best = np.argsort(-score, axis=1, kind="stable")[:, :PARTNERS]
    rows, ranks = np.nonzero(np.take_along_axis(score, best, 1) >= CANDIDATE)
    return set(zip(rows.tolist(), best[rows, ranks].tolist(), strict=True))


def templates(image: Scan) -> tuple[np.ndarray, list[SquareBox]]:
    """(float32 [TEMPLATES, WINDOW ** 2] of unit length, their squares): top, bottom and middle."""
    small = _resized(image.broad, WINDOW / TEMPLATE)
    down, right = small.shape[0] - WINDOW, small.shape[1] - WINDOW
    squares, boxes = [], []
    for y, x in (*product((0, down), (0, right // 2, right)), (down // 2, right // 2)):
        squares.append(small[y : y + WINDOW, x : x + WINDOW])
        boxes.append((TEMPLATE, y * TEMPLATE / WINDOW, x * TEMPLATE / WINDOW))
    return _unit(np.stack(squares)), boxes


def windows(image: Scan) -> tuple[np.ndarray, list[SquareBox]]:
    """(float32 [w, WINDOW ** 2] of unit length, their squares): all places and SIZES."""
    vectors, boxes = [], []
    for size in SIZES:
        small = _resized(image.broad, WINDOW / size)
        squares = np.lib.stride_tricks.sliding_window_view(small, (WINDOW, WINDOW))
        vectors.append(_unit(squares.reshape(-1, WINDOW, WINDOW)))
        top, left = np.indices(squares.shape[:2]).reshape(2, -1) * size / WINDOW
        boxes += zip(repeat(size), top.tolist(), left.tolist(), strict=False)
    return np.concatenate(vectors), boxes


def square(image: Scan, box: SquareBox) -> np.ndarray:
    """Any square of an image as a template: float32 [WINDOW ** 2] of unit length."""
    detail = image.broad
    (height, width), short = detail.shape, min(detail.shape)
    side = box[0] * short
    # The sides of detail are rounded: a square at the edge may lie a fraction of a pixel beyond.
    top, left = min(box[1] * short, height - side), min(box[2] * short, width - side)
    edges = (left, top, left + side, top + side)
    cut = Image.fromarray(detail).resize((WINDOW, WINDOW), Image.Resampling.BOX, edges)
    return _unit(np.asarray(cut)[None])[0]


def _unit(squares: np.ndarray) -> np.ndarray:
    vectors = squares.reshape(len(squares), -1)
    vectors = vectors - vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-3)


# ---- detail and its alignment ----


@lru_cache(maxsize=64)  # an image's pairs come close together; details of all would fill memory
def _fine(image: Scan) -> np.ndarray:
    """float32: fine detail at SIDE."""
    return _detail(image.pixels, SIDE, FINE)


def _detail(image: np.ndarray, side: int, blurs: tuple[int, int]) -> np.ndarray:
    """float32: the image at a short side, minus its blur, over its local spread."""
    pixels = _resized(image.astype(np.float32), side)
    detail = pixels - _blurred(pixels, blurs[0])
    # 3 grey levels keep noise of empty areas near 0.
    return detail / (np.sqrt(_blurred(detail * detail, blurs[1])) + 3)


def _resized(image: np.ndarray, side: float) -> np.ndarray:
    """float32 [h, w] scaled to a short side in pixels."""
    ratio = side / min(image.shape)
    if ratio == 1:
        return image
    size = tuple(max(round(n * ratio), round(side)) for n in image.shape[::-1])
    resampling = Image.Resampling.BOX if ratio < 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize(size, resampling))


def _blurred(image: np.ndarray, sigma: int) -> np.ndarray:
    """Blurred as by a Gaussian. Edges are repeated."""
    # Two box blurs have the Gaussian's variance, and running sums make them cheaper.
    width = 2 * round(sigma * 6**0.5 / 2) + 1
    for axis in (0, 0, 1, 1):
        around = np.arange(-(width // 2) - 1, image.shape[axis] + width // 2)
        sums = np.cumsum(image.take(around, axis, mode="clip"), axis, dtype=np.float64)
        ends = sums[width:] - sums[:-width] if axis == 0 else sums[:, width:] - sums[:, :-width]
        image = (ends / width).astype(np.float32)
    return image


class _Frame:
    """An image's detail on which others are laid. Its spectrum is computed once for all of them."""

    def __init__(self, detail: np.ndarray, reach: int) -> None:
        """reach: what is laid on it may lie up to this many pixels off, down and across."""
        self.detail, self.reach = detail, reach
        size = [-(-(n + reach) // 16) * 16 for n in detail.shape]  # small prime factors: a fast FFT
        self.size = (size[0], size[1])
        self.spectrum = np.fft.rfft2(detail, self.size)

    def matches(self, other: Image.Image, maps: Sequence[Matrix]) -> list[tuple[Match, int, int]]:
        """Of each map: the match at its best shift, and that shift, in pixels down and across.

        A shift s lays on pixel p what the map lays on p - s. One cross-correlation by FFT finds it.
        """
        (height, width), reach = self.detail.shape, self.reach
        # With a margin, as far as shifts reach. NaN where the other image shows nothing.
        laid = np.stack([_laid(other, (height, width), matrix, reach) for matrix in maps])
        shown = ~np.isnan(laid)
        laid[~shown] = 0
        centres = laid[:, reach : reach + height, reach : reach + width]
        spectra = np.fft.rfft2(centres, self.size)
        correlation = np.fft.irfft2(self.spectrum * np.conj(spectra), self.size)
        shifts = np.arange(-reach, reach + 1)
        near = correlation[:, shifts[:, None], shifts].reshape(len(maps), -1).argmax(1)
        found = []
        for matrix, values, both, at in zip(maps, laid, shown, near.tolist(), strict=True):
            down, right = int(shifts[at // len(shifts)]), int(shifts[at % len(shifts)])
            part = np.s_[reach - down :, reach - right :]
            values, both = values[part][:height, :width], both[part][:height, :width]
            found.append((self._match(values, both, matrix, other.width * other.height), down, right))
        return found

    def _match(self, values: np.ndarray, both: np.ndarray, matrix: Matrix, other_size: int) -> Match:
        """values: of the other image, 0 where it shows nothing. both [h, w]: where it does."""
        a, b, _, c, d, _ = matrix
        scale = abs(a * d - b * c) ** 0.5
        n = np.count_nonzero(both)
        overlap = n / min(self.detail.size, other_size / scale**2)
        if overlap < OVERLAP:
            return NO_MATCH
        one, two = self.detail * both, values.copy()
        mean_one, mean_two = float(one.sum()) / n, float(two.sum()) / n
        common = float(np.vdot(one, two)) - n * mean_one * mean_two
        square_one = float(np.vdot(one, one)) - n * mean_one**2
        square_two = float(np.vdot(two, two)) - n * mean_two**2
        overlap = min(overlap, 1.0)
        correlation = common / max((max(square_one, 0) * max(square_two, 0)) ** 0.5, 1e-6)
        return Match(correlation * overlap**0.5, scale, overlap)


def _laid(other: Image.Image, shape: tuple[int, int], matrix: Matrix, margin: int) -> np.ndarray:
    """`other` resampled on the pixels of an image of this shape and of a margin around it.

    float32 [h + 2 margin, w + 2 margin]; NaN where `other` shows nothing.
    """
    a, b, x, c, d, y = matrix
    moved = a, b, x - (a + b) * margin, c, d, y - (c + d) * margin
    size = shape[1] + 2 * margin, shape[0] + 2 * margin
    affine, resampling = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return np.asarray(other.transform(size, affine, moved, resampling, fillcolor=np.nan))


def _refine(image: np.ndarray, other: np.ndarray, guess: Place, scales: np.ndarray, reach: int) -> tuple[Match, Place]:
    """The best match of two details near a guess, and its place.

    scales: relative to the guess; the middle of the image stays fixed. Each is tried at its best
    shift of up to `reach` pixels.
    """
    places = []
    for scale in (guess[0] * scales).tolist():
        off = guess[0] - scale
        places.append((scale, guess[1] + off * image.shape[0] / 2, guess[2] + off * image.shape[1] / 2))
    matches = _Frame(image, reach).matches(Image.fromarray(other), [_matrix(place) for place in places])
    best = NO_MATCH, guess
    for (scale, dy, dx), (match, down, right) in zip(places, matches, strict=True):
        if match.score > best[0].score:
            best = match, (scale, dy - scale * down, dx - scale * right)
    return best


def _refine_pose(frame: _Frame, other: Image.Image, guess: Pose, factors: Sequence[np.ndarray]) -> tuple[Match, Pose]:
    """The best match of two details near a pose, and its pose.

    factors: by which the pose is turned and scaled about the image's middle, one list after the
    other. Each is tried at its best shift of up to the frame's reach.
    """
    middle = complex(frame.detail.shape[1], frame.detail.shape[0]) / 2
    best = NO_MATCH, guess
    for tried in factors:
        poses = [best[1].nudged(complex(factor), middle) for factor in tried]
        matches = frame.matches(other, [pose.matrix() for pose in poses])
        for pose, (match, down, right) in zip(poses, matches, strict=True):
            if match.score > best[0].score:
                best = match, pose.moved(complex(-right, -down))
    return best


def _matrix(place: Place) -> Matrix:
    scale, dy, dx = place
    half = (scale - 1) / 2  # Pillow's coordinates are of pixels' corners
    return scale, 0, dx + half, 0, scale, dy + half
